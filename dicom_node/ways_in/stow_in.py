"""Instances come by STOW-RS, into the same spool as by C-STORE (PS3.18 10.5).

POST /dicom-web/studies        and    POST /dicom-web/studies/UID

Knows Starlette, the body and what is answered. Runs in the process of the SCP, whose spool it
writes. Programs show the node's token. A part is stored when it is whole, before the next is read:
who sends faster than the disk writes is held by TCP.
"""

import asyncio
import hmac
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from dicom_node.errors import BadInput, NodeError, OutOfResources, Unavailable
from dicom_node.instance import is_uid
from dicom_node.ledger import Ledger
from dicom_node.network import multipart
from dicom_node.network.multipart import Parts, WrongType
from dicom_node.spool import Announced, Spool
from dicom_node.spool.arrivals import Arrival

log = logging.getLogger(__name__)

BASE: Final = "/dicom-web"
DICOM: Final = "application/dicom"
DICOM_JSON: Final = "application/dicom+json"
SENDER: Final = "STOW-RS"
MOST_AT_ONCE: Final = 8  # bodies; each holds one part in memory
RETRY_AFTER_S: Final = 30
# PS3.18 Table 10.5.3-1 and PS3.6: tag and VR of what is answered.
RETRIEVE_URL: Final = ("00081190", "UR")
REFERENCED: Final = ("00081199", "SQ")
FAILED: Final = ("00081198", "SQ")
OTHER_FAILURES: Final = ("0008119A", "SQ")  # of parts of which nobody knows what they are
SOP_CLASS: Final = ("00081150", "UI")
SOP_INSTANCE: Final = ("00081155", "UI")
REASON: Final = ("00081197", "US")


@dataclass
class Outcome:
    """What became of the parts of one request."""

    stored: list[Announced] = field(default_factory=list)
    failed: list[tuple[Announced | None, int]] = field(default_factory=list)

    def status(self) -> int:
        """Give the HTTP status (PS3.18 Table 10.5.3-1)."""
        if not self.failed:
            return 200 if self.stored else 400
        if self.stored:
            return 202
        full = all(reason == OutOfResources.status for _, reason in self.failed)
        return 503 if full else 409

    def document(self) -> dict[str, Any]:
        """Write the Store Instances Response (PS3.18 10.5.3.2), as DICOM JSON (PS3.18 F)."""
        named = [(each, reason) for each, reason in self.failed if each is not None]
        other = [reason for each, reason in self.failed if each is None]
        items: dict[tuple[str, str], list[Any]] = {
            REFERENCED: [_identity(each) for each in self.stored],
            FAILED: [_identity(each) | _element(REASON, reason) for each, reason in named],
            OTHER_FAILURES: [_element(REASON, reason) for reason in other],
        }
        found = [_element(key, *each) for key, each in items.items() if each]
        return {
            key: value for each in (_element(RETRIEVE_URL), *found) for key, value in each.items()
        }


