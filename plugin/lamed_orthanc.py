# LaMed plugin for Orthanc: CT and MR studies go to a LaMed Node, and their state is shown.
# Copyright (C) 2026 the LaMed Node authors. SPDX-License-Identifier: AGPL-3.0-or-later
# Free software WITHOUT ANY WARRANTY; see LICENSE beside this file or <https://www.gnu.org/licenses/>.
# ruff: noqa: INP001 - Orthanc runs this file; nobody imports it
"""A stable study goes to the LaMed Node, and its state is written on the study.

Knows the standard library and Orthanc's own API; speaks DICOM (through Orthanc's C-STORE) and HTTP
to the node, and has nothing of the node's code. One file, longer than others of this
project, because Orthanc is given one file. One thread does the work, in short steps: a call into
Orthanc holds the interpreter's lock, so images are sent by one of Orthanc's own jobs.

What is remembered, and where, so that a restart loses nothing:

    study metadata LamedState       "state" or "state: reason", for people
    study metadata LamedForwarded   what the node has: a digest of each series that was sent
    global property 4242            the studies in work
    Orthanc's log of changes        studies that were still arriving when Orthanc stopped
"""

import hashlib
import http.client
import json
import queue
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import orthanc

FINAL = ("done", "rejected", "failed", "erased")
UNKNOWN = "no such study"  # the node's word; any other web server may answer 404
OURS = "AI DRAFT"  # the first words of the SeriesDescription of everything that the node makes
METADATA = {"LamedState": 4242, "LamedForwarded": 4243}  # numbers, where UserMetadata has none
PROPERTY = 4242
URL = re.compile(r"https?://[^\s/@:\[\]?#]+(:\d{1,5})?(/[^\s?#]*)?")
CONTROL = re.compile(r"[\x00-\x1f\x7f]+")

HTTP_TIMEOUT_S = 10.0
LARGEST_ANSWER = 1 << 20
LONGEST_REASON = 500
SEND_POLL_S = 0.5
FOLLOW_S = (1.0, 1.5, 15.0)  # first pause, growth, longest: between questions to the node
RETRY_S = (1.0, 2.0, 60.0)  # the same, after a failure
RESEND_S = (1.0, 4.0, 3600.0)  # the same, before all images are sent again
BEHIND_S = 120.0  # how far the worker may be behind Orthanc's log of changes
PAGE = 1000  # changes read at once


class SettingsError(ValueError):
    """The section "LaMed" of Orthanc's configuration cannot be used; Orthanc does not start."""


class Waiting(Exception):
    """It cannot go on now and is tried again; the message is for the person at the study."""


class NotThere(Waiting):
    """The node does not know the study, although it was sent."""


class Refused(Exception):
    """A request that is answered with an HTTP status and one sentence."""


@dataclass(frozen=True)
class Settings:
    """The section "LaMed" of Orthanc's configuration, checked when made."""

    Node: str = "lamed"
    Url: str = "http://127.0.0.1:8181"
    Token: str = ""
    TokenFile: str = ""
    Modalities: tuple[str, ...] = ("CT", "MR")
    AutoForward: bool = True

    def __post_init__(self) -> None:
        if not URL.fullmatch(self.Url):
            raise SettingsError(f"LaMed.Url must be http://HOST:PORT or https://, not {self.Url!r}")
        if bool(self.Token) == bool(self.TokenFile):
            raise SettingsError("LaMed needs either TokenFile or Token")
        if not self.Node or not self.Modalities:
            raise SettingsError("LaMed.Node and LaMed.Modalities must not be empty")

    @classmethod
    def parse(cls, section: dict[str, Any]) -> "Settings":
        """Read the section; every name in it must be known and its value of the right type."""
        defaults = vars(cls(Token="-"))  # noqa: S106 - no token, only what makes it valid
        values: dict[str, Any] = {}
        for name, value in section.items():
            if name not in defaults:
                raise SettingsError(f"LaMed has no setting {name!r}, only {', '.join(defaults)}")
            values[name] = tuple(map(str, value)) if isinstance(value, list) else value
            kind = type(defaults[name])
            if type(values[name]) is not kind:
                raise SettingsError(f"LaMed.{name} must be a {kind.__name__}, not {value!r}")
        return cls(**values)


# --- the node over HTTP -------------------------------------------------------------------------


