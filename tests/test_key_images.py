"""Key images: Secondary Capture that says where it comes from and names no patient."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom import Dataset, dcmread

from sr_templates import PROFILES
from tests.drafts import (
    ALGORITHM,
    KEY_IMAGES,
    PROTOCOLS,
    encoded,
    encoded_enhanced,
    series,
    untrained,
)
from tests.test_encoding import complaints


def pictures(made: dict[str, Dataset]) -> list[Dataset]:
    return [each for label, each in made.items() if label.startswith("key-images")]


@pytest.mark.parametrize("name", sorted(PROTOCOLS))
def test_key_images_are_clean_for_dciodvfy(name: str, tmp_path: Path) -> None:
    found = pictures(encoded(name, profiles=KEY_IMAGES))
    assert found
    for number, each in enumerate(found, 1):
        assert complaints(each, tmp_path / f"{number}.dcm") == []
        read = dcmread(tmp_path / f"{number}.dcm")
        assert read.pixel_array.shape == (read.Rows, read.Columns, 3)
        assert read.InstanceNumber == number
    assert len({each.SeriesInstanceUID for each in found}) == 1
    assert len({each.SOPInstanceUID for each in found}) == len(found)


def test_a_key_image_names_its_source_and_no_patient_in_its_pixels() -> None:
    sources = {each.SOPInstanceUID for each in series()}
    for each in pictures(encoded(profiles=KEY_IMAGES)):
        (source,) = each.SourceImageSequence
        assert source.ReferencedSOPInstanceUID in sources
        assert source.PurposeOfReferenceCodeSequence[0].CodeValue == "121322"
        assert each.BurnedInAnnotation == "NO"
        assert each.ConversionType == "WSD"
        assert list(each.PatientOrientation) == ["L", "P"]
        assert each.ImageType[:2] == ["DERIVED", "SECONDARY"]
        assert each.ImageComments.startswith("AI DRAFT - NOT FOR DIAGNOSTIC USE")


def test_a_key_image_of_a_multi_frame_source_names_the_frame(tmp_path: Path) -> None:
    found = pictures(encoded_enhanced(profiles=KEY_IMAGES))
    assert found
    for each in found:
        assert complaints(each, tmp_path / "key-image.dcm") == []
        assert 1 <= each.SourceImageSequence[0].ReferencedFrameNumber <= 12


def test_a_source_that_lost_detail_is_told_to_have_lost_it() -> None:
    instances = series()
    for each in instances:
        each.LossyImageCompression = "01"
        each.LossyImageCompressionRatio = "10"
        each.LossyImageCompressionMethod = "ISO_10918_1"
    for each in pictures(encoded(instances=instances, profiles=KEY_IMAGES)):
        assert each.LossyImageCompression == "01"
        assert each.LossyImageCompressionMethod == "ISO_10918_1"


def test_of_a_series_without_body_part_it_is_not_known_whether_it_is_paired() -> None:
    instances = series()
    for each in instances:
        del each.BodyPartExamined
    made = encoded(instances=instances, profiles=KEY_IMAGES)
    assert made["key-images.1"].Laterality == ""


def test_the_untrained_model_is_named_so_in_the_banner() -> None:
    (trained, other) = (
        pictures(encoded(algorithm=algorithm, profiles=KEY_IMAGES))[0]
        for algorithm in (ALGORITHM, untrained())
    )
    banners = [Image.fromarray(each.pixel_array[:40]) for each in (trained, other)]
    dark = [np.count_nonzero(np.asarray(each.convert("L")) < 100) for each in banners]
    assert dark[1] > dark[0] * 1.2


def test_without_an_outline_there_is_no_key_image() -> None:
    targets = [each.id for each in PROTOCOLS["ct_chest"].targets]
    made = encoded(without=targets, profiles=(PROFILES["legacy-pacs"],))
    assert [each for each in made if not each.startswith("draft")] == ["pdf"]
