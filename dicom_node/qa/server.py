"""The web server: uvicorn in a thread, on a socket of our own, so that the port is known."""

import socket
import threading
import time
from types import TracebackType
from typing import Any, Self

import uvicorn

from dicom_node.errors import Unavailable

START_S, STOP_S = 10.0, 10.0


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
