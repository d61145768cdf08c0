import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from desk import (
    CHEST,
    FAST,
    HOUR_S,
    PACS,
    PROTOCOLS,
    Desk,
    Meanwhile,
    ct,
    held,
    sha256,
    slices,
    trip,
    until,
)
from pydicom import Dataset, dcmread

import model
import sr_templates
from dicom_node import volume, worker
from dicom_node.config import Config
from dicom_node.demo import sample
from dicom_node.jobs import Job, State
from dicom_node.ledger import Ledger
from dicom_node.ledger import ledger as ledger_module
from dicom_node.spool import Spool
from sr_templates import Protocol


@pytest.fixture(scope="module")
def lamed(checkpoint: Path) -> model.LaMed:
    return model.load(checkpoint)


@pytest.fixture
def desk(config: Config, ledger: Ledger, spool: Spool, lamed: model.LaMed) -> Desk:
    return Desk(replace(config, destinations=(PACS,)), ledger, spool, lamed)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, lamed: model.LaMed) -> Iterator[Desk]:
    """A desk whose study has been read."""
    folder = tmp_path_factory.mktemp("done")
    config = Config(data_dir=folder, minimum_free_mb=1, destinations=(PACS,))
    with Ledger(config.ledger_path) as ledger:
        desk = Desk(config, ledger, Spool(config.spool_dir, ledger, minimum_free_mb=1), lamed)
        desk.receive(slices())
        assert desk.worker(known=PROTOCOLS).step()
        yield desk


# --- the story ----------------------------------------------------------------------------------


def test_a_study_is_read_and_every_step_is_told_in_its_order(done: Desk) -> None:
    assert (done.job.state, done.study) == (State.DONE, ("delivering", ""))
    told = [
        each.kind if each.kind != "study.state" else str(each.data["state"])
        for each in done.ledger.events(study_uid=done.study_uid)
        if each.kind != "instance.stored"
    ]
    assert told == [
        *("study.opened", "study.completion_requested", "study.complete", "study.routed"),
        *("job.queued", "queued", "job.claimed", "processing"),
        *("job.record", "job.results", "delivering", "job.done"),
    ]
    assert done.ledger.verify() == len(done.ledger.events())
    (delivery,) = done.ledger.deliveries(done.job.id)
    assert (delivery.destination, delivery.state, delivery.attempts) == (str(PACS), "pending", 0)
    assert not done.worker().step()


def test_what_was_made_lies_where_the_ledger_says(done: Desk) -> None:
    found = done.results()
    assert list(found) == ["seg", "measurements", "draft"]
    for each in found.values():
        assert each.path.is_absolute()
        assert each.path.parent == done.config.results_dir / done.job.id
        assert sha256(each.path) == each.sha256
        assert dcmread(each.path).SOPInstanceUID == each.sop_uid
    outputs = {each["label"]: each["sop_instance_uid"] for each in done.job.summary["outputs"]}
    assert outputs == {label: each.sop_uid for label, each in found.items()}
    assert done.job.summary["model"]["sha256"] == done.lamed.card.sha256


def test_every_object_says_that_the_model_is_untrained(done: Desk) -> None:
    assert done.job.summary["model"]["untrained"] is True
    for each in done.results().values():
        made = dcmread(each.path)
        (made_by,) = made.ContributingEquipmentSequence
        assert "UNTRAINED" in made_by.ManufacturerModelName.upper()
        assert made.SeriesDescription.startswith("AI DRAFT")
        del made.ContributingEquipmentSequence, made.ManufacturerModelName
        assert "UNTRAINED" in str(made)
    draft = (done.config.results_dir / done.job.id / "draft.txt").read_text(encoding="utf-8")
    assert "UNTRAINED MODEL" in draft


def test_the_seg_refers_to_the_images_that_were_sent(done: Desk) -> None:
    sent = {str(each.SOPInstanceUID) for each in slices()}
    seg = dcmread(done.results()["seg"].path)
    (series,) = seg.ReferencedSeriesSequence
    referred = {each.ReferencedSOPInstanceUID for each in series.ReferencedInstanceSequence}
    assert referred == sent
    for group in seg.PerFrameFunctionalGroupsSequence:
        (image,) = group.DerivationImageSequence[0].SourceImageSequence
        assert image.ReferencedSOPInstanceUID in sent


def test_without_a_destination_the_study_is_done(desk: Desk) -> None:
    desk.config = replace(desk.config, destinations=())
    desk.receive(ct())
    desk.worker().step()
    assert (desk.study, desk.ledger.due_deliveries()) == (("done", ""), [])


