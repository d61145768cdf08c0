import shutil
import threading
from pathlib import Path
from typing import NamedTuple

import pytest
from orthanc_server import eventually

from dicom_node import scu
from dicom_node.config import Config, Destination
from dicom_node.errors import OutOfResources, PeerError
from dicom_node.ledger import Ledger
from dicom_node.scp import Scp
from dicom_node.spool import Spool, room, spool

MB = 1 << 20


class Usage(NamedTuple):
    total: int
    used: int
    free: int


class Disk:
    """What the system says of the disk, as a test wants it."""

    def __init__(self) -> None:
        self.free_mb = 200

    def usage(self, _: Path) -> Usage:
        return Usage(1000 * MB, 0, self.free_mb * MB)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    made = Disk()
    monkeypatch.setattr(spool.shutil, "disk_usage", made.usage)
    return made


def kinds(ledger: Ledger) -> list[str]:
    return [each.kind for each in ledger.events() if each.kind.startswith("spool.")]


def test_once_there_was_none_a_little_more_than_the_least_is_room(
    disk: Disk, config: Config, ledger: Ledger
) -> None:
    asked = Spool(config.spool_dir, ledger, minimum_free_mb=100).has_room
    told = []
    for disk.free_mb in (101, 99, 101, 111, 101):
        told.append(asked())
    assert told == [True, False, False, True, True]


def test_a_full_disk_and_its_end_are_each_told_once(
    disk: Disk, config: Config, ledger: Ledger
) -> None:
    asked = Spool(config.spool_dir, ledger, minimum_free_mb=100).has_room
    had = True
    for disk.free_mb in (200, 50, 50, 200, 200):
        had = room.step(asked, ledger, had=had)
    assert kinds(ledger) == ["spool.full", "spool.room"]


def test_what_the_ledger_cannot_be_told_now_it_is_told_later(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OutOfResources("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(ledger, "event", full)
        had = room.step(lambda: False, ledger, had=True)
    room.step(lambda: False, ledger, had=had)
    assert kinds(ledger) == ["spool.full"]


def test_the_loop_tells_and_survives(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "POLL_S", 0.01)
    answers = iter([True])

    def asked() -> bool:
        if next(answers, False):
            raise OSError("the folder is away")
        return False

    stop = threading.Event()
    thread = threading.Thread(target=room.run, args=(asked, ledger, stop))
    thread.start()
    try:
        eventually(lambda: kinds(ledger) == ["spool.full"])
    finally:
        stop.set()
        thread.join()


def test_without_room_no_association_is_opened_and_with_room_again_one_is(
    disk: Disk, config: Config, ledger: Ledger
) -> None:
    full = Spool(config.spool_dir, ledger, minimum_free_mb=100)
    with Scp(config, full, ledger) as scp:
        us = Destination("LAMED", "127.0.0.1", scp.port)
        disk.free_mb = 50
        with pytest.raises(PeerError, match=r"(?i)congestion"):
            scu.echo(us, calling_ae="CT1", timeout_s=5)
        disk.free_mb = 200
        scu.echo(us, calling_ae="CT1", timeout_s=5)


def test_the_real_disk_is_asked(config: Config, ledger: Ledger) -> None:
    free_mb = shutil.disk_usage(config.data_dir).free // MB
    assert Spool(config.spool_dir, ledger, minimum_free_mb=1).has_room()
    assert not Spool(config.spool_dir, ledger, minimum_free_mb=10 * free_mb + 1000).has_room()
