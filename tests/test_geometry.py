"""A mask is where it was seen: planted in patient coordinates, found there in the written SEG."""

import gzip
import itertools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import highdicom as hd
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydicom import Dataset
from test_volume import seg

from dicom_node import volume
from dicom_node.demo import sample
from dicom_node.errors import UnusableSeries
from dicom_node.volume.geometry import Plane, regular_grid
from model.preprocess import prepare

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
Through = Callable[[volume.SourceVolume, Mask], Mask]

SEGIMAGE2ITKIMAGE = Path(sys.executable).parent / "segimage2itkimage"
SHAPE = (40, 36, 44)
SPACING_MM = (2.0, 1.5, 1.2)
ORIGIN = (13.5, -61.25, -207.0)
NETWORK_GRID = (32, 256, 256)
AIR, OUTSIDE, MIDDLE, INSIDE = -1000.0, -700.0, -200.0, 300.0
SHIFT_MM = np.array([2.0, -3.5, 5.0])  # of the ellipsoid, out of the middle of the volume
RADII_MM = np.array([15.0, 12.0, 17.0])  # left, posterior, head: no two alike

SIGNS = list(itertools.product((1, -1), repeat=3))
TURNS = [
    np.eye(3)[list(order)].T * np.array(signs)
    for order in itertools.permutations(range(3))
    for signs in SIGNS
]


def named(directions: Array) -> str:
    """Name the directions of slices, rows and columns by the patient's letters, such as HPL."""
    ends = ("RL", "AP", "FH")
    return "".join(ends[np.abs(each).argmax()][int(each.sum() > 0)] for each in directions.T)


def rotation(seed: int) -> Array:
    """Return a random rotation, times one of the 48 turns, so that all handednesses come."""
    random = np.random.default_rng(seed)
    turned: Array = np.linalg.qr(random.normal(size=(3, 3)))[0] @ TURNS[seed % len(TURNS)]
    return turned


def affine(directions: Array) -> Array:
    """Return the matrix of the planted series, written down independently of the code."""
    made = np.eye(4)
    made[:3, :3] = directions * np.array(SPACING_MM)
    made[:3, 3] = ORIGIN
    return made


def coordinates(matrix: Array, shape: tuple[int, ...]) -> Array:
    """Return the patient coordinates of all voxels, (slices, rows, columns, 3)."""
    indices = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    places: Array = indices @ matrix[:3, :3].T + matrix[:3, 3]
    return places


def planted(places: Array, directions: Array) -> Mask:
    """Tell which patient coordinates lie in the ellipsoid."""
    middle = coordinates(affine(directions), SHAPE).mean(axis=(0, 1, 2)) + SHIFT_MM
    inside: Mask = (((places - middle) / RADII_MM) ** 2).sum(axis=-1) < 1
    return inside


def as_planted(places: Array, directions: Array) -> Mask:
    """Put patient coordinates on the grid of the planted series; they must be voxel centres."""
    indices = (places - ORIGIN) @ np.linalg.inv(affine(directions)[:3, :3]).T
    whole = np.rint(indices).astype(int)
    assert np.abs(indices - whole).max() < 0.01
    mask = np.zeros(SHAPE, bool)
    mask[tuple(whole.T)] = True
    return mask


def cut(directions: Array, *, enhanced: bool = False) -> list[Dataset]:
    """Make the series that shows the ellipsoid, with uneven air around it, in shuffled order."""
    inside = planted(coordinates(affine(directions), SHAPE), directions)
    voxels = np.where(inside, INSIDE, OUTSIDE)
    voxels[:3] = voxels[:, :1] = voxels[:, :, -2:] = AIR
    options = {
        "voxels": voxels,
        "spacing_mm": SPACING_MM,
        "directions": directions,
        "origin": ORIGIN,
    }
    if enhanced:
        return [sample.enhanced(**options)]
    made = sample.series(**options)
    np.random.default_rng(0).shuffle(made)
    return made


