"""Every error the node raises on purpose, and what the outside is told about it.

    NodeError                 0x0110  500  exit 5   something inside went wrong
    ├── ConfigError                   500  exit 2   a setting is missing, unknown or out of range
    ├── BadInput              0xC000  400  exit 3   what came cannot be used
    │   ├── NotDicom          0xC000  400  exit 3   the bytes are not a DICOM data set
    │   ├── Mismatch          0xA900  400  exit 3   the data set contradicts what was announced
    │   ├── UnusableSeries            422  exit 3   the series makes no regular volume
    │   └── NoRoute                   422  exit 3   no protocol or no series fits the study
    ├── Unavailable           0xA700  503  exit 4   a peer or a resource is not there now
    │   ├── OutOfResources    0xA700  507  exit 4   no room to store the instance
    │   └── PeerError                 502  exit 4   the peer refused, was silent or hung up
    │       ├── SilentPeer            502  exit 4   the peer connected and hung up without a byte
    │       ├── Busy                  502  exit 4   the peer says to come back later
    │       └── NotTaken              502  exit 4   the peer never takes it as it is
    └── LedgerBroken                  500  exit 5   the hash chain does not verify

The numbers stand in the classes and nowhere else: DIMSE status (PS3.7 Annex C, PS3.4 GG.4.2),
HTTP status, exit code of the command line. Without a DIMSE status in the table no peer is told.
"""

from typing import ClassVar


class NodeError(Exception):
    """Something inside the node went wrong."""

    status: ClassVar[int] = 0x0110
    http_status: ClassVar[int] = 500
    exit_code: ClassVar[int] = 5


class ConfigError(NodeError):
    """A setting is missing, unknown or out of range."""

    exit_code = 2


class BadInput(NodeError):
    """What came cannot be used."""

    status = 0xC000
    http_status = 400
    exit_code = 3


class NotDicom(BadInput):
    """The bytes are not a DICOM data set, or one that is cut short."""


class Mismatch(BadInput):
    """The data set contradicts what the sender announced for it."""

    status = 0xA900


class UnusableSeries(BadInput):
    """The series makes no regular volume.

    Parameters
    ----------
    reason
        One word for statistics and rules, such as ``missing-slice``.
    detail
        The sentence a person reads: what was expected and what came.
    """

    http_status = 422

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason


class NoRoute(BadInput):
    """No protocol fits the study, or no series of it fits the protocol."""

    http_status = 422


class Unavailable(NodeError):
    """A peer or a resource is not there now; trying again later may help."""

    # PS3.4 Table B.2-1 has no "busy". 0x0122 would say that the SOP class is not supported, which
    # no sender tries again.
    status = 0xA700
    http_status = 503
    exit_code = 4


class OutOfResources(Unavailable):
    """There is no room to store the instance; the peer may try again."""

    http_status = 507


class PeerError(Unavailable):
    """The peer refused, was silent or hung up."""

    http_status = 502


class SilentPeer(PeerError):
    """The peer connected and hung up without a byte, as the probes of load balancers do."""


class Busy(PeerError):
    """The peer says to come back later; ``retry_after_s`` is when, or None if it did not say."""

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class NotTaken(PeerError):
    """The peer never takes it as it is: sending it again is of no use until somebody acts."""


class LedgerBroken(NodeError):
    """The hash chain of the ledger does not verify."""
