"""A series whose UIDs nothing can refer to is refused before anything is made of its pixels."""

from pathlib import Path

import pytest
from pydicom import dcmread, dcmwrite

from dicom_node import volume
from dicom_node.demo import sample
from dicom_node.errors import UnusableSeries

# pydicom warns of them too, when the test writes them and when they are read.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

SHAPE = (4, 6, 5)


def refusal(given: object) -> UnusableSeries:
    with pytest.raises(UnusableSeries) as caught:
        volume.load(given)
    return caught.value


@pytest.mark.parametrize(
    "keyword", ["StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "FrameOfReferenceUID"]
)
@pytest.mark.parametrize(
    "value", ["1.02.3", "TABLE", "1..2", "1.2.", "1." + "2" * 63], ids=lambda each: each[:6]
)
def test_an_illegal_uid_is_refused_and_named(keyword: str, value: str, tmp_path: Path) -> None:
    ct = sample.series(shape=SHAPE)
    for each in ct[2:3] if keyword == "SOPInstanceUID" else ct:
        setattr(each, keyword, value)
    for index, each in enumerate(ct):
        dcmwrite(tmp_path / f"{index}.dcm", each, enforce_file_format=True)
    for given in (ct, sorted(tmp_path.iterdir())):
        error = refusal(given)
        assert error.reason == "illegal-uid"
        assert keyword in str(error)
        assert repr(value) in str(error)


@pytest.mark.parametrize("keyword", ["StudyInstanceUID", "SeriesInstanceUID"])
def test_a_series_without_a_name_is_refused(keyword: str) -> None:
    ct = sample.series(shape=SHAPE)
    for each in ct:
        delattr(each, keyword)
    assert refusal(ct).reason == "illegal-uid"


def test_of_a_multi_frame_image_too() -> None:
    image = sample.enhanced(shape=SHAPE)
    image.FrameOfReferenceUID = "1.2.03"
    assert refusal([image]).reason == "illegal-uid"
    del image.FrameOfReferenceUID
    assert refusal([image]).reason == "no-frame-of-reference"


def test_zero_is_a_number_without_a_leading_zero(tmp_path: Path) -> None:
    ct = sample.series(shape=SHAPE)
    for each in ct:
        each.StudyInstanceUID = "2.0.10.0"
    paths = sample.write(ct, tmp_path)
    assert volume.load(paths).sources[0].StudyInstanceUID == dcmread(paths[0]).StudyInstanceUID
