import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pydicom
import pytest
from commands import SHORT, Done, short_protocols
from pydicom import Dataset
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from dicom_node.__main__ import main
from dicom_node.demo import sample

SHAPE = (8, 32, 32)
SPACING_MM = (6.0, 5.0, 5.0)
SEG, SR_3D, SR = (
    "1.2.840.10008.5.1.4.1.1.66.4",
    "1.2.840.10008.5.1.4.1.1.88.34",
    "1.2.840.10008.5.1.4.1.1.88.22",
)


Command = Callable[..., Done]


@pytest.fixture
def command(
    tmp_path: Path,
    checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Command:
    """The command line in this process: torch is imported once."""
    monkeypatch.setenv("LAMED_DATA_DIR", str(tmp_path / "node"))
    monkeypatch.setenv("LAMED_CHECKPOINT", str(checkpoint))
    monkeypatch.setenv("LAMED_PROTOCOLS", str(short_protocols(tmp_path / "protocols")))

    def call(*words: object) -> Done:
        code = main([*map(str, words), "--json"])
        told = capsys.readouterr()
        return Done(code, told.out, told.err)

    return call


def chest(**options: Any) -> list[Dataset]:
    return sample.series(**({"shape": SHAPE, "spacing_mm": SPACING_MM} | options))


def write(folder: Path, *series: Sequence[Dataset]) -> Path:
    for each in series:
        sample.write(each, folder)
    return folder


def uids(done: Done) -> list[str]:
    return [each["sop_instance_uid"] for each in done.data["outputs"]]


@pytest.fixture
def ct(tmp_path: Path) -> Path:
    return write(tmp_path / "ct", chest())


# --- run: what comes of a folder ----------------------------------------------------------------


def test_a_folder_becomes_seg_sr_and_a_summary(command: Command, ct: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = command("run", ct, "--out", out)
    assert done.code == 0
    told = done.data
    assert told == json.loads((out / "summary.json").read_text())
    assert told["protocol"] == "ct_chest"
    assert told["series"]["series_instance_uid"] == chest()[0].SeriesInstanceUID
    assert told["series"]["shape"] == list(SHAPE)
    assert set(told["model"]) >= {"name", "version", "sha256"}
    assert [(each["id"], each["mask"] is None) for each in told["answers"]] == [
        ("effusion", True),
        ("seg_heart", False),
    ]
    assert told["answers"][0]["question"].startswith("Is there fluid")
    assert all(each >= 0 for each in told["timings_s"].values())
    assert [each["sop_class"] for each in told["outputs"]] == [SEG, SR_3D, SR]
    for each in told["outputs"]:
        written = pydicom.dcmread(each["path"])
        assert (written.SOPClassUID, written.SOPInstanceUID) == (
            each["sop_class"],
            each["sop_instance_uid"],
        )
        assert written.SeriesDescription.startswith("AI DRAFT")
    drawn = int(pydicom.dcmread(out / "seg.dcm").pixel_array.sum())
    mask = told["answers"][1]["mask"]
    assert mask["voxels"] == drawn > 0
    assert mask["volume_ml"] == pytest.approx(drawn * 6.0 * 5.0 * 5.0 / 1000, abs=0.001)


def test_a_person_is_told_that_it_is_a_draft_and_what_was_read(
    command: Command, ct: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", str(ct), "--out", str(tmp_path / "out")]) == 0
    told = capsys.readouterr()
    assert told.out.startswith("AI DRAFT - not for diagnostic use - ")
    assert "UNTRAINED: means nothing" in told.out.splitlines()[0]
    assert "CT CHEST (8 instances): original, axial, soft kernel, 8 slices, 6 mm" in told.out
    assert f"seg          {tmp_path / 'out' / 'seg.dcm'}" in told.out
    assert "Body Part Examined is 'CHEST'" in told.err
    assert command is not None


def test_the_same_input_gives_the_same_uids_whatever_its_files_are_called(
    command: Command, ct: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other" / "deep"
    other.mkdir(parents=True)
    for index, path in enumerate(sorted(ct.iterdir(), reverse=True)):
        (other / f"IM{index:04}").write_bytes(path.read_bytes())
    first = command("run", ct, "--out", tmp_path / "1")
    second = command("run", tmp_path / "other", "--out", tmp_path / "2")
    assert uids(first) == uids(second)
    (tmp_path / "protocols" / "ct_chest.toml").write_text(SHORT.replace("[40, 400]", "[50, 350]"))
    assert not set(uids(command("run", ct, "--out", tmp_path / "3"))) & set(uids(first))


@pytest.mark.parametrize(
    "syntax",
    [RLELossless, JPEG2000Lossless, JPEGLSLossless, DeflatedExplicitVRLittleEndian],
    ids=lambda uid: UID(uid).keyword,
)
def test_a_compressed_series_is_read_like_a_plain_one(
    command: Command, ct: Path, tmp_path: Path, syntax: str
) -> None:
    packed = write(tmp_path / "packed", chest(transfer_syntax=syntax))
    done, plain = (
        command("run", folder, "--out", tmp_path / f"out-{folder.name}") for folder in (packed, ct)
    )
    assert done.code == 0
    assert done.data["answers"] == plain.data["answers"]
    assert plain.data["answers"][1]["mask"]["voxels"] > 0


def test_a_multi_frame_instance_is_read_like_a_classic_series(
    command: Command, ct: Path, tmp_path: Path
) -> None:
    frames = sample.enhanced(shape=SHAPE, spacing_mm=SPACING_MM)
    done = command("run", write(tmp_path / "enhanced", [frames]), "--out", tmp_path / "out")
    plain = command("run", ct, "--out", tmp_path / "plain")
    assert done.code == 0
    assert done.data["series"]["instances"] == 1
    assert done.data["answers"] == plain.data["answers"]


def test_an_mr_is_read_by_an_mr_protocol(command: Command, tmp_path: Path) -> None:
    brain = chest(modality="MR", body_part="BRAIN", description="T1 AX", shape=(24, 32, 32))
    done = command("run", write(tmp_path / "mr", brain), "--out", tmp_path / "out")
    assert done.code == 0
    assert done.data["protocol"] == "mr_brain"
    assert done.data["series"]["modality"] == "MR"


def test_of_several_series_one_is_taken_and_each_is_told_why(
    command: Command, tmp_path: Path
) -> None:
    soft, sharp = chest(), chest(seed=1, description="LUNG", shape=(12, 32, 32))
    scout = chest(seed=2, description="TOPOGRAM", shape=(30, 32, 32))
    for each in (*sharp, *scout):
        each.StudyInstanceUID = soft[0].StudyInstanceUID
    for each in sharp:
        each.ConvolutionKernel = "B70f"
    done = command("run", write(tmp_path / "all", soft, sharp, scout), "--out", tmp_path / "out")
    assert done.code == 0
    assert done.data["series"]["series_instance_uid"] == soft[0].SeriesInstanceUID
    assert done.data["series"]["reason"].startswith("original, axial, soft kernel, 8 slices")
    skipped = {each["series_instance_uid"]: each["reason"] for each in done.data["skipped"]}
    assert "softer kernel" in skipped[sharp[0].SeriesInstanceUID]
    assert "a localizer (topogram)" in skipped[scout[0].SeriesInstanceUID]
    assert "skipping TOPOGRAM: a localizer (topogram)" in done.err
    assert "reading  CT CHEST" in done.err


def test_what_is_no_dicom_lies_beside_and_is_ignored(
    command: Command, ct: Path, tmp_path: Path
) -> None:
    (ct / "letter.txt").write_text("Dear colleague")
    (ct / "DICOMDIR").write_bytes(bytes(128) + b"DICM and more")
    (ct / "._IM0001.dcm").write_bytes(b"\x00\x05\x16\x07 macOS writes these")
    (ct / "empty").touch()
    done = command("run", ct, "--out", tmp_path / "out")
    assert done.code == 0
    assert done.data["series"]["instances"] == 8


def test_a_copy_of_a_file_counts_once_and_another_version_is_refused(
    command: Command, ct: Path, tmp_path: Path
) -> None:
    first = min(ct.iterdir())
    (ct / "copy").write_bytes(first.read_bytes())
    assert command("run", ct, "--out", tmp_path / "out").data["series"]["instances"] == 8
    changed = pydicom.dcmread(first)
    changed.SeriesDescription = "corrected"
    changed.save_as(ct / "corrected")
    done = command("run", ct, "--out", tmp_path / "out")
    assert done.code == 3
    assert f"two versions of {changed.SOPInstanceUID}" in done.error


# --- run: what cannot be read -------------------------------------------------------------------


def test_a_folder_without_an_image_is_said(command: Command, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert command("run", tmp_path / "empty", "--out", tmp_path / "out").error == (
        f"no DICOM file in {tmp_path / 'empty'}"
    )
    (tmp_path / "empty" / "letter.txt").write_text("Dear colleague")
    done = command("run", tmp_path / "empty", "--out", tmp_path / "out")
    assert (done.code, done.error) == (3, f"no DICOM file in {tmp_path / 'empty'}")
    assert not (tmp_path / "out").exists()


def test_two_studies_are_named(command: Command, tmp_path: Path) -> None:
    one, two = chest(), chest(seed=1)
    done = command("run", write(tmp_path / "two", one, two), "--out", tmp_path / "out")
    assert done.code == 3
    assert "found 2" in done.error
    assert str(one[0].StudyInstanceUID) in done.error
    assert str(two[0].StudyInstanceUID) in done.error


def test_a_protocol_that_does_not_fit_and_one_that_is_not_there(
    command: Command, ct: Path, tmp_path: Path
) -> None:
    unfit = command("run", ct, "--protocol", "mr_brain", "--out", tmp_path / "out")
    assert unfit.code == 3
    assert "modality CT, protocols exist for MR" in unfit.error
    unknown = command("run", ct, "--protocol", "ct_chst", "--out", tmp_path / "out")
    assert unknown.code == 2
    assert "'ct_chst'" in unknown.error
    assert "ct_chest" in unknown.error


def test_a_protocol_that_is_asked_for_reads_a_region_it_does_not_name(
    command: Command, tmp_path: Path
) -> None:
    folder = write(tmp_path / "knee", chest(body_part="KNEE", description="KNEE"))
    refused = command("run", folder, "--out", tmp_path / "out")
    assert refused.code == 3
    assert "no protocol is for its region" in refused.error
    done = command("run", folder, "--protocol", "ct_chest", "--out", tmp_path / "out")
    assert (done.code, done.data["protocol"]) == (0, "ct_chest")


def test_a_missing_slice_is_no_reading_and_leaves_no_earlier_one(
    command: Command, ct: Path, tmp_path: Path
) -> None:
    assert command("run", ct, "--out", tmp_path / "out").code == 0
    (ct / f"{chest()[4].SOPInstanceUID}.dcm").unlink()
    done = command("run", ct, "--out", tmp_path / "out")
    assert done.code == 3
    assert done.error.startswith("missing-slice: ")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.filterwarnings("ignore::UserWarning")  # pydicom's word about the cut
@pytest.mark.parametrize("kept", [-20, 600, 200, 100, 0])
def test_a_file_that_is_cut_short_is_named_or_its_fault_is(
    command: Command, ct: Path, tmp_path: Path, kept: int
) -> None:
    path = ct / f"{chest()[-1].SOPInstanceUID}.dcm"
    path.write_bytes(path.read_bytes()[:kept])
    done = command("run", ct, "--out", tmp_path / "out")
    assert done.code == 3
    assert "truncated" in done.error or "pixel" in done.error or str(path) in done.error
    assert not (tmp_path / "out" / "seg.dcm").exists()


def test_a_checkpoint_that_cannot_be_read_is_said(
    command: Command, ct: Path, tmp_path: Path, checkpoint: Path
) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in checkpoint.iterdir():
        (broken / path.name).write_bytes(path.read_bytes())
    weights = (broken / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    done = command("run", ct, "--checkpoint", broken, "--out", tmp_path / "out")
    assert done.code == 3
    assert f"{broken / 'model.safetensors'}: expected sha256" in done.error
    done = command("run", ct, "--checkpoint", tmp_path / "none", "--out", tmp_path / "out")
    assert (done.code, done.error) == (3, f"no folder {tmp_path / 'none'}")


def test_a_device_that_is_not_there_is_exit_code_4(
    command: Command, ct: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("LAMED_DEVICE", "cuda:7")
    done = command("run", ct, "--out", tmp_path / "out")
    assert done.code == 4
    assert "torch sees no CUDA device" in done.error


# --- run: where it is written -------------------------------------------------------------------


def test_what_an_earlier_run_left_is_removed(command: Command, ct: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command("run", ct, "--out", out)
    (out / "notes.txt").write_text("mine")
    words = SHORT[: SHORT.index('[[questions]]\nid = "seg_heart"')]
    (tmp_path / "protocols" / "ct_chest.toml").write_text(words)
    assert command("run", ct, "--out", out).code == 0
    assert sorted(path.name for path in out.iterdir()) == [
        "draft.dcm",
        "draft.txt",
        "notes.txt",
        "overlay.png",
        "report.txt",
        "summary.json",
    ]


@pytest.mark.parametrize("name", ["seg.dcm", "summary.json"])
def test_what_is_not_ours_is_not_written_over(
    command: Command, ct: Path, tmp_path: Path, name: str
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("{}")
    done = command("run", ct, "--out", tmp_path / "out")
    assert done.code == 3
    assert "not of an earlier run" in done.error
    assert (tmp_path / "out" / name).read_text() == "{}"


def test_a_file_in_the_way_of_the_folder_is_said(
    command: Command, ct: Path, tmp_path: Path
) -> None:
    (tmp_path / "out").write_text("a file")
    for out in (tmp_path / "out", tmp_path / "out" / "below"):
        done = command("run", ct, "--out", out)
        assert (done.code, done.error) == (3, f"{out} can be no folder: a file is in its way")


# --- ask ----------------------------------------------------------------------------------------


def test_a_question_gets_its_words(command: Command, ct: Path, tmp_path: Path) -> None:
    done = command("ask", ct, "Is there a nodule?")
    assert done.code == 0
    assert done.data["question"] == "Is there a nodule?"
    assert done.data["text"]
    assert done.data["mask"] is None
    assert done.data["model"]["untrained"] is True
    assert "outputs" not in done.data
    assert not (tmp_path / "node").exists()


def test_a_question_for_an_outline_gets_a_mask_as_seg(
    command: Command, ct: Path, tmp_path: Path
) -> None:
    done = command("ask", ct, "Please segment the heart in this image.", "--out", tmp_path / "out")
    assert done.code == 0
    seg = pydicom.dcmread(tmp_path / "out" / "seg.dcm")
    assert done.data["mask"]["voxels"] == int(seg.pixel_array.sum()) > 0
    assert [each["sop_class"] for each in done.data["outputs"]] == [SEG, SR_3D, SR]
    assert seg.SegmentSequence[0].SegmentLabel == "Please segment the heart in this image"
    draft = (tmp_path / "out" / "draft.txt").read_text()
    assert "Please segment the heart in this image. AI (UNTRAINED): outlined" in draft
    assert "Target Region: Chest" in draft


@pytest.mark.parametrize(
    ("question", "sentence"),
    [
        ("", "not empty"),
        (" \n", "not empty"),
        ("x" * 100_000, "at most 1000 characters, this one 100000"),
        ("word " * 199, "tokens"),
        ("Is it <im_patch>?", "must not hold <im_patch>"),
        ("Is it [SEG]?", "must not hold [SEG]"),
        ("</s>", "must not hold </s>"),
        ("Is it\x1b[31m red?", "printable"),
    ],
)
def test_a_question_that_cannot_be_asked_is_refused(
    command: Command, ct: Path, question: str, sentence: str
) -> None:
    done = command("ask", ct, question)
    assert done.code == 3
    assert sentence in done.error
    assert len(done.error) < 200


def test_neither_a_localizer_nor_a_projection_is_asked_about(
    command: Command, tmp_path: Path
) -> None:
    head = {"body_part": "HEAD", "description": "HEAD"}
    plain = chest(**head)
    scout = chest(**head | {"description": "SCOUT"}, seed=1, shape=(20, 32, 32))
    thick = chest(**head | {"description": "MIP"}, seed=2, shape=(16, 32, 32))
    for each in (*scout, *thick):
        each.StudyInstanceUID = plain[0].StudyInstanceUID
    done = command("ask", write(tmp_path / "all", plain, scout, thick), "Is there a nodule?")
    assert done.code == 0
    assert done.data["series"]["series_instance_uid"] == plain[0].SeriesInstanceUID
    alone = command("ask", write(tmp_path / "scout", scout), "Is there a nodule?")
    assert alone.code == 3
    assert "a localizer (scout)" in alone.error


def test_a_series_of_several_phases_is_refused_by_both_commands(
    command: Command, tmp_path: Path
) -> None:
    first, second = chest(), chest(origin=(-121.5, -180.25, -310.0))
    for each in second:
        each.SOPInstanceUID = each.file_meta.MediaStorageSOPInstanceUID = f"{each.SOPInstanceUID}9"
    folder = write(tmp_path / "phases", first, second)
    told = [
        command("run", folder, "--out", tmp_path / "out"),
        command("ask", folder, "Is there a nodule?"),
    ]
    assert [each.code for each in told] == [3, 3]
    assert all("16 images at 8 places: several phases" in each.error for each in told)


def test_a_region_that_no_protocol_knows_is_reported_as_no_region(
    command: Command, tmp_path: Path
) -> None:
    folder = write(tmp_path / "knee", chest(body_part="KNEE", description="KNEE"))
    done = command("ask", folder, "Is there a fracture?", "--out", tmp_path / "out")
    assert done.code == 0
    draft = (tmp_path / "out" / "draft.txt").read_text()
    assert "Target Region: Entire body" in draft
    assert "Diagnostic Imaging Report" in draft
    assert "Question. Is there a fracture?" in draft
    assert "outlined nothing" not in draft
    told = (draft, pydicom.dcmread(tmp_path / "out" / "draft.dcm").SeriesDescription)
    assert not [each for each in told if "hest" in each or "bdom" in each]
