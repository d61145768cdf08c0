from dataclasses import replace
from io import BytesIO
from pathlib import Path

import highdicom as hd
import numpy as np
import pytest
from pydicom import Dataset

from dicom_node.demo import sample
from sr_templates import (
    PROFILES,
    Finding,
    TemplateError,
    diameters,
    encode,
    source_images,
    tracing,
)
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
from tests.test_encoding import complaints


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
        axes = diameters.measure(answer.mask.array != 0, SPACING_MM[1:])
        volume_ml = values.size * np.prod(SPACING_MM) / 1000
        assert numbers(group) == {
            "Volume": ("Volume", pytest.approx(volume_ml, abs=5e-4), "mL"),
            "Long Axis": ("Long Axis", pytest.approx(axes.long_mm, abs=5e-3), "mm"),
            "Short Axis": ("Short Axis", pytest.approx(axes.short_mm, abs=5e-3), "mm"),
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


def test_without_an_image_only_sizes_are_measured() -> None:
    _, volume = stack(series())
    for group in groups(measured(findings(PROTOCOLS["ct_chest"], volume), None)):
        assert set(numbers(group)) == {"Volume", "Long Axis", "Short Axis"}


def test_confidence_is_written_in_percent_where_it_is_a_part_of_one() -> None:
    _, volume = stack(series())
    targets = [each for each in findings(PROTOCOLS["ct_chest"], volume) if each.mask]
    sure = (0.876, 0.0, None, 1.5, 1.0)
    answers = [replace(each, confidence=part) for each, part in zip(targets, sure, strict=True)]
    found = [
        numbers(each).get("Certainty of Finding") for each in groups(measured(answers, volume))
    ]
    told = [None if each is None else each[1:] for each in found]
    assert told == [(87.6, "%"), (0.0, "%"), None, None, (100.0, "%")]


PNEUMOTHORAX = "Pneumothorax"
CONTRAST = "Contrast administered"


def evaluations(sr: Dataset) -> dict[str, str]:
    """Return what TID 1500 evaluates of the whole volume."""
    return {
        each.ConceptNameCodeSequence[0].CodeMeaning: each.ConceptCodeSequence[0].CodeMeaning
        for part in sr.ContentSequence
        if part.ConceptNameCodeSequence[0].CodeMeaning == "Qualitative Evaluations"
        for each in part.ContentSequence
    }


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("No.", {CONTRAST: "No", PNEUMOTHORAX: "Absent"}),
        ("YES", {CONTRAST: "Yes", PNEUMOTHORAX: "Present"}),
        ("Yes, on the left.", {PNEUMOTHORAX: "Present"}),
        ("No pneumothorax is seen, but perhaps yes.", {}),
    ],
)
def test_an_allowed_answer_is_evaluated_by_its_code_and_no_other(
    text: str, found: dict[str, str]
) -> None:
    assert evaluations(encoded(text=text)["measurements"]) == found


def test_evaluations_are_written_where_nothing_is_outlined_too() -> None:
    targets = [each.id for each in PROTOCOLS["ct_chest"].targets]
    made = encoded(text="No.", without=targets)
    assert set(made) == {"measurements", "draft"}
    assert evaluations(made["measurements"])[PNEUMOTHORAX] == "Absent"
    assert groups(made["measurements"]) == []
    assert set(encoded(text="Perhaps.", without=targets)) == {"draft"}


def test_the_image_library_holds_the_images_of_the_key_slices() -> None:
    made = encoded()
    (library,) = [
        each
        for each in made["measurements"].ContentSequence
        if each.ConceptNameCodeSequence[0].CodeMeaning == "Image Library"
    ]
    (group,) = library.ContentSequence
    described = {
        each.ConceptNameCodeSequence[0].CodeMeaning: each
        for each in group.ContentSequence
        if each.ValueType != "IMAGE"
    }
    assert described["Modality"].ConceptCodeSequence[0].CodeValue == "CT"
    assert made["seg"].FrameOfReferenceUID == described["Frame of Reference UID"].UID
    sources, volume = stack(series())
    images = source_images.by_slice(sources, volume)
    masks = [each.mask.array for each in findings(PROTOCOLS["ct_chest"], volume) if each.mask]
    keys = sorted({int(each.sum(axis=(1, 2)).argmax()) for each in masks})
    cited = [
        each.ReferencedSOPSequence[0].ReferencedSOPInstanceUID
        for each in group.ContentSequence
        if each.ValueType == "IMAGE"
    ]
    assert cited == [images[key].sop_instance_uid for key in keys]


def planar(instances: list[Dataset], volume: hd.Volume, protocol: str = "ct_chest") -> Dataset:
    made = encode(
        PROTOCOLS[protocol],
        instances,
        findings(PROTOCOLS[protocol], volume),
        ALGORITHM,
        job_id=JOB,
        image=volume,
        created_at=CREATED_AT,
        profiles=[PROFILES["ohif"]],
    )
    return made["measurements.ohif"]


