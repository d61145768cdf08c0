"""Pictures of key slices: in the right proportions, the right way up, with outlines in colour."""

import highdicom as hd
import numpy as np
import pytest
from PIL import Image

from sr_templates import drawing, key_slices
from sr_templates.document import Document
from sr_templates.drawing import Scene
from sr_templates.key_slices import KeySlice
from sr_templates.segmentation import outline
from tests.drafts import ALGORITHM, CREATED_AT, JOB, PROTOCOLS, findings, series, stack

CHEST, BRAIN = PROTOCOLS["ct_chest"], PROTOCOLS["mr_brain"]
PIXELS = 480


def drawn(**options: object) -> tuple[Scene, tuple[KeySlice, ...], hd.Volume]:
    sources, volume = stack(series(**options))
    document = Document.about(CHEST, sources, ALGORITHM, JOB, CREATED_AT)
    outlines = outline(findings(CHEST, volume), document)
    assert outlines is not None
    return drawing.scene(volume, CHEST), key_slices.find(outlines, document), volume


def near(picture: Image.Image, colour: tuple[int, int, int]) -> np.ndarray:
    """Return where a picture has a colour, as a mask of rows and columns."""
    difference = np.asarray(picture, int) - colour
    found: np.ndarray = np.abs(difference).max(axis=2) < 40
    return found


def test_a_picture_has_the_proportions_of_millimetres() -> None:
    scene, shown, volume = drawn()
    picture = drawing.picture(scene, shown[0], PIXELS)
    _, rows, columns = volume.spatial_shape
    height, width = rows * volume.spacing[1], columns * volume.spacing[2]
    assert max(picture.size) == PIXELS
    assert picture.width / picture.height == pytest.approx(width / height, rel=0.01)


def test_each_outline_lies_around_its_mask_and_in_its_colour() -> None:
    scene, shown, _ = drawn()
    for each in shown:
        picture = drawing.picture(scene, each, PIXELS)
        for segment, mask in each.segments:
            rows, columns = np.nonzero(mask)
            found = np.argwhere(near(picture, segment.target.colour_rgb))
            assert len(found), segment.target.label
            scale = np.array(picture.size[::-1]) / mask.shape
            low = np.array([rows.min(), columns.min()]) * scale
            high = np.array([rows.max() + 1, columns.max() + 1]) * scale
            assert np.abs(found.min(axis=0) - low).max() < 4
            assert np.abs(found.max(axis=0) - high).max() < 4


def test_a_bright_corner_of_the_source_stays_in_that_corner_of_the_picture() -> None:
    sources, volume = stack(series())
    array = np.full(volume.spatial_shape, -1000, np.float32)
    array[:, :5, :6] = 1000
    shown = KeySlice(3, key_slices.bare([3], volume, _document(sources))[0].image, (), ())
    picture = drawing.picture(drawing.scene(volume.with_array(array), CHEST), shown, PIXELS)
    grey = np.asarray(picture.convert("L"), int)
    assert grey[20, 40] > 240
    assert grey[-20, 40] < 20
    assert grey[20, -40] < 20


def _document(sources: list) -> Document:  # type: ignore[type-arg]
    return Document.about(CHEST, sources, ALGORITHM, JOB, CREATED_AT)


def test_the_window_is_the_protocol_s() -> None:
    _, volume = stack(series())
    assert CHEST.window is not None
    level, width = CHEST.window
    assert drawing.limits(volume, CHEST) == (level - width / 2, level + width / 2)


def test_a_protocol_without_window_takes_percentiles_of_what_is_finite() -> None:
    _, volume = stack(series("mr_brain"))
    low, high = drawing.limits(volume, BRAIN)
    assert volume.array.min() <= low < high <= volume.array.max()
    broken = volume.array.copy()
    broken[0] = np.nan
    assert all(map(np.isfinite, drawing.limits(volume.with_array(broken), BRAIN)))
    flat = volume.with_array(np.zeros(volume.spatial_shape, np.float32))
    assert drawing.limits(flat, BRAIN)[1] > drawing.limits(flat, BRAIN)[0]


def test_a_plate_has_notice_and_legend_of_all_that_is_on_the_slice() -> None:
    scene, shown, _ = drawn()
    plate = drawing.plate(scene, shown[0], "AI DRAFT", PIXELS)
    assert plate.width == PIXELS
    banner = near(plate, drawing.ALARM)[:20].mean()
    assert banner > 0.8
    below = plate.crop((0, plate.height - 90, 14 * 3, plate.height))
    for segment, _ in shown[0].segments[::2]:
        assert near(below, segment.target.colour_rgb).any()


def test_a_picture_is_the_same_each_time() -> None:
    scene, shown, _ = drawn()
    first, again = (drawing.plate(scene, shown[0], "AI DRAFT", PIXELS) for _ in range(2))
    assert first.tobytes() == again.tobytes()


def test_a_long_notice_stays_inside_the_picture() -> None:
    scene, shown, _ = drawn()
    notice = "AI DRAFT - NOT FOR DIAGNOSTIC USE - UNVERIFIED - UNTRAINED MODEL"
    plate = drawing.plate(scene, shown[0], notice, 320)
    # The banner's edge is its own colour: no letter reaches it.
    assert near(plate, drawing.ALARM)[:20, -4:].all()
    assert near(plate, drawing.ALARM)[:20, :4].all()
