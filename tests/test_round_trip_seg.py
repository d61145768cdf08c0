"""Masks -> our SEG -> what others read: the same voxels at the same places in the patient.

What is planted has no symmetry: every voxel is drawn by lot. dcmqi and highdicom read the files,
each by its own code. `test_geometry` asks the same of the way through the network's grid.
"""

import gzip
import subprocess
from functools import partial
from pathlib import Path

import highdicom as hd
import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import Dataset, dcmread
from test_geometry import SEGIMAGE2ITKIMAGE, TURNS, Array, Mask, named, rotation

from dicom_node import volume
from dicom_node.demo import sample
from sr_templates import Finding, Profile
from sr_templates.document import Document
from sr_templates.segmentation import Outlines, encode_segmentation, outline
from tests.drafts import ALGORITHM, CREATED_AT, JOB, PROTOCOLS

CHEST = PROTOCOLS["ct_chest"]
ENCODINGS = ("BINARY", "LABELMAP", "FRACTIONAL")
PROBABILITY = 0.6
SPACING_MM = (2.0, 1.5, 1.2)  # pixels are not square
ORIGIN = (13.5, -61.25, -207.0)
HOUNSFIELD = 100  # of the first segment; of the second twice as much


def planted() -> NDArray[np.int64]:
    """Draw (slices, rows, columns): 0, 1 or 2, on slices that neither all nor both share."""
    numbers = np.random.default_rng(4).integers(0, 3, (9, 7, 11))  # no whole bytes to a slice
    numbers[[0, 1, 5, 8]] = 0
    numbers[3][numbers[3] == 1] = 0
    numbers[7][numbers[7] == 2] = 0
    return numbers


NUMBERS = planted()


def cut(directions: Array, *, enhanced: bool = False) -> list[Dataset]:
    """Make the series that shows what is planted, its instances in no order."""
    options = {
        "voxels": NUMBERS * HOUNSFIELD,
        "spacing_mm": SPACING_MM,
        "directions": directions,
        "origin": ORIGIN,
    }
    if enhanced:
        return [sample.enhanced(**options)]
    made = sample.series(**options)
    np.random.default_rng(0).shuffle(made)
    return made


def outlined(instances: list[Dataset]) -> tuple[Outlines, Document]:
    """Outline what is planted on what the model sees."""
    source = volume.load(instances)
    document = Document.about(CHEST, source.sources, ALGORITHM, JOB, CREATED_AT)
    answers = []
    for number, question in enumerate(CHEST.targets[:2], 1):
        mask = source.on_source(source.image.array == number * HOUNSFIELD)
        sure = mask.with_array(mask.array * np.float32(PROBABILITY))
        answers.append(Finding(question, "", mask, probability=partial(lambda it: it, sure)))
    outlines = outline(answers, document)
    assert outlines is not None
    return outlines, document


def write(outlines: Outlines, document: Document, profile: Profile, folder: Path) -> list[Path]:
    paths = []
    for label, each in encode_segmentation(outlines, document, profile).objects.items():
        paths.append(folder / f"{label}.{profile.segmentation}.dcm")
        each.save_as(paths[-1], enforce_file_format=True)
    return paths


def by_highdicom(path: Path) -> list[Array]:
    """Return the patient coordinates of each segment's voxels."""
    seg = hd.seg.segread(path)
    found = []
    for number in seg.segment_numbers:
        if number:  # 0 is the background of a map
            read = seg.get_volume(segment_numbers=[number], rescale_fractional=False)
            found.append(marked(read.affine, read.array[..., 0] != 0))
    return found


def by_dcmqi(path: Path) -> list[Array]:
    """Return the same from the images that dcmqi makes: one for each segment, or one of numbers."""
    folder = path.with_suffix("")
    folder.mkdir()
    command = [SEGIMAGE2ITKIMAGE, "--inputDICOM", path, "--outputDirectory", folder, "-t", "nrrd"]
    subprocess.run(command, check=True, capture_output=True)
    images = [nrrd(each) for each in sorted(folder.glob("*.nrrd"))]
    if "LABELMAP" not in path.name:
        return [marked(matrix, voxels != 0) for matrix, voxels in images]
    ((matrix, voxels),) = images
    return [marked(matrix, voxels == number) for number in range(1, voxels.max() + 1)]


