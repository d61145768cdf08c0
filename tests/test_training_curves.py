"""How long stages took and how their losses fell, out of the logs they left."""

from pathlib import Path
from xml.etree import ElementTree as ET

import curve
import pytest
from torch.utils.tensorboard import SummaryWriter

from model.training.curves import courses, picture, table


def logged(folder: Path, points: dict[int, float], *, start: float = 0) -> None:
    """Log a loss at steps ten seconds apart, in a file of its own."""
    with SummaryWriter(str(folder / "tensorboard")) as writer:
        for row, (step, value) in enumerate(points.items()):
            for name in ("loss", "dice"):
                writer.add_scalar(f"train/{name}", value, step, walltime=start + 10 * row)
            writer.add_scalar("train/learning_rate", 1.0, step, walltime=start + 10 * row)
        writer.add_scalar("train/train_runtime", 5, step, walltime=start + 10 * row)


def test_time_is_that_at_work_and_what_was_done_again_counts_once(tmp_path: Path) -> None:
    logged(tmp_path / "align", {1: 4.0, 2: 3.0, 3: 2.5})
    logged(
        tmp_path / "align", {3: 2.0, 4: 1.0}, start=90_000
    )  # it was killed, and went on a day later
    (course,) = courses(tmp_path)
    assert (course.stage, course.steps, course.minutes) == ("align", 4, pytest.approx(0.5))
    assert set(course.curves) == {"loss", "dice"}
    assert course.curves["loss"] == [(1, 4.0), (2, 3.0), (3, 2.0), (4, 1.0)]
    assert list(table([course]))[2:] == [
        "| align | 4 | 0 | loss 4.00 to 1.00, dice 4.00 to 1.00 |",
        "| all | | 0 | |",
    ]


def test_stages_stand_in_their_order_each_with_a_line_for_every_part(tmp_path: Path) -> None:
    curve.run(tmp_path / "tune")
    logged(tmp_path / "segment", {1: 1.0, 50: 0.0})
    told = courses(tmp_path)
    assert [each.stage for each in told] == ["segment", "tune"]
    root = ET.fromstring(picture(told))
    space = "{http://www.w3.org/2000/svg}"
    lines = [each for each in root.iter(f"{space}path") if "stroke" in each.attrib]
    assert len(lines) == 4
    numbers = [
        float(each) for line in lines for each in line.attrib["d"][1:].replace("L", " ").split()
    ]
    assert all(0 <= each <= 840 for each in numbers)
    words = {each.text for each in root.iter() if each.text}
    assert words >= {"loss", "dice", "away", "tune: 12 steps, 0 minutes"}


def test_where_nothing_was_logged_nothing_is_told(tmp_path: Path) -> None:
    assert courses(tmp_path) == []
    assert ET.fromstring(picture([])).tag.endswith("svg")
