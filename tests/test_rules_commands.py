"""The commands about rules and about the queue, as they are called."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import Done
from desk import receive

from dicom_node import serve
from dicom_node.__main__ import main
from dicom_node.config import Config
from dicom_node.demo import sample
from dicom_node.intake import Intake
from dicom_node.jobs import Jobs
from dicom_node.ledger import Ledger
from dicom_node.spool import Spool

RULE = "[[rules]]\nname='night'\nwhen='Modality == \"CT\"'\nprotocol='each'\npriority='off-peak'\n"


@pytest.fixture
def site(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LAMED_DATA_DIR", str(config.data_dir))
    path = tmp_path / "rules.toml"
    path.write_text(RULE)
    monkeypatch.setenv("LAMED_RULES", str(path))
    return path


@pytest.fixture
def ledger(config: Config) -> Iterator[Ledger]:
    with Ledger(config.ledger_path) as opened:
        yield opened


def call(capsys: pytest.CaptureFixture[str], *words: str) -> Done:
    code = main(words)
    told = capsys.readouterr()
    return Done(code, told.out, told.err)


def test_rules_are_checked(
    site: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    done = call(capsys, "rules", "check")
    assert (done.code, "night: read ct_abdomen, ct_chest, mr_brain, off-peak" in done.out) == (
        0,
        True,
    )
    assert call(capsys, "rules", "check", "--json").data["match"] == "first"
    site.write_text(RULE.replace("Modality", "Modaliti"))
    done = call(capsys, "rules", "check")
    assert done.code == 2
    assert "rule 1, 'night': when: line 1, column 1" in done.err
    assert "is Modality meant?" in done.err
    monkeypatch.delenv("LAMED_RULES")
    assert "no rules are set" in call(capsys, "rules", "check").out


@pytest.mark.usefixtures("site")
def test_rules_are_tried_on_files_and_nothing_is_kept(
    config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shape = (17, 8, 8)
    both = sample.series(
        shape=shape, study_uid="1.2", description="Thorax Abdomen", body_part="CHESTABDOMEN"
    )
    scout = sample.series(shape=(1, 8, 8), study_uid="1.2", description="Scout", seed=1)
    brain = sample.series(shape=shape, study_uid="1.3", modality="MR", body_part="BRAIN")
    paths = sample.write([*both, *scout, *brain], tmp_path / "files")
    done = call(capsys, "rules", "test", str(tmp_path / "files"))
    assert done.code == 0
    assert "study 1.2, 18 instances: read\n  rule 'night' fits: holds for 2 of 2 series" in done.out
    assert "job ct_abdomen, off-peak" in done.out
    assert "job ct_chest, off-peak" in done.out
    assert "skips Scout: a localizer" in done.out
    assert "reads Thorax Abdomen: " in done.out
    assert "rule 'night' does not fit: Modality == \"CT\" is not so: it is 'MR'" in done.out
    told = call(capsys, "rules", "test", "--json", *map(str, paths[:17])).data["studies"]
    assert [each["protocol"] for each in told[0]["jobs"]] == ["ct_abdomen", "ct_chest"]
    assert not config.data_dir.exists()


@pytest.mark.usefixtures("site")
@pytest.mark.parametrize("content", [b"", b"no DICOM", b"\0" * 128 + b"DICM" + b"\xff" * 64])
def test_what_is_no_image_is_refused_by_name(
    content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.dcm"
    path.write_bytes(content)
    done = call(capsys, "rules", "test", str(path), "--json")
    assert done.code == 3
    assert str(path) in json.loads(done.out)["error"]
    assert call(capsys, "rules", "test", str(tmp_path / "none")).code == 4


@pytest.mark.usefixtures("site")
def test_a_study_is_processed_now_and_its_jobs_are_ordered_by_hand(
    config: Config, ledger: Ledger, capsys: pytest.CaptureFixture[str]
) -> None:
    spool = Spool(config.spool_dir, ledger, minimum_free_mb=1)
    uid = receive(spool, [sample.enhanced(shape=(17, 8, 8))])
    assert "is decided upon now" in call(capsys, "process", uid).out
    known = serve.protocols(config)
    book = serve.rulebook(config, known)
    assert book is None
    intake = Intake(ledger, Jobs(ledger), serve.rules(known), "0f", "", 3600.0, 3600.0)
    assert intake.step() == 1
    assert "there is nothing to decide" in call(capsys, "process", uid).out
    assert call(capsys, "process", "9.9").code == 3

    (job,) = call(capsys, "jobs", "list", "--json").data["jobs"]
    assert (job["state"], job["priority"], job["protocol"]) == ("queued", "normal", "ct_chest")
    assert call(capsys, "jobs", "prioritize", job["id"]).code == 0
    assert f"{job['id']}  queued    urgent" in call(capsys, "jobs", "list").out
    assert "cancelled by" in call(capsys, "jobs", "cancel", job["id"]).out
    assert call(capsys, "jobs", "list").out == "none\n"
    assert job["id"] in call(capsys, "jobs", "list", "--state", "rejected").out
    refused = call(capsys, "jobs", "cancel", job["id"])
    assert (refused.code, "is rejected, not queued" in refused.err) == (3, True)
    assert call(capsys, "jobs", "retry", job["id"]).code == 0
    assert "  queued  " in call(capsys, "jobs", "list").out
    by = [each.data["by"] for each in ledger.events() if "by" in each.data]
    assert all("at the command line" in each for each in by)
