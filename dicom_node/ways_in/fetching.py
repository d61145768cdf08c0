"""A study comes from a source: by C-GET, by C-MOVE to ourselves, or by WADO-RS.

Knows pynetdicom as a user that is given instances on its own association (PS3.4 C.4.3), HTTP and
the spool. What comes is stored as it came, before the source is told so; nothing is decoded.
"""

import logging
from collections.abc import Callable
from typing import Any, Final

import httpx
from pydicom import Dataset
from pynetdicom import AE, build_context, build_role, evt
from pynetdicom.association import Association
from pynetdicom.presentation import PresentationContext

from dicom_node.config import Config
from dicom_node.config.sources import Source
from dicom_node.errors import NodeError, OutOfResources, PeerError, Unavailable
from dicom_node.network import multipart, tls
from dicom_node.network.multipart import Parts
from dicom_node.scu import stow
from dicom_node.spool import Announced, Spool
from dicom_node.spool.arrivals import Arrival

from .holdings import Holding

log = logging.getLogger(__name__)

Tell = Callable[[int], None]  # of how many have come so far
GET: Final = "1.2.840.10008.5.1.4.1.2.2.3"
MOVE: Final = "1.2.840.10008.5.1.4.1.2.2.2"
DICOM: Final = "application/dicom"
PENDING: Final = {0xFF00, 0xFF01}
SUB_OPERATIONS_FAILED: Final = 0xB000  # PS3.4 C.4.2.1.5: some; what is missing is counted anyway
MEANING: Final = {  # PS3.4 Table C.4-2 and C.4-3
    0xA701: "it cannot count the matches",
    0xA702: "it cannot send them: out of resources, or nothing of them is accepted",
    0xA801: "it does not know our AE title as a destination, and where it listens",
    0xA900: "the query does not fit the SOP class",
    0xFE00: "it was cancelled",
}
MOVE_SILENCE_S: Final = 600.0  # many archives say nothing until a C-MOVE is over
MAXIMUM_CONTEXTS: Final = 128  # PS3.8 9.3.2.2
SYNTAXES: Final = (  # as they are stored; the source takes what it has
    "1.2.840.10008.1.2.1",
    "1.2.840.10008.1.2",
    *(f"1.2.840.10008.1.2.4.{number}" for number in (50, 51, 57, 70, 80, 81, 90, 91)),
    *(f"1.2.840.10008.1.2.4.{number}" for number in (201, 202, 203)),
    "1.2.840.10008.1.2.5",
    "1.2.840.10008.1.2.2",
    "1.2.840.10008.1.2.1.99",
)
CLASSES: Final = tuple(  # for a source that does not tell its instances' classes
    f"1.2.840.10008.5.1.4.1.1.{each}"
    for each in ("2", "2.1", "4", "4.1", "128", "7", "88.33", "66.4")
)


class Stopped(Unavailable):
    """The node stops in the middle of it; raised by a `Tell`."""


def fetch(
    source: Source, config: Config, spool: Spool, study_uid: str, there: Holding, tell: Tell
) -> None:
    """Have a study sent, by the method of the source.

    Raises
    ------
    PeerError
        The source cannot be reached, refuses or breaks off; what came until then is stored.
    OutOfResources
        There is no room, by WADO-RS; on an association the source is told so.
    """
    if source.peer.url:
        _by_wado(source, config, spool, study_uid, tell)
    elif source.method == "c-move":
        _by_move(source, config, study_uid, tell)
    else:
        _by_get(source, config, spool, study_uid, there, tell)


def _by_get(
    source: Source, config: Config, spool: Spool, study_uid: str, there: Holding, tell: Tell
) -> None:
    contexts = contexts_of(there)
    roles = [
        build_role(uid, scp_role=True)
        for uid in dict.fromkeys(str(each.abstract_syntax) for each in contexts)
    ]
    came = 0

    def store(event: evt.Event) -> int:
        nonlocal came
        status = _store(event, spool, source, config.maximum_instance_mb << 20)
        came += status == 0
        try:
            tell(came)
        except Stopped:
            event.assoc.abort()
        return status

    with _Opened(
        source,
        config,
        [build_context(GET), *contexts],
        ext_neg=roles,
        evt_handlers=[(evt.EVT_C_STORE, store)],
    ) as assoc:
        _until_over(source, "C-GET", assoc.send_c_get(_asked(study_uid), GET), lambda _: None)


def _by_move(source: Source, config: Config, study_uid: str, tell: Tell) -> None:
    with _Opened(source, config, [build_context(MOVE)]) as assoc:
        assoc.dimse_timeout = max(MOVE_SILENCE_S, config.network_timeout_s)
        answers = assoc.send_c_move(_asked(study_uid), config.ae_title, MOVE)
        _until_over(source, "C-MOVE", answers, tell)


