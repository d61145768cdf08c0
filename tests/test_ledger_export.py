import csv
import io
import json
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest
from commands import Done, lamed_node, tamper

from dicom_node.__main__ import main
from dicom_node.ledger import Ledger
from dicom_node.ledger import export as ledger_export

COLUMNS = ["seq", "at", "kind", "study_uid", "job_id", "data", "previous", "digest"]
STUDY, OTHER = "1.2.840.1", "1.2.840.2"
ATTACKS = ["=HYPERLINK(1)", "+1+1", "-2", "@SUM(A1)", "\t=1", "\r=1", "\n=1"]


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LAMED_DATA_DIR", str(tmp_path))
    return tmp_path / "ledger.sqlite"


@pytest.fixture
def ledger(path: Path) -> Iterator[Ledger]:
    with Ledger(path) as opened:
        opened.event("study.opened", study_uid=STUDY)
        opened.event("instance.stored", study_uid=STUDY, sop_uid="1.9", size=512, aet='A "B", C')
        opened.event("study.opened", study_uid=OTHER, description="Übersicht 胸部\r\nzweite Zeile")
        yield opened


def call(capsys: pytest.CaptureFixture[str], *words: str) -> Done:
    code = main(["ledger", *words])
    told = capsys.readouterr()
    return Done(code, told.out, told.err)


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline="")))


def test_every_event_is_a_row_that_the_csv_module_reads(
    ledger: Ledger, capsys: pytest.CaptureFixture[str]
) -> None:
    read = rows(call(capsys, "export").out)
    assert list(read[0]) == COLUMNS
    assert [row["seq"] for row in read] == ["1", "2", "3"]
    assert [row["kind"] for row in read] == ["study.opened", "instance.stored", "study.opened"]
    assert json.loads(read[1]["data"]) == {"sop_uid": "1.9", "size": 512, "aet": 'A "B", C'}
    assert json.loads(read[2]["data"]) == {"description": "Übersicht 胸部\r\nzweite Zeile"}
    assert [row["previous"] for row in read[1:]] == [row["digest"] for row in read[:-1]]
    assert read[2]["digest"] == ledger.events()[2].digest
    assert all(datetime.fromisoformat(row["at"]).utcoffset() is not None for row in read)


def test_one_study_can_be_exported_alone(
    ledger: Ledger, capsys: pytest.CaptureFixture[str]
) -> None:
    assert [row["seq"] for row in rows(call(capsys, "export", "--study", STUDY).out)] == ["1", "2"]
    assert len(ledger.events()) == 4
    assert rows(call(capsys, "export", "--study", "1.2").out) == []
    assert json.loads(call(capsys, "export", "--study", "1.2", "--json").out) == []


def test_json_is_one_document_with_an_event_on_each_line(
    ledger: Ledger, capsys: pytest.CaptureFixture[str]
) -> None:
    done = call(capsys, "export", "--json")
    assert [each["seq"] for each in done.data] == [1, 2, 3]
    assert list(done.data[0]) == COLUMNS
    assert done.data[1]["data"]["size"] == 512
    assert done.data[2]["digest"] == ledger.events()[2].digest
    lines = done.out.splitlines()
    assert (lines[0], lines[-1], len(lines)) == ("[", "]", 5)
    assert done.out.isascii()


@pytest.mark.parametrize("attack", ATTACKS)
def test_no_cell_becomes_a_formula(
    path: Path, capsys: pytest.CaptureFixture[str], attack: str
) -> None:
    with Ledger(path) as ledger:
        ledger.event(attack, study_uid=attack, job_id=attack, text=attack)
    (row,) = rows(call(capsys, "export").out)
    assert [row[name] for name in ("kind", "study_uid", "job_id")] == [f"'{attack}"] * 3
    assert row["data"].startswith("{")
    assert json.loads(row["data"]) == {"text": attack}


