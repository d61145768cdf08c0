from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from desk import HOUR_S, PROTOCOLS, receive
from orthanc_server import Orthanc, free_ports
from pydicom import Dataset

from dicom_node import serve
from dicom_node.config import Config, Destination
from dicom_node.config.sources import Source
from dicom_node.demo import sample
from dicom_node.errors import ConfigError
from dicom_node.intake import Intake
from dicom_node.jobs import Jobs
from dicom_node.ledger import Ledger
from dicom_node.routing import rules
from dicom_node.routing.trial import Trial, describe
from dicom_node.spool import Spool
from dicom_node.ways_in import pull, standing_orders

RULES = """
[[rules]]
name = "all that the archive has"
when = 'Modality == "CT"'
protocol = "ct_chest"
fetch = "PACS"
[rules.series]
minimum_slices = 1
"""
Take = Callable[..., Intake]


@pytest.fixture
def series() -> list[Dataset]:
    return sample.series(shape=(5, 32, 32))


@pytest.fixture
def take(ledger: Ledger, tmp_path: Path) -> Take:
    (tmp_path / "rules.toml").write_text(RULES)
    book = rules.read(tmp_path / "rules.toml", list(PROTOCOLS), [], ["PACS"])

    def make(**options: Any) -> Intake:
        known = {"model_digest": "0f", "fallback": "", "quiet_s": 0.0, "open_limit_s": HOUR_S}
        return Intake(ledger, Jobs(ledger), serve.rules(PROTOCOLS), book=book, **known | options)

    return make


def configured(tmp_path: Path, peer: Destination) -> Config:
    return Config(data_dir=tmp_path, sources=(Source("PACS", peer, "c-get"),))


@pytest.fixture
def orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    settings = {"DicomAlwaysAllowGet": True, "DicomAlwaysAllowFind": True}
    with Orthanc(tmp_path_factory.mktemp("orthanc"), settings=settings) as started:
        yield started


@pytest.mark.orthanc
def test_what_the_archive_has_besides_is_fetched_before_a_study_is_decided_upon(
    tmp_path: Path,
    ledger: Ledger,
    spool: Spool,
    take: Take,
    series: list[Dataset],
    orthanc: Orthanc,
) -> None:
    orthanc.upload(sample.write(series, tmp_path / "study"))
    config = configured(tmp_path, Destination.parse(orthanc.address))
    uid, intake = receive(spool, series[:2]), take()
    assert intake.step() == 0
    assert pull.step(ledger, config, spool)
    assert intake.step() == 1
    (job,) = ledger.jobs(uid)
    assert len(job.sop_uids) == len(series)
    assert job.caveat == ""
    kinds = [each.kind for each in ledger.events()]
    assert kinds.count("pull.asked") == kinds.count("pull.done") == 1


def test_who_asks_for_it_now_does_not_wait_for_what_is_elsewhere(
    ledger: Ledger, spool: Spool, take: Take, series: list[Dataset]
) -> None:
    uid, intake = receive(spool, series), take()
    assert intake.step() == 0
    ledger.request_completion(uid)
    assert intake.step() == 1


def test_nobody_waits_longer_than_a_study_may_be_open(
    spool: Spool, take: Take, series: list[Dataset]
) -> None:
    receive(spool, series)
    assert take(open_limit_s=0.0).step() == 1


def test_a_source_that_fails_is_asked_again_and_then_the_study_is_read_as_it_is(
    tmp_path: Path, ledger: Ledger, spool: Spool, take: Take, series: list[Dataset],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(standing_orders, "PAUSE_S", 0.0)
    (port,) = free_ports(1)
    config = configured(tmp_path, Destination("PACS", "127.0.0.1", port))
    uid, intake = receive(spool, series), take()
    for _ in range(standing_orders.ATTEMPTS):
        assert intake.step() == 0
        assert pull.step(ledger, config, spool)
    assert intake.step() == 1
    assert len(ledger.jobs(uid)) == 1
    assert not pull.step(ledger, config, spool)
    failed = [each for each in ledger.events() if each.kind == "pull.failed"]
    assert len(failed) == standing_orders.ATTEMPTS


def test_after_a_restart_what_was_asked_for_is_not_asked_for_again(
    ledger: Ledger, spool: Spool, take: Take, series: list[Dataset]
) -> None:
    receive(spool, series)
    assert take().step() == take().step() == 0
    assert [each.kind for each in ledger.events()].count("pull.asked") == 1


@pytest.mark.filterwarnings("ignore:Invalid value for VR UI")
def test_a_study_that_cannot_be_asked_for_is_read_as_it_is(
    ledger: Ledger, spool: Spool, take: Take, series: list[Dataset]
) -> None:
    for each in series:
        each.StudyInstanceUID = "1.2.*"
    receive(spool, series)
    assert take().step() == 1
    assert "pull.asked" not in [each.kind for each in ledger.events()]


def test_that_a_rule_fetches_is_told_when_it_is_tried(
    tmp_path: Path, take: Take, series: list[Dataset]
) -> None:
    book = take().book
    assert book is not None
    trial = Trial(book, serve.rules(PROTOCOLS))
    (told,) = trial.of_files(sample.write(series, tmp_path / "files"))
    assert "  what else PACS has of it is fetched before\n" in describe(told)


def test_a_rule_fetches_from_a_source_of_the_settings(tmp_path: Path) -> None:
    path = tmp_path / "rules.toml"
    path.write_text(RULES)
    with pytest.raises(ConfigError, match=r"fetch must be a source .*\(ARCHIVE\), not 'PACS'"):
        rules.read(path, list(PROTOCOLS), [], ["ARCHIVE"])