def exact(_: volume.SourceVolume, mask: Mask) -> Mask:
    return mask


def network(source: volume.SourceVolume, _: Mask) -> Mask:
    """Outline the ellipsoid on the network's grid, in what the network sees, and bring it back."""
    prepared = prepare(source.image.array, NETWORK_GRID, window=(0.0, 4000.0))
    threshold = (MIDDLE - AIR) / (INSIDE - AIR)
    return prepared.placement.restore(prepared.image[0, 0] - threshold) > 0


def written(source: volume.SourceVolume, mask: hd.Volume, path: Path) -> hd.seg.Segmentation:
    """Write a mask as BINARY SEG and read the file."""
    made = seg(source, mask)
    made.save_as(path)
    return hd.seg.segread(path)


def found(seg: hd.seg.Segmentation) -> Array:
    """Return the patient coordinates of the segment's voxels, as highdicom reads the file."""
    read = seg.get_volume(segment_numbers=[1], combine_segments=True)
    places: Array = coordinates(read.affine, read.spatial_shape)[read.array != 0]
    return places


def found_by_dcmqi(path: Path, folder: Path) -> Array:
    """Return the patient coordinates of the segment's voxels, as dcmqi reads the file."""
    command = [SEGIMAGE2ITKIMAGE, "--inputDICOM", path, "--outputDirectory", folder, "-t", "nrrd"]
    subprocess.run(command, check=True, capture_output=True)
    head, _, body = (folder / "1.nrrd").read_bytes().partition(b"\n\n")
    fields = dict(line.split(": ", 1) for line in head.decode().splitlines() if ": " in line)
    assert fields["space"] == "left-posterior-superior"
    assert fields["encoding"] == "gzip"
    kinds = {"short": "<i2", "unsigned char": "u1"}
    sizes = [int(each) for each in fields["sizes"].split()]
    voxels = np.frombuffer(gzip.decompress(body), kinds[fields["type"]]).reshape(sizes, order="F")
    matrix = np.eye(4)
    vectors = [*fields["space directions"].split(), fields["space origin"]]
    matrix[:3] = np.array([np.fromstring(each.strip("()"), sep=",") for each in vectors]).T
    places: Array = coordinates(matrix, voxels.shape)[voxels != 0]
    return places


def follow(directions: Array, through: Through, folder: Path, *, enhanced: bool = False) -> Mask:
    """Take the ellipsoid all the way; return what the SEG holds, on the grid it was planted on."""
    source = volume.load(cut(directions, enhanced=enhanced))
    seen = source.image.array > MIDDLE
    assert np.array_equal(seen, planted(coordinates(source.image.affine, seen.shape), directions))
    mask = source.on_source(through(source, seen))
    return as_planted(found(written(source, mask, folder / "seg.dcm")), directions)


def expected(directions: Array) -> Mask:
    return planted(coordinates(affine(directions), SHAPE), directions)


def centroid_mm(mask: Mask) -> Array:
    """Return the middle of a mask on the planted grid, in mm along its axes."""
    middle: Array = np.argwhere(mask).mean(axis=0) * SPACING_MM
    return middle


def assert_alike(mask: Mask, planted_mask: Mask) -> None:
    dice = 2 * (mask & planted_mask).sum() / (mask.sum() + planted_mask.sum())
    assert dice >= 0.95
    error = np.abs(centroid_mm(mask) - centroid_mm(planted_mask))
    assert (error < 0.5 * np.array(SPACING_MM)).all()


@pytest.mark.parametrize("directions", TURNS, ids=named)
def test_a_mask_is_written_where_it_was_planted(directions: Array, tmp_path: Path) -> None:
    assert np.array_equal(follow(directions, exact, tmp_path), expected(directions))