def _by_wado(source: Source, config: Config, spool: Spool, study_uid: str, tell: Tell) -> None:
    wanted = f'{multipart.RELATED}; type="{DICOM}"; transfer-syntax=*'
    came = 0
    with (
        stow.client(source.peer, config) as http,
        http.stream("GET", f"studies/{study_uid}", headers={"Accept": wanted}) as answer,
    ):
        stow.check(source.peer, answer)
        parts = _parts(source, answer, config)
        for piece in answer.iter_bytes():
            for _, content in parts.feed(piece):
                Arrival.of(content, source.name).store(spool, study_uid=study_uid)
                came += 1
                tell(came)
        parts.close()


def _parts(source: Source, answer: httpx.Response, config: Config) -> Parts:
    try:
        boundary = multipart.boundary(answer.headers.get("Content-Type", ""), of=DICOM)
    except NodeError as error:
        raise PeerError(f"{source.peer}: {error}") from error
    return Parts(boundary, most=config.maximum_instance_mb << 20)


def contexts_of(there: Holding) -> list[PresentationContext]:
    """Give a context of its own to each transfer syntax, so that nothing need be converted.

    Of more SOP classes than that leaves room for, one context each.
    """
    classes = sorted(set(filter(None, there.values()))) or list(CLASSES)
    if len(classes) * len(SYNTAXES) < MAXIMUM_CONTEXTS:
        return [build_context(uid, [each]) for uid in classes for each in SYNTAXES]
    return [build_context(uid, list(SYNTAXES)) for uid in classes[: MAXIMUM_CONTEXTS - 1]]


def _store(event: evt.Event, spool: Spool, source: Source, most: int) -> int:
    request: Any = event.request
    announced = Announced(
        str(request.AffectedSOPClassUID),
        str(request.AffectedSOPInstanceUID),
        str(event.context.transfer_syntax),
        source.peer.ae_title,
    )
    if request.DataSet.getbuffer().nbytes > most:
        reason = "larger than maximum_instance_mb"
        log.warning("pull.refused", extra={"sop_uid": announced.sop_uid, "reason": reason})
        return OutOfResources.status
    try:
        spool.store(request.DataSet.getvalue(), announced)
    except NodeError as error:
        log.warning("pull.refused", extra={"sop_uid": announced.sop_uid, "reason": str(error)})
        return error.status
    except Exception:  # the edge: the source gets an answer, whatever it is
        log.exception("pull.error", extra={"sop_uid": announced.sop_uid})
        return NodeError.status
    return 0


class _Opened:
    """An association for a retrieval; released in the end, aborted if something goes wrong."""

    def __init__(
        self,
        source: Source,
        config: Config,
        contexts: list[PresentationContext],
        **more: Any,  # noqa: ANN401 - goes on to pynetdicom
    ) -> None:
        self._source, self._config = source, config
        self._contexts, self._more = contexts, more

    def __enter__(self) -> Association:
        peer, ae = self._source.peer, AE(ae_title=self._config.ae_title)
        for each in ("acse_timeout", "dimse_timeout", "network_timeout", "connection_timeout"):
            setattr(ae, each, self._config.network_timeout_s)
        if peer.tls:
            self._more["tls_args"] = (tls.client_context(self._config), peer.host)
        self._assoc = ae.associate(
            peer.host, peer.port, self._contexts, ae_title=peer.ae_title, **self._more
        )
        if not self._assoc.is_established:
            raise PeerError(f"{peer} does not associate for {self._source.method.upper()}")
        if not any(each.abstract_syntax in {GET, MOVE} for each in self._assoc.accepted_contexts):
            self._assoc.release()
            raise PeerError(f"{peer} does not offer {self._source.method.upper()}")
        return self._assoc

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._assoc.is_established:
            (self._assoc.release if kind is None else self._assoc.abort)()


def _until_over(source: Source, what: str, answers: Any, tell: Tell) -> None:  # noqa: ANN401 - pynetdicom's iterator
    for answer, _ in answers:
        status = answer.get("Status")
        if status is None:
            raise PeerError(f"{source.peer} hung up or was silent in the middle of {what}")
        tell(int(answer.get("NumberOfCompletedSuboperations") or 0))
        if status not in PENDING | {0, SUB_OPERATIONS_FAILED}:
            comment = str(answer.get("ErrorComment") or "") or MEANING.get(status, "")
            told = f" ({comment})" if comment else ""
            raise PeerError(f"{source.peer} answered {what} with status 0x{status:04X}{told}")


def _asked(study_uid: str) -> Dataset:
    asked = Dataset()
    asked.QueryRetrieveLevel, asked.StudyInstanceUID = "STUDY", study_uid
    return asked