# --- jobs that end otherwise --------------------------------------------------------------------


def test_a_series_that_makes_no_volume_is_rejected_with_the_reason(desk: Desk) -> None:
    sent = slices()
    del sent[9]
    desk.receive(sent)
    desk.worker().step()
    assert desk.job.state == State.REJECTED
    assert desk.job.reason.startswith("missing-slice: expected a slice every 3.000 mm")
    assert desk.study == ("rejected", desk.job.reason)
    assert (desk.results(), desk.job.attempts) == ({}, 1)
    assert all(each.path.is_file() for each in desk.ledger.instances(desk.study_uid))


ASKED = replace(CHEST.questions[0], text="What is <im_patch> here?")


@pytest.mark.parametrize(
    ("known", "state", "told"),
    [
        ({"ct_chest": replace(CHEST, questions=(ASKED,))}, State.FAILED, "<im_patch>"),
        ({}, State.REJECTED, "no protocol is called 'ct_chest'"),
    ],
)
def test_what_trying_again_cannot_help_ends_at_once(
    desk: Desk, known: dict[str, Protocol], state: State, told: str
) -> None:
    desk.receive(ct())
    desk.worker(known=known).step()
    assert (desk.job.state, desk.job.attempts) == (state, 1)
    assert told in desk.job.reason
    assert desk.study == (state, desk.job.reason)
    assert desk.results() == {}


def test_what_nobody_expected_is_tried_again_and_fails_in_the_end(desk: Desk) -> None:
    desk.receive(ct())
    for attempt in (1, 2, 3):
        assert desk.worker(known=Meanwhile(trip)).step()
        assert desk.job.attempts == attempt
        assert desk.job.state == (State.QUEUED if attempt < 3 else State.FAILED)
    assert desk.job.reason == "3 attempts: RuntimeError: over its own feet"
    assert desk.study == ("failed", desk.job.reason)
    assert (desk.kinds("job.released"), desk.kinds("job.failed")) == (2, 1)
    assert not desk.worker().step()
    assert desk.results() == {}


def test_an_attempt_that_goes_well_makes_good_the_one_before(desk: Desk) -> None:
    desk.receive(ct())
    desk.config.results_dir.write_text("no folder", encoding="utf-8")
    desk.worker().step()
    assert "Error" in desk.job.reason
    desk.config.results_dir.unlink()
    desk.worker().step()
    assert (desk.job.state, desk.job.attempts, desk.job.reason) == (State.DONE, 2, "")
    assert desk.study == ("delivering", "")


def test_an_image_that_is_gone_from_the_disk_is_not_read_around(desk: Desk) -> None:
    desk.receive(slices())
    desk.ledger.instances(desk.study_uid)[0].path.unlink()
    desk.worker().step()
    assert desk.job.state in {State.REJECTED, State.QUEUED}
    assert ".dcm" in desk.job.reason
    assert desk.results() == {}


# --- whose job it is ----------------------------------------------------------------------------


