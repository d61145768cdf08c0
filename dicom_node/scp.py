"""Associations: who may call, C-ECHO, C-STORE; the bytes go to the spool as they came.

Knows pynetdicom, the settings and the spool. Every request gets an answer, and 0x0000 only after
the spool has returned. Nothing is decoded here.
"""

import logging
import socket
from types import TracebackType
from typing import Any, Self

from pydicom.dataset import Dataset
from pynetdicom import AE, _config, evt
from pynetdicom.association import Association
from pynetdicom.events import Event
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]
from pynetdicom.transport import ThreadedAssociationServer

from .config import Config
from .errors import ConfigError, NodeError, Unavailable
from .ledger import Ledger
from .spool import Announced, Spool

log = logging.getLogger(__name__)

# Any storage SOP class, private and future ones too, in the transfer syntax proposed first: one
# supported context costs 13 ms of set-up, a list of all of them 138 ms.
_config.UNRESTRICTED_STORAGE_SERVICE = True
_config.LOG_HANDLER_LEVEL = "none"
_config.LOG_REQUEST_IDENTIFIERS = False
_config.LOG_RESPONSE_IDENTIFIERS = False

MAXIMUM_PDU = 131_072
COMMENT_LENGTH = 64  # ErrorComment (0000,0902) is LO
REJECTIONS = {  # PS3.8 Table 9-21
    (1, 3): "calling AE title not recognized",
    (1, 7): "called AE title not recognized",
    (3, 2): "local limit of associations",
}