def contours(sr: Dataset) -> list[tuple[Dataset, np.ndarray]]:
    """Return each contour with the reference of its image, column before row."""
    found = []
    for part in sr.ContentSequence:
        for group in part.get("ContentSequence") or ():
            for item in group.get("ContentSequence") or ():
                if item.ValueType == "SCOORD":
                    points = np.array(item.GraphicData, float).reshape(-1, 2)
                    assert item.GraphicType == "POLYLINE"
                    found.append((item.ContentSequence[0].ReferencedSOPSequence[0], points))
    return found


def test_a_planar_report_draws_each_outline_on_its_key_slice() -> None:
    sources, volume = stack(series())
    images = source_images.by_slice(sources, volume)
    masks = [each.mask.array for each in findings(PROTOCOLS["ct_chest"], volume) if each.mask]
    found = contours(planar(sources, volume))
    for mask, (image, points) in zip(masks, found, strict=True):
        key = int(mask.sum(axis=(1, 2)).argmax())
        assert image.ReferencedSOPInstanceUID == images[key].sop_instance_uid
        rows, columns = np.nonzero(mask[key])
        # From outer edge to outer edge: a pixel's centre is at its index and a half.
        assert points.min(axis=0).tolist() == [columns.min(), rows.min()]
        assert points.max(axis=0).tolist() == [columns.max() + 1, rows.max() + 1]
        assert points[0].tolist() == points[-1].tolist()
        assert tracing.area(points[:, ::-1]) == mask[key].sum()


def test_a_contour_on_a_multi_frame_image_names_its_frame() -> None:
    source = sample.enhanced(modality="CT", shape=(12, 20, 24))
    volume = hd.image.Image.from_dataset(source).get_volume(dtype=np.float32)
    images = source_images.by_slice([source], volume)
    masks = [each.mask.array for each in findings(PROTOCOLS["ct_chest"], volume) if each.mask]
    keys = [int(each.sum(axis=(1, 2)).argmax()) for each in masks]
    frames = [int(each.ReferencedFrameNumber) for each, _ in contours(planar([source], volume))]
    assert frames == [images[key].frame for key in keys]


def test_a_large_outline_has_few_enough_points_to_be_moved_by_hand() -> None:
    sources = sample.series(shape=(8, 300, 300), modality="CT", body_part="CHEST")
    sources, volume = stack(sources)
    rows, columns = np.ogrid[:300, :300]
    wavy = (rows - 150) ** 2 + (columns - 150) ** 2 < (110 + 10 * np.sin(rows / 5)) ** 2
    mask = volume.with_array(np.repeat(wavy[None], 8, axis=0).astype(np.uint8))
    answer = Finding(PROTOCOLS["ct_chest"].targets[0], "", mask, 0.5)
    made = encode(
        PROTOCOLS["ct_chest"],
        sources,
        [answer],
        ALGORITHM,
        job_id=JOB,
        image=None,
        created_at=CREATED_AT,
        profiles=[PROFILES["ohif"]],
    )
    ((_, points),) = contours(made["measurements.ohif"])
    assert len(points) == 200
    assert tracing.area(points[:, ::-1]) == pytest.approx(wavy.sum(), rel=0.02)


def test_an_image_of_another_size_or_grid_is_refused() -> None:
    _, volume = stack(series())
    answers = findings(PROTOCOLS["ct_chest"], volume)
    finer = hd.Volume(volume.array, volume.affine @ np.diag([0.5, 1, 1, 1]), "PATIENT")
    aside = hd.Volume(volume.array, volume.affine + 0.4 * np.eye(4, k=3), "PATIENT")
    for other in (volume[1:], finer, aside):
        with pytest.raises(TemplateError, match="grid"):
            measured(answers, other)


def test_a_hundred_findings_are_a_hundred_groups_of_one_valid_report(tmp_path: Path) -> None:
    question = PROTOCOLS["ct_chest"].targets[-1]
    questions = tuple(
        replace(question, id=f"q{index}", target=replace(question.target, label=f"Part {index}"))
        for index in range(100)
    )
    protocol = replace(PROTOCOLS["ct_chest"], questions=questions)
    sources, volume = stack(series())
    answers = []
    for index, each in enumerate(questions):
        mask = np.zeros(volume.spatial_shape, np.uint8)
        mask[index % 12, index // 12 : index // 12 + 2, index % 20] = 1
        answers.append(Finding(each, "", volume.with_array(mask), 0.5))
    made = encode(
        protocol,
        sources,
        answers,
        ALGORITHM,
        job_id=JOB,
        image=volume,
        created_at=CREATED_AT,
    )
    assert complaints(made["measurements"], tmp_path / "measurements.dcm") == []
    assert complaints(made["draft"], tmp_path / "draft.dcm") == []
    assert len(groups(made["measurements"])) == len(made["seg"].SegmentSequence) > 90
