"""The objects as others judge them: validators, readers, and a repeated job."""

import os
import subprocess
import sys
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from io import BytesIO
from pathlib import Path

import highdicom as hd
import numpy as np
import pytest
from pydicom import Dataset, dcmread

from dicom_node.demo import sample
from dicom_node.errors import Unavailable
from sr_templates import GENERIC, PROFILES, Finding, TemplateError, chosen, encode
from tests.drafts import (
    ALGORITHM,
    ALL_EXTRAS,
    CREATED_AT,
    JOB,
    PROTOCOLS,
    encoded,
    findings,
    series,
    stack,
)

DCIODVFY = Path(sys.executable).parent / "dciodvfy"
# What dciodvfy warns of, and why it stays.
EXPLAINED = (
    # IHE AIR 6.5.3.1 wants it in Contributing Equipment; the tables of dciodvfy lag behind.
    "Attribute is not present in standard DICOM IOD - (0x0018,0x1002) UI Device UID",
    "Dicom dataset contains attributes not present in standard DICOM IOD",
    # The source does not say which side it shows.
    "is only permitted to be empty when actually unknown",
    # Copied from the source as it is: not ours to change.
    "Missing attribute or value that would be needed to build DICOMDIR",
    "Value dubious for this VR - (0x0010,0x0010) PN Patient's Name",
)


def complaints(instance: Dataset, path: Path) -> list[str]:
    """Return what dciodvfy finds wrong, and what it warns of that is not explained."""
    instance.save_as(path, enforce_file_format=True)
    done = subprocess.run([DCIODVFY, path], capture_output=True, text=True, check=False)
    found = [
        line
        for line in done.stderr.splitlines()
        if line.startswith(("Error", "Warning")) and not any(each in line for each in EXPLAINED)
    ]
    return found or ([f"it ended with code {done.returncode}"] if done.returncode else [])


def dcmtk(instance: Dataset, path: Path) -> str:
    """Return DCMTK's page of an SR, after its reader found every relation legal."""
    instance.save_as(path, enforce_file_format=True)
    page = path.with_suffix(".html")
    for command in (["/usr/bin/dsrdump", path], ["/usr/bin/dsr2html", path, page]):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "E:" not in done.stderr
    return page.read_text(encoding="utf-8")


def written(instance: Dataset) -> bytes:
    buffer = BytesIO()
    instance.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


@pytest.mark.parametrize("name", sorted(PROTOCOLS))
def test_every_object_is_clean_for_dciodvfy_and_dcmtk(name: str, tmp_path: Path) -> None:
    made = encoded(name)
    assert list(made) == ["seg", "measurements", "draft"]
    for label, each in made.items():
        assert complaints(each, tmp_path / f"{label}.dcm") == []
    dcmtk(made["measurements"], tmp_path / "measurements.dcm")
    assert "NOT FOR DIAGNOSTIC USE" in dcmtk(made["draft"], tmp_path / "draft.dcm")


def test_what_is_made_without_an_outline_is_clean_too(tmp_path: Path) -> None:
    targets = [each.id for each in PROTOCOLS["ct_chest"].targets]
    made = encoded(without=targets)
    assert "seg" not in made
    for label, each in made.items():
        assert complaints(each, tmp_path / f"{label}.dcm") == []


def real_chest() -> list[Dataset]:
    try:
        folder = sample.chest_ct(Path(".cache"))
    except Unavailable as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(str(error))
    return [dcmread(each) for each in sorted(folder.iterdir())]


def test_objects_about_a_real_dirty_chest_ct_are_clean(tmp_path: Path) -> None:
    instances = real_chest()
    made = encoded(instances=instances)
    for label, each in made.items():
        assert complaints(each, tmp_path / f"{label}.dcm") == []
        assert each.PatientID == instances[0].PatientID
        assert each.AccessionNumber == instances[0].AccessionNumber
        assert each.StudyDate == instances[0].StudyDate
        assert str(each.SeriesDate) == "20260304"
    dcmtk(made["draft"], tmp_path / "draft.dcm")


@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_a_multi_frame_source_gives_masks_at_the_right_places(
    modality: str, tmp_path: Path
) -> None:
    name = {"CT": "ct_chest", "MR": "mr_brain"}[modality]
    source = sample.enhanced(modality=modality, shape=(12, 20, 24))
    volume = hd.image.Image.from_dataset(source).get_volume(dtype=np.float32)
    answers = findings(PROTOCOLS[name], volume)
    made = encode(
        PROTOCOLS[name],
        [source],
        answers,
        ALGORITHM,
        job_id=JOB,
        image=volume,
        created_at=CREATED_AT,
    )
    for label, each in made.items():
        assert complaints(each, tmp_path / f"{label}.dcm") == []
    read = hd.seg.segread(tmp_path / "seg.dcm")
    masks = [each.mask for each in answers if each.mask is not None]
    for number, mask in enumerate(masks, 1):
        back = read.get_volume(segment_numbers=[number], combine_segments=True)
        assert np.array_equal(back.match_geometry(volume).array != 0, mask.array != 0)


