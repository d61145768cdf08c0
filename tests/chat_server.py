"""A real HTTP server that speaks `/v1/chat/completions`, and does what a script tells it.

What it says by itself is said by an `Examiner`, who knows the made-up cases below.
"""

import json
import re
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

Body = dict[str, Any]

ORGANS = ("Liver", "Spleen", "Pancreas", "Bladder")
FINDINGS = ("Cyst", "Haemangioma", "Abscess", "Calcification")
PLACES = ("Segment II", "Segment IV", "Segment VI", "Segment VIII")
PLANES = ("Axial", "Coronal", "Sagittal", "Oblique")
PHASES = ("Arterial", "Portal venous", "Delayed", "Unenhanced")


def image(case: int) -> str:
    return f"ct_case/{case:06d}/{PLANES[case % 3]}_C__portal_venous_phase.npy"


def report(case: int) -> str:
    """A report of nobody. The examiner reads the number and knows the rest."""
    return f"Case {case}. Three lesions of the upper abdomen, no effusion."


def written(case: int) -> list[Body]:
    """The nine questions on a case, in the order of the plan; the answer stands first."""
    made = [
        ("plane", "In which plane do the slices lie?", PLANES, case % 3),
        ("phase", f"Which timing was chosen for examination {case}?", PHASES, 1),
        ("organ", f"What holds the largest lesion of examination {case}?", ORGANS, case),
    ]
    for n in range(3):
        asked = f"What is lesion number {n} of examination {case}?"
        made.append(("abnormality", asked, FINDINGS, case + n))
    for n in range(3):
        asked = f"Where does lesion number {n} of examination {case} lie?"
        made.append(("location", asked, PLACES, case + n))
    return [question(kind, asked, words, at % 4) for kind, asked, words, at in made]


def question(kind: str, asked: str, words: tuple[str, ...], at: int) -> Body:
    turned = [*words[at:], *words[:at]]
    return {"kind": kind, "question": asked, "choices": turned, "answer": words[at]}


def twins(case: int) -> list[Body]:
    """The five pairs on a case."""
    details = {
        "plane": ("shown in", PLANES[case % 3].lower() + " slices", "curved slices"),
        "phase": ("made in", "the portal venous phase", "the arterial phase"),
        "organ": ("one of", "the liver", "the spleen"),
        "abnormality": ("one with", "a cyst", "an abscess"),
        "location": ("one with a change in", "segment two", "segment nine"),
    }
    return [
        {
            "kind": kind,
            "yes": f"Is examination {case} {begin} {right}?",
            "no": f"Is examination {case} {begin} {wrong}?",
        }
        for kind, (begin, right, wrong) in details.items()
    ]


@dataclass
class Examiner:
    """Who answers: always right with a report in hand, and fond of the first choice without one."""

    guess: Callable[[str, list[str]], str] = lambda _, choices: choices[0]
    check: Callable[[str, list[str], str], str] = lambda _, __, truth: truth

    def __call__(self, body: Body) -> str:
        said = str(body["messages"][-1]["content"])
        case = re.search(r"Case (\d+)\.", said)
        kinds = {kind: int(many) for many, kind in re.findall(r'- (\d) of the kind "(\w+)"', said)}
        if '{"questions":' in said and case:
            made = [each for each in written(int(case[1])) if f'"{each["question"]}"' not in said]
            return json.dumps({"questions": of(kinds, made), "not_stated": []})
        if '{"pairs":' in said and case:
            made = [each for each in twins(int(case[1])) if f'"{each["yes"]}"' not in said]
            return json.dumps({"pairs": of(kinds, made), "not_stated": []})
        if '{"answers":' in said and case:
            return json.dumps({"answers": self._checked(said, int(case[1]))})
        (asked,) = blocks(said)
        return json.dumps({"letter": letter(self.guess(*asked[1:]), asked[2])})

    def _checked(self, said: str, case: int) -> list[Body]:
        truth = {each["question"]: each["answer"] for each in written(case)}
        for each in twins(case):
            truth |= {each["yes"]: "Yes", each["no"]: "No"}
        return [
            {"number": int(n), "letter": letter(self.check(asked, list_, truth[asked]), list_)}
            for n, asked, list_ in blocks(said)
        ]


