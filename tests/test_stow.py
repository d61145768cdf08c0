"""Results over STOW-RS to a DICOMweb server in small, and what its answers lead to."""

# ruff: noqa: F811 - fixtures of another file

import json
import ssl
import threading
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from certificates import Authority
from pydicom import dcmread
from test_delivery import finish, made, only  # noqa: F401 - fixtures

from dicom_node import delivery
from dicom_node.config import Config, Destination
from dicom_node.ledger import Ledger
from dicom_node.network import tls

Finish = Callable[..., str]


@dataclass
class Web:
    """A DICOMweb server in small: it parses what comes by the boundary, as any does."""

    code: int = 200
    failing: int = 0  # a failure reason for the first instance
    loses: bool = False
    header: dict[str, str] = field(default_factory=dict)
    secured: ssl.SSLContext | None = None
    stored: dict[str, bytes] = field(default_factory=dict)
    seen: list[tuple[str, str | None]] = field(default_factory=list)

    @contextmanager
    def up(self, **options: Any) -> Iterator[Destination]:
        web = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                web.seen.append((self.path, self.headers["Authorization"]))
                kind, _, boundary = self.headers["Content-Type"].partition("boundary=")
                assert 'multipart/related; type="application/dicom"' in kind
                body = b""
                while (size := int(self.rfile.readline(), 16)) > 0:
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
                self._answer(*web.take(body, boundary))

            def do_GET(self) -> None:
                web.seen.append((self.path, self.headers["Authorization"]))
                there = [] if web.loses else list(web.stored)
                self._answer(200, [{"00080018": {"vr": "UI", "Value": [uid]}} for uid in there])

            def _answer(self, code: int, said: Any) -> None:
                content = json.dumps(said).encode()
                self.send_response(code)
                for key, value in web.header.items():
                    self.send_header(key, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                pass

        with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            if self.secured is not None:
                server.socket = self.secured.wrap_socket(server.socket, server_side=True)
            scheme = "https" if self.secured else "http"
            thread = threading.Thread(target=server.serve_forever, args=(0.05,))
            thread.start()
            try:
                url = f"{scheme}://127.0.0.1:{server.server_port}/dicom-web"
                yield Destination(url=url, **options)
            finally:
                server.shutdown()
                thread.join()

    def take(self, body: bytes, boundary: str) -> tuple[int, Any]:
        if self.code >= 400 and self.code != 409:
            return self.code, {}
        failed = []
        for part in body.split(f"--{boundary}".encode())[1:-1]:
            content = part.partition(b"\r\n\r\n")[2].removesuffix(b"\r\n")
            uid = str(dcmread(BytesIO(content)).SOPInstanceUID)
            refused = bool(self.failing and not failed)
            if refused:
                failed.append({"00081155": {"Value": [uid]}, "00081197": {"Value": [self.failing]}})
            if not refused or self.failing == 0x0111:
                self.stored[uid] = content
        return (409 if failed else self.code), {"00081198": {"Value": failed}} if failed else {}


def test_a_dicomweb_server_gets_the_files_byte_for_byte_and_is_asked_whether_it_has_them(
    ledger: Ledger,
    config: Config,
    finish: Finish,
    made: list[Path],
    tmp_path: Path,
) -> None:
    token = tmp_path / "token"
    token.write_text("secret\n")
    web = Web()
    with web.up(token_file=str(token)) as address:
        config = replace(config, destinations=(address,))
        job_id = finish(address)
        assert delivery.deliver(ledger, config, only(ledger, job_id))
    assert list(web.stored.values()) == [path.read_bytes() for path in made]
    assert web.seen[0] == ("/dicom-web/studies", "Bearer secret")
    assert {each for _, each in web.seen} == {"Bearer secret"}
    done = only(ledger, job_id)
    assert (done.state, done.detail) == ("delivered", "3 instances stored, and found by a query")


@pytest.mark.parametrize(
    ("web", "state", "told"),
    [
        (Web(code=401), "failed", "token_file or user_file"),
        (Web(code=404), "failed", "is the url right"),
        (Web(code=413), "failed", "413"),
        (Web(code=500), "pending", "500"),
        (Web(code=503, header={"Retry-After": "120"}), "pending", "503"),
        (Web(failing=0xA700), "pending", "0xA700"),
        (Web(failing=0xC000), "failed", "0xC000"),
        (Web(failing=0x0111), "delivered", "3 instances stored"),  # it has it already
        (Web(code=408), "pending", "408"),
        (Web(code=429, header={"Retry-After": "120"}), "pending", "429"),
        (Web(loses=True), "sent", "3 instances stored"),
    ],
)
def test_what_a_dicomweb_server_answers_decides_what_follows(
    ledger: Ledger,
    config: Config,
    finish: Finish,
    web: Web,
    state: str,
    told: str,
) -> None:
    with web.up() as address:
        job_id = finish(address)
        delivery.deliver(ledger, config, only(ledger, job_id))
    ended = only(ledger, job_id)
    assert ended.state == state
    assert told in ended.detail
    if web.header:
        assert (ended.next_at - datetime.now(UTC)).total_seconds() > 100


def test_over_tls_both_sides_show_their_certificates(
    ledger: Ledger, config: Config, finish: Finish, tmp_path: Path
) -> None:
    pki = Authority(tmp_path / "pki")
    theirs, ours = pki.issue("archive"), pki.issue("lamed")
    secret = tmp_path / "user"
    secret.write_text("lamed:s:e:cret\n")
    server = tls.server_context(Config(tls_ca=str(pki.path), **theirs.settings))
    web = Web(secured=server)
    with web.up(user_file=str(secret)) as address:
        known = replace(config, destinations=(address,), tls_ca=str(pki.path), **ours.settings)
        job_id = finish(address)
        assert delivery.deliver(ledger, known, only(ledger, job_id))
        assert only(ledger, job_id).state == "delivered"
        basic = "Basic " + b64encode(b"lamed:s:e:cret").decode()
        assert {each for _, each in web.seen} == {basic}
        for settings, told in (
            ({"tls_ca": str(Authority(tmp_path / "other").path)}, "not in tls_ca"),
            ({"tls_certificate": "", "tls_key": ""}, "certificate"),
        ):
            job_id = finish(address)
            stranger = replace(known, **settings)
            assert not delivery.deliver(ledger, stranger, only(ledger, job_id))
            assert only(ledger, job_id).state == "pending"
            assert told in only(ledger, job_id).detail


def test_a_token_that_cannot_be_read_is_named(
    ledger: Ledger, config: Config, finish: Finish, tmp_path: Path
) -> None:
    with Web().up(token_file=str(tmp_path / "none")) as address:
        job_id = finish(address)
        config = replace(config, destinations=(address,))
        assert not delivery.deliver(ledger, config, only(ledger, job_id))
    assert only(ledger, job_id).state == "pending"
    assert f"cannot read {tmp_path / 'none'}" in only(ledger, job_id).detail


def test_a_dicomweb_server_that_is_not_there_is_said(
    ledger: Ledger,
    config: Config,
    finish: Finish,
) -> None:
    with Web().up() as address:
        pass
    job_id = finish(address)
    assert not delivery.deliver(ledger, config, only(ledger, job_id))
    assert "cannot be reached" in only(ledger, job_id).detail
