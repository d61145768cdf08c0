import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from orthanc_server import eventually
from pydicom import Dataset
from pydicom.uid import generate_uid
from pynetdicom import AE
from pynetdicom.association import Association

from dicom_node import scu
from dicom_node.config import Config, Destination
from dicom_node.errors import BadInput, PeerError
from dicom_node.jobs import Jobs
from dicom_node.ledger import Ledger, Result, tables
from dicom_node.network import dimse, outgoing
from dicom_node.network.dimse import Request
from dicom_node.scp import Scp
from dicom_node.spool import Spool
from dicom_node.ways_in import expectations
from dicom_node.ways_in.expectations import IAN, MPPS, expected

STUDY = "1.2.3.4"


def reference(uid: str, **more: str) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = "1.2.840.10008.5.1.4.1.1.2", uid
    for key, value in more.items():
        setattr(item, key, value)
    return item


def ian(*references: Dataset) -> Dataset:
    said, series = Dataset(), Dataset()
    said.StudyInstanceUID, said.ReferencedPerformedProcedureStepSequence = STUDY, []
    series.SeriesInstanceUID, series.ReferencedSOPSequence = "1.2.3.4.1", list(references)
    said.ReferencedSeriesSequence = [series]
    return said


def step_begins(study_uid: str = STUDY) -> Dataset:
    said, step = Dataset(), Dataset()
    step.StudyInstanceUID = study_uid
    said.ScheduledStepAttributesSequence = [step]
    said.PerformedProcedureStepStatus, said.PerformedSeriesSequence = "IN PROGRESS", []
    return said


def step_ends(*uids: str, status: str = "COMPLETED") -> Dataset:
    said, series = Dataset(), Dataset()
    series.ReferencedImageSequence = [reference(each) for each in uids]
    said.PerformedProcedureStepStatus, said.PerformedSeriesSequence = status, [series]
    return said


def request(field: int, sop_class: str, said: Dataset, uid: str = "") -> Request:
    syntax = "1.2.840.10008.1.2"
    return Request(field, sop_class, uid, 0, outgoing.encoded(said, syntax), syntax, "MOD")


@pytest.fixture
def peer(config: Config, spool: Spool, ledger: Ledger) -> Callable[[], Association]:
    """Give associations of a pynetdicom peer with a node that takes IAN and MPPS."""
    with Scp(config, spool, ledger, expectations.handlers(ledger)) as scp:

        def associate() -> Association:
            ae = AE(ae_title="MOD")
            for each in (IAN, MPPS):
                ae.add_requested_context(each)
            return ae.associate("127.0.0.1", scp.port, ae_title="LAMED")

        yield associate


def test_nobody_has_said_anything_of_an_unknown_study(ledger: Ledger) -> None:
    assert expected(ledger, STUDY) is None


def test_a_notification_of_a_real_peer_tells_how_many_instances_there_are(
    peer: Callable[[], Association], ledger: Ledger
) -> None:
    assoc = peer()
    said = ian(reference("1.2.1"), reference("1.2.2"), reference("1.2.2"))
    status, _ = assoc.send_n_create(said, IAN, generate_uid())
    assoc.release()
    assert status.Status == 0
    assert expected(ledger, STUDY) == 2
    (event,) = [each for each in ledger.events() if each.kind == "study.expected"]
    assert (event.study_uid, event.data["instances"]) == (STUDY, 2)


def test_notifications_of_a_study_are_united(ledger: Ledger) -> None:
    for uids in (("1.2.1", "1.2.2"), ("1.2.2", "1.2.3")):
        said = ian(*map(reference, uids))
        expectations.announced(ledger, request(dimse.N_CREATE_RQ, IAN, said))
    assert expected(ledger, STUDY) == 3


def test_results_of_ours_that_the_archive_has_are_not_waited_for(
    ledger: Ledger, scp: Scp, ct_files: list[Path], tmp_path: Path
) -> None:
    scu.send(ct_files, Destination("LAMED", "127.0.0.1", scp.port), calling_ae="X", timeout_s=5)
    (study,) = ledger.studies()
    jobs = Jobs(ledger)
    images = [each.sop_uid for each in ledger.instances(study.study_uid)]
    job = jobs.enqueue(study.study_uid, "ct_chest", images, model_digest="0", series=[])
    draft = Result(job.id, "draft", "1.2.3", "1.2.3.9", "1.2.3.8", tmp_path / "a", "0")
    with ledger.transaction() as transaction:
        transaction.connection.execute(
            tables.results.insert().values(**vars(draft) | {"path": "a", "position": 0})
        )
    expectations.note(ledger, study.study_uid, "ian 1", sop_uids=[*images, "1.2.3.9"])
    assert expected(ledger, study.study_uid) == len(images)
    expectations.note(ledger, study.study_uid, "ian 2", sop_uids=["1.2.3.10"])
    assert expected(ledger, study.study_uid) == len(images) + 1


def test_what_is_unavailable_is_not_expected(ledger: Ledger) -> None:
    said = ian(reference("1.2.1"), reference("1.2.2", InstanceAvailability="UNAVAILABLE"))
    expectations.announced(ledger, request(dimse.N_CREATE_RQ, IAN, said))
    assert expected(ledger, STUDY) == 1