class Node:
    """The node's HTTP interface; no proxy, no redirection: the token goes to one address only."""

    def complete(self, study_uid: str) -> tuple[str, str]:
        """Say that a study is complete; return its state and the reason for it."""
        return self._study("POST", study_uid, "/complete")

    def state(self, study_uid: str) -> tuple[str, str]:
        """Ask for a study's state and the reason for it."""
        return self._study("GET", study_uid)

    def problem(self) -> str:
        """Tell why the node cannot be used; empty if it can."""
        try:
            self._ask("GET", "/api/studies/0")
        except NotThere:  # nobody has a study 0: the token was good
            return ""
        except Waiting as why:
            return str(why)
        return ""

    def _study(self, method: str, study_uid: str, action: str = "") -> tuple[str, str]:
        answer = self._ask(method, f"/api/studies/{quote(study_uid, safe='')}{action}")
        return _line(answer["state"]), _line(answer.get("reason", ""))

    def _ask(self, method: str, path: str) -> dict[str, Any]:
        headers = {"Authorization": f"Bearer {self._token()}"}
        parts = urlsplit(SETTINGS.Url)
        kind = {"http": http.client.HTTPConnection, "https": http.client.HTTPSConnection}
        try:
            connection = kind[parts.scheme](parts.netloc, timeout=HTTP_TIMEOUT_S)
            try:
                connection.request(method, parts.path.rstrip("/") + path, headers=headers)
                response = connection.getresponse()
                return self._read(response.status, response.read(LARGEST_ANSWER))
            finally:
                connection.close()
        except (OSError, http.client.HTTPException) as error:
            raise Waiting(f"node unreachable at {SETTINGS.Url}: {_line(error)}") from error

    def _read(self, status: int, body: bytes) -> dict[str, Any]:
        if status in {401, 403}:
            told = "LaMed.TokenFile must name the node's api-token file"
            raise Waiting(f"the node refuses our token: {told}")
        try:
            answer = json.loads(body)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            answer = {}
        if status == http.HTTPStatus.NOT_FOUND and answer.get("error") == UNKNOWN:
            raise NotThere("the node does not know the study: are Node and Url the same node?")
        if status not in {200, 202} or not answer.get("state"):
            raise Waiting(f"{SETTINGS.Url} does not answer as a LaMed Node: HTTP status {status}")
        return answer

    def _token(self) -> str:
        """Read the token each time: the node's administrator may renew it."""
        token = SETTINGS.Token
        if SETTINGS.TokenFile:
            try:
                token = Path(SETTINGS.TokenFile).read_text(encoding="ascii").strip()
            except (OSError, ValueError) as error:
                raise Waiting(f"no token can be read from LaMed.TokenFile: {error}") from error
        if not re.fullmatch(r"[\x21-\x7e]+", token):
            raise Waiting("the token of LaMed.TokenFile or LaMed.Token is not one printable word")
        return token


# --- Orthanc ------------------------------------------------------------------------------------


class Study:
    """What Orthanc holds of one study, and what we have written on it.

    Raises
    ------
    orthanc.OrthancException
        The study is not there any more.
    """

    def __init__(self, study_id: str) -> None:
        self.id = study_id
        found = _get(f"/studies/{study_id}")
        self.uid: str = found["MainDicomTags"].get("StudyInstanceUID", "")
        self.stable: bool = found["IsStable"]
        self._metadata: dict[str, str] = _get(f"/studies/{study_id}/metadata?expand")
        series = {each["ID"]: each for each in _get(f"/studies/{study_id}/series")}
        tags = {name: each["MainDicomTags"] for name, each in series.items()}
        drafts = {name for name in tags if tags[name].get("SeriesDescription", "")[:8] == OURS}
        self.drafts = len(drafts)
        self.images: dict[str, list[str]] = {  # the instances of each series that is for the node
            name: sorted(each["Instances"])
            for name, each in series.items()
            if tags[name].get("Modality") in SETTINGS.Modalities and name not in drafts
        }

    @property
    def state(self) -> str:
        """The line that people see; empty if the study was never ours."""
        return self._metadata.get(_key("LamedState"), "")

    @property
    def ended(self) -> bool:
        """Whether nothing more is expected for what was sent."""
        return self.state == "" or self.state.split(":")[0] in FINAL

    @property
    def forwarded(self) -> dict[str, str]:
        """The digest of each series that the node has."""
        try:
            known = json.loads(self._metadata.get(_key("LamedForwarded"), "{}"))
        except ValueError:  # somebody wrote on it: send again, the node knows duplicates
            return {}
        return known if isinstance(known, dict) else {}

    def write(self, name: str, text: str) -> None:
        """Write metadata on the study."""
        orthanc.RestApiPut(f"/studies/{self.id}/metadata/{_key(name)}", text)
        self._metadata[_key(name)] = text

    def tell(self, state: str, reason: str = "") -> bool:
        """Write the state on the study; return whether it is a new one."""
        text = f"{state}: {reason}" if reason else state
        if text == self.state:
            return False
        self.write("LamedState", text)
        log = orthanc.LogWarning if reason else orthanc.LogInfo
        log(f"LaMed: study {self.id} is {text}")
        return True


