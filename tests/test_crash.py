"""The node is broken and asked what is left; `python -m tests.breaking crash` does more."""

import errno
import os
from contextlib import suppress
from pathlib import Path
from random import Random

import pydicom
import pytest

from dicom_node.demo import sample
from dicom_node.errors import NodeError
from dicom_node.ledger import Ledger
from dicom_node.spool import Announced, Spool
from tests.breaking import crash, data_sets
from tests.breaking.faults import Fault
from tests.breaking.power import Disk, PowerCut

STEPS = 5  # of one instance: it is made, written, waited for, renamed, and renamed once more


def store(spool: Spool, number: int) -> data_sets.Model:
    instance = sample.series(shape=(2, 16, 16), seed=number // 2)[number % 2]
    model = data_sets.model(instance)
    spool.store(
        model.content, Announced(model.sop_class_uid, model.sop_uid, model.syntax, "SCANNER")
    )
    return model


@pytest.mark.parametrize("cut", range(1, 4 * STEPS))
def test_a_power_cut_anywhere_takes_nothing_that_was_acknowledged(tmp_path: Path, cut: int) -> None:
    for seed in range(3):
        folder = tmp_path / str(seed)
        root, acknowledged = (folder / "spool").absolute(), []
        with Ledger(folder / "ledger.sqlite") as ledger:
            spool, disk = Spool(root, ledger, minimum_free_mb=1), Disk(root, cut)
            with disk.recording(), suppress(PowerCut):
                for number in range(4):
                    acknowledged.append(store(spool, number))  # noqa: PERF401 - up to the cut
            disk.leave(Random(f"{cut}:{seed}"))
        with Ledger(folder / "ledger.sqlite") as ledger:
            Spool(root, ledger, minimum_free_mb=1).recover()
            for study in ledger.studies():
                for each in ledger.instances(study.study_uid):
                    assert str(pydicom.dcmread(each.path).SOPInstanceUID) == each.sop_uid
            known = {
                each.sop_uid
                for study in ledger.studies()
                for each in ledger.instances(study.study_uid)
            }
            assert ledger.verify() == len(ledger.events())
            again = Spool(root, ledger, minimum_free_mb=1)
            for number in range(4):  # the scanner sends again what it has no answer for
                known |= {store(again, number).sop_uid}
        assert {each.sop_uid for each in acknowledged} <= known
        assert len(known) == 4
        assert list((root / "incoming").iterdir()) == []


def test_the_simulated_disk_forgets_what_nobody_waited_for(tmp_path: Path) -> None:
    root = tmp_path / "spool"
    root.mkdir()
    disk = Disk(root, cut=100)
    with disk.recording():
        for name, waited in (("a.partial", True), ("b.partial", False)):
            handle = os.open(root / name, os.O_WRONLY | os.O_CREAT, 0o600)
            os.writev(handle, [b"content"])
            if waited:
                os.fsync(handle)
            os.close(handle)
    left = set()
    for seed in range(30):
        disk.leave(Random(seed))
        assert (root / "a.partial").read_bytes() == b"content"
        other = root / "b.partial"
        left.add(other.read_bytes() if other.exists() else None)
    assert {None, b""} < left


def test_an_fsync_that_fails_is_no_success(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        spool = Spool(tmp_path / "spool", ledger, minimum_free_mb=1)

        def failing(_: int) -> None:
            raise OSError(errno.EIO, "Input/output error")

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", failing)
            with pytest.raises((OSError, NodeError)):
                store(spool, 0)
        assert ledger.studies() == []
        assert list((tmp_path / "spool").rglob("*.dcm")) == []
        assert store(spool, 0).sop_uid
        assert len(ledger.studies()) == 1


FAULTS = (
    Fault("scp", "record", "kill after", 3),
    Fault("worker", "complete", "locked", 1),
    Fault("worker", "read", "out of memory", 1),
    Fault("pacs", "store", "close", 2),
)


@pytest.mark.slow
def test_whole_nodes_lose_nothing_and_make_nothing_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    faults = iter(FAULTS)
    monkeypatch.setattr(crash, "choose", lambda _: next(faults))
    runs = crash.matrix(range(len(FAULTS)), lambda _: None)
    assert [vars(each) for each in runs if not (each.is_good and each.fired)] == []
    assert crash.table(runs).splitlines()[-1].startswith("| all | 4 | 4 | 0 | 0 | 0 | 0 |")
