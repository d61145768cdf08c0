"""What is served to whoever has an association: C-STORE into the spool, C-ECHO, and what is added.

Knows DIMSE requests, the spool and the ledger. Must not know sockets or PDUs. Every request gets an
answer, and a C-STORE gets 0x0000 only after the spool has returned. Nothing is decoded here.
"""

import logging
from collections.abc import Callable, Mapping

from dicom_node.errors import NodeError, OutOfResources
from dicom_node.ledger import Ledger
from dicom_node.network import dimse
from dicom_node.network.dimse import Answer, Command, Request
from dicom_node.network.negotiation import VERIFICATION
from dicom_node.spool import Announced, Spool

log = logging.getLogger(__name__)

Handler = Callable[[Request], Answer]


class Services:
    """The requests that are answered.

    Parameters
    ----------
    added
        By command field and SOP class, what answers it.
    """

    def __init__(
        self,
        spool: Spool,
        ledger: Ledger,
        added: Mapping[tuple[int, str], Handler] | None = None,
    ) -> None:
        self._spool, self._ledger = spool, ledger
        self._handlers = {(dimse.C_ECHO_RQ, VERIFICATION): _echo, **(added or {})}
        self.classes = frozenset(uid for _, uid in self._handlers)  # that are no storage

    def store(self, command: Command, data: bytearray, transfer: str, calling_ae: str) -> Answer:
        """Answer a C-STORE (PS3.4 B.2.3)."""
        announced = Announced(
            sop_class_uid=command.uid(dimse.AFFECTED_CLASS),
            sop_uid=command.uid(dimse.AFFECTED_INSTANCE),
            transfer_syntax_uid=transfer,
            calling_ae=calling_ae,
        )
        try:
            self._spool.store(data, announced)
        except NodeError as error:
            return self._refused(announced, error.status, str(error))
        except Exception as error:  # the edge: the peer gets an answer, whatever it is
            log.exception("instance.error", extra={"sop_uid": announced.sop_uid})
            return self._refused(announced, NodeError.status, f"{type(error).__name__}: {error}")
        return Answer()

    def oversize(self, command: Command, transfer: str, calling_ae: str) -> Answer:
        """Answer a C-STORE of more bytes than are taken."""
        announced = Announced(
            command.uid(dimse.AFFECTED_CLASS),
            command.uid(dimse.AFFECTED_INSTANCE),
            transfer,
            calling_ae,
        )
        reason = "larger than maximum_instance_mb"
        return self._refused(announced, OutOfResources.status, reason)

    def answer(self, request: Request) -> Answer | None:
        """Answer anything else; None is no answer."""
        if request.field == dimse.C_CANCEL_RQ:
            return None
        handler = self._handlers.get((request.field, request.sop_class_uid))
        if handler is None:
            known = request.sop_class_uid in self.classes
            status = dimse.UNRECOGNIZED_OPERATION if known else dimse.SOP_CLASS_NOT_SUPPORTED
            return Answer(status, f"command 0x{request.field:04X} is not served")
        try:
            return handler(request)
        except NodeError as error:
            return Answer(error.status, str(error))
        except Exception as error:  # the edge, as above
            log.exception("request.error", extra={"sop_class_uid": request.sop_class_uid})
            return Answer(NodeError.status, f"{type(error).__name__}: {error}")

    def remember(self, kind: str, **data: object) -> None:
        """Tell the ledger of something that is of no study."""
        try:
            self._ledger.event(kind, study_uid=None, job_id=None, **data)
        except Exception:  # a ledger that is out of order must not keep a peer without an answer
            log.exception("ledger.error", extra={"kind": kind})

    def _refused(self, announced: Announced, status: int, reason: str) -> Answer:
        log.warning("instance.refused", extra={"sop_uid": announced.sop_uid, "status": status})
        self.remember(
            "instance.refused",
            calling_ae=announced.calling_ae,
            sop_uid=announced.sop_uid,
            sop_class_uid=announced.sop_class_uid,
            status=f"0x{status:04X}",
            reason=reason,
        )
        return Answer(status, reason)


def _echo(_: Request) -> Answer:
    return Answer()
