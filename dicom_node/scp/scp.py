"""Reception: who connects is let in or not, shakes hands, and has an association of its own.

Knows the door, TLS, sockets and threads. A connection has a thread of its own from its first byte
to its last, the TLS handshake included: whoever is silent keeps nobody else waiting. What is
answered to a request is `services`' business.
"""

import logging
import socket
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from types import TracebackType
from typing import Final, Self

from dicom_node.config import Config
from dicom_node.errors import ConfigError, PeerError, SilentPeer, Unavailable
from dicom_node.ledger import Ledger
from dicom_node.network import tls
from dicom_node.network.upper_layer import Connection, Proposal, Violation
from dicom_node.spool import Spool

from .association import Association, Triple
from .door import CONGESTION, Door, Refusals, Refused, Visitor
from .services import Handler, Services

log = logging.getLogger(__name__)

BACKLOG: Final = 512
DRAIN_S: Final = 5.0
RETRY_S: Final = 0.1


class Scp:
    """Our application entity as storage SCP, and as SCP of the services that are `added`.

    Raises
    ------
    Unavailable
        The port is taken, or the address is not ours.
    ConfigError
        A certificate cannot be used.
    """

    def __init__(
        self,
        config: Config,
        spool: Spool,
        ledger: Ledger,
        added: Mapping[tuple[int, str], Handler] | None = None,
    ) -> None:
        self._config, self._spool = config, spool
        self._services = Services(spool, ledger, added)
        self._door = Door(config)
        self._refusals = Refusals(self._services.remember)
        self._certificates = tls.Certificates(config, self._services.remember)
        self._listener: socket.socket | None = None
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()

    @property
    def port(self) -> int:
        """The port we listen on, also when the system chose it."""
        if self._listener is None:
            raise ConfigError("the SCP is not started")
        return int(self._listener.getsockname()[1])

    def start(self) -> None:
        """Listen and answer, in threads."""
        host, port = self._config.dicom_host, self._config.dicom_port
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            self._listener = socket.create_server((host, port), family=family, backlog=BACKLOG)
        except OSError as error:
            raise Unavailable(f"cannot listen on {host}:{port}: {error.strerror}") from error
        self._stop.clear()
        self._threads = [
            threading.Thread(target=self._listen, args=(self._listener,), name="accept"),
            threading.Thread(target=self._refusals.run, args=(self._stop,), name="refusals"),
        ]
        for each in self._threads:
            each.start()

    def stop(self) -> None:
        """Stop listening; what is stored is stored, open associations are cut off."""
        if self._listener is None:
            return
        self._stop.set()
        with suppress(OSError):  # wakes the thread that accepts
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._cut_off()
        for each in self._threads:
            each.join()
        self._listener = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _cut_off(self) -> None:
        """Wake every reader, and give it the time to answer what it has in hand."""
        deadline = time.monotonic() + DRAIN_S
        while time.monotonic() < deadline:
            with self._lock:
                left = list(self._open)
            if not left:
                return
            for each in left:
                with suppress(OSError):
                    each.shutdown(socket.SHUT_RD)
            time.sleep(0.01)

    def _listen(self, listener: socket.socket) -> None:
        while not self._stop.is_set():
            try:
                sock, (address, port, *_) = listener.accept()
            except OSError as error:  # no more file handles, or the end
                if not self._stop.wait(RETRY_S):
                    log.warning("scp.accept_failed", extra={"reason": error.strerror})
                continue
            visitor = self._door.connected(address)
            if isinstance(visitor, Refused):
                sock.close()
                self._refusals.add(address, visitor.reason)
            else:
                self._admit(sock, visitor, f"{address}:{port}")

    def _admit(self, sock: socket.socket, visitor: Visitor, peer: str) -> None:
        with self._lock:
            self._open.add(sock)
        thread = threading.Thread(
            target=self._serve, args=(sock, visitor, peer), name=peer, daemon=True
        )
        try:
            thread.start()
        except RuntimeError:  # no more threads
            log.exception("scp.thread_failed")
            self._leave(sock, visitor)

    def _leave(self, sock: socket.socket, visitor: Visitor) -> None:
        self._door.left(visitor)
        with self._lock:
            self._open.discard(sock)
        sock.close()

    def _serve(self, sock: socket.socket, visitor: Visitor, peer: str) -> None:
        """Be there for one connection, whatever comes."""
        try:
            sock = self._secured(sock, visitor)
            self._associate(sock, visitor, peer)
        except SilentPeer:  # a probe
            pass
        except PeerError as error:
            self._refusals.add(visitor.address, str(error))
        except Exception:  # the server's edge: one connection's fault is no other's
            log.exception("scp.connection_failed", extra={"peer": peer})
        finally:
            self._leave(sock, visitor)

    def _secured(self, sock: socket.socket, visitor: Visitor) -> socket.socket:
        """Shake hands if we speak TLS; then ask the door about the certificate."""
        context, identity = self._certificates.server(), None
        secured = sock
        if context is not None:
            with self._lock:  # TLS takes the socket over, and limits the time itself
                self._open.remove(sock)
            sock.settimeout(self._config.network_timeout_s)
            secured = tls.handshake(sock, context, self._config.tls_handshake_s)
            identity = tls.peer_identity(secured)
            with self._lock:
                self._open.add(secured)
        refused = self._door.identified(visitor, identity)
        if refused is not None:
            self._leave(secured, visitor)
            raise PeerError(refused.reason)
        return secured

    def _associate(self, sock: socket.socket, visitor: Visitor, peer: str) -> None:
        connection = Connection(
            sock,
            timeout_s=self._config.network_timeout_s,
            most=self._config.maximum_instance_mb << 20,
        )

        def objection(proposal: Proposal) -> Triple | None:
            titles = {"calling_ae": proposal.calling_ae, "called_ae": proposal.called_ae}
            refused = self._door.asked(visitor, proposal.calling_ae, proposal.called_ae)
            if refused is None and not self._spool.has_room():
                refused = Refused(*CONGESTION, "no room on the disk")
            if refused is None:
                return None
            self._refusals.add(visitor.address, refused.reason, **titles)
            return refused.result, refused.source, refused.diagnostic

        try:
            Association(connection, self._services, objection, peer).run()
        except Violation as error:
            if tls.is_tls(connection.first) and self._certificates.server() is None:
                raise PeerError(tls.SPEAKS_TLS) from error
            connection.abort(error.reason)
            raise
