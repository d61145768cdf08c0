"""Headers that are like the first of their series are made of it: as if pydicom had read each."""

import ast
import copy
import pickle
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any
from unittest import mock

import numpy as np
import pytest
from conftest import missing
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydicom import Dataset, dcmread
from pydicom.datadict import tag_for_keyword
from pydicom.uid import (
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)

from dicom_node.demo import sample
from dicom_node.errors import Unavailable, UnusableSeries
from dicom_node.volume import SourceVolume, headers, load, opening, pixels, volume
from dicom_node.volume.pattern import Likeness, Pattern

SHAPE, SPACING_MM = (4, 8, 8), (5.0, 10.0, 10.0)
Change = tuple[int, str, Any]


def series() -> list[Dataset]:
    made = sample.series(shape=SHAPE, spacing_mm=SPACING_MM)
    for number, each in enumerate(made):
        each.ContentTime = f"09150{number}"
        each.SliceLocation = f"{number * 5}.0"
        each.OperatorsName = "Roe^Jane"
        each.ProcedureCodeSequence = [item()]
        # Some scanners write it so; pydicom knows it, and decodes it at once.
        each.private_block(0x0043, "GEMS_PARM_01", create=True).add_new(0x64, "UN", b"")
        each.private_block(0x0045, "NOBODY KNOWS", create=True).add_new(0x64, "UN", b"")
    return made


def item() -> Dataset:
    made = Dataset()
    made.CodeValue, made.CodingSchemeDesignator = "1", "99T"
    return made


def write(
    made: Sequence[Dataset], folder: Path, syntax: str = ExplicitVRLittleEndian
) -> list[Path]:
    paths = []
    for number, each in enumerate(made):
        path = folder / f"{number}.dcm"
        each.file_meta.TransferSyntaxUID = syntax
        implicit, little = syntax == ImplicitVRLittleEndian, syntax != ExplicitVRBigEndian
        encoded = {"implicit_vr": implicit, "little_endian": little}
        each.save_as(path, enforce_file_format=True, **encoded)
        paths.append(path)
    return paths


def outcome(paths: Sequence[Path]) -> tuple[SourceVolume, list[Dataset]] | str:
    try:
        found = load(paths)
        made = found.sources
    except UnusableSeries as error:
        return str(error)
    return found, made


def plainly(paths: Sequence[Path]) -> tuple[SourceVolume, list[Dataset]] | str:
    """Load with every header read by pydicom."""
    with mock.patch.object(opening, "_pattern", return_value=None):
        return outcome(paths)


def assert_same(paths: Sequence[Path]) -> None:
    ours, theirs = outcome(paths), plainly(paths)
    if isinstance(ours, str) or isinstance(theirs, str):
        assert ours == theirs
        return
    assert np.array_equal(ours[0].image.array, theirs[0].image.array)
    assert np.array_equal(ours[0].image.affine, theirs[0].image.affine)
    assert np.array_equal(ours[0].grid.affine, theirs[0].grid.affine)
    for one, other in zip(ours[1], theirs[1], strict=True):
        assert one == other
        assert one.file_meta == other.file_meta
        assert list(one.keys()) == list(other.keys())
        assert one.original_encoding == other.original_encoding
        assert one.original_character_set == other.original_character_set
        assert one.filename == other.filename


