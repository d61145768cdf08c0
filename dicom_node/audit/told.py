"""Which events of the ledger are audited, and as what (PS3.15 A.5.3).

Knows events and what the ledger has of their study; must not know where messages go. One instance
is no message: what came is told when the study opens and when it is complete, by sender.
"""

import base64
import json
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final
from urllib.parse import urlsplit

from pydicom import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from sqlalchemy import select

from dicom_node.config.destinations import TEXT
from dicom_node.ledger import Event, Ledger, tables

from . import codes
from .message import MINOR, SERIOUS, SUCCESS, UNKNOWN, Message, Participant, Subject, patient, study

# How the receiver stood to what came (Table A.5.3.7-1): it had it not, had it, or had another.
ARRIVALS: Final = {
    "instance.stored": "C",
    "instance.recovered": "C",
    "instance.superseded": "U",
    "instance.duplicate": "R",
}
PEER: Final = re.compile(r"(?P<ae>[^@/]*)@(?P<host>\[.+\]|[^:/]+):(?P<port>\d+)")
STUDY_ROOT_FIND: Final = "1.2.840.10008.5.1.4.1.2.2.1"
LOG_URI: Final = "urn:lamed-node:ledger"
AFTER_OPENING: Final = 5  # events in which the first instance stands


@dataclass(frozen=True)
class Teller:
    """Makes messages of events.

    Parameters
    ----------
    host
        Name of this machine.
    """

    ledger: Ledger
    ae_title: str
    host: str

    def messages(self, event: Event) -> list[Message]:
        """Tell an event; most are of no interest to an audit."""
        make = KINDS.get(event.kind) or (_query if event.kind.endswith(".queried") else None)
        return make(self, event) if make else []

    def us(self, *roles: codes.Code, requestor: bool = False) -> Participant:
        """Name this node."""
        return Participant(
            f"lamed-node@{self.host}", requestor, roles, (self.ae_title,), "", self.host
        )

    def about(self, event: Event, sop_classes: Mapping[str, int] | None = None) -> list[Subject]:
        """Name the study of an event, and its patient."""
        uid = event.study_uid or UNKNOWN
        found = self.ledger.study(uid)
        number = found.accession_number if found else ""
        whose = (found.patient_id, found.patient_name) if found else ("", "")
        return [study(uid, sop_classes or {}, number), patient(*whose)]


def _started(teller: Teller, event: Event) -> list[Message]:
    stops = event.kind != "role.started"
    died = event.kind == "role.died"
    process = Participant(
        str(event.data.get("pid", UNKNOWN)),
        roles=(codes.APPLICATION,),
        ae_titles=(teller.ae_title,),
        name=f"lamed-node {event.data.get('role', '')}",
        access_point=teller.host,
    )
    return [
        Message(
            codes.APPLICATION_ACTIVITY,
            "E",
            event.at,
            (process,),
            outcome=SERIOUS if died else SUCCESS,
            types=(codes.APPLICATION_STOP if stops else codes.APPLICATION_START,),
            description=str(event.data.get("reason", "")) if died else "",
        )
    ]


def _opened(teller: Teller, event: Event) -> list[Message]:
    after = teller.ledger.events(study_uid=event.study_uid, after=event.seq, limit=AFTER_OPENING)
    first = next((each for each in after if each.kind in ARRIVALS), None)
    sender = _peer(str(first.data.get("calling_ae", "")) if first else "", codes.SOURCE, first)
    both = (sender, teller.us(codes.DESTINATION))
    return [Message(codes.BEGIN_TRANSFERRING, "E", event.at, both, teller.about(event))]


def _came(teller: Teller, event: Event) -> list[Message]:
    """Tell what came since the study was last complete: a message for each sender and action."""
    uid = event.study_uid or ""
    earlier = [each for each in teller.ledger.events(study_uid=uid) if each.seq < event.seq]
    since = max((each.seq for each in earlier if each.kind == event.kind), default=0)
    classes = {each.sop_uid: each.sop_class_uid for each in teller.ledger.instances(uid)}
    counts: dict[tuple[str, str], Counter[str]] = {}
    firsts: dict[tuple[str, str], Event] = {}
    for each in earlier:
        if each.seq > since and each.kind in ARRIVALS:
            key = (str(each.data.get("calling_ae", "")), ARRIVALS[each.kind])
            firsts.setdefault(key, each)
            counts.setdefault(key, Counter())[classes.get(each.data.get("sop_uid", ""), "")] += 1
    return [
        Message(
            codes.INSTANCES_TRANSFERRED,
            action,
            event.at,
            (_peer(sender, codes.SOURCE, firsts[sender, action]), teller.us(codes.DESTINATION)),
            teller.about(event, count),
        )
        for (sender, action), count in counts.items()
    ]