class Scp:
    """Our application entity as storage SCP.

    Raises
    ------
    Unavailable
        The port is taken, or the address is not ours.
    """

    def __init__(self, config: Config, spool: Spool, ledger: Ledger) -> None:
        self._config, self._spool, self._ledger = config, spool, ledger
        self._server: ThreadedAssociationServer | None = None
        self._stored: dict[Association, int] = {}  # instances, of each open association

    @property
    def port(self) -> int:
        """The port we listen on, also when the system chose it."""
        if self._server is None:
            raise ConfigError("the SCP is not started")
        return int(self._server.server_address[1])

    def start(self) -> None:
        """Listen and answer, in threads of pynetdicom's."""
        config = self._config
        try:
            self._server = self._ae().start_server(
                (config.dicom_host, config.dicom_port),
                block=False,
                evt_handlers=[
                    (evt.EVT_CONN_OPEN, _hasten),
                    (evt.EVT_C_ECHO, _echo),
                    (evt.EVT_C_STORE, self._store),
                    (evt.EVT_ACCEPTED, self._accepted),
                    (evt.EVT_REJECTED, self._rejected),
                    (evt.EVT_RELEASED, self._ended, ["released"]),
                    (evt.EVT_ABORTED, self._ended, ["aborted"]),
                    (evt.EVT_CONN_CLOSE, self._closed),
                ],
            )
        except OSError as error:
            where = f"{config.dicom_host}:{config.dicom_port}"
            raise Unavailable(f"cannot listen on {where}: {error.strerror}") from error

    def stop(self) -> None:
        """Stop listening; what is stored is stored, open associations are aborted."""
        if self._server is not None:
            self._server.shutdown()
            self._server.ae.shutdown()
            self._server = None

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

    def _ae(self) -> AE:
        config = self._config
        ae = AE(ae_title=config.ae_title)
        ae.add_supported_context(Verification)
        ae.require_called_aet = True
        ae.require_calling_aet = list(config.calling_ae_titles)
        ae.maximum_associations = config.maximum_associations
        ae.maximum_pdu_size = MAXIMUM_PDU
        ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = config.network_timeout_s
        return ae

    def _store(self, event: Event) -> Dataset | int:
        request: Any = event.request
        announced = Announced(
            sop_class_uid=str(request.AffectedSOPClassUID),
            sop_uid=str(request.AffectedSOPInstanceUID),
            transfer_syntax_uid=str(event.context.transfer_syntax),
            calling_ae=_calling(event),
        )
        try:
            self._spool.store(request.DataSet.getvalue() if request.DataSet else b"", announced)
        except NodeError as error:
            return self._refuse(announced, error.status, str(error))
        except Exception as error:  # the server's edge: the peer gets an answer, whatever it is
            log.exception("instance.error", extra={"sop_uid": announced.sop_uid})
            return self._refuse(announced, NodeError.status, f"{type(error).__name__}: {error}")
        self._stored[event.assoc] = self._stored.get(event.assoc, 0) + 1
        return 0x0000

    def _refuse(self, announced: Announced, status: int, reason: str) -> Dataset:
        log.warning("instance.refused", extra={"sop_uid": announced.sop_uid, "status": status})
        self._remember(
            "instance.refused",
            calling_ae=announced.calling_ae,
            sop_uid=announced.sop_uid,
            sop_class_uid=announced.sop_class_uid,
            status=f"0x{status:04X}",
            reason=reason,
        )
        answer = Dataset()
        answer.Status = status
        plain = reason.encode("ascii", "replace").decode().replace("\\", "/")
        answer.ErrorComment = "".join(filter(str.isprintable, plain))[:COMMENT_LENGTH]
        return answer

    def _accepted(self, event: Event) -> None:
        self._stored[event.assoc] = 0
        self._remember("association.accepted", calling_ae=_calling(event), peer=_address(event))

    def _rejected(self, event: Event) -> None:
        primitive = event.assoc.acceptor.primitive
        key = (getattr(primitive, "result_source", 0), getattr(primitive, "diagnostic", 0))
        self._remember(
            "association.rejected",
            calling_ae=_calling(event),
            called_ae=str(getattr(event.assoc.requestor.primitive, "called_ae_title", "")).strip(),
            peer=_address(event),
            reason=REJECTIONS.get(key, "rejected"),
        )

    def _ended(self, event: Event, how: str) -> None:
        self._remember(
            f"association.{how}",
            calling_ae=_calling(event),
            peer=_address(event),
            stored=self._stored.pop(event.assoc, 0),
        )

    def _closed(self, event: Event) -> None:
        """Tell of a peer that hung up without a release or an abort."""
        if event.assoc in self._stored:
            self._ended(event, "lost")

    def _remember(self, kind: str, **data: object) -> None:
        try:
            self._ledger.event(kind, study_uid=None, job_id=None, **data)
        except Exception:  # a ledger that is out of order must not keep a peer without an answer
            log.exception("ledger.error", extra={"kind": kind})


def _echo(_: Event) -> int:
    return 0x0000


class _Prompt(socket.socket):
    """A socket that acknowledges at once whatever it reads.

    With Nagle's algorithm at the sender a delayed ACK costs 40 ms for each PDU that is sent in two
    pieces. Linux forgets TCP_QUICKACK, so it is armed again after every read.
    """

    def recv(self, size: int, flags: int = 0, /) -> bytes:
        """Read, and acknowledge."""
        received = super().recv(size, flags)
        self.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        return received


def _hasten(event: Event) -> None:
    """Put a prompt socket in the place of an association's own."""
    wrapped: Any = event.assoc.dul.socket
    plain = getattr(wrapped, "socket", None)
    if type(plain) is not socket.socket:  # gone already, or one that does more than TCP
        return
    timeout_s = plain.gettimeout()
    prompt = _Prompt(fileno=plain.detach())
    prompt.settimeout(timeout_s)
    wrapped.socket = prompt
    try:
        prompt.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        prompt.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
    except OSError:  # the peer is gone already
        return


def _calling(event: Event) -> str:
    return str(event.assoc.requestor.ae_title or "").strip()


def _address(event: Event) -> str:
    return f"{event.assoc.requestor.address}:{event.assoc.requestor.port}"
