"""Series to try the node with: synthetic CT and MR, and (from `real_scan`) a real chest CT.

Knows how complete and valid image instances are written (PS3.3 A.3, A.4, A.36, A.38). The
synthetic patient is a handful of ellipsoids laid out in patient coordinates, so whatever way the
slices are cut, right stays right. It is not anatomy, and every name in it says SYNTHETIC. Knows
nothing of how a series is received or read.
"""

import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import (
    UID,
    CTImageStorage,
    EnhancedCTImageStorage,
    EnhancedMRImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    MRImageStorage,
)
from pydicom.valuerep import format_number_as_ds

from .anatomy import draw
from .real_scan import chest_ct

__all__ = ["chest_ct", "enhanced", "series", "write"]

AXIAL: Final = ((0.0, 0.0, 1.0), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0))
"""Directions of slices, rows and columns of an axial stack from foot to head, as matrix rows."""
ORIGIN: Final = (-121.5, -180.25, -310.0)  # on no axis and not round: a lost sign shows

BITS_STORED: Final = 12
STORED_MAXIMUM: Final = (1 << BITS_STORED) - 1
CT_INTERCEPT: Final = -1024


def series(  # noqa: PLR0913 - a factory names what it can vary
    *,
    modality: str = "CT",
    shape: tuple[int, int, int] = (40, 64, 64),
    spacing_mm: tuple[float, float, float] = (3.0, 1.5, 1.5),
    directions: ArrayLike | None = None,
    origin: tuple[float, float, float] = ORIGIN,
    seed: int = 0,
    study_uid: str | None = None,
    description: str = "CT CHEST",
    body_part: str = "CHEST",
    transfer_syntax: str = ExplicitVRLittleEndian,
    voxels: ArrayLike | None = None,
) -> list[Dataset]:
    """Make one complete classic CT or MR series, one instance per slice, in slice order.

    Parameters
    ----------
    modality
        "CT" or "MR".
    shape
        Slices, rows, columns; ignored when `voxels` are given.
    spacing_mm
        Between slices, rows and columns.
    directions
        3 x 3; its columns are the patient directions (left, posterior, head) in which the slice,
        row and column index increase. The first must be normal to the other two.
    origin
        Patient coordinates, in mm, of the centre of voxel (0, 0, 0).
    seed
        Decides noise and, with the other arguments, every UID.
    study_uid
        To put several series into one study of one patient.
    transfer_syntax
        Native, deflated, or one that pydicom can encode: RLE, JPEG 2000 (from 32 x 32), JPEG-LS.
    voxels
        (slices, rows, columns) in modality units, kept exactly if integer and, for CT, within
        [-1024, 3071], for MR within [0, 4095]. Without them the synthetic patient is drawn.
    """
    grid = _grid(shape, spacing_mm, directions, origin, voxels)
    name = _Name(modality, seed, study_uid, description, body_part)
    made = []
    for index, stored in enumerate(_stored(modality, grid, seed, voxels)):
        made.append(each := _common(name, grid, {"CT": CTImageStorage, "MR": MRImageStorage}))
        _set(each, CLASSIC[modality] | _plane(grid, index))
        each.SOPInstanceUID = name.uid("instance", index)
        each.InstanceNumber = index + 1
        _seal(each, stored, transfer_syntax)
    return made


def enhanced(  # noqa: PLR0913 - a factory names what it can vary
    *,
    modality: str = "CT",
    shape: tuple[int, int, int] = (40, 64, 64),
    spacing_mm: tuple[float, float, float] = (3.0, 1.5, 1.5),
    directions: ArrayLike | None = None,
    origin: tuple[float, float, float] = ORIGIN,
    seed: int = 0,
    study_uid: str | None = None,
    description: str = "CT CHEST",
    body_part: str = "CHEST",
    transfer_syntax: str = ExplicitVRLittleEndian,
    voxels: ArrayLike | None = None,
) -> Dataset:
    """Make the same as one Enhanced CT or Enhanced MR multi-frame instance.

    The image type is DERIVED: an original one would need a page of scanner settings (PS3.3
    A.38.1.4), and nothing here was scanned.
    """
    grid = _grid(shape, spacing_mm, directions, origin, voxels)
    name = _Name(modality, seed, study_uid, description, body_part, form="enhanced")
    made = _common(name, grid, {"CT": EnhancedCTImageStorage, "MR": EnhancedMRImageStorage})
    _set(made, ENHANCED[modality])
    made.SOPInstanceUID = name.uid("instance", 0)
    made.InstanceNumber = 1
    _frames(made, grid, name)
    stored = np.stack(list(_stored(modality, grid, seed, voxels)))
    made.NumberOfFrames = len(stored)
    _seal(made, stored, transfer_syntax)
    return made