def _going(teller: Teller, event: Event) -> list[Message]:
    sops = _results(teller, event)
    return [
        Message(
            codes.BEGIN_TRANSFERRING,
            "E",
            event.at,
            (teller.us(codes.SOURCE, requestor=True), _destination(each)),
            teller.about(event, sops),
        )
        for each in event.data.get("destinations", ())
        if not str(each).startswith(TEXT)
    ]


def _went(teller: Teller, event: Event) -> list[Message]:
    destination = str(event.data.get("destination", ""))
    failed = event.kind != "delivery.sent"
    if destination.startswith(TEXT):
        made = _exported(teller, event, f"file://{destination.removeprefix(TEXT)}")
        made = replace(
            made, participants=(teller.us(codes.SOURCE, requestor=True), made.participants[1])
        )
    else:
        both = (teller.us(codes.SOURCE, requestor=True), _destination(destination))
        # R: whether the receiver had it before is not known here (Table A.5.3.7-1).
        about = teller.about(event, _results(teller, event))
        made = Message(codes.INSTANCES_TRANSFERRED, "R", event.at, both, about)
    if failed:
        made = replace(made, outcome=SERIOUS, description=str(event.data.get("detail", "")))
    return [made]


def _viewed(teller: Teller, event: Event) -> list[Message]:
    who = (_person(event), teller.us())
    return [Message(codes.INSTANCES_ACCESSED, "R", event.at, who, teller.about(event))]


def _downloaded(teller: Teller, event: Event) -> list[Message]:
    uri = f"lamed-node:/studies/jobs/{event.job_id}/{event.data.get('label', '')}.dcm"
    return [_exported(teller, event, uri)]


def _exported(teller: Teller, event: Event, uri: str) -> Message:
    media = Participant(
        uri, roles=(codes.DESTINATION_MEDIA,), access_point=uri, media=codes.URI_MEDIA
    )
    person = replace(_person(event), roles=(codes.SOURCE,))
    who = (person, media, teller.us(codes.SOURCE))
    return Message(codes.EXPORT, "R", event.at, who, teller.about(event))


def _logged_in(teller: Teller, event: Event) -> list[Message]:
    kind = codes.LOGOUT if event.kind == "qa.logout" else codes.LOGIN
    refused = event.kind == "qa.login_refused"
    person = _person(event)
    # Its access point is mandatory (Table A.5.3.12-1).
    person = replace(person, access_point=person.access_point or teller.host)
    return [
        Message(
            codes.USER_AUTHENTICATION,
            "E",
            event.at,
            (person, teller.us()),
            outcome=MINOR if refused else SUCCESS,
            types=(kind,),
            description="the one-time link was used before, is too old, or none" * refused,
        )
    ]


def _log_used(teller: Teller, event: Event) -> list[Message]:
    log = Subject(codes.URI, LOG_URI, "2", "13", "Security Audit Log")
    return [Message(codes.AUDIT_LOG_USED, "R", event.at, (_person(event), teller.us()), (log,))]


def _alert(teller: Teller, event: Event) -> list[Message]:
    node = event.kind == "association.rejected"
    data = event.data
    who = _peer(str(data.get("calling_ae", "")), None, event)
    told = ", ".join(f"{key} {each}" for key, each in data.items())
    subject = Subject(
        codes.NODE_ID,
        _address(event) or teller.host if node else teller.host,
        "2",
        "13",
        details=(("Alert Description", f"{event.kind}: {told}".encode()),),
    )
    return [
        Message(
            codes.SECURITY_ALERT,
            "E",
            event.at,
            (teller.us(requestor=True), *((who,) if node else ())),
            (subject,),
            outcome=SUCCESS if event.kind == "tls.renewed" else MINOR,
            types=(codes.NODE_AUTHENTICATION if node else codes.SECURITY_CONFIGURATION,),
        )
    ]


