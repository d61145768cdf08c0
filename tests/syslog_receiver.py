"""A syslog receiver as tests need it: it takes, hangs up or is away, and keeps what it got."""

import re
import socket
import ssl
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

from certificates import Pem


class SyslogReceiver:
    """Takes connections of counted messages (RFC 5425 4.3), by TLS or plain."""

    def __init__(self, pem: Pem | None = None, ca: Path | None = None, port: int = 0) -> None:
        self.got: list[bytes] = []
        self.names: list[str] = []  # of those who showed a certificate
        self.arrived = threading.Condition()
        self.limit: int | None = None  # messages after which it hangs up without reading on
        self._context = _context(pem, ca) if pem else None
        self._listener = socket.create_server(("127.0.0.1", port))
        self.port = self._listener.getsockname()[1]
        self._open: list[socket.socket] = []
        self._thread = threading.Thread(target=self._accept)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Be away, with all connections."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for each in self._open:
            _drop(each)
        self._thread.join()

    def hang_up(self) -> None:
        for each in self._open:
            _drop(each)

    def wait(self, count: int, seconds: float = 20.0) -> list[bytes]:
        """Wait for so many messages, and give their XML."""
        with self.arrived:
            assert self.arrived.wait_for(lambda: len(self.got) >= count, seconds), len(self.got)
            return [xml_of(each) for each in self.got]

    def _accept(self) -> None:
        threads = []
        while True:
            try:
                plain, _ = self._listener.accept()
            except OSError:
                break
            threads.append(threading.Thread(target=self._serve, args=(plain,)))
            threads[-1].start()
        for each in threads:
            each.join()

    def _serve(self, plain: socket.socket) -> None:
        self._open.append(plain)
        try:
            with self._wrapped(plain) as connection, connection.makefile("rb") as stream:
                while (message := _counted(stream)) is not None:  # type: ignore[arg-type]
                    with self.arrived:
                        self.got.append(message)
                        self.arrived.notify_all()
                        if self.limit is not None and len(self.got) >= self.limit:
                            self.limit = None
                            return
        except OSError:
            return

    def _wrapped(self, plain: socket.socket) -> socket.socket:
        if self._context is None:
            return plain
        plain.settimeout(10)
        wrapped = self._context.wrap_socket(plain, server_side=True)
        shown = wrapped.getpeercert() or {}
        subject = dict(pair for each in shown.get("subject", ()) for pair in each)  # type: ignore[misc]
        self.names.append(subject.get("commonName", ""))
        self._open.append(wrapped)
        wrapped.settimeout(None)
        return wrapped


def xml_of(message: bytes) -> bytes:
    """Give what stands in a message of RFC 5424, whose head is checked."""
    head, _, xml = message.partition(b"\xef\xbb\xbf")
    assert re.fullmatch(
        rb"<85>1 \d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z \S+ lamed-node \d+ DICOM\+RFC3881 - ", head
    ), head
    return xml


def _counted(stream: "socket.SocketIO") -> bytes | None:
    digits = b""
    while (found := stream.read(1)) not in {b" ", b""}:
        assert found is not None
        digits += found
    if not digits:
        return None
    wanted = int(digits)
    message = stream.read(wanted) or b""
    return message if len(message) == wanted else None


def _context(pem: Pem, ca: Path | None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem.certificate, pem.key)
    if ca:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(ca)
    return context


def _drop(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        return