def _get(path: str) -> Any:  # noqa: ANN401 - the edge where JSON enters
    return json.loads(orthanc.RestApiGet(path))


def _key(name: str) -> str:
    return name if name in CONFIGURATION.get("UserMetadata", {}) else str(METADATA[name])


def _digest(instances: list[str]) -> str:
    return hashlib.sha256("\n".join(instances).encode()).hexdigest()


def _line(text: object) -> str:
    return CONTROL.sub(" ", str(text))[:LONGEST_REASON].strip()


def _unsettled(window_s: float) -> set[str]:
    """Find the studies that changed shortly before the last change in Orthanc's log.

    Orthanc forgets at a stop that a study was still arriving: its stable event never comes.
    """
    studies: set[str] = set()
    horizon = None
    for change in _changes_backwards(_get("/changes?last")["Last"]):
        at = datetime.strptime(change["Date"], "%Y%m%dT%H%M%S")  # noqa: DTZ007 - compared only
        horizon = horizon or at - timedelta(seconds=window_s)
        if at < horizon:
            break
        if change["ChangeType"] == "StableStudy":
            studies.add(change["ID"])
        elif change["ChangeType"] == "NewInstance":
            studies |= _study_of(change["ID"])
    return studies


def _changes_backwards(last: int) -> Iterator[dict[str, Any]]:
    while last > 0:
        first = max(0, last - PAGE)
        page = _get(f"/changes?since={first}&limit={PAGE}")["Changes"]
        yield from (each for each in reversed(page) if each["Seq"] <= last)
        last = first


def _study_of(instance_id: str) -> set[str]:
    try:
        return {_get(f"/instances/{instance_id}/study")["ID"]}
    except orthanc.OrthancException:  # deleted since
        return set()


# --- the worker ---------------------------------------------------------------------------------

Step = Callable[["Work", Study], bool]


@dataclass
class Work:
    """One study in work: the next step returns whether it was the last; `due` is monotonic."""

    step: Step
    asked: bool = False  # by hand: send all of it, now
    due: float = 0.0
    pause: float = 0.0
    retry: float = 0.0
    resend: float = 0.0
    job: str = ""  # Orthanc's, while it sends
    sending: dict[str, str] = field(default_factory=dict)