def _expired(teller: Teller, event: Event) -> list[Message]:
    about, us = teller.about(event), (teller.us(requestor=True),)
    if event.data.get("what") == "images":
        return [Message(codes.STUDY_DELETED, "D", event.at, us, about)]
    return [Message(codes.INSTANCES_ACCESSED, "D", event.at, us, about)]


def _erased(teller: Teller, event: Event) -> list[Message]:
    who = (_person(event), teller.us())
    return [Message(codes.STUDY_DELETED, "D", event.at, who, teller.about(event))]


def _query(teller: Teller, event: Event) -> list[Message]:
    data = event.data
    sent = str(data.get("destination") or data.get("peer") or "")
    both = (teller.us(codes.SOURCE, requestor=True), _destination(sent))
    syntax = str(data.get("transfer_syntax_uid", "1.2.840.10008.1.2"))
    subject = Subject(
        codes.SOP_CLASS_UID,
        str(data.get("sop_class_uid", UNKNOWN)),
        "2",
        "3",
        query=_bytes(data.get("query", "")),
        details=(("TransferSyntax", syntax.encode()),),
    )
    return [Message(codes.QUERY, "E", event.at, both, (subject,))]


def _pulled(teller: Teller, event: Event) -> list[Message]:
    """Tell a pull as the query that it begins with (PS3.4 C.4.1, Study Root)."""
    table = tables.pulls.c
    with teller.ledger.reading() as connection:
        wanted = select(table.wanted).where(table.id == event.data.get("number"))
        keys = json.loads(connection.scalar(wanted) or "{}")
    asked = Dataset()
    for keyword, value in (keys | {"QueryRetrieveLevel": "STUDY"}).items():
        setattr(asked, keyword, value)
    written = DicomBytesIO()
    written.is_little_endian, written.is_implicit_VR = True, True
    write_dataset(written, asked)
    data = {
        "destination": event.data.get("source", ""),
        "sop_class_uid": STUDY_ROOT_FIND,
        "query": base64.b64encode(written.getvalue()).decode(),
    }
    return _query(teller, replace(event, data=data))


def _results(teller: Teller, event: Event) -> Counter[str]:
    return Counter(each.sop_class_uid for each in teller.ledger.results(event.job_id or ""))


def _person(event: Event) -> Participant:
    data = event.data
    session = f"session {data['session']}" if "session" in data else ""
    name = str(data.get("by") or session or UNKNOWN)
    return Participant(name, requestor=True, access_point=_address(event))


def _peer(ae_title: str, role: codes.Code | None, event: Event | None) -> Participant:
    return Participant(
        ae_title or UNKNOWN,
        requestor=role is codes.SOURCE,
        roles=(role,) if role else (),
        ae_titles=(ae_title,) if ae_title else (),
        access_point=_address(event) if event else "",
    )


def _destination(text: str) -> Participant:
    found = PEER.match(text)
    if found:
        titles = (found["ae"],) if found["ae"] else ()
        name, host = found["ae"] or text, found["host"].strip("[]")
    else:
        titles, name, host = (), text, urlsplit(text).hostname or ""
    return Participant(name, roles=(codes.DESTINATION,), ae_titles=titles, access_point=host)


def _address(event: Event) -> str:
    return str(event.data.get("address") or event.data.get("peer") or "")


def _bytes(value: Any) -> bytes:  # noqa: ANN401 - of an event
    """Give a query as it was sent: base64 if it is that, else as text."""
    try:
        return base64.b64decode(str(value), validate=True)
    except ValueError:
        return str(value).encode()


KINDS: Final[Mapping[str, Callable[[Teller, Event], list[Message]]]] = {
    "role.started": _started,
    "role.stopped": _started,
    "role.died": _started,
    "study.opened": _opened,
    "study.reopened": _opened,
    "study.complete": _came,
    "job.results": _going,
    "delivery.sent": _went,
    "delivery.failed": _went,
    "delivery.lost": _went,
    "pull.asked": _pulled,
    "qa.viewed": _viewed,
    "qa.downloaded": _downloaded,
    "qa.login": _logged_in,
    "qa.login_refused": _logged_in,
    "qa.logout": _logged_in,
    "ledger.read": _log_used,
    "association.rejected": _alert,
    "tls.renewed": _alert,
    "tls.renewal_failed": _alert,
    "tls.expires": _alert,
    "retention.expired": _expired,
    "study.erased": _erased,
}
