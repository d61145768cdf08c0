import hashlib
import json
import locale
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from node import protocols
from PIL import Image
from pydicom import dcmread
from pydicom.uid import Comprehensive3DSRStorage, EnhancedSRStorage, SegmentationStorage

import model
from dicom_node import results, worker
from dicom_node.demo import sample
from dicom_node.worker import Reading

JOB = "0123456789abcdef0123456789abcdef"
CREATED_AT = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
SHAPE, SPACING_MM = (20, 48, 40), (3.0, 1.5, 1.25)
VOXEL_ML = 3.0 * 1.5 * 1.25 / 1000
CLASSES = {
    "seg": SegmentationStorage,
    "measurements": Comprehensive3DSRStorage,
    "draft": EnhancedSRStorage,
}
DESCRIPTION = "CT CHEST Грудь 胸部"
PROTOCOL = protocols()["ct_chest"]
WORDS = replace(PROTOCOL, questions=PROTOCOL.questions[:1])


@pytest.fixture(scope="module")
def lamed(checkpoint: Path) -> model.LaMed:
    return model.load(checkpoint)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    made = sample.series(shape=SHAPE, spacing_mm=SPACING_MM, description=DESCRIPTION)
    return sample.write(made, tmp_path_factory.mktemp("ct"))


def read(images: list[Path], lamed: model.LaMed, protocol: Any = PROTOCOL) -> Reading:
    return worker.interpret(
        images, protocol, lamed, job_id=JOB, created_at=CREATED_AT, manufacturer="LaMed Node"
    )


@pytest.fixture(scope="module")
def reading(images: list[Path], lamed: model.LaMed) -> Reading:
    return read(images, lamed)


