"""A small server as reception has it, up to the answer to an A-ASSOCIATE-RQ, and who calls it.

Knows sockets, `tls` and `door`; no pynetdicom.
"""

import socket
import ssl
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, Self

from dicom_node.config import Config
from dicom_node.errors import PeerError
from dicom_node.network import tls
from dicom_node.scp.door import Door, Refused

HOST = "127.0.0.1"
LONG_S = 30.0  # a limit that no test waits for
BODY = b"\x00\x01\x00\x00" + b"LAMED".ljust(16) + b"CT1".ljust(16) + bytes(32)
ASSOCIATE_RQ = b"\x01\x00" + len(BODY).to_bytes(4, "big") + BODY  # PS3.8 Table 9-11
ABORT = b"\x07\x00\x00\x00\x00\x04\x00\x00\x00\x00"  # PS3.8 Table 9-26


class Listener:
    """The accept thread, a thread for each connection, and what became of each."""

    def __init__(
        self,
        config: Config,
        *,
        limit_s: float = LONG_S,
        contexts: Callable[[], ssl.SSLContext | None] | None = None,
    ) -> None:
        self.door, self._limit_s = Door(config), limit_s
        context = tls.server_context(config)
        self._contexts = contexts or (lambda: context)
        self.outcomes: SimpleQueue[Any] = SimpleQueue()
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        self._listening = socket.create_server((HOST, 0))
        self.port = int(self._listening.getsockname()[1])
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        for each in self._threads:
            each.join()

    def _start(self, what: Callable[..., None], *given: Any) -> None:
        thread = threading.Thread(target=what, args=given)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                accepted, address = self._listening.accept()
            except OSError:
                return
            visitor = self.door.connected(address[0])
            if isinstance(visitor, Refused):
                accepted.close()
                self.outcomes.put(visitor)
            else:
                self._start(self._serve, accepted, visitor)

    def _serve(self, accepted: socket.socket, visitor: Any) -> None:
        context = self._contexts()
        assert context is not None
        try:
            with tls.handshake(accepted, context, self._limit_s) as secured:
                identity = tls.peer_identity(secured)
                refused = self.door.identified(visitor, identity)
                if refused is None:
                    refused = self._answer(secured, visitor)
                self.outcomes.put(refused or (secured.version(), identity))
        except (PeerError, OSError) as error:
            self.outcomes.put(error)
        finally:
            self.door.left(visitor)

    def _answer(self, secured: ssl.SSLSocket, visitor: Any) -> Refused | None:
        """Reject as PS3.8 Table 9-21 has it; an association that is admitted is aborted."""
        with secured.makefile("rb") as stream:
            head = stream.read(6)
            request = stream.read(int.from_bytes(head[2:6], "big"))
        called, calling = request[4:20].decode(), request[20:36].decode()
        refused = self.door.asked(visitor, calling, called)
        if refused is None:
            secured.sendall(ABORT)
        else:
            triple = bytes([refused.result, refused.source, refused.diagnostic])
            secured.sendall(b"\x03\x00\x00\x00\x00\x04\x00" + triple)
        return refused


def connect(to: Listener) -> socket.socket:
    return socket.create_connection((HOST, to.port), timeout=LONG_S)


def ask(to: Listener, config: Config, version: ssl.TLSVersion | None = None) -> bytes:
    """Ask for an association over TLS; what is answered."""
    context = tls.client_context(config)
    if version is not None:
        context.minimum_version = context.maximum_version = version
    with tls.handshake(connect(to), context, LONG_S, server_hostname=HOST) as secured:
        secured.sendall(ASSOCIATE_RQ)
        return secured.recv(64)


def outcome(of: Listener) -> Any:
    return of.outcomes.get(timeout=LONG_S)


def failure(of: Listener) -> str:
    error = outcome(of)
    assert isinstance(error, PeerError), error
    return str(error)
