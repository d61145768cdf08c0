"""Audit messages of PS3.15 A.5, made of the events of the ledger.

    codes      what is said, in codes
    message    one message and its XML
    told       which event is which message
    store      files by day
    syslog     RFC 5424 by TLS, TCP or UDP
    relay      what takes them there, and remembers how far it has come

The ledger is the audit log of the node; these messages carry it to where a hospital collects those
of all its systems. Knows the ledger; must not know associations, spool or model.
"""

from .relay import places, reach, run
from .store import forget

__all__ = ["forget", "places", "reach", "run"]
