"""Audit messages held against the schema and the tables of PS3.15 A.5, by means of lxml."""

import base64
from pathlib import Path
from typing import Any

from lxml import etree

SCHEMA = etree.RelaxNG(etree.parse(str(Path(__file__).parent / "data" / "audit-message.rng")))
# Of each event: its actions, the roles that must be there, and what it must be about, as
# (ParticipantObjectTypeCode, ParticipantObjectTypeCodeRole, ID type). PS3.15 A.5.3.1 to A.5.3.12.
STUDY, PATIENT = ("2", "3", "110180"), ("1", "1", "2")
TABLES: dict[str, tuple[str, set[str], set[tuple[str, str, str]]]] = {
    "110100": ("E", {"110150"}, set()),
    "110101": ("R", set(), {("2", "13", "12")}),
    "110102": ("E", {"110152", "110153"}, {STUDY, PATIENT}),
    "110103": ("CRUD", set(), {STUDY, PATIENT}),
    "110104": ("CRU", {"110152", "110153"}, {STUDY, PATIENT}),
    "110105": ("D", set(), {STUDY, PATIENT}),
    "110106": ("R", {"110153", "110154"}, {STUDY, PATIENT}),
    "110112": ("E", {"110152", "110153"}, {("2", "3", "110181")}),
    "110113": ("E", set(), {("2", "13", "110182")}),
    "110114": ("E", set(), set()),
}
TYPED = {"110100", "110113", "110114"}  # EventTypeCode is mandatory


def check(xml: bytes) -> Any:
    """Validate a message, and return its root."""
    root = etree.fromstring(xml)
    assert SCHEMA.validate(root), (SCHEMA.error_log, xml.decode())
    (event,) = root.findall("EventIdentification")
    code = event.find("EventID").get("csd-code")
    actions, roles, subjects = TABLES[code]
    assert event.get("EventActionCode") in actions
    assert set(root.xpath("ActiveParticipant/RoleIDCode/@csd-code")) >= roles
    assert bool(event.findall("EventTypeCode")) == (code in TYPED)
    assert {subject(each) for each in objects(root)} == subjects
    requestors = [each for each in participants(root) if each.get("UserIsRequestor") == "true"]
    assert len(requestors) <= 1  # Table A.5.2-1
    return root


def objects(root: Any) -> list[Any]:
    return list(root.findall("ParticipantObjectIdentification"))


def participants(root: Any) -> list[Any]:
    return list(root.findall("ActiveParticipant"))


def subject(each: Any) -> tuple[str, str, str]:
    kind = each.find("ParticipantObjectIDTypeCode").get("csd-code")
    return each.get("ParticipantObjectTypeCode"), each.get("ParticipantObjectTypeCodeRole"), kind


def details(root: Any) -> dict[str, str]:
    """Give what is encoded in base64, by its type."""
    return {
        each.get("type"): base64.b64decode(each.get("value")).decode()
        for each in root.iter("ParticipantObjectDetail")
    }