def nrrd(path: Path) -> tuple[Array, Array]:
    """Return the matrix to patient coordinates and the voxels, by (x, y, z)."""
    head, _, body = path.read_bytes().partition(b"\n\n")
    fields = dict(line.split(": ", 1) for line in head.decode().splitlines() if ": " in line)
    assert fields["space"] == "left-posterior-superior"
    kind = {"short": "<i2", "unsigned char": "u1"}[fields["type"]]
    sizes = [int(each) for each in fields["sizes"].split()]
    vectors = [*fields["space directions"].split(), fields["space origin"]]
    matrix = np.eye(4)
    matrix[:3] = np.array([each.strip("()").split(",") for each in vectors], float).T
    return matrix, np.frombuffer(gzip.decompress(body), kind).reshape(sizes, order="F")


def marked(matrix: Array, mask: Mask) -> Array:
    places: Array = np.argwhere(mask) @ matrix[:3, :3].T + matrix[:3, 3]
    return places


def assert_there(paths: list[Path], directions: Array) -> None:
    """Hold what both readers find in all the objects against what was planted."""
    for read in (by_highdicom, by_dcmqi):
        seen = np.zeros_like(NUMBERS)
        for path in paths:
            for number, places in zip(numbers(path), read(path), strict=True):
                indices = (places - ORIGIN) @ np.linalg.inv(directions * SPACING_MM).T
                whole = np.rint(indices).astype(int)
                assert np.abs(indices - whole).max() < 0.01
                assert not seen[tuple(whole.T)].any()
                seen[tuple(whole.T)] = number
        assert np.array_equal(seen, NUMBERS)


def numbers(path: Path) -> list[int]:
    """Tell which of the planted segments an object holds, by their labels."""
    labels = [each.target.label for each in CHEST.targets]
    segments = dcmread(path, stop_before_pixels=True).SegmentSequence
    return [labels.index(each.SegmentLabel) + 1 for each in segments if each.SegmentNumber]


def assert_every_encoding_is_there(
    directions: Array, instances: list[Dataset], folder: Path
) -> None:
    outlines, document = outlined(instances)
    for encoding in ENCODINGS:
        paths = write(outlines, document, Profile("here", encoding), folder)
        assert len(paths) == 1
        assert_there(paths, directions)


@pytest.mark.parametrize("directions", TURNS, ids=named)
def test_in_every_turn_both_readers_find_every_voxel_in_its_place(
    directions: Array, tmp_path: Path
) -> None:
    assert_every_encoding_is_there(directions, cut(directions), tmp_path)


@pytest.mark.parametrize("seed", [1, 2, 5])
def test_of_an_oblique_series_too(seed: int, tmp_path: Path) -> None:
    directions = rotation(seed)
    assert_every_encoding_is_there(directions, cut(directions), tmp_path)


@pytest.mark.parametrize("directions", [*TURNS[::11], rotation(3)], ids=named)
def test_of_a_multi_frame_source_too(directions: Array, tmp_path: Path) -> None:
    assert_every_encoding_is_there(directions, cut(directions, enhanced=True), tmp_path)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_with_its_empty_frames_too(encoding: str, tmp_path: Path) -> None:
    directions = TURNS[13]
    profile = Profile("here", encoding, omit_empty_frames=False)
    paths = write(*outlined(cut(directions)), profile, tmp_path)
    assert dcmread(paths[0]).NumberOfFrames == len(NUMBERS) * (1 if encoding == "LABELMAP" else 2)
    assert_there(paths, directions)


def test_the_order_of_the_instances_changes_no_byte(tmp_path: Path) -> None:
    instances = sorted(cut(TURNS[7]), key=lambda each: int(each.InstanceNumber))
    files = []
    for name, given in (("there", instances), ("back", instances[::-1])):
        (tmp_path / name).mkdir()
        (path,) = write(*outlined(given), Profile("here"), tmp_path / name)
        files.append(path.read_bytes())
    assert files[0] == files[1]


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_what_is_spread_over_objects_is_whole_together(encoding: str, tmp_path: Path) -> None:
    directions = TURNS[29]
    profile = Profile("here", encoding, maximum_frames=2)
    paths = write(*outlined(cut(directions)), profile, tmp_path)
    assert [dcmread(path).NumberOfFrames for path in paths] == [2, 2, 2, 2]
    assert_there(paths, directions)
