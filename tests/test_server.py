import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from dicom_node.qa import Server, server

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 8\r\n\r\n"


@contextmanager
def serving() -> Iterator[int]:
    async def answer(request: Request) -> PlainTextResponse:
        return PlainTextResponse(str(len(await request.body())))

    app = Starlette(routes=[Route("/", answer, methods=["GET", "POST"])])
    with Server(app, "127.0.0.1", 0) as started:
        yield started.port


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    monkeypatch.setattr(server, "HEAD_S", 0.5)
    monkeypatch.setattr(server, "SILENCE_S", 0.5)
    with serving() as found:
        yield found


def connected(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), 10)


def answer_of(sock: socket.socket) -> bytes:
    said = b""
    while not said.endswith((b"\r\n0", b"\r\n8")):
        said += sock.recv(65_536)
    return said


def hung_up_after(sock: socket.socket) -> float:
    begin = time.monotonic()
    with sock:
        while sock.recv(65_536):
            pass
    return time.monotonic() - begin


@pytest.mark.parametrize("said", [b"", GET[:9], POST, POST + b"abc", GET + GET[:9]])
def test_who_stops_in_the_middle_is_hung_up_on(port: int, said: bytes) -> None:
    sock = connected(port)
    sock.sendall(said)
    assert 0.3 < hung_up_after(sock) < 8.0


def test_a_head_that_trickles_is_hung_up_on(port: int) -> None:
    sock = connected(port)
    stop = threading.Event()

    def trickle() -> None:
        try:
            while not stop.wait(0.1):
                sock.sendall(b"x")
        except OSError:
            return

    sender = threading.Thread(target=trickle)
    sender.start()
    try:
        assert hung_up_after(sock) < 4.0
    except ConnectionResetError:
        pass
    finally:
        stop.set()
        sender.join()


def test_a_slow_body_that_goes_on_is_waited_for(port: int) -> None:
    with connected(port) as sock:
        sock.sendall(POST)
        for _ in range(8):
            time.sleep(0.2)
            sock.sendall(b"a")
        assert sock.recv(65_536).startswith(b"HTTP/1.1 200")


def test_many_requests_of_one_client_are_answered(port: int) -> None:
    with connected(port) as sock:
        for said in (GET, POST + b"12345678", GET):
            sock.sendall(said)
            assert answer_of(sock).startswith(b"HTTP/1.1 200")
            time.sleep(0.3)


def test_silent_clients_keep_nobody_out(port: int) -> None:
    silent = [connected(port) for _ in range(100)]
    with connected(port) as sock:
        sock.sendall(GET)
        assert sock.recv(65_536).startswith(b"HTTP/1.1 200")
    for each in silent:
        each.close()
