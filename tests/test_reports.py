import csv
import json
from pathlib import Path

import pytest
from chat_server import image, report

from model.data import reports
from model.data.questions import Report
from model.data.sample import DataError


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "reports.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(
            [("Image Path", "Text"), *((image(n), report(n)) for n in range(3))]
        )
    return path


def test_the_list_of_m3d_cap_is_read_by_its_split(tmp_path: Path) -> None:
    (tmp_path / "ct_case" / "000001").mkdir(parents=True)
    (tmp_path / "ct_case" / "000001" / "text.txt").write_text("A cyst.\nNo more.\n")
    entry = {"image": "ct_case/000001/Axial.npy", "text": "ct_case/000001/text.txt"}
    (tmp_path / "M3D_Cap.json").write_text(json.dumps({"train": [], "test": [entry]}))
    found = reports.read(tmp_path / "M3D_Cap.json", split="test", root=tmp_path)
    assert found == [Report("ct_case/000001/Axial.npy", "A cyst.\nNo more.")]
    (tmp_path / "ct_case" / "000001" / "text.txt").write_text(" ")
    with pytest.raises(DataError, match=r"row test/1: expected a report, got nothing"):
        reports.read(tmp_path / "M3D_Cap.json", split="test", root=tmp_path)
    with pytest.raises(DataError, match="expected a report, got none"):
        reports.read(tmp_path / "M3D_Cap.json", split="train", root=tmp_path)


def test_a_table_may_name_an_image_more_than_once_with_one_report(
    table: Path, tmp_path: Path
) -> None:
    again = table.read_text() + f'{image(1)},"{report(1)}"\n'
    table.write_text(again)
    found = reports.read(table, split="", root=tmp_path)
    assert found == [Report(image(n), report(n)) for n in range(3)]
    table.write_text(again + f"{image(1)},Something else.\n")
    with pytest.raises(DataError, match=r"reports\.csv, row 5: expected one report for an image"):
        reports.read(table, split="", root=tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("Image Path,Words\na,b\n", "no Text"),
        ("Image Path,Text\na.npy,x\na2.npy,\n", "row 2: expected text in Text, got nothing"),
        ("Image Path,Text\n", "expected a report, got none"),
    ],
)
def test_a_table_without_reports_is_told(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "reports.csv").write_text(content)
    with pytest.raises(DataError, match=message):
        reports.read(tmp_path / "reports.csv", split="", root=tmp_path)