@dataclass(frozen=True)
class Receiver:
    """Takes the requests.

    Parameters
    ----------
    most
        Bytes that one instance may have.
    silence_s
        How long a sender may be silent in the middle of a body.
    """

    spool: Spool
    ledger: Ledger
    api_token: str
    most: int
    silence_s: float
    places: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(MOST_AT_ONCE))

    async def store(self, request: Request) -> Response:
        """Answer a POST."""
        outcome = Outcome()
        try:
            boundary = self._admitted(request)
            async with self.places:
                await self._take(request, Parts(boundary, most=self.most), outcome)
        except Refusal as error:
            return error.response
        except TimeoutError:
            return self._told(request, outcome, 408, f"silent for {self.silence_s:g} s")
        except ClientDisconnect:
            return self._told(request, outcome, 400, "the sender hung up")
        except BadInput as error:
            return self._told(request, outcome, error.http_status, str(error))
        return self._told(request, outcome, outcome.status())

    def _admitted(self, request: Request) -> bytes:
        """Look at everything before the body; give its boundary."""
        if not _bearer_is_good(request, self.api_token):
            wants = {"WWW-Authenticate": 'Bearer realm="lamed-node"'}
            raise Refusal(
                401, "expected 'Authorization: Bearer TOKEN' with the node's api-token", wants
            )
        study_uid = request.path_params.get("study_uid", "")
        if study_uid and not is_uid(study_uid):
            raise Refusal(400, "the study in the path is no UID")
        if request.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise Refusal(415, "a body with a Content-Encoding is not taken")
        if not _accepts_json(request.headers.get("Accept", "*/*")):
            raise Refusal(406, f"the answer is {DICOM_JSON}")
        try:
            boundary = multipart.boundary(request.headers.get("Content-Type", ""), of=DICOM)
        except BadInput as error:
            raise Refusal(error.http_status, str(error)) from error
        if not self.spool.has_room() or self.places.locked():
            why = "too many at once" if self.places.locked() else "no room"
            raise Refusal(503, f"{why}: come back later", {"Retry-After": str(RETRY_AFTER_S)})
        return boundary

    async def _take(self, request: Request, parts: Parts, outcome: Outcome) -> None:
        study_uid = request.path_params.get("study_uid", "")
        async for piece in _pieces(request, self.silence_s):
            for kind, content in parts.feed(piece):
                await run_in_threadpool(partial(self._keep, kind, content, study_uid, outcome))
        parts.close()

    def _keep(self, kind: str, content: bytearray, study_uid: str, outcome: Outcome) -> None:
        announced = None
        try:
            arrival = _arrival(kind, content)
            announced = arrival.announced
            arrival.store(self.spool, study_uid=study_uid)
        except NodeError as error:
            self._refused(outcome, announced, error.status, str(error))
        except Exception as error:  # the edge: the sender gets an answer, whatever it is
            log.exception("stow.error")
            self._refused(outcome, announced, NodeError.status, f"{type(error).__name__}: {error}")
        else:
            outcome.stored.append(announced)

    def _refused(
        self, outcome: Outcome, announced: Announced | None, status: int, reason: str
    ) -> None:
        outcome.failed.append((announced, status))
        self._remember(
            "instance.refused",
            calling_ae=SENDER,
            sop_uid=announced.sop_uid if announced else "",
            sop_class_uid=announced.sop_class_uid if announced else "",
            status=f"0x{status:04X}",
            reason=reason,
        )

    def _told(self, request: Request, outcome: Outcome, status: int, reason: str = "") -> Response:
        """Answer, and remember how it went."""
        counts = {"stored": len(outcome.stored), "failed": len(outcome.failed)}
        peer = request.client.host if request.client else ""
        self._remember("stow.received", peer=peer, status=status, reason=reason, **counts)
        retry = {"Retry-After": str(RETRY_AFTER_S)} if status == Unavailable.http_status else {}
        if not (outcome.stored or outcome.failed):
            return _plain(status, reason or "no part came", retry)
        warning = {"Warning": f'299 lamed-node "{_quoted(reason)}"'} if reason else {}
        return JSONResponse(outcome.document(), status, {**retry, **warning}, media_type=DICOM_JSON)

    def _remember(self, kind: str, **data: object) -> None:
        try:
            self.ledger.event(kind, study_uid=None, job_id=None, **data)
        except (
            NodeError
        ):  # a ledger that is out of order must not keep the sender without an answer
            log.exception("ledger.error", extra={"kind": kind})


class Refusal(Exception):
    """What is answered without a look at the body."""

    def __init__(self, status: int, reason: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(reason)
        self.response = _plain(status, reason, headers or {})


def create_app(
    spool: Spool, ledger: Ledger, *, api_token: str, most: int, silence_s: float
) -> Starlette:
    """Make the application; the parameters are those of `Receiver`."""
    receiver = Receiver(spool, ledger, api_token, most, silence_s)
    return Starlette(
        routes=[
            Route(f"{BASE}/studies", receiver.store, methods=["POST"]),
            Route(f"{BASE}/studies/{{study_uid}}", receiver.store, methods=["POST"]),
        ]
    )


async def _pieces(request: Request, silence_s: float) -> AsyncIterator[bytes]:
    """Give the body as it comes; `TimeoutError` if nothing does for so long."""
    stream = request.stream()
    while True:
        try:
            yield await asyncio.wait_for(anext(stream), silence_s)
        except StopAsyncIteration:
            return


def _arrival(kind: str, content: bytearray) -> Arrival:
    if multipart.media_type(kind or DICOM)[0] != DICOM:
        raise WrongType(f"a part of type {kind!r}, not {DICOM}")
    return Arrival.of(content, SENDER)


def _bearer_is_good(request: Request, api_token: str) -> bool:
    scheme, _, shown = request.headers.get("Authorization", "").partition(" ")
    same = hmac.compare_digest(shown.strip().encode(), api_token.encode())
    return scheme.lower() == "bearer" and bool(api_token) and same


def _accepts_json(accept: str) -> bool:
    kinds = {multipart.media_type(each)[0] for each in accept.split(",")}
    return bool(kinds & {DICOM_JSON, "application/json", "application/*", "*/*"})


def _identity(each: Announced) -> dict[str, Any]:
    return _element(SOP_CLASS, each.sop_class_uid) | _element(SOP_INSTANCE, each.sop_uid)


def _element(key: tuple[str, str], *values: object) -> dict[str, Any]:
    tag, vr = key
    return {tag: {"vr": vr, "Value": list(values)} if values else {"vr": vr}}


def _plain(status: int, reason: str, headers: dict[str, str]) -> Response:
    return JSONResponse({"error": reason}, status, headers)


def _quoted(reason: str) -> str:
    plain = reason.encode("ascii", "replace").decode()
    return "".join(filter(str.isprintable, plain)).replace("\\", "/").replace('"', "'")
