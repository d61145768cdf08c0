"""The web server: uvicorn in a thread, on a socket of our own, so that the port is known.

Uvicorn waits for ever for a client that connects and says nothing, or stops in the middle: such a
one is hung up on.
"""

import asyncio
import socket
import threading
import time
from types import TracebackType
from typing import Any, Final, Self, cast

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from dicom_node.errors import Unavailable

START_S, STOP_S = 10.0, 10.0
HEAD_S: Final = 20.0  # until the head of a request is whole
SILENCE_S: Final = 60.0  # in the middle of a body


class Server:
    """Serves an ASGI application while it is entered.

    Raises
    ------
    Unavailable
        The port is taken, or the address is not ours.
    """

    def __init__(self, app: Any, host: str, port: int) -> None:  # noqa: ANN401 - any ASGI application
        self._app, self._host, self._port = app, host, port
        self._socket: socket.socket | None = None

    @property
    def port(self) -> int:
        """The port we listen on, also when the system chose it."""
        return self._port

    def __enter__(self) -> Self:
        self._socket = _listen(self._host, self._port)
        self._port = int(self._socket.getsockname()[1])
        settings = uvicorn.Config(
            self._app,
            http=_Impatient,
            log_config=None,
            access_log=False,
            lifespan="off",
            proxy_headers=False,
            server_header=False,
            timeout_graceful_shutdown=int(STOP_S / 2),
        )
        self._server = uvicorn.Server(settings)
        self._thread = threading.Thread(
            target=self._server.run, args=([self._socket],), name="http", daemon=True
        )
        self._thread.start()
        deadline = time.monotonic() + START_S
        while not self._server.started:
            if not self._thread.is_alive() or time.monotonic() > deadline:
                raise Unavailable(f"the web server did not start on {self._host}:{self._port}")
            time.sleep(0.01)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.should_exit = True
        self._thread.join(STOP_S)
        if self._socket is not None:
            self._socket.close()


class _Impatient(H11Protocol):
    """Hangs up on who has the word and does not use it."""

    _timer: asyncio.TimerHandle | None = None
    _in_body = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget()
        super().connection_lost(exc)

    def _watch(self) -> None:
        """Let the time run while the client has the word; each piece of a body gives it anew."""
        before, request = self._in_body, cast("RequestResponseCycle | None", self.cycle)
        in_head = request is None or request.response_complete
        self._in_body = request is not None and not in_head and request.more_body
        if in_head and not before and self._timer is not None:
            return
        self._forget()
        if in_head or self._in_body:
            patience_s = HEAD_S if in_head else SILENCE_S
            self._timer = self.loop.call_later(patience_s, self._hang_up)

    def _hang_up(self) -> None:
        if self.flow.read_paused:  # it is we who do not listen
            self._timer = self.loop.call_later(SILENCE_S, self._hang_up)
        else:
            self.transport.close()

    def _forget(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None


def _listen(host: str, port: int) -> socket.socket:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        opened = socket.socket(family, kind, protocol)
        try:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            opened.bind(address)
            opened.listen(128)
        except OSError:
            opened.close()
            raise
    except OSError as error:
        raise Unavailable(f"cannot listen on {host}:{port}: {error.strerror or error}") from error
    return opened
