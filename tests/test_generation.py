import argparse
import csv
import json
import logging
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chat_server import Body, ChatServer, Examiner, Told, failing, image, report

from model.data import generation, vqa
from model.data.endpoint import Settings
from model.data.journal import Journal
from model.data.questions import Report
from model.data.sample import DataError, Task
from model.errors import ModelError

CASES = 2
KEY = "sk-one-that-is-not-to-be-seen"
TABLES = ("questions.csv", "yes_no.csv")

Make = Callable[..., dict[str, Any]]


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with ChatServer() as started:
        yield started


@pytest.fixture
def make(server: ChatServer, tmp_path: Path) -> Make:
    """Run over a few made-up cases, into the same folder unless told otherwise."""

    def run(cases: int = CASES, out: str = "out", tries: int = 2, **given: Any) -> dict[str, Any]:
        settings = {"model": "examiner", "url": server.url, "pause_s": 0.01} | given
        return generation.generate(
            [Report(image(n), report(n)) for n in range(cases)],
            Settings(**settings),
            tmp_path / out,
            tries=tries,
        )

    return run


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def tables(folder: Path) -> list[bytes]:
    return [(folder / each).read_bytes() for each in TABLES]


def entries(folder: Path) -> list[Body]:
    return [json.loads(line) for line in (folder / "journal.jsonl").read_bytes().splitlines()]


# --- what comes out


def test_every_report_gets_nine_questions_and_five_pairs(make: Make, tmp_path: Path) -> None:
    told = make()
    four_choice, yes_no = (rows(tmp_path / "out" / each) for each in TABLES)
    assert list(four_choice[0]) == [
        "Image Path", "Text", "Question Type", "Question",
        "Choice A", "Choice B", "Choice C", "Choice D", "Answer", "Answer Choice",
    ]  # fmt: skip
    # In the order of the reports; a guesser who loves a letter has dropped none of them.
    assert [each["Image Path"] for each in four_choice] == [
        image(n) for n in range(CASES) for _ in range(9)
    ]
    types = Counter(each["Question Type"] for each in four_choice)
    assert types == {"1": CASES, "2": CASES, "3": CASES, "4": 3 * CASES, "5": 3 * CASES}
    for each in four_choice:
        assert each[f"Choice {each['Answer Choice']}"] == each["Answer"]
    assert four_choice[0]["Text"] == report(0)
    assert Counter(each["Answer"] for each in yes_no) == {"Yes": 5 * CASES, "No": 5 * CASES}
    assert told["reports"] == {"given": CASES, "done": CASES, "unanswered": 0}
    assert told["answers"] == {"No": 5 * CASES, "Yes": 5 * CASES}
    assert told["letters"] == Counter(each["Answer Choice"] for each in four_choice)
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == told


def test_the_tables_are_read_as_the_published_ones(make: Make, tmp_path: Path) -> None:
    make()
    for n in range(CASES):
        (tmp_path / image(n)).parent.mkdir(parents=True)
        np.save(tmp_path / image(n), np.zeros((1, 4, 4, 4), np.float32))
    closed = vqa.read_closed(tmp_path / "out" / "questions.csv", root=tmp_path)
    assert {each.task for each in closed} == {Task.CLOSED_VQA}
    assert Counter(each.kind for each in closed)["abnormality"] == 3 * CASES
    yes_no = vqa.read_yes_no(tmp_path / "out" / "yes_no.csv", root=tmp_path)
    assert Counter(each.answer for each in yes_no) == {"Yes": 5 * CASES, "No": 5 * CASES}
    assert {each.patient for each in yes_no} == {f"ct_case/{n:06d}" for n in range(CASES)}


def test_pass_rates_are_told_by_kind(server: ChatServer, make: Make) -> None:
    # Wrong on the first lesion of each case; always guesses the phase and where lesion 2 lies.
    server.otherwise = Examiner(
        check=lambda asked, shown, true: shown[4] if "lesion number 0 of" in asked else true,
        guess=lambda asked, _: known(asked),
    )
    told = make()["four_choice"]["by_kind"]
    assert [told["abnormality"]["self_check"][each] for each in ("agrees", "not_told")] == [4, 2]
    assert told["abnormality"]["self_check"]["pass_rate"] == pytest.approx(4 / 6, abs=1e-4)
    assert told["plane"]["self_check"]["pass_rate"] == 1
    assert told["location"]["blind_check"] == {
        "tried": 4, "declined": 2, "right_at_first": 2, "first_rate": 0.5, "chance": 0.25,
        "always_right": 2, "dropped": 2,
    }  # fmt: skip
    assert told["phase"]["kept"] == 0
    assert told["location"]["kept"] == 2
    assert told["total"]["written"] == 9 * CASES
    assert told["total"]["wanted"] == 9 * CASES
    assert told["total"]["kept"] == sum(told[kind]["kept"] for kind in told if kind != "total")


