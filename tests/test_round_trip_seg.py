"""Masks -> our SEG -> what others read: the same voxels at the same places in the patient.

The series is planted in patient coordinates; dcmqi and highdicom read the files, each by its own
code. `test_geometry` asks the same of the way from the series to the mask.
"""

import gzip
import subprocess
from functools import partial
from pathlib import Path

import highdicom as hd
import numpy as np
import pytest
from pydicom import Dataset, dcmread
from test_geometry import (
    ORIGIN,
    SEGIMAGE2ITKIMAGE,
    SHAPE,
    SPACING_MM,
    TURNS,
    Array,
    Mask,
    affine,
    as_planted,
    coordinates,
    cut,
    named,
    planted,
    rotation,
)

from dicom_node import volume
from sr_templates import Finding, Profile
from sr_templates.document import Document
from sr_templates.segmentation import Outlines, encode_segmentation, outline
from tests.drafts import ALGORITHM, CREATED_AT, JOB, PROTOCOLS

CHEST = PROTOCOLS["ct_chest"]
ENCODINGS = ("BINARY", "LABELMAP", "FRACTIONAL")
PROBABILITY = 0.6
# Not in the middle: a mirrored mask is another one.
BORDER_MM = SPACING_MM[2] * (SHAPE[2] // 2 - 3.5)


def halves(places: Array, directions: Array) -> list[Mask]:
    """Tell which patient coordinates lie in the one and in the other part of the ellipsoid."""
    inside = planted(places, directions)
    first = (places - ORIGIN) @ directions[:, 2] < BORDER_MM
    return [inside & first, inside & ~first]


def outlined(directions: Array, instances: list[Dataset]) -> tuple[Outlines, Document]:
    """Outline both halves on what the model sees."""
    source = volume.load(instances)
    document = Document.about(CHEST, source.sources, ALGORITHM, JOB, CREATED_AT)
    seen = coordinates(source.image.affine, source.image.spatial_shape)
    answers = []
    for question, half in zip(CHEST.targets, halves(seen, directions), strict=False):
        mask = source.on_source(half)
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


def assert_there(path: Path, directions: Array) -> None:
    """Hold what both readers find against what was planted."""
    there = halves(coordinates(affine(directions), SHAPE), directions)
    for found in (by_highdicom(path), by_dcmqi(path)):
        assert len(found) == len(there)
        for places, half in zip(found, there, strict=True):
            assert np.array_equal(as_planted(places, directions), half)


def assert_every_encoding_is_there(
    directions: Array, instances: list[Dataset], folder: Path
) -> None:
    outlines, document = outlined(directions, instances)
    for encoding in ENCODINGS:
        (path,) = write(outlines, document, Profile("here", encoding), folder)
        assert_there(path, directions)


@pytest.mark.parametrize("directions", TURNS, ids=named)
def test_in_every_turn_both_readers_find_every_voxel_in_its_place(
    directions: Array, tmp_path: Path
) -> None:
    # Instances in random order, pixels that are not square.
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
    outlines, document = outlined(directions, cut(directions))
    (path,) = write(
        outlines, document, Profile("here", encoding, omit_empty_frames=False), tmp_path
    )
    assert dcmread(path).NumberOfFrames == SHAPE[0] * (1 if encoding == "LABELMAP" else 2)
    assert_there(path, directions)


def test_the_order_of_the_instances_changes_no_byte(tmp_path: Path) -> None:
    instances = sorted(cut(TURNS[7]), key=lambda each: int(each.InstanceNumber))
    files = []
    for name, given in (("there", instances), ("back", instances[::-1])):
        (tmp_path / name).mkdir()
        (path,) = write(*outlined(TURNS[7], given), Profile("here"), tmp_path / name)
        files.append(path.read_bytes())
    assert files[0] == files[1]


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_what_is_spread_over_objects_is_whole_together(encoding: str, tmp_path: Path) -> None:
    directions = TURNS[29]
    outlines, document = outlined(directions, cut(directions))
    paths = write(outlines, document, Profile("here", encoding, maximum_frames=5), tmp_path)
    assert len(paths) > 4
    assert max(dcmread(path).NumberOfFrames for path in paths) == 5
    there = halves(coordinates(affine(directions), SHAPE), directions)
    for read in (by_highdicom, by_dcmqi):
        places = np.concatenate([found for path in paths for found in read(path)])
        assert len(places) == sum(half.sum() for half in there)
        assert np.array_equal(as_planted(places, directions), there[0] | there[1])