@pytest.mark.parametrize("directions", TURNS, ids=named)
def test_the_way_through_the_network_grid_and_back_keeps_the_place(
    directions: Array, tmp_path: Path
) -> None:
    assert_alike(follow(directions, network, tmp_path), expected(directions))


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(seed=st.integers(0, 10_000), through=st.sampled_from([exact, network]))
def test_obliques_of_any_handedness_keep_the_place(
    tmp_path: Path, seed: int, through: Through
) -> None:
    directions = rotation(seed)
    mask = follow(directions, through, tmp_path)
    assert_alike(mask, expected(directions))
    assert through is network or np.array_equal(mask, expected(directions))


@pytest.mark.parametrize("directions", [*TURNS[:4], *TURNS[17::10], rotation(1)], ids=named)
def test_a_multi_frame_source_keeps_the_place(directions: Array, tmp_path: Path) -> None:
    mask = follow(directions, exact, tmp_path, enhanced=True)
    assert np.array_equal(mask, expected(directions))


@pytest.mark.parametrize("directions", [*TURNS[3::9], rotation(2), rotation(5)], ids=named)
@pytest.mark.parametrize("form", ["classic", "multi-frame"])
def test_dcmqi_reads_the_mask_at_the_same_place(
    directions: Array, form: str, tmp_path: Path
) -> None:
    follow(directions, exact, tmp_path, enhanced=form == "multi-frame")
    places = found_by_dcmqi(tmp_path / "seg.dcm", tmp_path)
    assert np.array_equal(as_planted(places, directions), expected(directions))


@pytest.mark.parametrize("directions", [TURNS[0], TURNS[21], rotation(3)], ids=named)
def test_every_frame_of_the_mask_refers_to_the_slice_it_lies_on(
    directions: Array, tmp_path: Path
) -> None:
    instances = {each.SOPInstanceUID: each for each in cut(directions)}
    source = volume.load(list(instances.values()))
    mask = source.on_source(source.image.array > MIDDLE)
    seg = written(source, mask, tmp_path / "seg.dcm")
    for frame in seg.PerFrameFunctionalGroupsSequence:
        referred = frame.DerivationImageSequence[0].SourceImageSequence[0]
        there = instances[referred.ReferencedSOPInstanceUID].ImagePositionPatient
        here = frame.PlanePositionSequence[0].ImagePositionPatient
        assert np.allclose(np.array(here, float), np.array(there, float), atol=1e-6)


def test_all_48_turns_are_tried() -> None:
    assert len({named(each) for each in TURNS}) == 48
    assert sum(np.linalg.det(each) > 0 for each in TURNS) == 24


@pytest.mark.parametrize("degrees", [0.0, 15.0, 30.0])
def test_the_image_is_turned_to_the_nearest_axes(degrees: float) -> None:
    angle = np.radians(degrees)
    turn = np.array(
        [[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]]
    )
    for directions in TURNS:
        image = volume.load(sample.series(shape=(4, 6, 5), directions=turn @ directions)).image
        towards_head, towards_back, towards_left = image.direction.T
        least = np.cos(angle) - 1e-6
        assert towards_head[2] >= least
        assert towards_back[1] >= least
        assert towards_left[0] >= least


# The rules of the grid, plane by plane.

ROWS, COLUMNS = 10, 12


def plane(height: float, **changes: object) -> Plane:
    given = {
        "position": (1.0, 2.0, height),
        "cosines": (1.0, 0.0, 0.0, 0.0, 1.0, 0.0),
        "spacing_mm": (0.8, 0.8),
        "shape": (ROWS, COLUMNS),
        "frame_of_reference_uid": "1.2",
    }
    return Plane(**(given | changes))


def stack(heights: list[float], **changes: object) -> list[Plane]:
    return [plane(each, **changes) for each in heights]


def reason(planes: list[Plane]) -> str:
    with pytest.raises(UnusableSeries) as caught:
        regular_grid(planes)
    return caught.value.reason