def test_a_step_of_a_real_peer_counts_when_it_has_ended(
    peer: Callable[[], Association], ledger: Ledger
) -> None:
    assoc, uid = peer(), generate_uid()
    assert assoc.send_n_create(step_begins(), MPPS, uid)[0].Status == 0
    assert expected(ledger, STUDY) is None
    assert assoc.send_n_set(step_ends("1.2.1", "1.2.2"), MPPS, uid)[0].Status == 0
    assert expected(ledger, STUDY) == 2
    again = assoc.send_n_set(step_ends("1.2.1"), MPPS, uid)[0]
    assert again.Status == 0x0110  # PS3.4 F.7.2.2.2
    assoc.release()
    assert expected(ledger, STUDY) == 2


def test_a_step_that_goes_on_keeps_what_another_source_said_open(ledger: Ledger) -> None:
    expectations.note(ledger, STUDY, "query PACS", instances=3)
    expectations.begun(ledger, request(dimse.N_CREATE_RQ, MPPS, step_begins(), "1.2.9"))
    assert expected(ledger, STUDY) is None


def test_a_step_that_ends_without_its_series_keeps_those_it_named_before(ledger: Ledger) -> None:
    expectations.begun(ledger, request(dimse.N_CREATE_RQ, MPPS, step_begins(), "1.2.9"))
    going = step_ends("1.2.1", "1.2.2", status="IN PROGRESS")
    expectations.went_on(ledger, request(dimse.N_SET_RQ, MPPS, going, "1.2.9"))
    ended = Dataset()
    ended.PerformedProcedureStepStatus = "DISCONTINUED"
    expectations.went_on(ledger, request(dimse.N_SET_RQ, MPPS, ended, "1.2.9"))
    assert expected(ledger, STUDY) == 2


def test_a_step_of_no_known_uid_and_one_created_twice_are_refused(ledger: Ledger) -> None:
    unknown = request(dimse.N_SET_RQ, MPPS, step_ends("1.2.1"), "1.2.8")
    assert expectations.went_on(ledger, unknown).status == 0x0112
    twice = request(dimse.N_CREATE_RQ, MPPS, step_begins(), "1.2.9")
    assert [expectations.begun(ledger, twice).status for _ in range(2)] == [0, 0x0111]


def test_what_names_no_study_is_answered_so(ledger: Ledger) -> None:
    notification = ian()
    notification.StudyInstanceUID = ""
    created = request(dimse.N_CREATE_RQ, IAN, notification)
    assert expectations.announced(ledger, created).status == 0x0120
    step = request(dimse.N_CREATE_RQ, MPPS, step_begins(""))
    assert expectations.begun(ledger, step).status == 0x0120


def test_bytes_that_are_no_data_set_are_refused(ledger: Ledger) -> None:
    for content in (b"\xff" * 9, b"\x08\x00\x18\x00SQ\x00", b"GET / HTTP/1.1"):
        asked = Request(dimse.N_CREATE_RQ, IAN, "1.2", 0, content, "1.2.840.10008.1.2.1")
        with suppress(BadInput):
            assert expectations.announced(ledger, asked).status == 0x0120
    assert expected(ledger, STUDY) is None


def test_a_source_is_asked_for_each_open_study_and_not_again_at_once(
    ledger: Ledger, scp: Scp, ct_files: list[Path]
) -> None:
    scu.send(ct_files, Destination("LAMED", "127.0.0.1", scp.port), calling_ae="X", timeout_s=5)
    (study,) = ledger.studies()
    asked: list[str] = []

    def count(study_uid: str) -> int:
        asked.append(study_uid)
        return 7

    when: dict[str, float] = {}
    for _ in range(2):
        expectations.step(ledger, "PACS", count, when)
    assert asked == [study.study_uid]
    assert expected(ledger, study.study_uid) == 7
    ledger.set_study_state(study.study_uid, "rejected")
    expectations.step(ledger, "PACS", count, when)
    assert not when


def test_the_loop_survives_a_source_that_is_down(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(expectations, "POLL_S", 0.01)
    stop, calls = threading.Event(), []

    def broken(*_: object) -> None:
        calls.append(1)
        raise RuntimeError("a fault")

    monkeypatch.setattr(expectations, "step", broken)
    thread = threading.Thread(target=expectations.run, args=(ledger, "P", lambda _: 1, stop))
    thread.start()
    try:
        eventually(lambda: len(calls) > 2)
    finally:
        stop.set()
        thread.join()


def test_a_source_that_cannot_be_reached_leaves_the_study_to_its_quiet_time(
    ledger: Ledger, scp: Scp, ct_files: list[Path]
) -> None:
    scu.send(ct_files, Destination("LAMED", "127.0.0.1", scp.port), calling_ae="X", timeout_s=5)

    def down(_: str) -> int:
        raise PeerError("PACS cannot be reached")

    expectations.step(ledger, "PACS", down, {})
    assert expected(ledger, ledger.studies()[0].study_uid) is None
