"""Results go to a peer by STOW-RS, and QIDO-RS says whether it has them (PS3.18 10.5, 10.6).

Knows HTTP. Files are streamed, one after the other, as they are on the disk.
"""

import json
import uuid
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any, Final

import httpx

from dicom_node.config import Config, Destination
from dicom_node.errors import Busy, NotTaken, PeerError
from dicom_node.network import tls
from dicom_node.network.part10 import Part10

BLOCK: Final = 1 << 20
DICOM_JSON: Final = "application/dicom+json"
REFERENCED_INSTANCE: Final = "00081155"
FAILED: Final = "00081198"  # FailedSOPSequence
FAILURE_REASON: Final = "00081197"
SOP_INSTANCE: Final = "00080018"
STORED_ALREADY: Final = 0x0111  # "Duplicate SOP Instance": exactly what we wish
RETRIED: Final = {408, 425, 429}  # of 4xx; the others are the same tomorrow


def send(files: Sequence[Part10], destination: Destination, config: Config) -> None:
    """Store files at a peer.

    Raises
    ------
    NotTaken
        The peer does not take them, and never will.
    Busy
        It says to come back later.
    PeerError
        It cannot be reached, is silent, or has a fault.
    """
    boundary = uuid.uuid4().hex
    headers = {
        "Content-Type": f'multipart/related; type="application/dicom"; boundary={boundary}',
        "Accept": DICOM_JSON,
    }
    with client(destination, config) as http:
        answer = http.post("studies", headers=headers, content=_body(files, boundary))
    check(destination, answer, also={409})
    said = _failed(answer)
    failed = {uid: reason for uid, reason in said.items() if reason != STORED_ALREADY}
    if failed or (answer.status_code == httpx.codes.CONFLICT and not said):
        told = ", ".join(f"{uid} (0x{reason:04X})" for uid, reason in failed.items()) or "all"
        kind = NotTaken if all(_is_permanent(each) for each in failed.values()) else PeerError
        raise kind(f"{destination} did not store {told}")


def missing(files: Sequence[Part10], destination: Destination, config: Config) -> list[str]:
    """Ask by QIDO-RS which instances the peer does not have; raises `PeerError` as `send`."""
    gone: list[str] = []
    with client(destination, config) as http:
        ordered = sorted(files, key=lambda each: each.place)
        for (study, series), members in groupby(ordered, key=lambda each: each.place):
            answer = http.get(
                f"studies/{study}/series/{series}/instances",
                params={"includefield": SOP_INSTANCE},
                headers={"Accept": DICOM_JSON},
            )
            # A series that the peer does not have at all may be answered so.
            known = answer.status_code != httpx.codes.NOT_FOUND
            if known:
                check(destination, answer)
            found = set(_uids(answer, SOP_INSTANCE)) if known else set()
            gone += [each.sop_uid for each in members if each.sop_uid not in found]
    return gone


def probe(destination: Destination, config: Config) -> Mapping[str, str]:
    """Ask for a sign of life; give the headers of the answer. Raises `PeerError` as `send`."""
    with client(destination, config) as http:
        answer = http.get("studies", params={"limit": "1"}, headers={"Accept": DICOM_JSON})
    check(destination, answer)
    return answer.headers


def address(destination: Destination) -> tuple[str, int]:
    """Give host and port of a destination with a URL."""
    url = httpx.URL(destination.url)
    return url.host, url.port or {"http": 80, "https": 443}[url.scheme]


@contextmanager
def client(destination: Destination, config: Config) -> Iterator[httpx.Client]:
    """Have a client; what goes wrong on the way is said in the node's words."""
    secured: Any = tls.client_context(config) if destination.url.startswith("https:") else False
    try:
        with httpx.Client(
            base_url=destination.url.rstrip("/") + "/",
            auth=_authorization(destination),
            timeout=config.network_timeout_s,
            verify=secured,
            trust_env=False,
        ) as client:
            yield client
    except httpx.TimeoutException as error:
        limit = f"{config.network_timeout_s:g} s"
        raise PeerError(f"{destination} did not answer in {limit}") from error
    except httpx.HTTPError as error:
        raise PeerError(f"{destination} cannot be reached: {tls.explain(error)}") from error


def _authorization(destination: Destination) -> httpx.Auth | None:
    name = destination.token_file or destination.user_file
    if not name:
        return None
    try:
        secret = Path(name).expanduser().read_text(encoding="utf-8").strip()
    except OSError as error:
        raise PeerError(f"{destination}: cannot read {name}: {error.strerror}") from error
    if destination.user_file:
        user, _, password = secret.partition(":")
        return httpx.BasicAuth(user, password)
    return _Bearer(secret)


class _Bearer(httpx.Auth):
    """A token in the header (RFC 6750)."""

    def __init__(self, token: str) -> None:
        self._token = token

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        request.headers["Authorization"] = f"Bearer {self._token}"
        yield request


def _body(files: Sequence[Part10], boundary: str) -> Iterator[bytes]:
    for each in files:
        yield f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
        with each.path.open("rb") as file:
            while block := file.read(BLOCK):
                yield block
        yield b"\r\n"
    yield f"--{boundary}--\r\n".encode()


def check(
    destination: Destination, answer: httpx.Response, also: frozenset[int] | set[int] = frozenset()
) -> None:
    """Go on if the answer is a success, or a status of `also`; else raises as `send`."""
    code = answer.status_code
    if answer.is_success or code in also:
        return
    told = f"{destination} answered {code} {answer.reason_phrase}"
    if code in {httpx.codes.TOO_MANY_REQUESTS, httpx.codes.SERVICE_UNAVAILABLE}:
        raise Busy(told, _retry_after_s(answer))
    if 400 <= code < 500 and code not in RETRIED:  # noqa: PLR2004 - the client's fault
        hint = {401: ": token_file or user_file", 404: ": is the url right?"}.get(code, "")
        raise NotTaken(f"{told}{hint}")
    raise PeerError(told)


def _retry_after_s(answer: httpx.Response) -> float | None:
    said = answer.headers.get("Retry-After", "")
    return float(said) if said.isdigit() else None


def _failed(answer: httpx.Response) -> dict[str, int]:
    """Read the FailedSOPSequence of a response (PS3.18 10.5.3.2), if there is one."""
    if not answer.content:
        return {}
    try:
        said = json.loads(answer.content)
        items = said.get(FAILED, {}).get("Value") or []
        return {
            _value(each, REFERENCED_INSTANCE): int(_value(each, FAILURE_REASON) or 0x0110)
            for each in items
        }
    except (ValueError, AttributeError, TypeError) as error:
        raise PeerError(f"the answer to STOW-RS cannot be read: {error}") from error


def _uids(answer: httpx.Response, tag: str) -> Iterator[str]:
    if not answer.content:
        return
    try:
        for each in json.loads(answer.content):
            yield _value(each, tag)
    except (ValueError, AttributeError, TypeError) as error:
        raise PeerError(f"the answer to QIDO-RS cannot be read: {error}") from error


def _value(item: dict[str, Any], tag: str) -> str:
    return str(next(iter(item.get(tag, {}).get("Value") or [""])))


def _is_permanent(reason: int) -> bool:
    """Say whether another try could change nothing (PS3.18 Table 10.5.3-2)."""
    return reason >> 8 == 0xA9 or reason >> 12 == 0xC or reason == 0x0122  # noqa: PLR2004 - as in PS3.4
