"""Key slices and the grid they lie on: which slices, what a viewer calls them, which way is up."""

import highdicom as hd
import numpy as np
import pytest

from dicom_node.demo import sample
from sr_templates import TemplateError, grid, key_slices
from sr_templates.document import Document
from sr_templates.segmentation import Outlines, outline
from tests.drafts import ALGORITHM, CREATED_AT, JOB, PROTOCOLS, findings, series, stack

CHEST = PROTOCOLS["ct_chest"]


def outlined(instances: list, volume: hd.Volume) -> tuple[Outlines, Document]:  # type: ignore[type-arg]
    document = Document.about(CHEST, instances, ALGORITHM, JOB, CREATED_AT)
    outlines = outline(findings(CHEST, volume), document)
    assert outlines is not None
    return outlines, document


def test_each_segment_has_a_key_slice_and_no_slice_is_told_twice() -> None:
    sources, volume = stack(series())
    outlines, document = outlined(sources, volume)
    found = key_slices.find(outlines, document)
    largest = [each.number for shown in found for each in shown.largest]
    assert sorted(largest) == [each.number for each in outlines.segments]
    assert len({each.index for each in found}) == len(found)
    for shown in found:
        for segment, mask in shown.segments:
            expected = outlines.labels.array[shown.index] == segment.number
            assert np.array_equal(mask, expected)


def test_a_slice_has_the_number_that_its_image_has_in_a_viewer() -> None:
    sources, volume = stack(series())
    for number, each in enumerate(sources):
        each.InstanceNumber = 100 + number
    outlines, document = outlined(sources, volume)
    shown = key_slices.find(outlines, document)[0]
    assert shown.name == f"image {100 + shown.index}"
    assert shown.largest[0].target.label in shown.shown


def test_a_slice_of_a_multi_frame_image_is_a_frame() -> None:
    source = sample.enhanced(shape=(12, 20, 24))
    volume = hd.image.Image.from_dataset(source).get_volume(dtype=np.float32)
    outlines, document = outlined([source], volume)
    names = [each.name for each in key_slices.find(outlines, document)]
    assert all(each.startswith("frame ") for each in names)
    assert len(key_slices.headers(key_slices.find(outlines, document))) == 1


DIRECTIONS = {
    "axial": ((0, 0, 1), (0, 1, 0), (1, 0, 0)),
    "coronal": ((0, 1, 0), (0, 0, -1), (1, 0, 0)),
    "sagittal": ((1, 0, 0), (0, 0, -1), (0, 1, 0)),
}


@pytest.mark.parametrize(
    ("plane", "letters"),
    [("axial", ("L", "P")), ("coronal", ("L", "F")), ("sagittal", ("P", "F"))],
)
def test_letters_tell_where_rows_and_columns_lead(plane: str, letters: tuple[str, str]) -> None:
    _, volume = stack(series(directions=np.array(DIRECTIONS[plane]).T))
    assert grid.orientation(volume) == letters
    assert [grid.opposite(each) for each in letters] == [
        {"L": "R", "P": "A", "F": "H"}[each] for each in letters
    ]


def test_a_tilted_slice_tells_both_axes_it_leans_to() -> None:
    angle = np.radians(30)
    cosine, sine = np.cos(angle), np.sin(angle)
    tilted = ((0, -sine, cosine), (0, cosine, sine), (1, 0, 0))
    _, volume = stack(series(directions=np.array(tilted).T))
    assert grid.orientation(volume) == ("L", "PH")


@pytest.mark.parametrize("turned", ["HPL", "FPR", "LAF", "PRH"])
def test_an_image_in_any_orientation_is_turned_to_the_slices_of_the_source(turned: str) -> None:
    sources, volume = stack(series())
    image = volume.to_patient_orientation(turned)
    cosines = [float(each) for each in sources[0].ImageOrientationPatient]
    back = grid.as_stored(image, cosines)
    assert grid.orientation(back) == grid.orientation(volume)
    aligned = grid.aligned(image, volume)
    assert np.array_equal(aligned.array, volume.array)
    assert sorted(map(float, back.array.sum(axis=(1, 2)))) == pytest.approx(
        sorted(map(float, volume.array.sum(axis=(1, 2))))
    )


def test_an_image_on_another_grid_is_refused() -> None:
    _, volume = stack(series())
    with pytest.raises(TemplateError, match="masks' grid"):
        grid.aligned(volume[:6], volume)