def test_the_last_events_are_lines_for_a_person(
    ledger: Ledger, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(30):
        ledger.event("test.event", number=number)
    lines = call(capsys, "tail", "--once").out.splitlines()
    assert len(lines) == 20
    assert lines[-1].split()[0] == "33"
    assert lines[-1].endswith("number=29")
    told = call(capsys, "tail", "--once", "--json").data
    assert [each["seq"] for each in told] == [*range(15, 34), 34]


def test_a_foreign_text_neither_breaks_a_line_nor_moves_the_cursor(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Ledger(path) as ledger:
        ledger.event("test.event", text="red\x1b[31m\r\nsecond line\u202e")
    (line,) = call(capsys, "tail", "--once").out.splitlines()
    assert line.isprintable()
    assert line.endswith("text=red\ufffd[31m\ufffd\ufffdsecond line\ufffd")


def test_what_has_come_is_followed(ledger: Ledger) -> None:
    class Reader(io.StringIO):
        """Ends when it has read enough, as a person does."""

        def flush(self) -> None:
            if self.getvalue().count("\n") >= 4:
                raise KeyboardInterrupt
            ledger.event("late.event")

    reader = Reader()
    with pytest.raises(KeyboardInterrupt):
        ledger_export.follow(ledger, reader, as_json=True)
    kinds = [json.loads(line)["kind"] for line in reader.getvalue().splitlines()]
    assert kinds == ["study.opened", "instance.stored", "study.opened", "late.event"]


def test_who_reads_the_log_is_in_the_log(
    ledger: Ledger, capsys: pytest.CaptureFixture[str]
) -> None:
    call(capsys, "export")
    call(capsys, "tail", "--once")
    read = [each.data for each in ledger.events() if each.kind == "ledger.read"]
    assert [each["how"] for each in read] == ["export", "tail"]
    assert all(each["by"].endswith(" at the command line") for each in read)


def test_a_whole_chain_is_said_with_its_head(
    ledger: Ledger, capsys: pytest.CaptureFixture[str]
) -> None:
    seq, digest = ledger.head()
    done = call(capsys, "verify", "--json")
    assert (done.code, done.data) == (0, {"events": 3, "erased": 0, "head": f"{seq}:{digest}"})
    plain = call(capsys, "verify").out
    assert plain.startswith(f"3 events, the chain is whole\nhead 3:{digest}\n")
    ledger.event("later.event")
    assert call(capsys, "verify", "--head", f"{seq}:{digest}", "--json").data["events"] == 4


@pytest.mark.parametrize(
    ("statement", "sentence"),
    [
        ("UPDATE events SET kind = 'x' WHERE seq = 2", "event 2 was changed"),
        ("UPDATE events SET data = '{}' WHERE seq = 3", "event 3 was changed"),
        ("DELETE FROM events WHERE seq = 2", "event 2 is missing"),
        ("UPDATE events SET previous = digest WHERE seq = 3", "event 3 does not follow"),
    ],
)
def test_a_broken_chain_is_exit_code_5_and_the_event_is_named(
    ledger: Ledger,
    path: Path,
    capsys: pytest.CaptureFixture[str],
    statement: str,
    sentence: str,
) -> None:
    assert ledger.verify() == 3
    tamper(path, statement)
    done = call(capsys, "verify", "--json")
    assert (done.code, done.data["exit_code"]) == (5, 5)
    assert sentence in done.error
    assert sentence in done.err


def test_a_cut_off_end_is_found_by_the_head_that_was_noted(
    ledger: Ledger, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seq, digest = ledger.head()
    tamper(path, "DELETE FROM events WHERE seq = 3")
    assert call(capsys, "verify").code == 0
    done = call(capsys, "verify", "--head", f"{seq}:{digest}", "--json")
    assert done.code == 5
    assert "the events end at 2, but 3 was noted" in done.error
    other = call(capsys, "verify", "--head", f"2:{digest}", "--json")
    assert other.code == 5
    assert "event 2 is not the one that was noted" in other.error


def test_what_is_broken_can_still_be_exported(ledger: Ledger, path: Path, tmp_path: Path) -> None:
    tamper(path, "UPDATE events SET kind = 'x' WHERE seq = 2")
    done = lamed_node("ledger", "export", data_dir=tmp_path)
    assert (done.code, done.err) == (0, "")
    assert [row["kind"] for row in rows(done.out)] == ["study.opened", "x", "study.opened"]
    assert ledger.head()[0] == 4
