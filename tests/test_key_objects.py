"""The key object selection: which slices to look at first, as DCMTK and highdicom read it."""

from pathlib import Path

import highdicom as hd
import pytest
from pydicom import Dataset

from tests.drafts import KEY_OBJECTS, PROTOCOLS, encoded, encoded_enhanced, series, untrained
from tests.test_encoding import complaints, dcmtk


def description(selection: Dataset) -> str:
    (found,) = (
        item.TextValue
        for item in selection.ContentSequence
        if item.ValueType == "TEXT" and item.ConceptNameCodeSequence[0].CodeValue == "113012"
    )
    return str(found)


@pytest.mark.parametrize("name", sorted(PROTOCOLS))
def test_a_selection_is_clean_for_dciodvfy_and_dcmtk(name: str, tmp_path: Path) -> None:
    selection = encoded(name, profiles=KEY_OBJECTS)["key-objects"]
    assert complaints(selection, tmp_path / "selection.dcm") == []
    assert "NOT FOR DIAGNOSTIC USE" in dcmtk(selection, tmp_path / "selection.dcm")


def test_the_selection_names_the_slices_and_what_is_on_them() -> None:
    selection = encoded(profiles=KEY_OBJECTS)["key-objects"]
    images = {each.SOPInstanceUID: each.InstanceNumber for each in series()}
    chosen = [
        images[item.ReferencedSOPSequence[0].ReferencedSOPInstanceUID]
        for item in selection.ContentSequence
        if item.ValueType == "IMAGE"
    ]
    told = description(selection)
    assert chosen
    assert all(f"image {number}: " in told for number in chosen)
    for question in PROTOCOLS["ct_chest"].targets:
        assert question.target is not None
        assert question.target.label in told


def test_highdicom_reads_title_device_and_references(tmp_path: Path) -> None:
    made = encoded(profiles=KEY_OBJECTS)["key-objects"]
    made.save_as(tmp_path / "selection.dcm", enforce_file_format=True)
    read = hd.ko.KeyObjectSelectionDocument.from_dataset(made)
    assert made.ConceptNameCodeSequence[0].CodeValue == "113000"
    assert read.content.get_references()
    (evidence,) = made.CurrentRequestedProcedureEvidenceSequence
    assert evidence.ReferencedSeriesSequence[0].SeriesInstanceUID == series()[0].SeriesInstanceUID


def test_of_a_multi_frame_image_the_frames_are_selected(tmp_path: Path) -> None:
    selection = encoded_enhanced(profiles=KEY_OBJECTS)["key-objects"]
    assert complaints(selection, tmp_path / "selection.dcm") == []
    (image,) = (each for each in selection.ContentSequence if each.ValueType == "IMAGE")
    frames = image.ReferencedSOPSequence[0].ReferencedFrameNumber
    assert len(frames) > 1
    assert all(f"frame {each}: " in description(selection) for each in frames)


def test_an_untrained_model_is_told_in_the_description() -> None:
    selection = encoded(algorithm=untrained(), profiles=KEY_OBJECTS)["key-objects"]
    assert "UNTRAINED MODEL" in description(selection)
