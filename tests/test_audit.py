import base64
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from io import BytesIO
from pathlib import Path
from typing import Any

import audit_schema
import pytest
from audit_schema import details, objects, participants
from keeping import PEER, Node
from pydicom import dcmread

from dicom_node.audit import store
from dicom_node.audit.codes import AUDIT_LOG_USED
from dicom_node.audit.message import Message, Participant, Source, Subject
from dicom_node.audit.told import KINDS, Teller
from dicom_node.config import Config
from dicom_node.ways_in import pull

STUDY, US = "1.2.77.1", "lamed-node@host.example"
SOURCE = Source("LAMED@host", "Site 1")


@pytest.fixture
def node(config: Config) -> Iterator[Node]:
    with Node(config) as made:
        yield made


def told(node: Node, *kinds: str) -> list[Any]:
    """Give the checked messages of all events, or of those of some kinds."""
    teller = Teller(node.ledger, "LAMED", "host.example")
    return [
        audit_schema.check(message.to_xml(SOURCE))
        for event in node.ledger.events()
        if not kinds or event.kind in kinds
        for message in teller.messages(event)
    ]


def codes(roots: list[Any]) -> list[str]:
    return [each.find("EventIdentification/EventID").get("csd-code") for each in roots]


def counts(root: Any) -> dict[str, str]:
    return {each.get("UID"): each.get("NumberOfInstances") for each in root.iter("SOPClass")}


def test_a_study_is_told_from_its_first_image_to_its_delivery(node: Node) -> None:
    node.receive(STUDY)
    node.ledger.event("study.complete", study_uid=STUDY)
    node.read(STUDY, node.enqueue(STUDY))
    node.ledger.record_delivery(node.ledger.due_deliveries()[0].id, "sent")
    began, came, going, went = told(node)
    assert codes([began, came, going, went]) == ["110102", "110104", "110102", "110104"]
    assert [each.get("UserID") for each in participants(came)] == [
        "CT_1",
        "lamed-node@host.example",
    ]
    assert came.find("EventIdentification").get("EventActionCode") == "C"
    assert counts(came) == {"1.2.840.10008.5.1.4.1.1.2": "2"}
    assert counts(went) == {"1.2": "1"}
    ours, theirs = participants(went)
    assert ours.get("AlternativeUserID") == "AETITLES=LAMED"
    assert (ours.get("UserIsRequestor"), theirs.get("UserIsRequestor")) == ("true", "false")
    assert (theirs.get("NetworkAccessPointID"), theirs.get("NetworkAccessPointTypeCode")) == (
        "127.0.0.1",
        "2",
    )
    whose = objects(went)[1]
    assert whose.get("ParticipantObjectID") == "PID-0815"
    assert whose.findtext("ParticipantObjectName") == "SYNTHETIC^ERASE"
    assert went.find(".//Accession").get("Number") == "ACC-4711"


def test_what_came_is_told_by_sender_and_by_what_was_there_before(node: Node) -> None:
    node.receive(STUDY)
    node.receive(STUDY, numbers=(1,))
    node.receive(STUDY, numbers=(2,), StudyDescription="corrected")
    node.ledger.event("study.complete", study_uid=STUDY)
    node.ledger.event("study.complete", study_uid=STUDY)
    came = told(node, "study.complete")
    actions = {
        each.find("EventIdentification").get("EventActionCode"): sum(
            map(int, counts(each).values())
        )
        for each in came
    }
    assert actions == {"C": 2, "R": 1, "U": 1}


def test_a_delivery_that_was_given_up_is_a_failure_with_its_reason(node: Node) -> None:
    node.receive(STUDY)
    node.read(STUDY, node.enqueue(STUDY))
    (due,) = node.ledger.due_deliveries()
    node.ledger.record_delivery(due.id, "failed", detail="refused: no\x00 such\nAE")
    (failed,) = told(node, "delivery.failed")
    event = failed.find("EventIdentification")
    assert event.get("EventOutcomeIndicator") == "8"
    assert event.findtext("EventOutcomeDescription") == "refused: no\ufffd such\ufffdAE"