def test_a_worker_that_slept_too_long_records_nothing(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    desk.receive(ct())

    def other_reads_it() -> None:
        desk.expire()
        assert desk.worker("b").step()

    assert desk.worker("a", Meanwhile(other_reads_it)).step()
    assert (desk.job.state, desk.job.worker, desk.job.attempts) == (State.DONE, "b", 2)
    assert (desk.kinds("job.results"), desk.kinds("job.done")) == (1, 1)
    assert "job.lease_lost" in caplog.messages
    for each in desk.results().values():
        assert sha256(each.path) == each.sha256
    assert len(desk.ledger.deliveries(desk.job.id)) == 1


@pytest.mark.parametrize("end", ["done", "rejected", "error"])
def test_a_job_that_another_holds_is_not_ended_by_us(desk: Desk, end: str) -> None:
    desk.receive(ct())

    def other_takes_it() -> None:
        desk.expire()
        assert desk.jobs.claim("b", HOUR_S) is not None
        if end == "error":
            trip()

    known = {} if end == "rejected" else FAST
    assert desk.worker("a", Meanwhile(other_takes_it, known)).step()
    assert (desk.job.state, desk.job.worker, desk.job.reason) == (State.RUNNING, "b", "")
    assert (desk.results(), desk.study) == ({}, ("processing", ""))
    assert desk.kinds("job.results") == 0


def test_a_job_that_takes_longer_than_its_lease_is_kept_by_the_heartbeat(desk: Desk) -> None:
    desk.config = replace(desk.config, lease_s=0.6)
    desk.receive(ct())
    others: list[Job | None] = []

    def long_work() -> None:
        deadline = time.monotonic() + 1.5
        while time.monotonic() < deadline:
            others.append(desk.jobs.claim("b", 0.6))
            time.sleep(0.05)

    desk.worker("a", Meanwhile(long_work)).step()
    assert len(others) > 5
    assert set(others) == {None}
    assert (desk.job.state, desk.job.worker, desk.job.attempts) == (State.DONE, "a", 1)
    assert "heartbeat" not in {each.name for each in threading.enumerate()}


@pytest.fixture
def impatient(
    tmp_path: Path, lamed: model.LaMed, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Desk]:
    """A desk whose ledger waits for nobody."""
    monkeypatch.setattr(ledger_module, "BUSY_S", 0.05)
    monkeypatch.setattr(worker, "RETRY_S", 0.05)
    config = Config(data_dir=tmp_path / "impatient", minimum_free_mb=1, lease_s=1.5)
    with Ledger(config.ledger_path) as ledger:
        spool = Spool(config.spool_dir, ledger, minimum_free_mb=1)
        yield Desk(config, ledger, spool, lamed)


def test_a_heartbeat_outlives_a_ledger_that_is_held(
    impatient: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    impatient.receive(ct())

    def ledger_is_held() -> None:
        with held(impatient.ledger.path):
            until(lambda: "job.no_heartbeat" in caplog.messages)
        lost = impatient.job.lease_until
        until(lambda: impatient.job.lease_until != lost)

    impatient.worker("a", Meanwhile(ledger_is_held)).step()
    assert (impatient.job.state, impatient.job.attempts) == (State.DONE, 1)


def test_the_loop_outlives_a_ledger_that_is_held_and_stops_when_told(
    impatient: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    impatient.receive(ct())
    stop = threading.Event()
    thread = threading.Thread(target=impatient.worker().run, args=(stop,))
    with held(impatient.ledger.path):
        thread.start()
        until(lambda: "worker.error" in caplog.messages)
        assert impatient.job.state == State.QUEUED
    until(lambda: impatient.job.state == State.DONE)
    stop.set()
    thread.join(10)
    assert not thread.is_alive()


# --- where the masks lie ------------------------------------------------------------------------


def lungs(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return (values > -950) & (values < -700)


def planted(source: volume.SourceVolume, mask: np.ndarray[Any, Any]) -> Dataset:
    """Let the node's own way bring a mask on the model's grid into a SEG."""
    target = CHEST.targets[0]
    answer = model.Answer(target.id, target.text, "", "", (), 1.0)
    asked = replace(CHEST, questions=(target,))
    return sr_templates.encode(
        asked,
        source.sources,
        worker._findings(asked, [answer], {target.id: mask}, source),
        sr_templates.Algorithm("planted", "1", "0f" * 32),
        job_id="0f",
        image=source.image,
        created_at=datetime(2026, 3, 4, tzinfo=UTC),
    )["seg"]


@pytest.mark.parametrize(
    "directions",
    [
        [(0, 0, 1), (0, 1, 0), (1, 0, 0)],
        [(0, 0, -1), (0, -1, 0), (1, 0, 0)],
        [(0, 0, 1), (0, 1, 0), (-1, 0, 0)],
        [(1, 0, 0), (0, 0, -1), (0, 1, 0)],
        [(0, -1, 0), (0, 0, -1), (1, 0, 0)],
    ],
    ids=["axial", "prone", "mirrored rows", "sagittal", "coronal"],
)
def test_a_mask_comes_back_on_the_very_pixels_that_it_was_drawn_on(
    directions: list[tuple[int, int, int]], tmp_path: Path
) -> None:
    made = sample.series(
        shape=(14, 20, 18), spacing_mm=(4, 3, 2), directions=np.array(directions, float).T
    )
    source = volume.load(sample.write(made, tmp_path)[::-1])
    # The lungs, which differ, and between them a heart that is on the left.
    seg = planted(source, lungs(source.image.array))
    images = {str(each.SOPInstanceUID): each for each in made}
    frames = seg.pixel_array.reshape(-1, seg.Rows, seg.Columns)
    seen = set()
    for group, frame in zip(seg.PerFrameFunctionalGroupsSequence, frames, strict=True):
        (referenced,) = group.DerivationImageSequence[0].SourceImageSequence
        image = images[referenced.ReferencedSOPInstanceUID]
        assert np.array_equal(frame != 0, lungs(image.pixel_array - 1024.0))
        place = group.PlanePositionSequence[0].ImagePositionPatient
        assert np.allclose(place, image.ImagePositionPatient, atol=1e-3)
        seen.add(str(image.SOPInstanceUID))
    assert seen == {uid for uid, each in images.items() if lungs(each.pixel_array - 1024.0).any()}


class Planted:
    """A mask that has been restored already."""

    def __init__(self, *voxels: Any) -> None:
        self.logits = np.array(voxels, np.float32)

    def restore(self) -> np.ndarray[Any, Any]:
        return self.logits


def test_masks_do_not_overlap_and_the_surer_one_wins() -> None:
    first, second = CHEST.targets
    asked = replace(CHEST, questions=(CHEST.questions[0], first, second))
    masks: list[Any] = [
        (Planted(9),),
        (Planted(1, 1, -1), Planted(-1, -1, 1)),
        (Planted(-1, 2, 2),),
    ]
    for sure, expected in (((0.5, 0.9), ([1, 0, 0], [0, 1, 1])), ((0.9, 0.9), ([1] * 3, [0] * 3))):
        answers = [
            model.Answer(question.id, "", "", "", (), confidence, each)
            for question, confidence, each in zip(asked.questions, (1.0, *sure), masks, strict=True)
        ]
        found = worker._masks(asked, answers)
        assert {name: mask.astype(int).tolist() for name, mask in found.items()} == {
            first.id: expected[0],
            second.id: expected[1],
        }


# --- death --------------------------------------------------------------------------------------

PROGRAM = """
import logging, sys, threading
from pathlib import Path
from desk import PROTOCOLS
import model
from dicom_node.config import Config
from dicom_node.jobs import Jobs
from dicom_node.ledger import Ledger
from dicom_node.worker import Worker

class Slow(Jobs):
    def complete(self, *given, **named):
        print("recording", flush=True)
        threading.Event().wait()

class Steps(logging.Handler):
    def emit(self, record):
        print(getattr(record, "step", ""), flush=True)

logging.getLogger("dicom_node.worker").addHandler(Steps())
logging.getLogger("dicom_node.worker").setLevel(logging.INFO)
config = Config(data_dir=Path(sys.argv[1]), lease_s=1)
with Ledger(config.ledger_path) as ledger:
    lamed = model.load(sys.argv[2])
    Worker(ledger, Slow(ledger), lamed, PROTOCOLS, config, name="killed").step()
"""


def kill_at(step: str, data_dir: Path, checkpoint: Path) -> None:
    """Let a worker of its own process come to a step, and kill it there."""
    here = Path(__file__).parent
    command = [sys.executable, "-c", PROGRAM, str(data_dir), str(checkpoint)]
    paths = {"PYTHONPATH": f"{here}{os.pathsep}{here.parent}"}
    with subprocess.Popen(
        command, env=os.environ | paths, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        reached = any(line.startswith(step) for line in process.stdout)
        process.kill()
    assert reached
    assert process.returncode == -signal.SIGKILL


@pytest.mark.slow
@pytest.mark.parametrize("step", ["asking", "recording"])
def test_a_worker_that_is_killed_loses_and_doubles_nothing(
    desk: Desk, done: Desk, step: str, checkpoint: Path
) -> None:
    sent = slices()
    job = desk.receive(sent)
    before = {each.path: each.path.read_bytes() for each in desk.ledger.instances(desk.study_uid)}
    kill_at(step, desk.config.data_dir, checkpoint)
    assert (desk.job.state, desk.job.worker, desk.results()) == (State.RUNNING, "killed", {})
    until(desk.worker("second", PROTOCOLS).step)
    assert (desk.job.id, desk.job.state, desk.job.attempts) == (job.id, State.DONE, 2)
    assert (desk.kinds("job.results"), len(desk.ledger.jobs(desk.study_uid))) == (1, 1)
    assert {path: path.read_bytes() for path in before} == before
    assert len(before) == len(sent)
    uids = {label: each.sop_uid for label, each in done.results().items()}
    assert job.id == done.job.id
    assert {label: each.sop_uid for label, each in desk.results().items()} == uids
    kept = {dcmread(each).SOPInstanceUID for each in desk.config.results_dir.rglob("*.dcm")}
    assert kept == set(uids.values())
