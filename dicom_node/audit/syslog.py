"""Audit messages on their way to a syslog receiver (PS3.15 A.6, A.7).

Knows RFC 5424 (the message), RFC 5425 (TLS), RFC 6587 (TCP, counted) and RFC 5426 (UDP). There is
no answer in any of them. What is sent by a connection counts as received when the receiver's system
has acknowledged every byte and has not hung up; by UDP when it is sent.
"""

import fcntl
import os
import select
import socket
import ssl
import struct
import termios
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Self
from urllib.parse import urlsplit

from dicom_node.errors import ConfigError, PeerError

PRIORITY: Final = 10 * 8 + 5  # security, notice (PS3.15 A.6)
MESSAGE_ID: Final = "DICOM+RFC3881"
APP_NAME: Final = "lamed-node"
BOM: Final = b"\xef\xbb\xbf"  # RFC 5424 6.4: what follows is UTF-8
PORTS: Final = {"tls": 6514, "tcp": 601, "udp": 514}
POLL_S: Final = 0.01


@dataclass(frozen=True)
class Receiver:
    """Where audit messages go."""

    transport: str  # tls | tcp | udp
    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``tls://HOST:PORT``, ``tcp://`` or ``udp://``; the port may be left out.

        Raises
        ------
        ConfigError
            It is none of these.
        """
        expected = f"audit_syslog must be tls://HOST:PORT, tcp:// or udp://, not {text!r}"
        try:
            found = urlsplit(text)
            port = found.port or PORTS.get(found.scheme, 0)
        except ValueError as error:
            raise ConfigError(expected) from error
        if found.scheme not in PORTS or not found.hostname or found.path.strip("/"):
            raise ConfigError(expected)
        return cls(found.scheme, found.hostname, port)


def compose(message: bytes, at: datetime, host: str) -> bytes:
    """Write the message of RFC 5424 around one in XML."""
    when = at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    head = f"<{PRIORITY}>1 {when} {host or '-'} {APP_NAME} {os.getpid()} {MESSAGE_ID} - "
    return head.encode("ascii", "replace") + BOM + message


class Link:
    """A connection to a receiver; made when something is sent, and again after it was lost."""

    def __init__(
        self, receiver: Receiver, context: ssl.SSLContext | None, timeout_s: float
    ) -> None:
        self._receiver, self._context, self._timeout_s = receiver, context, timeout_s
        self._socket: socket.socket | None = None

    def send(self, messages: Iterable[bytes]) -> None:
        """Send messages, and return when the receiver has them.

        Raises
        ------
        PeerError
            It cannot be reached, has hung up or takes nothing: any of them may be lost.
        """
        try:
            if self._receiver.transport == "udp":
                self._send_datagrams(messages)
                return
            with self._connected() as connection:
                for each in messages:
                    connection.sendall(b"%d %b" % (len(each), each))
                self._see_through(connection)
        except OSError as error:  # ssl.SSLError is one
            self.close()
            where = f"{self._receiver.transport}://{self._receiver.host}:{self._receiver.port}"
            raise PeerError(f"audit receiver {where}: {error}") from error

    def close(self) -> None:
        """Hang up."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send_datagrams(self, messages: Iterable[bytes]) -> None:
        family, kind, protocol, _, address = socket.getaddrinfo(
            self._receiver.host, self._receiver.port, type=socket.SOCK_DGRAM
        )[0]
        with socket.socket(family, kind, protocol) as datagrams:
            for each in messages:
                datagrams.sendto(each, address)

    @contextmanager
    def _connected(self) -> Iterator[socket.socket]:
        if self._socket is None:
            address = (self._receiver.host, self._receiver.port)
            plain = socket.create_connection(address, self._timeout_s)
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._socket = plain
            if self._context is not None:
                self._socket = self._context.wrap_socket(plain, server_hostname=address[0])
        elif _hung_up(self._socket):
            raise ConnectionResetError("it has hung up")
        yield self._socket

    def _see_through(self, connection: socket.socket) -> None:
        until = time.monotonic() + self._timeout_s
        while _unacknowledged(connection):
            if time.monotonic() >= until:
                raise TimeoutError("it acknowledges nothing")
            time.sleep(POLL_S)
        if _hung_up(connection):
            raise ConnectionResetError("it has hung up")


def _unacknowledged(connection: socket.socket) -> int:
    """Tell how many bytes the receiver's system has not acknowledged (tcp(7), SIOCOUTQ)."""
    answer = fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, struct.pack("i", 0))
    count: int = struct.unpack("i", answer)[0]
    return count


def _hung_up(connection: socket.socket) -> bool:
    """Look for the end of the connection; what TLS itself sends, as tickets, is taken off."""
    if isinstance(connection, ssl.SSLSocket):
        timeout = connection.gettimeout()
        connection.settimeout(0)
        try:
            return connection.recv(1) == b""
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return False
        finally:
            connection.settimeout(timeout)
    ready, _, _ = select.select([connection], [], [], 0)
    return bool(ready) and connection.recv(1, socket.MSG_PEEK) == b""