def test_a_draft_that_is_put_out_as_text_is_an_export(node: Node) -> None:
    node.receive(STUDY)
    node.read(STUDY, node.enqueue(STUDY), "text:/srv/ris")
    (due,) = node.ledger.due_deliveries()
    node.ledger.record_delivery(due.id, "sent")
    assert told(node, "job.results") == []
    (export,) = told(node, "delivery.sent")
    media = export.xpath("ActiveParticipant[MediaIdentifier]")[0]
    assert (media.get("UserID"), media.get("NetworkAccessPointTypeCode")) == (
        "file:///srv/ris",
        "5",
    )


def test_a_node_starts_stops_and_dies(node: Node) -> None:
    node.ledger.event("role.started", role="scp", pid=17)
    node.ledger.event("role.stopped", role="scp", pid=17)
    node.ledger.event("role.died", role="worker", reason="killed by signal 9", again_in_s=1)
    roots = told(node)
    types = [each.find("EventIdentification/EventTypeCode").get("csd-code") for each in roots]
    assert types == ["110120", "110121", "110121"]
    assert participants(roots[0])[0].get("UserID") == "17"
    assert roots[2].find("EventIdentification").get("EventOutcomeIndicator") == "8"


def test_a_reader_of_the_pages_logs_in_looks_and_takes_with_him(node: Node) -> None:
    job = node.delivered(STUDY)
    node.ledger.event("qa.login", session="abc", address="192.0.2.7")
    node.ledger.event("qa.login_refused", address="192.0.2.8")
    node.ledger.event("qa.viewed", study_uid=STUDY, session="abc")
    node.ledger.event("qa.downloaded", study_uid=STUDY, job_id=job, label="draft", session="abc")
    node.ledger.event("qa.logout", session="abc")
    login, refused, looked, taken, logout = told(
        node, *(kind for kind in KINDS if kind.startswith("qa."))
    )
    person = participants(login)[0]
    assert (person.get("UserID"), person.get("NetworkAccessPointID")) == (
        "session abc",
        "192.0.2.7",
    )
    assert refused.find("EventIdentification").get("EventOutcomeIndicator") == "4"
    assert codes([looked, taken]) == ["110103", "110106"]
    for each in (login, refused, logout):  # Table A.5.3.12-1: mandatory
        assert participants(each)[0].get("NetworkAccessPointTypeCode") in {"1", "2"}


def test_who_was_kept_out_is_an_alert_that_describes_itself(node: Node) -> None:
    node.ledger.event(
        "association.rejected",
        peer="192.0.2.9",
        calling_ae="<EVIL>",
        called_ae="LAMED",
        reason="not one of peers",
        count=3,
    )
    (alert,) = told(node)
    assert alert.find("EventIdentification/EventTypeCode").get("csd-code") == "110126"
    assert objects(alert)[0].get("ParticipantObjectID") == "192.0.2.9"
    assert "calling_ae <EVIL>" in details(alert)["Alert Description"]
    assert [each.get("UserIsRequestor") for each in participants(alert)] == ["true", "false"]


def test_a_certificate_that_cannot_be_renewed_is_an_alert_about_settings(node: Node) -> None:
    node.ledger.event("tls.renewal_failed", reason="no such file")
    (alert,) = told(node)
    assert alert.find("EventIdentification/EventTypeCode").get("csd-code") == "110129"


def test_who_reads_the_log_is_told(node: Node) -> None:
    node.ledger.event("ledger.read", by="doe at the command line", how="export")
    (used,) = told(node)
    assert codes([used]) == ["110101"]
    assert participants(used)[0].get("UserID") == "doe at the command line"
    assert objects(used)[0].findtext("ParticipantObjectName") == "Security Audit Log"


def test_what_expires_or_is_erased_is_a_study_deleted(node: Node) -> None:
    node.delivered(STUDY)
    node.sweep(datetime.now(UTC) + timedelta(days=400))
    images, results = told(node, "retention.expired")
    assert codes([images, results]) == ["110105", "110103"]
    assert results.find("EventIdentification").get("EventActionCode") == "D"
    node.ledger.event("study.erased", study_uid="erased-1", by="doe at the command line")
    (erased,) = told(node, "study.erased")
    assert codes([erased]) == ["110105"]
    assert objects(erased)[1].get("ParticipantObjectID") == "unknown"


