"""What dciodvfy says of an object, and what becomes of one that it finds fault with."""

import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import drafts
import pytest
from pydicom import Dataset, dcmread

from dicom_node import validator
from dicom_node.config import Config
from dicom_node.demo import sample
from dicom_node.errors import Unavailable
from dicom_node.ledger import Result
from dicom_node.validator import Validator, Verdict
from sr_templates import GENERIC

WRONG = "1.2.3.4.5.06"  # PS3.5 9.1: no component begins with a zero


@pytest.fixture(scope="module")
def made() -> dict[str, Dataset]:
    return drafts.encoded()


def saved(made: dict[str, Dataset], folder: Path) -> list[Result]:
    paths = sample.write(list(made.values()), folder)
    return [
        Result("job", label, str(ds.SOPClassUID), str(ds.SOPInstanceUID), "1", path, "")
        for (label, ds), path in zip(made.items(), paths, strict=True)
    ]


def fake(folder: Path, *lines: str) -> str:
    """A program in the validator's place."""
    path = folder / "dciodvfy"
    path.write_text("\n".join([f"#!{sys.executable}", *lines]), encoding="utf-8")
    path.chmod(0o755)
    return str(path)


def test_what_the_node_writes_is_valid(
    made: dict[str, Dataset], tmp_path: Path, tool: Callable[[str], str]
) -> None:
    found = Validator(tool("dciodvfy"))
    assert {each.label: found.check(each.path) for each in saved(made, tmp_path)} == dict.fromkeys(
        made, Verdict("valid")
    )


def test_an_error_is_quoted_and_holds_the_object_and_what_refers_to_it(
    tmp_path: Path, tool: Callable[[str], str]
) -> None:
    wrong = drafts.encoded()
    del wrong["seg"].SegmentSequence[0].SegmentLabel
    rows, program = saved(wrong, tmp_path), Validator(tool("dciodvfy"))
    verdicts = {each.label: program.check(each.path) for each in rows}
    assert [each.state for each in verdicts.values()] == ["invalid", "valid", "valid"]
    (line,) = [each for each in verdicts["seg"].lines if "SegmentLabel" in each]
    assert line.startswith("Error - ")
    held = program.held(rows, verdicts)
    assert line in held["seg"].splitlines()
    assert held["measurements"] == held["draft"] == "refers to seg, held too"


def test_reports_that_refer_to_a_label_map_are_valid(
    tmp_path: Path, tool: Callable[[str], str]
) -> None:
    profile = GENERIC.like(name="labelmap", segmentation="LABELMAP")
    made = drafts.encoded(profiles=(profile,))
    found = Validator(tool("dciodvfy"))
    assert {each.label: found.check(each.path) for each in saved(made, tmp_path)} == dict.fromkeys(
        made, Verdict("valid")
    )


@pytest.mark.filterwarnings("ignore:The value length:UserWarning")
def test_too_long_a_number_of_the_images_holds_nothing_back_and_other_long_values_do(
    tmp_path: Path, tool: Callable[[str], str]
) -> None:
    """Cut, it would name another order; held, a department that counts so would get nothing."""
    images = drafts.series()
    for each in images:
        each.add_new("AccessionNumber", "SH", "A" * 20)
    rows = saved(drafts.encoded(instances=images), tmp_path)
    found = {each.label: Validator(tool("dciodvfy")).check(each.path) for each in rows}
    assert {each.state for each in found.values()} == {"valid"}
    assert all("Accession Number" in each.lines[0] for each in found.values())
    header = dcmread(rows[0].path)
    header.add_new("SeriesDescription", "LO", "B" * 80)
    header.save_as(rows[0].path)
    verdict = Validator(tool("dciodvfy")).check(rows[0].path)
    assert verdict.state == "invalid"
    assert "Series Description" in verdict.lines[0]


def test_nothing_wrong_holds_nothing_back(made: dict[str, Dataset], tmp_path: Path) -> None:
    unchecked = dict.fromkeys(made, Verdict("unchecked", ("absent",)))
    rows = saved(made, tmp_path)
    assert Validator().held(rows, unchecked) == {}
    required = Validator(required=True).held(rows, unchecked)
    assert required == dict.fromkeys(made, "not validated\nabsent")


def test_a_program_that_does_not_end_gives_no_verdict_and_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(validator, "TIMEOUT_S", 0.5)
    program = fake(
        tmp_path,
        "import subprocess, sys",
        "subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])",
    )
    start = time.monotonic()
    found = Validator(program).check(tmp_path)
    assert found == Verdict("unchecked", ("no verdict in 0.5 s",))
    assert time.monotonic() - start < 30


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "ended with code -11"),
        ("raise SystemExit(3)", "ended with code 3"),
    ],
)
def test_a_program_that_fails_finds_no_fault_with_the_object(
    line: str, told: str, tmp_path: Path
) -> None:
    found = Validator(fake(tmp_path, line)).check(tmp_path)
    assert (found.state, found.lines) == ("unchecked", (f"dciodvfy {told}",))


def test_a_program_that_is_gone_gives_no_verdict(tmp_path: Path) -> None:
    found = Validator(str(tmp_path / "gone")).check(tmp_path)
    assert (found.state, found.lines) == (
        "unchecked",
        (f"{tmp_path / 'gone'}: No such file or directory",),
    )


def test_the_setting_decides(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    off = Validator.of(replace(config, validate="off"))
    assert off.check(config.data_dir) == Verdict("unchecked", ("the setting validate is off",))
    monkeypatch.setattr(validator, "find", lambda: "")
    told = Validator.of(config).check(config.data_dir)
    assert (told.state, told.lines) == ("unchecked", (validator.ABSENT,))
    with pytest.raises(Unavailable, match="validate is required, but dciodvfy is not on this"):
        Validator.of(replace(config, validate="required"))


def test_the_program_of_our_own_environment_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bin").mkdir()
    other = fake(tmp_path, "")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python"))
    assert validator.find() == other
    ours = fake(tmp_path / "bin", "")
    assert validator.find() == ours