def test_slices_are_ordered_by_place() -> None:
    grid = regular_grid(stack([5.0, 0.0, 7.5, 2.5]))
    assert grid.order == (1, 3, 0, 2)
    assert np.allclose(grid.affine[:3], [[0, 0, 0.8, 1], [0, 0.8, 0, 2], [2.5, 0, 0, 0]])


def test_positions_rounded_to_a_hundredth_are_regular() -> None:
    grid = regular_grid(stack([round(0.625 * index, 2) for index in range(400)]))
    assert grid.affine[2, 0] == pytest.approx(0.625, abs=1e-4)


@pytest.mark.parametrize("at", [1, 2, 5])
def test_a_missing_slice_is_named(at: int) -> None:
    heights = [2.0 * index for index in range(8)]
    del heights[at]
    assert reason(stack(heights)) == "missing-slice"


def test_one_missing_of_four_slices_is_named() -> None:
    assert reason(stack([0.0, 2.0, 6.0])) == "missing-slice"


@pytest.mark.parametrize(
    "heights",
    [[0.0, 2.0, 4.0, 6.5, 8.5], [0, 1, 2, 4.5, 5.5], [0.07 * i * i / 20 + i for i in range(40)]],
)
def test_uneven_gaps_are_named(heights: list[float]) -> None:
    assert reason(stack(heights)) == "irregular-spacing"


def test_small_gaps_that_add_up_are_refused() -> None:
    # Each gap is within a tenth of the next, but the slices in the middle lie far off.
    heights = np.cumsum([*[1.0] * 30, *[1.05] * 30]).tolist()
    assert reason(stack(heights)) == "irregular-spacing"


@pytest.mark.parametrize("degrees", [0.5, -3.0, 20.0])
def test_a_tilted_gantry_is_named(degrees: float) -> None:
    lean = np.tan(np.radians(degrees))
    planes = [plane(z, position=(1.0, 2.0 + lean * z, z)) for z in np.arange(0.0, 60.0, 2.5)]
    assert reason(planes) == "gantry-tilt"


def test_slices_beside_each_other_are_two_grids() -> None:
    planes = [plane(z, position=(1.0 + 9 * (z > 10), 2.0, z)) for z in np.arange(0.0, 20.0, 2.0)]
    assert reason(planes) == "two-grids"


@pytest.mark.parametrize(
    "change",
    [
        {"shape": (ROWS, COLUMNS + 1)},
        {"spacing_mm": (0.8, 0.82)},
        {"cosines": (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)},
        {"cosines": (1.0, 0.0, 0.0, 0.0, 0.999, 0.045)},
        {"frame_of_reference_uid": "1.3"},
    ],
)
def test_a_plane_of_another_grid_is_refused(change: dict[str, object]) -> None:
    assert reason([*stack([0.0, 1.0, 2.0]), plane(3.0, **change)]) == "two-grids"


def test_repeated_places_are_told_from_whole_repeated_stacks() -> None:
    assert reason(stack([0.0, 1.0, 1.0, 2.0])) == "duplicate-position"
    assert reason(stack([0.0, 0.0, 1.0, 1.0, 2.0, 2.0])) == "several-stacks"


@pytest.mark.parametrize(
    ("change", "expected_reason"),
    [
        ({"frame_of_reference_uid": ""}, "no-frame-of-reference"),
        ({"cosines": (1.0, 0.0, 0.0, 0.5, 0.8, 0.0)}, "no-geometry"),
        ({"cosines": (0.0,) * 6}, "no-geometry"),
        ({"cosines": (2.0, 0.0, 0.0, 0.0, 2.0, 0.0)}, "no-geometry"),
    ],
)
def test_planes_that_lie_nowhere_are_refused(
    change: dict[str, object], expected_reason: str
) -> None:
    assert reason(stack([0.0, 1.0, 2.0], **change)) == expected_reason


def test_two_slices_are_too_few() -> None:
    assert reason(stack([0.0, 1.0])) == "too-few-slices"
