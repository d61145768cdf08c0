import json
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
from commands import Done
from keeping import DAY, Node

from dicom_node.__main__ import main
from dicom_node.config import Config

STUDY = "1.2.77.1"


@pytest.fixture
def node(config: Config, monkeypatch: pytest.MonkeyPatch) -> Iterator[Node]:
    monkeypatch.setenv("LAMED_DATA_DIR", str(config.data_dir))
    with Node(config) as made:
        made.delivered(STUDY, at=datetime.now(UTC) - 40 * DAY)
        yield made


def call(capsys: pytest.CaptureFixture[str], *words: str) -> Done:
    code = main(words)
    told = capsys.readouterr()
    return Done(code, told.out, told.err)


def test_a_study_is_held_listed_and_let_go(node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(capsys, "hold", "list").out == "nothing is held\n"
    assert call(capsys, "hold", "add", STUDY, "--reason", "a lawsuit").code == 0
    (held,) = call(capsys, "hold", "list", "--json").data
    assert (held["study_uid"], held["reason"]) == (STUDY, "a lawsuit")
    assert held["by"].endswith("at the command line")
    assert "a lawsuit" in call(capsys, "hold", "list").out
    assert node.sweep() == []
    refused = call(capsys, "erase", STUDY, "--yes")
    assert (refused.code, "is on hold" in refused.err) == (3, True)
    assert call(capsys, "hold", "remove", STUDY, "--reason", "settled").code == 0
    assert call(capsys, "hold", "remove", STUDY).code == 3
    assert call(capsys, "hold", "add", STUDY).code == 2


def test_a_dry_run_tells_what_would_go_and_removes_nothing(
    node: Node, capsys: pytest.CaptureFixture[str]
) -> None:
    node.delivered("1.2.77.2", at=datetime.now(UTC) - 40 * DAY, state="sent")
    told = call(capsys, "retention", "--dry-run")
    assert f"images   {STUDY}  since " in told.out
    assert "would go: 1" in told.out
    assert "stay, not delivered: 1 studies" in told.out
    assert len(list(node.config.spool_dir.rglob("*.dcm"))) == 4
    data = call(capsys, "retention", "--dry-run", "--json").data
    assert [each["study_uid"] for each in data["going"]] == [STUDY]
    assert data["bytes"] == data["going"][0]["bytes"] > 2000


def test_retention_at_the_command_line_is_that_of_the_node(
    node: Node, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "gone: 1" in call(capsys, "retention").out
    assert list(node.config.spool_dir.rglob("*.dcm")) == []
    assert call(capsys, "retention", "--json").data["going"] == []


def test_erasing_needs_a_yes(node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    told = call(capsys, "erase", "--patient", "PID-0815")
    assert (told.code, STUDY in told.out, "--yes" in told.out) == (0, True, True)
    assert len(node.ledger.instances(STUDY)) == 2
    assert call(capsys, "erase").code == 2
    assert call(capsys, "erase", STUDY, "--patient", "PID-0815").code == 2
    assert call(capsys, "erase", STUDY, "--issuer", "EAST").code == 2
    assert call(capsys, "erase", "--patient", "nobody", "--yes").code == 3


def test_what_was_erased_is_told_and_verify_says_so(
    node: Node, capsys: pytest.CaptureFixture[str]
) -> None:
    done = call(capsys, "erase", "--patient", "PID-0815", "--yes", "--reason", "art. 17", "--json")
    (erased,) = done.data["erased"]
    assert (done.code, erased["files"]) == (0, 4)
    told = call(capsys, "ledger", "verify")
    assert f"{erased['events']} of them are emptied" in told.out
    assert call(capsys, "ledger", "verify", "--json").data["erased"] == erased["events"]
    assert STUDY not in json.dumps(call(capsys, "ledger", "export", "--json").data)
    assert node.ledger.study(STUDY) is None