def test_a_query_carries_what_was_asked(node: Node) -> None:
    asked = b"\x08\x00\x52\x00\x06\x00\x00\x00STUDY "
    node.ledger.event(
        "proof.queried",
        destination=PEER,
        sop_class_uid="1.2.840.10008.5.1.4.1.2.2.1",
        transfer_syntax_uid="1.2.840.10008.1.2",
        query=base64.b64encode(asked).decode(),
    )
    (query,) = told(node)
    (subject,) = objects(query)
    assert base64.b64decode(subject.findtext("ParticipantObjectQuery")) == asked
    assert details(query) == {"TransferSyntax": "1.2.840.10008.1.2"}


def test_a_pull_is_told_as_the_query_that_it_begins_with(node: Node) -> None:
    number = pull.ask(node.ledger, "PACS", {"AccessionNumber": "ACC-4711"}, by="test")
    assert number == 1
    (query,) = told(node)
    (subject,) = objects(query)
    sent = base64.b64decode(subject.findtext("ParticipantObjectQuery"))
    asked = dcmread(BytesIO(sent), force=True)
    assert (asked.AccessionNumber, asked.QueryRetrieveLevel) == ("ACC-4711", "STUDY")
    assert [each.get("UserID") for each in participants(query)] == [US, "PACS"]


def test_every_event_that_is_audited_makes_a_message_whatever_it_lacks(node: Node) -> None:
    for kind in (*KINDS, "x.queried"):
        node.ledger.event(kind)
        node.ledger.event(kind, study_uid="erased-1", job_id="j", erased=True)
    made = told(node)
    assert set(codes(made)) == set(audit_schema.TABLES)


@pytest.mark.parametrize(
    "text",
    ['<a href="x">&amp;', "\x00\x0b\x1f\ud800\ufffe", "\u80f8\u90e8 \U0001fa7b", "a\r\nb", ""],
)
def test_no_text_of_a_sender_breaks_a_message(text: str) -> None:
    log = Subject(
        AUDIT_LOG_USED, text, "2", "13", text, details=((text, text.encode("utf-8", "replace")),)
    )
    who = Participant(text, ae_titles=(text,), name=text, access_point=text)
    made = Message(AUDIT_LOG_USED, "R", datetime.now(UTC), (who,), (log,), description=text)
    xml = made.to_xml(Source(text, text))
    root = audit_schema.etree.fromstring(xml)
    assert audit_schema.SCHEMA.validate(root), audit_schema.SCHEMA.error_log
    assert b"\n" not in xml


def test_the_schema_refuses_what_the_standard_does() -> None:
    log = Subject(AUDIT_LOG_USED, "x", "2", "13", "x")
    good = Message(AUDIT_LOG_USED, "R", datetime.now(UTC), (Participant("me"),), (log,))
    xml = good.to_xml(SOURCE)
    for change in (
        (b'EventActionCode="R"', b'EventActionCode="X"'),
        (b'UserIsRequestor="false"', b""),
        (b"csd-code", b"code"),
        (b'ParticipantObjectTypeCode="2"', b'ParticipantObjectTypeCode="9"'),
        (b"<ParticipantObjectName>x</ParticipantObjectName>", b""),
    ):
        assert change[0] in xml
        root = audit_schema.etree.fromstring(xml.replace(*change))
        assert not audit_schema.SCHEMA.validate(root), change


def test_files_of_days_expire(tmp_path: Path) -> None:
    for day in ("2026-01-01", "2026-01-09", "2026-01-10"):
        store.add(tmp_path, day, [b"<AuditMessage/>"])
    assert store.expire(tmp_path, 0, datetime(2026, 1, 10, tzinfo=UTC)) == 0
    assert store.expire(tmp_path, 5, datetime(2026, 1, 10, tzinfo=UTC)) == 1
    assert sorted(each.name for each in tmp_path.glob("*.log")) == [
        "2026-01-09.xml.log",
        "2026-01-10.xml.log",
    ]