TEXT = st.text(st.characters(codec="ascii", exclude_characters="\\\x1b"), max_size=12)
CHANGES = st.one_of(
    st.tuples(st.integers(0, 3), st.just("InstanceNumber"), st.integers(0, 10**8).map(str)),
    st.tuples(st.integers(0, 3), st.sampled_from(["ContentTime", "SliceLocation"]), st.just("")),
    st.tuples(
        st.integers(0, 3),
        st.sampled_from(["PatientID", "StudyDescription", "OperatorsName", "ImageComments"]),
        TEXT.map(str.strip),
    ),
    st.tuples(
        st.integers(0, 3),
        st.sampled_from(["RescaleSlope", "RescaleIntercept", "SliceThickness"]),
        st.sampled_from(["1", "2.5", "-1024", "0", ""]),
    ),
    st.tuples(
        st.integers(0, 3),
        st.sampled_from(["Rows", "Columns", "BitsStored", "HighBit", "PixelPaddingValue"]),
        st.sampled_from([0, 7, 8, 11, 12, 15, 16]),
    ),
    st.tuples(
        st.integers(0, 3),
        st.just("ImageType"),
        st.sampled_from([["ORIGINAL", "PRIMARY", "LOCALIZER"], ["DERIVED", "SECONDARY"]]),
    ),
    st.tuples(
        st.integers(0, 3),
        st.just("ImagePositionPatient"),
        st.sampled_from([[0, 0, 0], ["1", "2", "3"], [-40.00001, -40, 5], []]),
    ),
    st.tuples(
        st.integers(0, 3),
        st.just("PixelSpacing"),
        st.sampled_from([["10", "10"], ["10.00", "10.0"], ["9", "9"], []]),
    ),
    st.tuples(
        st.integers(0, 3),
        st.just("ImageOrientationPatient"),
        st.sampled_from([[1, 0, 0, 0, 1, 0], ["1.0", 0, 0, 0, 1, 0], [-1, 0, 0, 0, 1, 0]]),
    ),
    st.tuples(
        st.integers(0, 3),
        st.sampled_from(["SOPInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"]),
        st.sampled_from(["1.2.3", "1.2.3.4.5.6.7.8", ""]),
    ),
    st.tuples(
        st.integers(0, 3), st.just("SpecificCharacterSet"), st.sampled_from(["ISO_IR 192", ""])
    ),
    st.tuples(st.integers(0, 3), st.just("private"), st.binary(max_size=8)),
    st.tuples(st.integers(0, 3), st.just("sequence"), st.integers(0, 2)),
    st.tuples(
        st.integers(0, 3),
        st.just("delete"),
        st.sampled_from(["PatientID", "OperatorsName", "SliceLocation", "ImagePositionPatient"]),
    ),
)


def change(made: Sequence[Dataset], number: int, what: str, value: Any) -> None:
    instance = made[number]
    if what == "private":
        block = instance.private_block(0x0019, "TEST", create=True)
        block.add_new(0x01, "OB", value + b"\0" * (len(value) % 2))
    elif what == "sequence":
        instance.ProcedureCodeSequence = [item() for _ in range(value)]
    elif what == "delete":
        if value in instance:
            delattr(instance, value)
    else:
        setattr(instance, what, value)


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    changes=st.lists(CHANGES, max_size=4),
    syntax=st.sampled_from([ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian]),
)
@example(changes=[(0, "SpecificCharacterSet", "ISO_IR 192")], syntax=ExplicitVRLittleEndian)
@example(changes=[(2, "sequence", 0), (1, "private", b"a")], syntax=ImplicitVRLittleEndian)
def test_every_series_is_what_it_is_when_pydicom_reads_each_header(
    changes: list[Change], syntax: str
) -> None:
    with TemporaryDirectory() as folder:
        made = series()
        for each in changes:
            change(made, *each)
        assert_same(write(made, Path(folder), syntax))


def test_most_of_a_series_is_like_its_first(tmp_path: Path) -> None:
    made = series()
    made[2].OperatorsName = "Doe^John"
    made[3].PatientID = "ANOTHER"
    paths = write(made, tmp_path)
    opened = opening.open_instances(paths, {"PatientID"})
    assert [isinstance(each.read, Likeness) for each in opened] == [False, True, True, False]
    assert opened[2].header.OperatorsName == "Doe^John"


@pytest.mark.parametrize("syntax", [RLELossless, ExplicitVRBigEndian])
def test_what_is_compressed_or_of_the_other_byte_order_is_read_by_pydicom(
    tmp_path: Path, syntax: str
) -> None:
    made = series()
    if syntax == RLELossless:
        for each in made:
            each.compress(RLELossless, generate_instance_uid=False)
    paths = write(made, tmp_path, syntax)
    opened = opening.open_instances(paths, ())
    assert not any(isinstance(each.read, Likeness) for each in opened)
    assert_same(paths)