class Forwarder:
    """The thread that does the work; every step is short, so that nothing waits for long."""

    def __init__(self) -> None:
        self._arrivals: queue.SimpleQueue[tuple[str, bool] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="lamed", daemon=True)
        self.works: dict[str, Work] = {}

    @property
    def running(self) -> bool:
        """Whether the thread works."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Begin, with what was in work when Orthanc stopped."""
        self._thread.start()

    def stop(self) -> None:
        """End after the step at hand; the rest is remembered."""
        self._arrivals.put(None)
        self._thread.join(HTTP_TIMEOUT_S + 5)

    def add(self, study_id: str, *, asked: bool) -> None:
        """Take a study into work; returns at once."""
        self._arrivals.put((study_id, asked))

    def _run(self) -> None:
        self._recover()
        while self._take():
            due = [each for each in self.works if self.works[each].due <= time.monotonic()]
            if due:
                self._step(min(due, key=lambda each: self.works[each].due))

    def _recover(self) -> None:
        for study_id, asked in json.loads(orthanc.GetGlobalProperty(PROPERTY, "{}")).items():
            self.works[study_id] = Work(self._look, asked=asked)
        if SETTINGS.AutoForward:
            stable_s = float(CONFIGURATION.get("StableAge", 60))
            for study_id in _unsettled(stable_s + BEHIND_S) - self.works.keys():
                # Its sender may still be at it.
                self.works[study_id] = Work(self._look, due=time.monotonic() + stable_s)
        self._remember()

    def _take(self) -> bool:
        """Take what arrived until a step is due; False at the end."""
        due = min((each.due for each in self.works.values()), default=None)
        wait = None if due is None else max(0.0, due - time.monotonic())
        try:
            arrived = self._arrivals.get(timeout=wait)
            while arrived is not None:
                self._admit(*arrived)
                arrived = self._arrivals.get_nowait()
        except queue.Empty:
            return True
        return False

    def _admit(self, study_id: str, asked: bool) -> None:  # noqa: FBT001 - as it lies in the queue
        work = self.works.setdefault(study_id, Work(self._look))
        work.asked = work.asked or asked
        if not work.job:
            work.step, work.due = self._look, 0.0
        self._remember()

    def _remember(self) -> None:
        works = {study_id: work.asked for study_id, work in self.works.items()}
        orthanc.SetGlobalProperty(PROPERTY, json.dumps(works))

    def _step(self, study_id: str) -> None:
        """Do the next thing for a study, and plan the one after it."""
        work = self.works[study_id]
        try:
            study = Study(study_id)
        except orthanc.OrthancException:  # deleted in the meantime
            ended = True
        else:
            ended = self._try(work, study)
        if ended:
            del self.works[study_id]
            self._remember()

    def _try(self, work: Work, study: Study) -> bool:
        try:
            ended = work.step(work, study)
        except (Waiting, orthanc.OrthancException) as why:
            study.tell("waiting", str(why) if isinstance(why, Waiting) else f"Orthanc: {why}")
            lost = isinstance(why, NotThere)
            if lost:
                study.write("LamedForwarded", "{}")
            if work.job or lost:
                work.step, work.job = self._look, ""
            work.retry = _longer(work.retry, RETRY_S)
            work.resend = _longer(work.resend, RESEND_S) if lost else work.resend
            work.due = time.monotonic() + (work.resend if lost else work.retry)
            return False
        work.due = time.monotonic() + work.pause
        return ended

    def _look(self, work: Work, study: Study) -> bool:
        """Start to send what the node has not got; the study has ended if there is nothing."""
        if not (study.stable or work.asked) or any(each.job for each in self.works.values()):
            work.pause = SEND_POLL_S  # more is arriving, or another study is being sent
            return False
        known = {} if work.asked else study.forwarded
        digests = {name: _digest(instances) for name, instances in study.images.items()}
        work.sending = {name: new for name, new in digests.items() if known.get(name) != new}
        work.pause = 0.0
        if work.sending:
            study.tell("sending")
            work.job = _store([each for name in work.sending for each in study.images[name]])
            work.step, work.pause = self._send, SEND_POLL_S
            return False
        if not known and not study.ended:
            study.tell("failed", "its images were deleted before the node had them")
        work.step = self._complete
        return study.ended

    def _send(self, work: Work, study: Study) -> bool:
        """See whether Orthanc has sent everything."""
        try:
            job = _get(f"/jobs/{work.job}")
        except orthanc.OrthancException as error:
            raise Waiting("Orthanc has forgotten its job; the images are sent again") from error
        if job["State"] == "Failure":
            raise Waiting(_why_not(job))
        if job["State"] == "Success":
            study.write("LamedForwarded", json.dumps(study.forwarded | work.sending))
            study.tell("sent")
            # More may have arrived, unless somebody wants just what was there.
            work.step = self._complete if work.asked else self._look
            work.job, work.asked, work.pause = "", False, 0.0
            self._remember()
        return False

    def _complete(self, work: Work, study: Study) -> bool:
        """Spare the node its waiting for more images."""
        work.step = self._follow
        return self._heard(work, study, NODE.complete)

    def _follow(self, work: Work, study: Study) -> bool:
        """Ask the node until it has ended."""
        return self._heard(work, study, NODE.state)

    def _heard(self, work: Work, study: Study, ask: Callable[[str], tuple[str, str]]) -> bool:
        state, reason = ask(study.uid)
        changed = study.tell(state, reason)
        work.pause = _longer(0.0 if changed else work.pause, FOLLOW_S)
        work.retry = 0.0
        return state in FINAL


def _longer(pause: float, steps: tuple[float, float, float]) -> float:
    first, growth, longest = steps
    return min(longest, max(first, pause * growth))


def _store(instances: list[str]) -> str:
    """Let Orthanc send instances by C-STORE; return the ID of its job."""
    path = f"/modalities/{quote(SETTINGS.Node, safe='')}/store"
    body = json.dumps({"Resources": instances, "Asynchronous": True, "Permissive": False})
    try:
        return str(json.loads(orthanc.RestApiPost(path, body))["ID"])
    except orthanc.OrthancException as error:
        if error.args[0] != orthanc.ErrorCode.INEXISTENT_ITEM:
            raise
        raise Waiting(f"Orthanc's DicomModalities has no {SETTINGS.Node!r}") from error