@pytest.fixture(scope="module")
def folder(reading: Reading, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results") / JOB
    results.save(reading, folder)
    return folder


def summary_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    return found


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# --- the files ----------------------------------------------------------------------------------


def test_a_folder_has_every_file_and_no_other(folder: Path) -> None:
    objects = {f"{label}.dcm" for label in CLASSES}
    others = {"draft.txt", "report.txt", "overlay.png", "summary.json"}
    assert {each.name for each in folder.iterdir()} == objects | others
    for label, sop_class in CLASSES.items():
        assert dcmread(folder / f"{label}.dcm").SOPClassUID == sop_class


def test_the_rows_are_the_files_and_the_seg_comes_first(reading: Reading, folder: Path) -> None:
    rows = results.rows(reading, folder, JOB)
    assert [each.label for each in rows] == list(CLASSES)
    for each in rows:
        made = dcmread(each.path)
        assert each.path == folder / f"{each.label}.dcm"
        assert each.sha256 == sha256(each.path)
        assert (each.job_id, each.sop_uid) == (JOB, made.SOPInstanceUID)
        assert (each.sop_class_uid, each.series_uid) == (made.SOPClassUID, made.SeriesInstanceUID)


def test_the_text_says_first_what_it_is(folder: Path) -> None:
    text = (folder / "draft.txt").read_text(encoding="utf-8")
    assert text.startswith("AI DRAFT")
    assert "NOT FOR DIAGNOSTIC USE" in text
    assert "UNTRAINED" in text
    assert "UNVERIFIED" in text
    assert str(dcmread(folder / "draft.dcm").SeriesDescription) in text


def test_the_picture_is_of_the_masks_that_are_sent(reading: Reading, folder: Path) -> None:
    with Image.open(folder / "overlay.png") as picture:
        pixels = np.array(picture.convert("RGB"))
    assert np.array_equal(pixels, np.array(results.picture(reading)))
    for question in PROTOCOL.targets:
        assert question.target is not None
        colour = np.array(question.target.colour_rgb)
        legend = (pixels[-40:] == colour).all(axis=-1).sum()
        outlined = (pixels[60:-40] == colour).all(axis=-1).sum()
        assert legend == 15 * 15
        assert (outlined > 0) == bool(reading.masks[question.id].any())


# --- the summary --------------------------------------------------------------------------------


def test_the_summary_is_the_contract(reading: Reading, folder: Path) -> None:
    told = summary_of(folder)
    assert list(told) == ["series", "protocol", "model", "answers", "outputs", "timings_s"]
    assert told["protocol"] == "ct_chest"
    assert told["series"] == {
        "study_instance_uid": reading.source.sources[0].StudyInstanceUID,
        "series_instance_uid": reading.source.sources[0].SeriesInstanceUID,
        "modality": "CT",
        "description": DESCRIPTION,
        "instances": SHAPE[0],
        "shape": list(SHAPE),
        "spacing_mm": list(SPACING_MM),
    }
    card = {"name": "lamed-tiny-untrained", "untrained": True}
    assert set(told["model"]) == {"name", "version", "sha256", "untrained"}
    assert card.items() <= told["model"].items()
    assert len(told["model"]["sha256"]) == 64
    assert set(told["timings_s"]) == {"volume", "read", "masks", "encode"}
    assert all(0 <= each < 300 for each in told["timings_s"].values())


def test_the_summary_has_each_answer_in_the_order_of_the_protocol(
    reading: Reading, folder: Path
) -> None:
    answers = summary_of(folder)["answers"]
    assert [(each["id"], each["question"]) for each in answers] == [
        (each.id, each.text) for each in PROTOCOL.questions
    ]
    assert all(set(each) == {"id", "question", "text", "mask"} for each in answers)
    assert [each["text"] for each in answers] == [each.text for each in reading.answers]
    assert [each["mask"] is not None for each in answers] == [
        question.target is not None for question in PROTOCOL.questions
    ]


def test_the_outputs_of_the_summary_are_the_files(folder: Path) -> None:
    outputs = summary_of(folder)["outputs"]
    assert [each["label"] for each in outputs] == list(CLASSES)
    for each in outputs:
        assert set(each) == {"label", "path", "sop_class", "sop_instance_uid"}
        made = dcmread(each["path"])
        assert each["path"] == str(folder / f"{each['label']}.dcm")
        assert (each["sop_class"], each["sop_instance_uid"]) == (
            made.SOPClassUID,
            made.SOPInstanceUID,
        )


def test_a_volume_is_counted_in_voxels_that_are_no_cubes(folder: Path) -> None:
    seg = dcmread(folder / "seg.dcm")
    frames = seg.pixel_array.reshape(-1, seg.Rows, seg.Columns)
    counted = dict.fromkeys((str(each.SegmentLabel) for each in seg.SegmentSequence), 0)
    names = {each.SegmentNumber: str(each.SegmentLabel) for each in seg.SegmentSequence}
    for group, frame in zip(seg.PerFrameFunctionalGroupsSequence, frames, strict=True):
        number = group.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        counted[names[number]] += int(frame.sum())
    assert sum(counted.values()) > 0
    labels = {each.id: each.target.label for each in PROTOCOL.targets if each.target}
    for answer in summary_of(folder)["answers"]:
        if answer["mask"] is not None:
            voxels = counted.get(labels[answer["id"]], 0)
            assert answer["mask"] == {
                "voxels": voxels,
                "volume_ml": pytest.approx(voxels * VOXEL_ML, abs=0.0006),
            }


def test_the_measurements_are_those_of_the_summary(folder: Path) -> None:
    text = [
        float(item.MeasuredValueSequence[0].NumericValue)
        for item in contents(dcmread(folder / "measurements.dcm"))
        if item.ValueType == "NUM" and item.ConceptNameCodeSequence[0].CodeMeaning == "Volume"
    ]
    masks = [each["mask"] for each in summary_of(folder)["answers"] if each["mask"]]
    assert text == [each["volume_ml"] for each in masks if each["voxels"]]


def contents(item: Any) -> Iterator[Any]:
    for child in item.get("ContentSequence") or ():
        yield child
        yield from contents(child)


# --- again --------------------------------------------------------------------------------------


def test_a_repeat_makes_the_same_bytes(
    images: list[Path], lamed: model.LaMed, folder: Path, tmp_path: Path
) -> None:
    results.save(read(images[::-1], lamed), tmp_path)
    for name in (*(f"{label}.dcm" for label in CLASSES), "draft.txt", "overlay.png"):
        assert sha256(tmp_path / name) == sha256(folder / name), name


def test_what_an_earlier_reading_left_is_not_taken_for_this_one_s(
    images: list[Path], lamed: model.LaMed, reading: Reading, tmp_path: Path
) -> None:
    for name in ("notes.txt", "seg.of-another.1.DCM", "scan.dcm"):
        (tmp_path / name).write_text("of somebody else", encoding="utf-8")
    (tmp_path / "seg.weasis.2.dcm").write_text("of an earlier attempt", encoding="utf-8")
    results.save(reading, tmp_path)
    words = read(images, lamed, WORDS)
    told = results.save(words, tmp_path)
    assert {each.name for each in tmp_path.iterdir()} == {
        *("draft.dcm", "draft.txt", "report.txt", "overlay.png", "summary.json"),
        *("notes.txt", "seg.of-another.1.DCM", "scan.dcm"),
    }
    assert [each["label"] for each in told["outputs"]] == ["draft"]
    assert [each["mask"] for each in told["answers"]] == [None]
    assert [each.label for each in results.rows(words, tmp_path, JOB)] == ["draft"]
    assert summary_of(tmp_path) == told


def test_a_file_is_whole_or_not_there(reading: Reading, tmp_path: Path) -> None:
    (tmp_path / "draft.txt").mkdir()
    with pytest.raises(OSError, match=r"draft\.txt"):
        results.save(reading, tmp_path)
    assert not [each for each in tmp_path.iterdir() if each.suffix == ".partial"]
    (tmp_path / "draft.txt").rmdir()
    before = {}
    for _ in range(2):
        results.save(reading, tmp_path)
        before[(tmp_path / "seg.dcm").stat().st_ino] = sha256(tmp_path / "seg.dcm")
    assert len(before) == 2
    assert len(set(before.values())) == 1


def test_texts_are_utf_8_whatever_the_machine_speaks(reading: Reading, tmp_path: Path) -> None:
    spoken = locale.setlocale(locale.LC_ALL)
    locale.setlocale(locale.LC_ALL, "C")
    try:
        results.save(reading, tmp_path)
    finally:
        locale.setlocale(locale.LC_ALL, spoken)
    assert summary_of(tmp_path)["series"]["description"] == DESCRIPTION
    assert (tmp_path / "draft.txt").read_text(encoding="utf-8").startswith("AI DRAFT")
