from io import BytesIO

import highdicom as hd
import numpy as np
import pytest
from pydicom import Dataset

from sr_templates import Finding, TemplateError, encode
from tests.drafts import (
    ALGORITHM,
    CREATED_AT,
    JOB,
    PROTOCOLS,
    SPACING_MM,
    encoded,
    findings,
    series,
    stack,
)


def groups(sr: Dataset) -> list[hd.sr.VolumetricROIMeasurementsAndQualitativeEvaluations]:
    """Return the measurement groups as highdicom reads them from a file."""
    buffer = BytesIO()
    sr.save_as(buffer, enforce_file_format=True)
    buffer.seek(0)
    read = hd.sr.srread(buffer)
    assert isinstance(read, hd.sr.Comprehensive3DSR)
    found: list[hd.sr.VolumetricROIMeasurementsAndQualitativeEvaluations] = (
        read.content.get_volumetric_roi_measurement_groups()
    )
    return found


def numbers(group: hd.sr.VolumetricROIMeasurementsAndQualitativeEvaluations) -> dict[str, tuple]:
    return {
        (each.derivation or each.name).meaning: (each.name.meaning, each.value, each.unit.value)
        for each in group.get_measurements()
    }


@pytest.mark.parametrize(
    ("name", "measured", "unit"),
    [
        ("ct_chest", "Attenuation Coefficient", "[hnsf'U]"),
        ("mr_brain", "MR signal intensity", "1"),
    ],
)
def test_the_numbers_are_those_of_the_voxels(name: str, measured: str, unit: str) -> None:
    _, volume = stack(series(name))
    answers = [each for each in findings(PROTOCOLS[name], volume) if each.mask is not None]
    for answer, group in zip(answers, groups(encoded(name)["measurements"]), strict=True):
        values = volume.array[answer.mask.array != 0].astype(float)
        volume_ml = values.size * np.prod(SPACING_MM) / 1000
        assert numbers(group) == {
            "Volume": ("Volume", pytest.approx(volume_ml, abs=5e-4), "mL"),
            "Mean": (measured, pytest.approx(values.mean(), abs=5e-3), unit),
            "Standard Deviation": (measured, pytest.approx(values.std(), abs=5e-3), unit),
            "Minimum": (measured, values.min(), unit),
            "Maximum": (measured, values.max(), unit),
        }


def test_each_group_refers_to_its_segment_and_shares_its_tracking() -> None:
    made = encoded()
    seg = made["seg"]
    for item, group in zip(seg.SegmentSequence, groups(made["measurements"]), strict=True):
        reference = group.referenced_segment
        assert reference.referenced_sop_instance_uid == seg.SOPInstanceUID
        assert reference.referenced_segment_numbers == [item.SegmentNumber]
        assert group.tracking_uid == item.TrackingUID
        assert group.tracking_identifier == item.TrackingID
        assert group.finding_type.value == item.SegmentedPropertyTypeCodeSequence[0].CodeValue


def test_a_side_is_written_with_the_site() -> None:
    sides = {}
    for group in groups(encoded()["measurements"]):
        (site,) = group.finding_sites
        sides[group.tracking_identifier.split(" 0")[0]] = (
            site.value.meaning,
            site.laterality.meaning if site.laterality else None,
        )
    assert sides["Left lung"] == ("Lung", "Left")
    assert sides["Right lung"] == ("Lung", "Right")
    assert sides["Aorta"] == ("Aorta", None)


def test_the_report_is_about_the_imaging_procedure_and_says_who_observed() -> None:
    sr = encoded()["measurements"]
    tree = {
        each.ConceptNameCodeSequence[0].CodeMeaning: each.get("ConceptCodeSequence")
        for each in sr.ContentSequence
    }
    assert sr.ContentTemplateSequence[0].TemplateIdentifier == "1500"
    assert tree["Procedure reported"][0].CodeMeaning == "CT unspecified body region"
    assert tree["Language of Content Item and Descendants"][0].CodeValue == "en"
    assert tree["Observer Type"][0].CodeMeaning == "Device"


def test_the_evidence_names_every_image_and_the_seg() -> None:
    made = encoded()
    sources, _ = stack(series())
    named = {
        image.ReferencedSOPInstanceUID
        for study in made["measurements"].CurrentRequestedProcedureEvidenceSequence
        for each in study.ReferencedSeriesSequence
        for image in each.ReferencedSOPSequence
    }
    assert named == {each.SOPInstanceUID for each in [*sources, made["seg"]]}


def measured(answers: list[Finding], image: hd.Volume | None) -> Dataset:
    sources, _ = stack(series())
    return encode(
        PROTOCOLS["ct_chest"],
        sources,
        answers,
        ALGORITHM,
        job_id=JOB,
        image=image,
        created_at=CREATED_AT,
    )["measurements"]


def test_an_image_turned_to_another_orientation_gives_the_same_numbers() -> None:
    _, volume = stack(series())
    answers = findings(PROTOCOLS["ct_chest"], volume)
    turned = volume.to_patient_orientation("HPL")
    assert not turned.geometry_equal(volume)
    assert measured(answers, turned) == measured(answers, volume)


def test_without_an_image_only_volumes_are_measured() -> None:
    _, volume = stack(series())
    for group in groups(measured(findings(PROTOCOLS["ct_chest"], volume), None)):
        assert set(numbers(group)) == {"Volume"}


def test_an_image_of_another_size_or_grid_is_refused() -> None:
    _, volume = stack(series())
    answers = findings(PROTOCOLS["ct_chest"], volume)
    finer = hd.Volume(volume.array, volume.affine @ np.diag([0.5, 1, 1, 1]), "PATIENT")
    aside = hd.Volume(volume.array, volume.affine + 0.4 * np.eye(4, k=3), "PATIENT")
    for other in (volume[1:], finer, aside):
        with pytest.raises(TemplateError, match="grid"):
            measured(answers, other)
