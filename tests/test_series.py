import warnings
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import Dataset
from pydicom.uid import (
    CTImageStorage,
    EnhancedCTImageStorage,
    MRImageStorage,
    SecondaryCaptureImageStorage,
    XRayRadiationDoseSRStorage,
)

from dicom_node.demo import sample
from dicom_node.instance import Instance
from dicom_node.routing import series
from dicom_node.routing.series import SeriesSummary, summarize

SHAPE = (6, 8, 8)
SAGITTAL = np.array([(1.0, 0.0, 0.0), (0.0, 0.0, -1.0), (0.0, 1.0, 0.0)]).T
Store = Callable[[Sequence[Dataset]], list[Instance]]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Write instances, and say of each what reception says."""

    def stored(datasets: Sequence[Dataset]) -> list[Instance]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # what is broken here is broken on purpose
            paths = sample.write(datasets, tmp_path)
        return [
            Instance(
                study_uid=str(each.StudyInstanceUID),
                series_uid=str(each.SeriesInstanceUID),
                sop_uid=str(each.SOPInstanceUID),
                sop_class_uid=str(each.SOPClassUID),
                transfer_syntax_uid=str(each.file_meta.TransferSyntaxUID),
                path=path,
                sha256="",
                size=path.stat().st_size,
                received_at=datetime.now(UTC),
                study_description="as reception read it",
                modality=str(each.get("Modality", "")),
            )
            for each, path in zip(datasets, paths, strict=True)
        ]

    return stored


def ct(**options: Any) -> list[Dataset]:
    return sample.series(**{"shape": SHAPE, "spacing_mm": (2.5, 1.0, 1.0)} | options)


def changed(datasets: Sequence[Dataset], **attributes: Any) -> list[Dataset]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        for each in datasets:
            for keyword, value in attributes.items():
                setattr(each, keyword, value)
    return list(datasets)


def one(instances: Sequence[Instance]) -> SeriesSummary:
    (found,) = summarize(instances)
    return found


# --- what a series says -------------------------------------------------------------------------


def test_a_series_is_told_with_everything_that_choosing_needs(store: Store) -> None:
    sent = changed(
        ct(), StudyDescription="CT THORAX", ProtocolName="Thorax routine", ConvolutionKernel="B30f"
    )
    found = one(store(sent))
    assert found == SeriesSummary(
        uid=str(sent[0].SeriesInstanceUID),
        modality="CT",
        sop_class_uid=CTImageStorage,
        description="CT CHEST",
        study_description="CT THORAX",
        protocol_name="Thorax routine",
        body_part="CHEST",
        image_type=("ORIGINAL", "PRIMARY", "AXIAL"),
        sop_uids=tuple(sorted(str(each.SOPInstanceUID) for each in sent)),
        slices=6,
        positions=6,
        slice_thickness_mm=2.5,
        axial=True,
        plane="axial",
        coverage_mm=15.0,
        kernel="B30f",
    )
    assert found.instance_count == 6


def test_what_is_not_said_is_empty_and_no_guess(store: Store) -> None:
    sent = ct()
    for each in sent:
        for keyword in (
            "SeriesDescription",
            "StudyDescription",
            "BodyPartExamined",
            "ImageType",
            "SliceThickness",
            "ImagePositionPatient",
            "ImageOrientationPatient",
            "ConvolutionKernel",
        ):
            del each[keyword]
    found = one(store(sent))
    assert (found.description, found.study_description, found.body_part) == ("", "", "")
    assert (found.image_type, found.kernel) == ((), "")
    assert (found.slice_thickness_mm, found.axial, found.positions) == (None, None, None)
    assert found.slices == 6


def test_a_multi_frame_series_is_counted_in_frames(store: Store) -> None:
    found = one(store([sample.enhanced(shape=SHAPE, spacing_mm=(2.5, 1.0, 1.0))]))
    assert (found.sop_class_uid, found.instance_count) == (EnhancedCTImageStorage, 1)
    assert (found.slices, found.positions, found.slice_thickness_mm) == (6, 6, 2.5)
    assert found.axial is True


@pytest.mark.parametrize("make", [sample.series, lambda **given: [sample.enhanced(**given)]])
def test_axial_is_what_the_orientation_says(store: Store, make: Callable[..., Any]) -> None:
    assert one(store(make(shape=SHAPE))).axial is True
    assert one(store(make(shape=SHAPE, seed=1, directions=SAGITTAL))).axial is False


def test_several_images_at_one_place_are_seen(store: Store) -> None:
    phases = [*ct(seed=0), *ct(seed=1)]
    phases = changed(phases, SeriesInstanceUID="1.2.3")
    found = one(store(phases))
    assert (found.slices, found.positions) == (12, 6)
    twice = sample.enhanced(shape=SHAPE)
    frames = twice.PerFrameFunctionalGroupsSequence
    for index in range(3):
        frames[3 + index].PlanePositionSequence = frames[index].PlanePositionSequence
    found = one(store([twice]))
    assert (found.slices, found.positions) == (6, 3)


def test_positions_that_differ_by_rounding_alone_are_one(store: Store) -> None:
    sent = ct()
    sent[1].ImagePositionPatient = [float(v) + 0.001 for v in sent[0].ImagePositionPatient]
    assert one(store(sent)).positions == 5


def test_one_localizer_among_the_slices_is_told(store: Store) -> None:
    sent = ct()
    sent[0].ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    found = one(store(sent)).image_type
    assert sorted(found) == ["AXIAL", "LOCALIZER", "ORIGINAL", "PRIMARY"]


@pytest.mark.parametrize(
    ("character_set", "text"),
    [
        ("ISO_IR 100", "Schädel-Übersicht"),
        ("ISO_IR 144", "Грудная клетка"),
        ("GB18030", "胸部平扫"),
        (["", "ISO 2022 IR 87"], "胸部単純"),
        ("ISO_IR 192", "Thorax 胸部 Грудь"),
    ],
)
def test_text_is_read_in_its_own_character_set(store: Store, character_set: str, text: str) -> None:
    found = one(store(changed(ct(), SpecificCharacterSet=character_set, SeriesDescription=text)))
    assert found.description == text


def test_a_description_of_several_values_is_one_text(store: Store) -> None:
    sent = changed(ct(), SeriesDescription=["Thorax", "Abdomen"], ConvolutionKernel=["I30f", "3"])
    found = one(store(sent))
    assert (found.description, found.kernel) == ("Thorax Abdomen", "I30f 3")


# --- several series, in any order ---------------------------------------------------------------


def test_series_come_in_the_order_of_their_uids_whatever_order_they_came_in(store: Store) -> None:
    study = "1.2.3.4"
    instances = store(
        [
            *ct(study_uid=study),
            *ct(study_uid=study, description="Abdomen"),
            sample.enhanced(shape=SHAPE, study_uid=study),
        ]
    )
    found = summarize(instances)
    assert [each.uid for each in found] == sorted({each.series_uid for each in instances})
    assert {each.slices for each in found} == {6}
    assert summarize(instances[::-1]) == found
    assert summarize(instances[1::2] + instances[::2]) == found


def test_nothing_gives_nothing() -> None:
    assert summarize([]) == []


def test_what_is_no_volume_is_told_by_its_class_and_never_opened(store: Store) -> None:
    for sop_class in (XRayRadiationDoseSRStorage, SecondaryCaptureImageStorage):
        (instance,) = store(changed(ct()[:1], SOPClassUID=sop_class, Modality="SR"))
        instance.path.unlink()
        found = one([instance])
        assert (found.sop_class_uid, found.modality, found.slices) == (sop_class, "SR", 0)
        assert (found.unreadable, found.study_description) == ("", "as reception read it")


def test_what_else_lies_in_a_series_is_left_out(store: Store) -> None:
    sent = ct()
    capture = changed(ct(seed=7), SeriesInstanceUID=sent[0].SeriesInstanceUID)
    instances = store(sent) + store(changed(capture, SOPClassUID=SecondaryCaptureImageStorage))
    found = one(instances)
    assert (found.sop_class_uid, found.slices) == (CTImageStorage, 6)
    assert set(found.sop_uids) == {str(each.SOPInstanceUID) for each in sent}


# --- broken headers -----------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["gone", "garbage", "empty"])
def test_a_series_with_an_unreadable_header_does_not_lose_the_others(
    store: Store, damage: str
) -> None:
    whole = store(ct(study_uid="1.2.3"))
    broken = store(ct(study_uid="1.2.3", description="other"))
    if damage == "gone":
        broken[2].path.unlink()
    else:
        broken[2].path.write_bytes(b"" if damage == "empty" else b"no DICOM" * 100)
    found = {each.uid: each for each in summarize(broken + whole)}
    assert found[whole[0].series_uid].slices == 6
    lost = found[broken[0].series_uid]
    assert "in one of its 6 headers" in lost.unreadable
    assert (lost.modality, lost.study_description) == ("CT", "as reception read it")
    assert lost.instance_count == 6


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("number", ["nan", "inf", "-inf", "1e400", ""])
@pytest.mark.parametrize(
    "keyword", ["ImagePositionPatient", "ImageOrientationPatient", "SliceThickness"]
)
def test_a_number_that_is_none_counts_as_not_said(store: Store, keyword: str, number: str) -> None:
    sent = ct()
    for each in sent:
        count = {"ImagePositionPatient": 3, "ImageOrientationPatient": 6}.get(keyword, 1)
        written = "\\".join([number] * count)
        each.add_new(keyword, "LO", written.split("\\") if count > 1 else written)
    found = one(store(sent))
    assert found.unreadable == ""
    told = {
        "ImagePositionPatient": found.positions,
        "ImageOrientationPatient": found.axial,
        "SliceThickness": found.slice_thickness_mm,
    }
    assert told.pop(keyword) is None
    assert None not in told.values()
    assert found.slices == 6


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(("claimed", "slices"), [(2_147_483_647, 2_147_483_647), (0, 1), (-5, 1)])
def test_a_number_of_frames_is_only_a_claim_and_costs_no_memory(
    store: Store, claimed: int, slices: int
) -> None:
    sent = changed(ct()[:1], NumberOfFrames=claimed)
    found = one(store(sent))
    assert (found.slices, found.positions) == (slices, 1)


def test_classes_of_ct_and_mr_images_are_volumes_and_no_others_are() -> None:
    assert {CTImageStorage, EnhancedCTImageStorage, MRImageStorage} < series.VOLUMES
    assert SecondaryCaptureImageStorage not in series.VOLUMES
    assert len(series.VOLUMES) == 6