def test_of_a_real_series_all_are_like_the_first() -> None:
    try:
        folder = sample.chest_ct(Path(".cache"))
    except Unavailable as error:
        missing(f"the real chest CT: {error}")
    paths = sorted(folder.iterdir())
    opened = opening.open_instances(paths, volume.ALIKE)
    assert [isinstance(each.read, Likeness) for each in opened] == [False] + [True] * 60
    assert_same(paths)


def test_a_file_that_ends_early_is_refused_as_ever(tmp_path: Path) -> None:
    paths = write(series(), tmp_path)
    whole = paths[1].read_bytes()
    for length in (10, 140, 500, len(whole) - 130, len(whole) - 3):
        paths[1].write_bytes(whole[:length])
        assert isinstance(outcome(paths), str)
        assert_same(paths)


def test_headers_share_nothing_that_can_be_changed(tmp_path: Path) -> None:
    paths = write(series(), tmp_path)
    sources = load(paths).sources
    before = [copy.deepcopy(each) for each in sources[1:]]
    sources[0].ProcedureCodeSequence[0].CodeValue = "changed"
    sources[0].ImageType.append("CHANGED")
    sources[0].ImagePositionPatient[0] = "77"
    sources[0].file_meta.ImplementationVersionName = "CHANGED"
    del sources[0].PatientName
    assert sources[1:] == before
    assert [each.file_meta for each in sources[1:]] == [each.file_meta for each in before]


def test_headers_are_there_when_the_files_are_gone(tmp_path: Path) -> None:
    paths = write(series(), tmp_path)
    expected = plainly(paths)
    found = load(paths)
    for each in paths:
        each.unlink()
    assert not isinstance(expected, str)
    assert found.sources == expected[1]
    assert pickle.loads(pickle.dumps(found.sources)) == expected[1]


def test_a_pattern_is_taken_only_of_what_pydicom_read_of_these_bytes(tmp_path: Path) -> None:
    (path, *_) = write(series(), tmp_path)
    header, data = dcmread(path, stop_before_pixels=True), path.read_bytes()
    start = opening.open_instance(path).start
    assert Pattern.of(header, data[:start], ()) is not None
    assert Pattern.of(header, data[: start - 2], ()) is None
    assert Pattern.of(header, bytes(start), ()) is None


@pytest.mark.parametrize("keyword", sorted(volume.ALIKE))
def test_what_is_asked_of_the_first_alone_may_not_differ(keyword: str, tmp_path: Path) -> None:
    made = series()
    for each in made:
        each.add_new("PixelPaddingValue", "US", 0)
        each.add_new("PixelPaddingRangeLimit", "US", 5)
        each.setdefault("NumberOfFrames", 1)
    if keyword in made[2]:
        del made[2][keyword]
    else:
        made[2].add_new(keyword, "SQ" if "Sequence" in keyword else "CS", [])
    paths = write(made, tmp_path)
    opened = opening.open_instances(paths, volume.ALIKE)
    assert [isinstance(each.read, Likeness) for each in opened] == [False, True, False, True]
    assert_same(paths)


def keywords(module: ModuleType) -> set[str]:
    """Find every attribute of DICOM that the source of a module names."""
    nodes = ast.walk(ast.parse(Path(str(module.__file__)).read_text()))
    names = {
        each.attr if isinstance(each, ast.Attribute) else getattr(each, "value", "")
        for each in nodes
    }
    return {each for each in names if each and isinstance(each, str) and tag_for_keyword(each)}


def test_all_that_is_read_of_a_header_is_asked_of_each_or_may_not_differ() -> None:
    own = {"SOPInstanceUID", "ImagePositionPatient"}
    # Of the file meta information, or the pixels; written, or in multi-frame images alone.
    other = {"TransferSyntaxUID", "PixelData", "PixelMeasuresSequence", "PlanePositionSequence"}
    other |= {"PlaneOrientationSequence", "PixelValueTransformationSequence"}
    read = keywords(volume) | keywords(headers) | keywords(pixels)
    assert read - own - other == volume.ALIKE