def of(kinds: Mapping[str, int], made: list[Body]) -> list[Body]:
    have: Counter[str] = Counter()
    chosen = []
    for each in made:
        have[each["kind"]] += 1
        if have[each["kind"]] <= kinds.get(each["kind"], 0):
            chosen.append(each)
    return chosen


def blocks(said: str) -> list[tuple[str, str, list[str]]]:
    """The questions of a prompt: number, words, choices as they are shown."""
    found = re.findall(r"^(?:(\d+)\. )?(.+\?)\n((?:[A-E]\. .+\n?)+)", said, re.MULTILINE)
    return [(n, asked, re.findall(r"[A-E]\. (.+)", shown)) for n, asked, shown in found]


def letter(choice: str, shown: list[str]) -> str:
    """The letter of a choice; one that nobody offered for what is not among them."""
    return "ABCDE"[shown.index(choice)] if choice in shown else "F"


@dataclass
class Told:
    """What the server does with one request."""

    text: str | None = None
    status: int = 200
    raw: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    after_s: float = 0.0
    hang: bool = False
    trickle: bool = False
    usage: bool = True
    finish: str = "stop"
    hang_up: bool = False


def failing(status: int, message: str = "no", **headers: str) -> Told:
    raw = json.dumps({"error": {"message": message, "type": "an_error"}}).encode()
    return Told(
        status=status, raw=raw, headers={k.replace("_", "-"): v for k, v in headers.items()}
    )


@dataclass(frozen=True)
class Received:
    """A request that came."""

    path: str
    headers: Mapping[str, str]
    body: Body
    at: float

    @property
    def form(self) -> str:
        return str(self.body.get("response_format", {}).get("type", "text"))

    @property
    def said(self) -> str:
        return str(self.body["messages"][-1]["content"])


class ChatServer:
    """Counts what comes, keeps it, and answers: first by `script`, then by `otherwise`."""

    def __init__(self, otherwise: Callable[[Body], str | Told] | None = None) -> None:
        self.otherwise = otherwise or Examiner()
        self.script: deque[Told | str] = deque()
        self.forms = {"json_schema", "json_object", "text"}
        self.received: list[Received] = []
        self.answered: list[Received] = []
        self.most_at_once = 0
        self.closing = threading.Event()
        self._at_once = 0
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        chat = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = 20

            def do_POST(self) -> None:
                chat._serve(self)

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def steps(self) -> Counter[str]:
        """How many requests of which schema came."""
        schemas = (each.body["response_format"]["json_schema"]["name"] for each in self.received)
        return Counter(schemas)

    def _serve(self, handler: BaseHTTPRequestHandler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        received = Received(handler.path, dict(handler.headers), body, time.monotonic())
        with self._lock:
            self.received.append(received)
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            self._answer(handler, received)
        except (BrokenPipeError, ConnectionResetError):
            handler.close_connection = True
        finally:
            with self._lock:
                self._at_once -= 1

    def _answer(self, handler: BaseHTTPRequestHandler, received: Received) -> None:
        told = self._told(received)
        self.closing.wait(30 if told.hang else told.after_s)
        if told.hang or told.hang_up:
            handler.close_connection = True
            return
        raw = completion(told, received) if told.raw is None else told.raw
        handler.send_response(told.status)
        for name, value in {"Content-Length": str(len(raw)), **told.headers}.items():
            handler.send_header(name, value)
        handler.end_headers()
        for n, byte in enumerate(raw if told.trickle else b""):
            handler.wfile.write(bytes([byte]))
            if self.closing.wait(0.05) or n > 100:
                handler.close_connection = True
                return
        handler.wfile.write(raw)
        if told.status == 200:
            with self._lock:
                self.answered.append(received)

    def _told(self, received: Received) -> Told:
        if received.form not in self.forms:
            return failing(400, f"response_format {received.form} is not supported")
        with self._lock:
            told = self.script.popleft() if self.script else None
        told = self.otherwise(received.body) if told is None else told
        return Told(told) if isinstance(told, str) else told


def completion(told: Told, received: Received) -> bytes:
    message = {"role": "assistant", "content": told.text}
    said: Body = {
        "object": "chat.completion",
        "model": received.body["model"],
        "choices": [{"index": 0, "message": message, "finish_reason": told.finish}],
    }
    if told.usage:
        said["usage"] = {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120}
    return json.dumps(said).encode()