def _why_not(job: dict[str, Any]) -> str:
    details = _line(job.get("ErrorDetails") or job.get("ErrorDescription", "no reason given"))
    if "TCP Initialization Error" in details or "timeout" in details:
        return f"node unreachable over DICOM: {details}"
    return f"the images could not be sent: {details}"


# --- what Orthanc calls -------------------------------------------------------------------------


def status() -> dict[str, Any]:
    """GET /lamed/status: the settings in force, and whether the node answers now."""
    problem = NODE.problem()
    shown = {name: getattr(SETTINGS, name) for name in ("Node", "Url", "Modalities", "AutoForward")}
    work = {"running": FORWARDER.running, "pending": len(FORWARDER.works)}
    return {"settings": shown, **work, "reachable": not problem, "problem": problem}


def describe(study_id: str) -> dict[str, Any]:
    """GET /lamed/studies/ID: what became of one study."""
    study = Study(study_id)
    state, _, reason = study.state.partition(": ")
    told = {"study_uid": study.uid, "state": state, "reason": reason, "ended": study.ended}
    return {**told, "series": len(study.images), "drafts": study.drafts}


def send(study_id: str) -> dict[str, Any]:
    """POST /lamed/studies/ID/send: all images of a study go to the node, now."""
    described = describe(study_id)
    if not described["series"]:
        raise Refused(409, f"the study has no {' or '.join(SETTINGS.Modalities)} images")
    if not FORWARDER.running:
        raise Refused(503, "the LaMed plugin is not at work: Orthanc is starting or stopping")
    FORWARDER.add(study_id, asked=True)
    return {**described, "asked": True}


def _rest(method: str, handler: Callable[..., dict[str, Any]]) -> Callable[..., None]:
    """Turn a function that returns a dictionary into a callback that always answers JSON."""

    def callback(output: orthanc.RestOutput, uri: str, **request: Any) -> None:  # noqa: ANN401 - Orthanc's
        if request["method"] != method:
            output.SendMethodNotAllowed(method)
            return
        code, answer = _answer(uri, handler, request["groups"])
        body = json.dumps(answer)
        if code == http.HTTPStatus.OK:
            output.AnswerBuffer(body, "application/json")
        else:
            output.SetHttpHeader("Content-Type", "application/json")
            output.SendHttpStatus(code, body, len(body))

    return callback


def _answer(
    uri: str, handler: Callable[..., dict[str, Any]], groups: tuple[str, ...]
) -> tuple[int, dict[str, Any]]:
    try:
        return 200, handler(*groups)
    except Refused as why:
        return why.args[0], {"error": why.args[1]}
    except orthanc.OrthancException as error:
        known = error.args[0] == orthanc.ErrorCode.UNKNOWN_RESOURCE
        return (404, {"error": "no such study"}) if known else (500, {"error": f"Orthanc: {error}"})
    except Exception as error:  # noqa: BLE001 - the server's edge; Orthanc would say nothing
        orthanc.LogError(f"LaMed: {uri}: {error!r}")
        return 500, {"error": f"{error!r}"}


def on_change(change: int, _level: int, resource: str) -> None:
    """Take note; the worker does the rest, because Orthanc waits for this to return."""
    if change == orthanc.ChangeType.STABLE_STUDY and SETTINGS.AutoForward:
        FORWARDER.add(resource, asked=False)
    elif change == orthanc.ChangeType.ORTHANC_STARTED:
        FORWARDER.start()
    elif change == orthanc.ChangeType.ORTHANC_STOPPED:
        FORWARDER.stop()


CONFIGURATION: dict[str, Any] = json.loads(orthanc.GetConfiguration())
SETTINGS = Settings.parse(CONFIGURATION.get("LaMed", {}))
NODE = Node()
FORWARDER = Forwarder()

orthanc.RegisterOnChangeCallback(on_change)
orthanc.RegisterRestCallback("/lamed/status", _rest("GET", status))
orthanc.RegisterRestCallback("/lamed/studies/([0-9a-f-]+)", _rest("GET", describe))
orthanc.RegisterRestCallback("/lamed/studies/([0-9a-f-]+)/send", _rest("POST", send))
orthanc.ExtendOrthancExplorer(Path(__file__).with_name("lamed_explorer.js").read_text("utf-8"))
