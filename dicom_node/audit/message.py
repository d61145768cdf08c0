"""An audit message and its XML (PS3.15 A.5.1, A.5.2).

Knows the elements, their order and what their values may be; must not know why one is written.
What a foreign sender put into a text is encoded, and cut of what XML cannot hold.
"""

import base64
import ipaddress
import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Final

from .codes import PATIENT_NUMBER, STUDY_UID, Code

SUCCESS, MINOR, SERIOUS = "0", "4", "8"
APPLICATION_SERVER: Final = "4"  # A.5.1.2.1
UNKNOWN: Final = "unknown"
# All that XML 1.0 can hold (its section 2.2), on one line.
ILLEGAL: Final = re.compile("[^\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True)
class Source:
    """The system that writes the message."""

    id: str
    site: str = ""  # AuditEnterpriseSiteID; empty: none


@dataclass(frozen=True)
class Participant:
    """A person, a process or a node that took part."""

    user_id: str
    requestor: bool = False
    roles: Sequence[Code] = ()
    ae_titles: Sequence[str] = ()
    name: str = ""
    access_point: str = ""  # address or name of the machine
    media: Code | None = None  # None: it is no medium


@dataclass(frozen=True)
class Subject:
    """What it was about: a patient, a study, a node, a log."""

    id_type: Code
    id: str
    type: str  # ParticipantObjectTypeCode: 1 person, 2 system object
    role: str = ""  # ParticipantObjectTypeCodeRole
    name: str = ""
    query: bytes | None = None  # None: it is no query
    details: Sequence[tuple[str, bytes]] = ()
    sop_classes: Mapping[str, int] = field(default_factory=dict)  # UID, or nothing: instances
    accession: str = ""


@dataclass(frozen=True)
class Message:
    """One audited event."""

    event: Code
    action: str  # C, R, U, D or E
    at: datetime
    participants: Sequence[Participant]
    subjects: Sequence[Subject] = ()
    outcome: str = SUCCESS
    types: Sequence[Code] = ()
    description: str = ""  # of the outcome

    def to_xml(self, source: Source) -> bytes:
        """Write it as UTF-8, on one line."""
        root = ET.Element("AuditMessage")
        _event(root, self)
        for each in self.participants:
            _participant(root, each)
        named = {"AuditEnterpriseSiteID": source.site} if source.site else {}
        told = ET.SubElement(
            root, "AuditSourceIdentification", _clean(named | {"AuditSourceID": source.id})
        )
        ET.SubElement(told, "AuditSourceTypeCode", {"csd-code": APPLICATION_SERVER})
        for subject in self.subjects:
            _subject(root, subject)
        return written(root)


def written(root: ET.Element) -> bytes:
    """Write XML as UTF-8 on one line."""
    xml: bytes = ET.tostring(root, encoding="UTF-8", xml_declaration=True)
    return xml.replace(b"\n", b"", 1)


def patient(patient_id: str, name: str) -> Subject:
    """Name a patient; of an unknown one that much is said."""
    return Subject(PATIENT_NUMBER, patient_id or UNKNOWN, "1", "1", name or UNKNOWN)


def study(study_uid: str, sop_classes: Mapping[str, int], accession: str = "") -> Subject:
    """Name a study, with how many instances of each SOP class it was about."""
    found = Subject(STUDY_UID, study_uid, "2", "3", "Study")
    return replace(found, sop_classes=sop_classes, accession=accession)


def _event(root: ET.Element, message: Message) -> None:
    told = ET.SubElement(
        root,
        "EventIdentification",
        {
            "EventActionCode": message.action,
            "EventDateTime": message.at.astimezone(UTC).isoformat(timespec="milliseconds"),
            "EventOutcomeIndicator": message.outcome,
        },
    )
    _code(told, "EventID", message.event)
    for each in message.types:
        _code(told, "EventTypeCode", each)
    if message.description:
        ET.SubElement(told, "EventOutcomeDescription").text = _text(message.description)


def _participant(root: ET.Element, participant: Participant) -> None:
    values = {"UserID": participant.user_id or UNKNOWN}
    if participant.ae_titles:
        values["AlternativeUserID"] = f"AETITLES={';'.join(participant.ae_titles)}"  # A.5.2.2
    if participant.name:
        values["UserName"] = participant.name
    values["UserIsRequestor"] = str(participant.requestor).lower()
    if participant.access_point:
        values["NetworkAccessPointID"] = participant.access_point
        values["NetworkAccessPointTypeCode"] = _access_point_type(participant)
    told = ET.SubElement(root, "ActiveParticipant", _clean(values))
    for each in participant.roles:
        _code(told, "RoleIDCode", each)
    if participant.media:
        _code(ET.SubElement(told, "MediaIdentifier"), "MediaType", participant.media)


def _access_point_type(participant: Participant) -> str:
    if participant.media:
        return "5"  # a URI
    try:
        ipaddress.ip_address(participant.access_point)
    except ValueError:
        return "1"  # the name of a machine
    return "2"


def _subject(root: ET.Element, subject: Subject) -> None:
    values = {"ParticipantObjectID": subject.id, "ParticipantObjectTypeCode": subject.type}
    if subject.role:
        values["ParticipantObjectTypeCodeRole"] = subject.role
    told = ET.SubElement(root, "ParticipantObjectIdentification", _clean(values))
    _code(told, "ParticipantObjectIDTypeCode", subject.id_type)
    if subject.query is not None:
        ET.SubElement(told, "ParticipantObjectQuery").text = _base64(subject.query)
    else:
        ET.SubElement(told, "ParticipantObjectName").text = _text(subject.name or subject.id)
    for kind, value in subject.details:
        pair = {"type": _text(kind), "value": _base64(value)}
        ET.SubElement(told, "ParticipantObjectDetail", pair)
    if subject.sop_classes or subject.accession:
        _description(ET.SubElement(told, "ParticipantObjectDescription"), subject)


def _description(told: ET.Element, subject: Subject) -> None:
    if subject.accession:
        ET.SubElement(told, "Accession", _clean({"Number": subject.accession}))
    # SOPClass is required beside an accession number (Table A.5.2-1).
    for uid, count in (subject.sop_classes or {"": 0}).items():
        values = {"UID": uid} if uid else {}
        ET.SubElement(told, "SOPClass", _clean(values | {"NumberOfInstances": str(count)}))


def _code(parent: ET.Element, name: str, code: Code) -> None:
    values = {
        "csd-code": code.value,
        "codeSystemName": code.scheme,
        "displayName": code.meaning,
        "originalText": code.meaning,
    }
    ET.SubElement(parent, name, values)


def _clean(values: Mapping[str, str]) -> dict[str, str]:
    return {key: _text(each) for key, each in values.items()}


def _text(value: str) -> str:
    return ILLEGAL.sub("\ufffd", value)


def _base64(value: bytes) -> str:
    return base64.b64encode(value).decode()
