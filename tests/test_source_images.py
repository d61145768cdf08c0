"""Slices of the grid and the images they lie on: by position, whatever the order."""

import highdicom as hd
import numpy as np
import pytest

from dicom_node import volume
from dicom_node.demo import sample
from sr_templates import TemplateError
from sr_templates.source_images import by_slice
from tests.drafts import SHAPE, SPACING_MM, series, stack


def test_each_slice_has_the_image_at_its_place_in_whatever_order_they_come() -> None:
    sources, grid = stack(series())
    shuffled = [sources[index] for index in np.random.default_rng(0).permutation(len(sources))]
    images = by_slice(shuffled, grid)
    assert [each.sop_instance_uid for each in images] == [each.SOPInstanceUID for each in sources]
    assert {(each.frame, each.frames) for each in images} == {(None, None)}
    assert images[3].header is sources[3]
    assert images[3].position == tuple(sources[3].ImagePositionPatient)


def test_a_slice_of_a_multi_frame_image_has_its_frame_number() -> None:
    source = volume.load([sample.enhanced(shape=SHAPE, spacing_mm=SPACING_MM)])
    images = by_slice(source.sources, source.grid)
    (uid,) = {each.sop_instance_uid for each in images}
    assert uid == source.sources[0].SOPInstanceUID
    groups = source.sources[0].PerFrameFunctionalGroupsSequence
    for image, start in zip(images, range(SHAPE[0]), strict=True):
        place = groups[image.frame - 1].PlanePositionSequence[0].ImagePositionPatient
        assert np.allclose(place, source.grid.affine[:3] @ [start, 0, 0, 1])
        assert image.frames == [image.frame]


def test_a_slice_beside_every_image_is_refused() -> None:
    sources, grid = stack(series())
    moved = grid.affine + 0.4 * np.eye(4, k=3)[[2, 1, 0, 3]]
    beside = hd.VolumeGeometry(moved, grid.spatial_shape, "PATIENT")
    with pytest.raises(TemplateError, match=r"expected a source image at .* 0\.40 mm away"):
        by_slice(sources, beside)


@pytest.mark.parametrize("axis", [1, 2])
def test_a_mirrored_grid_is_refused(axis: int) -> None:
    sources, grid = stack(series())
    mirrored = grid.affine.copy()
    mirrored[:3, axis] *= -1
    with pytest.raises(TemplateError, match="expected the rows and columns of the source"):
        by_slice(sources, hd.VolumeGeometry(mirrored, grid.spatial_shape, "PATIENT"))


def test_a_grid_of_other_pixels_is_refused() -> None:
    sources, grid = stack(series())
    scaled = grid.affine @ np.diag([1, 1, 1.02, 1])
    with pytest.raises(TemplateError, match="expected the rows and columns of the source"):
        by_slice(sources, hd.VolumeGeometry(scaled, grid.spatial_shape, "PATIENT"))
