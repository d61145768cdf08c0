"""The presentation state: outlines where the masks are, as DCMTK and highdicom read them."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import highdicom as hd
import numpy as np
import pytest
from pydicom import Dataset, dcmread

from sr_templates import encode
from tests.drafts import (
    ALGORITHM,
    CREATED_AT,
    JOB,
    PRESENTATION,
    PROTOCOLS,
    encoded,
    encoded_enhanced,
    findings,
    series,
    stack,
)
from tests.test_encoding import complaints


def outlines(state: Dataset) -> list[tuple[str, str, np.ndarray]]:
    """Return layer, image and points (column, row) of each line."""
    return [
        (
            annotation.GraphicLayer,
            annotation.ReferencedImageSequence[0].ReferencedSOPInstanceUID,
            np.array(graphic.GraphicData).reshape(-1, 2),
        )
        for annotation in state.GraphicAnnotationSequence
        for graphic in annotation.get("GraphicObjectSequence") or ()
    ]


@pytest.mark.parametrize("name", sorted(PROTOCOLS))
def test_a_state_is_clean_for_dciodvfy_and_dcmtk(
    name: str, tmp_path: Path, tool: Callable[[str], str]
) -> None:
    state = encoded(name, profiles=PRESENTATION)["presentation"]
    assert complaints(state, tmp_path / "state.dcm") == []
    done = subprocess.run(
        [tool("dcmpschk"), tmp_path / "state.dcm"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Test passed" in done.stderr


def test_the_outlines_lie_around_the_masks_on_their_key_slices() -> None:
    sources, volume = stack(series())
    state = encoded(profiles=PRESENTATION)["presentation"]
    masks = [each.mask for each in findings(PROTOCOLS["ct_chest"], volume) if each.mask is not None]
    index = {str(each.SOPInstanceUID): number for number, each in enumerate(sources)}
    drawn = outlines(state)
    assert {layer for layer, _, _ in drawn} == {f"OUTLINE_{n}" for n in range(1, len(masks) + 1)}
    for layer, image, points in drawn:
        mask = masks[int(layer.removeprefix("OUTLINE_")) - 1].array[index[image]]
        rows, columns = np.nonzero(mask)
        assert (points[0] == points[-1]).all()
        assert columns.min() <= points[:, 0].min() <= points[:, 0].max() <= columns.max() + 1
        assert rows.min() <= points[:, 1].min() <= points[:, 1].max() <= rows.max() + 1


def test_each_layer_has_the_colour_and_the_name_of_its_segment() -> None:
    state = encoded(profiles=PRESENTATION)["presentation"]
    layers = {each.GraphicLayer: each for each in state.GraphicLayerSequence}
    for number, question in enumerate(PROTOCOLS["ct_chest"].targets, 1):
        assert question.target is not None
        layer = layers[f"OUTLINE_{number}"]
        expected = hd.color.CIELabColor.from_rgb(*question.target.colour_rgb).value
        assert tuple(layer.GraphicLayerRecommendedDisplayCIELabValue) == tuple(expected)
        assert layer.GraphicLayerDescription == question.target.label
    orders = [each.GraphicLayerOrder for each in state.GraphicLayerSequence]
    assert sorted(orders) == list(range(1, len(orders) + 1))


def test_every_key_slice_carries_the_notice() -> None:
    state = encoded(profiles=PRESENTATION)["presentation"]
    images = {
        image.ReferencedSOPInstanceUID
        for part in state.ReferencedSeriesSequence
        for image in part.ReferencedImageSequence
    }
    told = {
        annotation.ReferencedImageSequence[0].ReferencedSOPInstanceUID
        for annotation in state.GraphicAnnotationSequence
        if annotation.GraphicLayer == "NOTICE"
        and annotation.TextObjectSequence[0].UnformattedTextValue.startswith("AI DRAFT")
    }
    assert told == images


def test_the_window_is_the_protocol_s_in_modality_units() -> None:
    state = encoded(profiles=PRESENTATION)["presentation"]
    (window,) = state.SoftcopyVOILUTSequence
    assert [window.WindowCenter, window.WindowWidth] == list(PROTOCOLS["ct_chest"].window or ())
    assert (state.RescaleIntercept, state.RescaleSlope) == (-1024, 1)
    assert "ReferencedImageSequence" not in window


def test_images_of_several_rescales_have_windows_of_their_own(tmp_path: Path) -> None:
    """A state has one modality transformation; stored values are what all images have."""
    instances = series()
    for number, each in enumerate(instances):
        each.RescaleSlope = str(1 + number % 2)
    state = encoded(instances=instances, profiles=PRESENTATION)["presentation"]
    assert complaints(state, tmp_path / "state.dcm") == []
    assert "RescaleSlope" not in state
    slopes = {str(each.SOPInstanceUID): float(each.RescaleSlope) for each in instances}
    centre, width = PROTOCOLS["ct_chest"].window or (0, 0)
    for window in state.SoftcopyVOILUTSequence:
        slope = slopes[window.ReferencedImageSequence[0].ReferencedSOPInstanceUID]
        assert window.WindowWidth == pytest.approx(width / slope)
        assert window.WindowCenter == pytest.approx((centre + 1024) / slope)


@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_a_state_on_a_multi_frame_image_names_its_frames(modality: str, tmp_path: Path) -> None:
    state = encoded_enhanced(modality, profiles=PRESENTATION)["presentation"]
    assert complaints(state, tmp_path / "state.dcm") == []
    frames = {
        int(each.ReferencedImageSequence[0].ReferencedFrameNumber)
        for each in state.GraphicAnnotationSequence
    }
    assert len(frames) > 1
    assert len(state.ReferencedSeriesSequence[0].ReferencedImageSequence) == 1
    assert state.SoftcopyVOILUTSequence


def test_without_an_image_the_state_keeps_the_outlines() -> None:
    sources, volume = stack(series("mr_brain"))
    protocol = PROTOCOLS["mr_brain"]
    made = encode(
        protocol,
        sources,
        findings(protocol, volume),
        ALGORITHM,
        job_id=JOB,
        image=None,
        created_at=CREATED_AT,
        profiles=PRESENTATION,
    )
    assert outlines(made["presentation"])
    assert "SoftcopyVOILUTSequence" in made["presentation"]


def test_pixels_that_are_not_square_are_told(tmp_path: Path) -> None:
    state = encoded(profiles=PRESENTATION)["presentation"]
    state.save_as(tmp_path / "state.dcm", enforce_file_format=True)
    (area,) = dcmread(tmp_path / "state.dcm").DisplayedAreaSelectionSequence
    assert list(area.PresentationPixelSpacing) == [1.5, 1.25]
    assert list(area.DisplayedAreaBottomRightHandCorner) == [24, 20]