def test_a_repeated_job_makes_the_same_bytes() -> None:
    first, again = encoded(), encoded()
    for label, each in first.items():
        assert written(each) == written(again[label]), label


def test_every_extra_is_made_once_and_has_its_label() -> None:
    weasis, legacy = PROFILES["weasis"], PROFILES["legacy-pacs"]
    made = encoded(profiles=(GENERIC, weasis, legacy, weasis))
    kinds = [label.split(".")[0] for label in made]
    assert kinds.count("pdf") == kinds.count("presentation") == kinds.count("key-objects") == 1
    pictures = [label for label in made if label.startswith("key-images")]
    assert pictures == [f"key-images.{number}" for number in range(1, len(pictures) + 1)]
    assert set(pictures) < set(chosen(legacy, made))
    assert "key-objects" in chosen(weasis, made)
    assert "pdf" not in chosen(weasis, made)
    assert not {"pdf", "key-objects", *pictures} & set(chosen(GENERIC, made))
    uids = [each.SOPInstanceUID for each in made.values()]
    assert len(set(uids)) == len(uids)


def test_a_repeated_job_makes_the_same_extras() -> None:
    first, again = encoded(profiles=ALL_EXTRAS), encoded(profiles=ALL_EXTRAS)
    assert {"pdf", "key-images.1", "presentation", "key-objects"} <= set(first)
    for label, each in first.items():
        assert written(each) == written(again[label]), label


def test_every_extra_says_who_made_it_and_when() -> None:
    source = series()[0]
    for label, each in encoded(profiles=ALL_EXTRAS).items():
        assert each.SpecificCharacterSet == "ISO_IR 192", label
        assert each.ContributingEquipmentSequence[0].DeviceSerialNumber == ALGORITHM.sha256
        assert each.DeviceSerialNumber == ALGORITHM.sha256
        assert str(each.InstanceCreationDate) == str(each.SeriesDate) == "20260304"
        assert each.StudyDescription == source.StudyDescription
        assert each.PatientID == source.PatientID
        assert "20260304" <= max(_dates(each)) == "20260304", label


def _dates(instance: Dataset) -> list[str]:
    """Return every date of an instance: none may be of the clock."""
    return [str(each.value) for each in instance.iterall() if each.VR == "DA" and each.value]


def test_an_image_in_another_orientation_makes_the_same_pictures() -> None:
    sources, volume = stack(series())
    made = [
        encode(
            PROTOCOLS["ct_chest"],
            sources,
            findings(PROTOCOLS["ct_chest"], volume),
            ALGORITHM,
            job_id=JOB,
            image=image,
            created_at=CREATED_AT,
            profiles=ALL_EXTRAS,
        )
        for image in (volume, volume.to_patient_orientation("FAL"))
    ]
    for label, each in made[0].items():
        assert written(each) == written(made[1][label]), label


def test_the_extras_about_a_real_dirty_chest_ct_are_clean(tmp_path: Path) -> None:
    instances = real_chest()
    made = encoded(instances=instances, profiles=ALL_EXTRAS)
    for label in ("pdf", "key-images.1", "presentation", "key-objects"):
        assert complaints(made[label], tmp_path / f"{label}.dcm") == []


def test_another_job_makes_other_instances_series_and_trackings() -> None:
    one, other = encoded(), encoded(job_id="f" * 32)
    for label, each in one.items():
        assert each.SOPInstanceUID != other[label].SOPInstanceUID
        assert each.SeriesInstanceUID != other[label].SeriesInstanceUID
    trackings = [
        {item.TrackingUID for item in each["seg"].SegmentSequence} for each in (one, other)
    ]
    assert not trackings[0] & trackings[1]


def test_each_object_is_alone_in_a_series_that_is_named_and_dated() -> None:
    made = encoded()
    assert len({each.SeriesInstanceUID for each in made.values()}) == 3
    assert len({each.SeriesNumber for each in made.values()}) == 3
    source = series()[0]
    for each in made.values():
        assert each.StudyInstanceUID == source.StudyInstanceUID
        assert each.SeriesInstanceUID != source.SeriesInstanceUID
        assert each.SeriesDescription.startswith("AI DRAFT ")
        assert len(each.SeriesDescription) <= 64
        for event in ("Series", "Content", "InstanceCreation"):
            assert str(each[f"{event}Date"].value) == "20260304"
            assert str(each[f"{event}Time"].value) == "050607"
        assert each.SpecificCharacterSet == "ISO_IR 192"