def known(asked: str) -> str:
    if "timing" in asked:
        return "Portal venous"
    if asked.startswith("Where does lesion number 2"):
        places = ("Segment II", "Segment IV", "Segment VI", "Segment VIII")
        return places[(int(asked.split()[-2]) + 2) % 4]
    return "nothing"


def test_a_pair_goes_with_its_twin(server: ChatServer, make: Make, tmp_path: Path) -> None:
    lie = "Is examination 1 one of the spleen?"
    server.otherwise = Examiner(check=lambda asked, _, true: "Yes" if asked == lie else true)
    told = make()
    assert told["answers"] == {"No": 5 * CASES - 1, "Yes": 5 * CASES - 1}
    asked = {each["Question"] for each in rows(tmp_path / "out" / "yes_no.csv")}
    assert asked.isdisjoint({lie, "Is examination 1 one of the liver?"})


def test_the_tables_do_not_hang_on_the_order_of_answers(
    server: ChatServer, make: Make, tmp_path: Path
) -> None:
    make(out="in turn", concurrency=1)
    examiner, chance = Examiner(), random.Random(1)
    server.otherwise = lambda body: Told(examiner(body), after_s=chance.uniform(0, 0.03))
    make(out="mixed", concurrency=8)
    assert tables(tmp_path / "in turn") == tables(tmp_path / "mixed")
    make(out="another seed", seed=1)
    assert tables(tmp_path / "in turn") != tables(tmp_path / "another seed")


# --- to go on


def test_a_run_that_is_done_asks_nothing_and_says_the_same(
    server: ChatServer, make: Make, tmp_path: Path
) -> None:
    first = make()
    before, asked = tables(tmp_path / "out"), len(server.received)
    assert asked == len(entries(tmp_path / "out"))
    assert make() == first
    assert len(server.received) == asked
    assert tables(tmp_path / "out") == before


def test_more_reports_cost_only_themselves(server: ChatServer, make: Make, tmp_path: Path) -> None:
    make(cases=2)
    asked = len(server.received)
    make(cases=3)
    assert {each.body["messages"][1]["content"] for each in server.received[:asked]}.isdisjoint(
        each.body["messages"][1]["content"]
        for each in server.received[asked:]
        if "Case" in each.said
    )
    assert {each["subject"].split("#")[0] for each in entries(tmp_path / "out")[asked:]} == {
        image(2)
    }


def test_another_model_is_asked_anew(server: ChatServer, make: Make) -> None:
    make(cases=1)
    asked = len(server.received)
    make(cases=1, model="another")
    assert len(server.received) == 2 * asked


# What loads torch is left out: the run does not need it, and the test has no time for it.
KILLED = """
import sys
import types
from pathlib import Path
sys.modules["model"] = types.ModuleType("model")
sys.modules["model"].__path__ = [str(Path(sys.argv[1]) / "model")]
sys.path.insert(0, str(Path(sys.argv[1]) / "tests"))
from chat_server import image, report
from model.data import generation
from model.data.endpoint import Settings
from model.data.questions import Report
given = [Report(image(n), report(n)) for n in range(int(sys.argv[4]))]
settings = Settings(model="examiner", url=sys.argv[2], pause_s=0.01, concurrency=4)
generation.generate(given, settings, Path(sys.argv[3]), tries=2)
"""