def write(instances: Sequence[Dataset], folder: Path) -> list[Path]:
    """Write instances as Part 10 files named by SOP Instance UID; the folder is made."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{each.SOPInstanceUID}.dcm" for each in instances]
    for each, path in zip(instances, paths, strict=True):
        each.save_as(path, enforce_file_format=True)
    return paths


@dataclass(frozen=True)
class _Grid:
    """Where the voxels lie. `axes` has as columns the directions of the three indices."""

    shape: tuple[int, int, int]
    spacing: NDArray[np.float64]
    axes: NDArray[np.float64]
    origin: NDArray[np.float64]

    def position(self, index: int) -> NDArray[np.float64]:
        """Return the centre of the first voxel of a slice, in mm."""
        place: NDArray[np.float64] = self.origin + index * self.spacing[0] * self.axes[:, 0]
        return place


@dataclass(frozen=True)
class _Name:
    """What tells one synthetic series from another; all UIDs follow from it."""

    modality: str
    seed: int
    given_study_uid: str | None
    description: str
    body_part: str
    form: str = "classic"

    @property
    def study_uid(self) -> str:
        return self.given_study_uid or _uid("study", self.seed)

    def uid(self, *parts: object) -> str:
        return _uid(
            self.study_uid,
            self.seed,
            self.modality,
            self.form,
            self.description,
            self.body_part,
            *parts,
        )


def _grid(
    shape: tuple[int, int, int],
    spacing_mm: tuple[float, float, float],
    directions: ArrayLike | None,
    origin: tuple[float, float, float],
    voxels: ArrayLike | None,
) -> _Grid:
    if voxels is not None:
        slices, rows, columns = np.shape(voxels)
        shape = (slices, rows, columns)
    axes = np.array(AXIAL).T if directions is None else np.asarray(directions, float)
    return _Grid(shape, np.array(spacing_mm, float), axes, np.array(origin, float))


def _stored(
    modality: str, grid: _Grid, seed: int, voxels: ArrayLike | None
) -> Iterator[NDArray[np.uint16]]:
    """Give the slices as stored values."""
    noise = np.random.default_rng(seed)
    given = None if voxels is None else np.asarray(voxels)
    for index in range(grid.shape[0]):
        values = _drawn(modality, grid, index, noise) if given is None else given[index]
        shifted = np.rint(values) - (CT_INTERCEPT if modality == "CT" else 0)
        yield np.clip(shifted, 0, STORED_MAXIMUM).astype(np.uint16)


def _drawn(
    modality: str, grid: _Grid, index: int, noise: np.random.Generator
) -> NDArray[np.float64]:
    """Draw one slice of the synthetic patient, in modality units."""
    steps = grid.axes * grid.spacing
    reach = steps * (np.array(grid.shape) - 1) / 2
    half = np.maximum(np.abs(reach).sum(axis=1), 1.0)
    centre = grid.origin + reach.sum(axis=1)
    rows, columns = np.ogrid[: grid.shape[1], : grid.shape[2]]
    start = grid.position(index) - centre
    place = [
        (start[axis] + rows * steps[axis, 1] + columns * steps[axis, 2]) / half[axis]
        for axis in range(3)
    ]
    values = draw(modality, place)
    drawn: NDArray[np.float64] = values + noise.normal(0.0, 8.0, values.shape)
    return np.abs(drawn) if modality == "MR" else drawn


def _uid(*parts: object) -> str:
    """Return a UID that is the same for the same parts (PS3.5 B.2)."""
    return f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, '/'.join(map(str, parts))).int}"


def _set(target: Dataset, attributes: dict[str, Any]) -> None:
    for keyword, value in attributes.items():
        setattr(target, keyword, [_item(each) for each in value] if _is_items(value) else value)


def _item(attributes: dict[str, Any]) -> Dataset:
    item = Dataset()
    _set(item, attributes)
    return item


def _is_items(value: object) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def _decimal(values: Sequence[float] | NDArray[np.float64]) -> list[str]:
    """Write numbers in the 16 characters that VR DS allows (PS3.5 6.2)."""
    return [format_number_as_ds(float(each)) for each in values]


def _common(name: _Name, grid: _Grid, sop_classes: dict[str, UID]) -> Dataset:
    """Fill patient, study, series, frame of reference, equipment and image pixel modules."""
    made = Dataset()
    _set(
        made,
        FIXED
        | {
            "SOPClassUID": sop_classes[name.modality],
            "StudyInstanceUID": name.study_uid,
            "SeriesInstanceUID": name.uid("series"),
            "FrameOfReferenceUID": _uid(name.study_uid, "frame of reference"),
            "PatientName": f"SYNTHETIC^{name.body_part}",
            "PatientID": f"SYNTHETIC-{name.study_uid[-8:]}",
            "AccessionNumber": f"SYN{name.study_uid[-8:]}",
            "StudyID": name.study_uid[-4:],
            "StudyDescription": name.description,
            "SeriesDescription": name.description,
            "Modality": name.modality,
            "SeriesNumber": 1 + int(name.uid("series")[-3:]),
            "BodyPartExamined": name.body_part,
            "Rows": grid.shape[1],
            "Columns": grid.shape[2],
        },
    )
    return made


def _plane(grid: _Grid, index: int) -> dict[str, Any]:
    """Fill the Image Plane module (PS3.3 C.7.6.2)."""
    return {
        "PixelSpacing": _decimal(grid.spacing[1:]),
        "SliceThickness": _decimal(grid.spacing[:1])[0],
        # First the direction of a row, in which the column index increases.
        "ImageOrientationPatient": _decimal([*grid.axes[:, 2], *grid.axes[:, 1]]),
        "ImagePositionPatient": _decimal(grid.position(index)),
    }


def _frames(made: Dataset, grid: _Grid, name: _Name) -> None:
    """Fill the functional groups: what all frames share, and where each one is."""
    plane = _plane(grid, 0)
    shared = SHARED[name.modality] | {
        "PixelMeasuresSequence": [
            {keyword: plane[keyword] for keyword in ("PixelSpacing", "SliceThickness")}
        ],
        "PlaneOrientationSequence": [{"ImageOrientationPatient": plane["ImageOrientationPatient"]}],
    }
    organization = name.uid("dimensions")
    frames = [
        {
            "PlanePositionSequence": [
                {"ImagePositionPatient": _plane(grid, index)["ImagePositionPatient"]}
            ],
            "FrameContentSequence": [
                {
                    "StackID": "1",
                    "InStackPositionNumber": index + 1,
                    "DimensionIndexValues": index + 1,
                }
            ],
        }
        for index in range(grid.shape[0])
    ]
    _set(
        made,
        {
            "SharedFunctionalGroupsSequence": [shared],
            "PerFrameFunctionalGroupsSequence": frames,
            "DimensionOrganizationSequence": [{"DimensionOrganizationUID": organization}],
            "DimensionIndexSequence": [
                {
                    "DimensionOrganizationUID": organization,
                    "DimensionIndexPointer": 0x00209057,  # In-Stack Position Number
                    "FunctionalGroupPointer": 0x00209111,  # Frame Content Sequence
                }
            ],
        },
    )


def _seal(made: Dataset, stored: NDArray[np.uint16], transfer_syntax: str) -> None:
    """Add pixels and file meta in the wanted transfer syntax."""
    syntax = UID(transfer_syntax)
    made.file_meta = FileMetaDataset()
    made.file_meta.MediaStorageSOPClassUID = made.SOPClassUID
    made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID
    native = ExplicitVRLittleEndian if syntax.is_compressed else syntax
    made.file_meta.TransferSyntaxUID = native
    order = ">u2" if native == ExplicitVRBigEndian else "<u2"
    made.add_new("PixelData", "OW", stored.astype(order).tobytes())
    if native != syntax:
        made.compress(syntax, generate_instance_uid=False)


FIXED: Final[dict[str, Any]] = {
    "SpecificCharacterSet": "ISO_IR 192",
    "PatientBirthDate": "19600101",
    "PatientSex": "O",
    "StudyDate": "20260105",
    "StudyTime": "091500",
    "SeriesDate": "20260105",
    "SeriesTime": "091600",
    "ContentDate": "20260105",
    "ContentTime": "091700",
    "ReferringPhysicianName": "",
    "PatientPosition": "HFS",
    "PositionReferenceIndicator": "",
    "Manufacturer": "LaMed Node",
    "ManufacturerModelName": "Synthetic sample",
    "DeviceSerialNumber": "0",
    "SoftwareVersions": "1",
    "AcquisitionNumber": 1,
    "SamplesPerPixel": 1,
    "PhotometricInterpretation": "MONOCHROME2",
    "BitsAllocated": 16,
    "BitsStored": BITS_STORED,
    "HighBit": BITS_STORED - 1,
    "PixelRepresentation": 0,
}
CLASSIC: Final[dict[str, dict[str, Any]]] = {
    "CT": {
        "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
        "KVP": "120",
        "ConvolutionKernel": "STANDARD",
        "RescaleIntercept": str(CT_INTERCEPT),
        "RescaleSlope": "1",
        "RescaleType": "HU",
        "WindowCenter": "40",
        "WindowWidth": "400",
    },
    "MR": {
        "ImageType": ["ORIGINAL", "PRIMARY", "OTHER"],
        "ScanningSequence": "SE",
        "SequenceVariant": "NONE",
        "ScanOptions": "",
        "MRAcquisitionType": "2D",
        "RepetitionTime": "500",
        "EchoTime": "15",
        "EchoTrainLength": 1,
        "WindowCenter": "400",
        "WindowWidth": "800",
    },
}
_FRAME_TYPE: Final = ["DERIVED", "PRIMARY", "VOLUME", "NONE"]
_DERIVED: Final[dict[str, Any]] = {
    "PixelPresentation": "MONOCHROME",
    "VolumetricProperties": "VOLUME",
    "VolumeBasedCalculationTechnique": "NONE",
}
_MR_TYPE: Final[dict[str, Any]] = _DERIVED | {
    "ComplexImageComponent": "MAGNITUDE",
    "AcquisitionContrast": "T1",
}
_ENHANCED: Final[dict[str, Any]] = {
    "ImageType": _FRAME_TYPE,
    "InstanceCreationDate": "20260105",
    "AcquisitionDateTime": "20260105091700",
    "AcquisitionDuration": 10.0,
    "ContentQualification": "RESEARCH",
    "BurnedInAnnotation": "NO",
    "LossyImageCompression": "00",
    "PresentationLUTShape": "IDENTITY",
    "AcquisitionContextSequence": [],
}
ENHANCED: Final[dict[str, dict[str, Any]]] = {
    "CT": _ENHANCED | _DERIVED,
    "MR": _ENHANCED
    | _MR_TYPE
    | {
        "ResonantNucleus": "1H",
        "KSpaceFiltering": "NONE",
        "MagneticFieldStrength": 1.5,
        "ApplicableSafetyStandardAgency": "IEC",
    },
}


def _pixel_values(intercept: int, unit: str) -> dict[str, Any]:
    return {
        "PixelValueTransformationSequence": [
            {"RescaleIntercept": str(intercept), "RescaleSlope": "1", "RescaleType": unit}
        ],
    }


_ANATOMY_CODES: Final[dict[str, dict[str, str]]] = {
    "CT": {"CodeValue": "51185008", "CodingSchemeDesignator": "SCT", "CodeMeaning": "Chest"},
    "MR": {"CodeValue": "12738006", "CodingSchemeDesignator": "SCT", "CodeMeaning": "Brain"},
}
SHARED: Final[dict[str, dict[str, Any]]] = {
    modality: {"FrameAnatomySequence": [{"FrameLaterality": "U", "AnatomicRegionSequence": [code]}]}
    for modality, code in _ANATOMY_CODES.items()
}
SHARED["CT"] |= _pixel_values(CT_INTERCEPT, "HU") | {
    "IrradiationEventIdentificationSequence": [{"IrradiationEventUID": _uid("no irradiation")}],
    "CTImageFrameTypeSequence": [_DERIVED | {"FrameType": _FRAME_TYPE}],
}
SHARED["MR"] |= _pixel_values(0, "US") | {
    "MRImageFrameTypeSequence": [_MR_TYPE | {"FrameType": _FRAME_TYPE}],
}