def test_a_time_with_a_zone_is_written_as_local_time() -> None:
    at = datetime(2026, 3, 4, 5, 6, 7, tzinfo=timezone(timedelta(hours=7)))
    local = at.astimezone()
    sources, _ = stack(series())
    made = encode(
        PROTOCOLS["ct_chest"], sources, [], ALGORITHM, job_id=JOB, image=None, created_at=at
    )
    assert str(made["draft"].ContentTime) == local.strftime("%H%M%S")
    assert str(made["draft"].ContentDate) == local.strftime("%Y%m%d")


def test_a_patient_with_a_foreign_name_keeps_it(tmp_path: Path) -> None:
    instances = series()
    for each in instances:
        each.SpecificCharacterSet = "ISO_IR 100"
        each.PatientName = "Müller^Jürgen"
        each.StudyDescription = "Thorax für Größe"
        del each.PatientBirthDate, each.StudyID, each.ReferringPhysicianName
    for label, each in encoded(instances=instances).items():
        assert complaints(each, tmp_path / f"{label}.dcm") == []
        read = dcmread(tmp_path / f"{label}.dcm")
        assert str(read.PatientName) == "Müller^Jürgen"
        assert read.StudyDescription == "Thorax für Größe"
        assert read.PatientBirthDate == ""


def test_the_patient_module_is_the_source_s(tmp_path: Path) -> None:
    instances, other = series(), Dataset()
    other.PatientID, other.IssuerOfPatientID, other.TypeOfPatientID = "9", "OTHER", "TEXT"
    for each in instances:
        each.IssuerOfPatientID, each.OtherPatientIDsSequence = "HOSPITAL", [other]
        each.PatientName, each.PatientBirthTime = "Yamada^Tarou=山田^太郎=やまだ^たろう", "101010"
        each.SpecificCharacterSet, each.PatientComments = "ISO_IR 192", "one\ntwo"
        each.PatientAge, each.PatientSize, each.PatientWeight = "060Y", "1.70", "80.5"
        each.PatientIdentityRemoved, each.DeidentificationMethod = "YES", "by hand"
    source = instances[0]
    for label, made in encoded(instances=instances).items():
        assert complaints(made, tmp_path / f"{label}.dcm") == []
        read = dcmread(tmp_path / f"{label}.dcm")
        for each in source.group_dataset(0x0010):
            if "Contrast" not in each.keyword:
                assert read[each.tag] == each, each.keyword


def test_a_hundred_thousand_hostile_characters_are_stored_and_shown_as_text(
    tmp_path: Path,
) -> None:
    hostile = "<script>alert('x')</script>\x1b[2J\u202e&amp;\x00" * 2500
    draft = encoded(text=hostile)["draft"]
    assert complaints(draft, tmp_path / "draft.dcm") == []
    page = dcmtk(draft, tmp_path / "draft.dcm")
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert not {"\x1b", "\x00", "\u202e"} & set(page)


def test_a_question_of_another_protocol_is_refused() -> None:
    sources, volume = stack(series())
    stranger = Finding(replace(PROTOCOLS["ct_chest"].questions[0], id="other"), "No.")
    with pytest.raises(TemplateError, match="'other' is no question of ct_chest"):
        encode(
            PROTOCOLS["ct_chest"],
            sources,
            [stranger],
            ALGORITHM,
            job_id=JOB,
            image=volume,
            created_at=CREATED_AT,
        )


@pytest.mark.parametrize(("count", "job_id"), [(0, JOB), (1, "")])
def test_a_job_without_images_or_id_is_refused(count: int, job_id: str) -> None:
    sources, _ = stack(series())
    with pytest.raises(TemplateError, match="at least one source image and a job's id"):
        encode(
            PROTOCOLS["ct_chest"],
            sources[:count],
            [],
            ALGORITHM,
            job_id=job_id,
            image=None,
            created_at=CREATED_AT,
        )


@pytest.mark.parametrize("keyword", ["PatientID", "StudyInstanceUID", "SeriesInstanceUID"])
def test_images_of_two_patients_studies_or_series_are_refused(keyword: str) -> None:
    sources, volume = stack(series())
    setattr(sources[3], keyword, "1.2.3")
    with pytest.raises(TemplateError, match=f"expected images of one {keyword}, got 2"):
        encode(
            PROTOCOLS["ct_chest"],
            sources,
            [],
            ALGORITHM,
            job_id=JOB,
            image=volume,
            created_at=CREATED_AT,
        )


def test_the_order_of_the_answers_does_not_matter() -> None:
    sources, volume = stack(series())
    answers = findings(PROTOCOLS["ct_chest"], volume)
    made = encode(
        PROTOCOLS["ct_chest"],
        sources,
        answers[::-1],
        ALGORITHM,
        job_id=JOB,
        image=volume,
        created_at=CREATED_AT,
    )
    for label, each in encoded().items():
        assert written(each) == written(made[label])


def test_the_validator_itself_finds_a_fault(tmp_path: Path) -> None:
    seg = encoded()["seg"]
    del seg.DeviceSerialNumber
    with pytest.raises(AssertionError):
        assert complaints(seg, tmp_path / "seg.dcm") == []