@pytest.mark.slow
def test_a_run_that_was_killed_goes_on_and_asks_nothing_twice(
    server: ChatServer, make: Make, tmp_path: Path
) -> None:
    make(4, out="whole", concurrency=4)
    whole = len(server.received)
    server.received.clear()
    server.answered.clear()
    examiner = Examiner()
    server.otherwise = lambda body: Told(examiner(body), after_s=0.02)
    root = Path(__file__).parent.parent
    arguments = [str(root), server.url, str(tmp_path / "out"), "4"]
    run = subprocess.Popen([sys.executable, "-c", KILLED, *arguments], cwd=root)
    while len(server.answered) < whole // 2:
        assert run.poll() is None
        time.sleep(0.005)
    run.send_signal(signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL
    time.sleep(0.2)
    kept = len(entries(tmp_path / "out"))
    # What was on its way at the moment of the kill is lost, and no more.
    assert len(server.received) - 4 <= kept <= len(server.received)
    server.received.clear()
    make(4, concurrency=4)
    assert len(server.received) == whole - kept
    assert tables(tmp_path / "out") == tables(tmp_path / "whole")


@pytest.mark.parametrize("torn", [b'{"key": "0', b'{"key": 7}\n', b"\x00" * 512, b"not JSON\n"])
def test_a_last_line_that_is_damaged_is_dropped(
    server: ChatServer, make: Make, tmp_path: Path, torn: bytes
) -> None:
    make(cases=1)
    journal = tmp_path / "out" / "journal.jsonl"
    whole, asked = journal.read_bytes(), len(server.received)
    last = whole[whole.rindex(b"\n", 0, -1) + 1 :]
    journal.write_bytes(whole[: -len(last)] + torn)
    before = tables(tmp_path / "out")
    make(cases=1)
    assert len(server.received) == asked + 1
    assert sorted(journal.read_bytes().splitlines()) == sorted(whole.splitlines())
    assert tables(tmp_path / "out") == before


def test_damage_before_the_last_line_is_told_and_nothing_is_lost(
    make: Make, tmp_path: Path
) -> None:
    make(cases=1)
    journal = tmp_path / "out" / "journal.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    damaged = b"".join([*lines[:2], b"???\n", *lines[3:]])
    journal.write_bytes(damaged)
    with pytest.raises(DataError, match=r"journal\.jsonl, row 3: expected a journal entry"):
        make(cases=1)
    assert journal.read_bytes() == damaged


def test_a_journal_of_something_else_is_not_touched(make: Make, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    journal = tmp_path / "out" / "journal.jsonl"
    journal.write_text('{"key": "a"}\n{"key": "b"}\n')
    with pytest.raises(DataError, match="row 1: expected an entry of such a run"):
        make()
    assert journal.read_text() == '{"key": "a"}\n{"key": "b"}\n'


def test_two_runs_do_not_share_a_folder(server: ChatServer, make: Make, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with (
        Journal(tmp_path / "out" / "journal.jsonl"),
        pytest.raises(DataError, match="another run's"),
    ):
        make()
    assert server.received == []
    assert make()["reports"]["done"] == CASES


# --- what ends a run, and what does not


def test_the_budget_ends_a_run_that_goes_on_with_another_one(
    server: ChatServer, make: Make, tmp_path: Path
) -> None:
    prices = {"price_prompt": 10.0, "price_completion": 100.0}
    make(4, out="whole", **prices)
    whole = len(server.received)
    server.received.clear()
    with pytest.raises(ModelError, match=r"of 4 reports are done: the budget of 0\.5 is used up"):
        make(4, **prices, budget=0.5, concurrency=2)
    told = json.loads((tmp_path / "out" / "report.json").read_text())
    # 100 tokens at 10 and 20 at 100 a million: each reply costs 0.003.
    assert told["usage"]["cost"] == pytest.approx(0.003 * len(server.received))
    assert 0 < told["usage"]["cost"] <= 0.5
    assert 0 < told["reports"]["done"] < 4
    done = {each["Image Path"] for each in rows(tmp_path / "out" / "questions.csv")}
    assert len(done) == told["reports"]["done"]
    with pytest.raises(ModelError, match=r"budget of 0\.5 is used up"):
        make(4, **prices, budget=0.5)
    assert make(4, **prices, budget=50.0)["usage"]["cost"] == pytest.approx(0.003 * whole)
    assert len(server.received) == whole
    assert tables(tmp_path / "out") == tables(tmp_path / "whole")


def test_a_report_without_an_answer_is_named_and_tried_by_the_next_run(
    server: ChatServer, make: Make, tmp_path: Path
) -> None:
    examiner = Examiner()
    too_long = failing(400, "maximum context length is 4096 tokens")
    server.otherwise = lambda b: too_long if "Case 1." in str(b["messages"]) else examiner(b)
    told = make()
    assert told["reports"] == {"given": CASES, "done": CASES - 1, "unanswered": 1}
    (missing,) = told["unanswered"]
    assert missing["image"] == image(1)
    assert "too long for the model" in missing["reason"]
    assert image(1) not in {each["Image Path"] for each in rows(tmp_path / "out" / TABLES[0])}
    server.otherwise = examiner
    assert make()["reports"]["unanswered"] == 0


def test_an_endpoint_that_shuts_the_door_ends_the_run_with_what_is_done(
    server: ChatServer, make: Make, tmp_path: Path
) -> None:
    examiner, count = Examiner(), iter(range(1000))
    server.otherwise = lambda b: examiner(b) if next(count) < 40 else failing(401, "key expired")
    with pytest.raises(ModelError, match=r"1 of 2 reports are done: .*answers 401.*key expired"):
        make(concurrency=1)
    told = json.loads((tmp_path / "out" / "report.json").read_text())
    assert told["reports"]["done"] == 1
    assert "key expired" in told["stopped"]
    assert len(server.received) == 41
    server.otherwise = examiner
    assert make()["stopped"] == ""


def test_an_interrupted_run_says_how_it_goes_on(server: ChatServer, make: Make) -> None:
    examiner, count = Examiner(), iter(range(1000))

    def interrupt(body: Body) -> str:
        if next(count) == 20:
            os.kill(os.getpid(), signal.SIGINT)
        return examiner(body)

    server.otherwise = interrupt
    with pytest.raises(ModelError, match="interrupted; the same command goes on"):
        make()
    asked = len(server.received)
    assert make()["reports"]["done"] == CASES
    assert len(server.received) - asked < len(server.received) - 10


def test_no_secret_and_no_report_is_left_behind(
    server: ChatServer,
    make: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("EXAMINER_KEY", KEY)
    server.script += [failing(500, f"{KEY} is slow"), failing(400, f"{KEY} asks too much")]
    make(key_variable="EXAMINER_KEY")
    assert server.received[0].headers["Authorization"] == f"Bearer {KEY}"
    out = capfd.readouterr()
    logged = [str(vars(each)) for each in caplog.records]
    written = [each.read_text() for each in (tmp_path / "out").iterdir()]
    for text in (*written, *logged, caplog.text, out.out, out.err):
        assert KEY not in text
    for text in (caplog.text, *logged, (tmp_path / "out" / "journal.jsonl").read_text()):
        assert "Three lesions" not in text
    assert (tmp_path / "out" / "journal.jsonl").stat().st_mode & 0o077 == 0


# --- the command line


def command(*arguments: str) -> dict[str, Any]:
    parser = argparse.ArgumentParser()
    generation.add_to(parser.add_subparsers(required=True))
    chosen = parser.parse_args(["questions", *arguments])
    told: dict[str, Any] = chosen.command(chosen)
    return told


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "reports.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(
            [("Image Path", "Text"), *((image(n), report(n)) for n in range(3))]
        )
    return path


def test_the_command_takes_settings_from_a_file_and_from_its_options(
    server: ChatServer, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "s.toml").write_text(f'model = "small"\nurl = "{server.url}"\nseed = 5\n')
    given = ["--settings", str(tmp_path / "s.toml"), "--model", "large", "--tries", "1"]
    told = command(str(table), "--out", str(tmp_path / "out"), *given)
    assert {(each.body["model"], each.body["seed"]) for each in server.received} == {("large", 5)}
    assert (told["done"], told["questions"]) == (3, 27 - told_guessed(tmp_path))
    shown = capsys.readouterr().err
    assert f"3 reports go to {server.url}" in " ".join(shown.split())
    assert "self-check" in shown
    assert "100.0%" in shown


def test_a_command_for_machines_says_nothing_beside_its_result(
    server: ChatServer, table: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    given = ["--model", "examiner", "--url", server.url, "--tries", "0", "--json"]
    told = command(str(table), "--out", str(tmp_path / "out"), *given)
    assert json.loads(json.dumps(told))["questions"] == 27
    assert capfd.readouterr() == ("", "")


def told_guessed(folder: Path) -> int:
    told = json.loads((folder / "out" / "report.json").read_text())
    return int(told["four_choice"]["by_kind"]["total"]["blind_check"]["dropped"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ('modell = "x"', "expected some of .*, got modell"),
        ("model = ", "expected a TOML file"),
        ("", "model must name a language model"),
        ('model = "x"\nretries = "many"', "retries must be 0 to 100"),
    ],
)
def test_settings_that_are_wrong_are_told(
    table: Path, tmp_path: Path, settings: str, message: str
) -> None:
    (tmp_path / "s.toml").write_text(settings)
    with pytest.raises(ModelError, match=message):
        command(str(table), "--out", str(tmp_path / "out"), "--settings", str(tmp_path / "s.toml"))
