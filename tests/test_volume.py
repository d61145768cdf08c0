import copy
import subprocess
from collections.abc import Callable
from pathlib import Path

import highdicom as hd
import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import Dataset, dcmread, dcmwrite
from pydicom.sr.codedict import codes
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
    SecondaryCaptureImageStorage,
)

from dicom_node import volume
from dicom_node.demo import sample
from dicom_node.errors import Unavailable, UnusableSeries

SHAPE = (6, 40, 34)
VOXELS = np.random.default_rng(1).integers(-1024, 3072, SHAPE)
ROTATED = np.linalg.qr(np.random.default_rng(2).normal(size=(3, 3)))[0]
SYNTAXES = {
    "implicit": ImplicitVRLittleEndian,
    "explicit": ExplicitVRLittleEndian,
    "big endian": ExplicitVRBigEndian,
    "deflated": DeflatedExplicitVRLittleEndian,
    "RLE": RLELossless,
    "JPEG 2000": JPEG2000Lossless,
    "JPEG-LS": JPEGLSLossless,
}

Change = Callable[[list[Dataset]], object]


@pytest.fixture
def ct() -> list[Dataset]:
    return sample.series(voxels=VOXELS)


def values(instances: list[Dataset] | list[Path]) -> NDArray[np.float32]:
    return volume.load(instances).image.array


def refusal(instances: list[Dataset] | list[Path]) -> UnusableSeries:
    with pytest.raises(UnusableSeries) as caught:
        volume.load(instances)
    return caught.value


def restore(instance: Dataset, stored: NDArray[np.integer]) -> None:
    """Put other stored pixels into an instance."""
    instance.PixelData = stored.tobytes()


# What comes out.


def test_values_are_hounsfield_units_feet_first(ct: list[Dataset]) -> None:
    image = volume.load(ct).image
    assert image.array.dtype == np.float32
    assert image.array.flags.c_contiguous
    assert np.array_equal(image.array, VOXELS)
    assert image.spatial_shape == SHAPE
    assert image.frame_of_reference_uid == ct[0].FrameOfReferenceUID
    assert np.array_equal(image.affine[:3, 3], sample.ORIGIN)


def test_a_stack_from_head_to_foot_is_turned() -> None:
    head_first = np.array(sample.AXIAL).T * [-1, 1, 1]
    assert np.array_equal(values(sample.series(voxels=VOXELS, directions=head_first)), VOXELS[::-1])


def test_place_decides_and_not_the_instance_number(ct: list[Dataset]) -> None:
    for number, instance in enumerate(ct):
        instance.InstanceNumber = (number * 5) % 7
    assert np.array_equal(values([ct[index] for index in (3, 0, 5, 1, 4, 2)]), VOXELS)


@pytest.mark.parametrize("name", SYNTAXES)
@pytest.mark.parametrize("form", ["classic", "multi-frame"])
def test_every_transfer_syntax_gives_the_same_values(name: str, form: str, tmp_path: Path) -> None:
    options = {"voxels": VOXELS, "transfer_syntax": SYNTAXES[name], "directions": ROTATED}
    made = [sample.enhanced(**options)] if form == "multi-frame" else sample.series(**options)
    expected = values(sample.series(voxels=VOXELS, directions=ROTATED))
    assert np.array_equal(values(made), expected)
    assert np.array_equal(values(sample.write(made, tmp_path)), expected)


@pytest.mark.parametrize("option", ["--encode-lossless-sv1", "--encode-lossless"])
def test_lossless_jpeg_gives_the_same_values(
    ct: list[Dataset], option: str, tmp_path: Path
) -> None:
    for path in sample.write(ct, tmp_path):
        subprocess.run(["/usr/bin/dcmcjpeg", option, path, path], check=True)
    assert np.array_equal(values(list(tmp_path.iterdir())), VOXELS)


def test_magnetic_resonance_is_read_as_stored() -> None:
    voxels = np.abs(VOXELS)
    assert np.array_equal(values(sample.series(modality="MR", voxels=voxels)), voxels)
    assert np.array_equal(values([sample.enhanced(modality="MR", voxels=voxels)]), voxels)


def test_each_slice_has_its_own_rescale(ct: list[Dataset]) -> None:
    ct[2].RescaleSlope, ct[2].RescaleIntercept = "0.5", "10"
    del ct[3].RescaleSlope, ct[3].RescaleIntercept
    found = values(ct)
    assert np.array_equal(found[2], (VOXELS[2] + 1024) * 0.5 + 10)
    assert np.array_equal(found[3], VOXELS[3] + 1024)
    assert np.array_equal(found[4], VOXELS[4])


def test_bits_above_the_stored_ones_are_dropped(ct: list[Dataset]) -> None:
    for instance in ct:
        restore(instance, instance.pixel_array | 0xA000)
    assert np.array_equal(values(ct), VOXELS)


def test_signed_pixels_of_fewer_bits_keep_their_sign(ct: list[Dataset]) -> None:
    stored = np.clip(VOXELS, -1024, 1023).astype(np.int16)
    for instance, pixels in zip(ct, stored, strict=True):
        instance.PixelRepresentation = 1
        instance.RescaleIntercept = "0"
        restore(instance, pixels & 0x0FFF)
    assert np.array_equal(values(ct), stored)


def test_pixels_of_eight_bits_are_read(ct: list[Dataset]) -> None:
    for instance in ct:
        instance.BitsAllocated = instance.BitsStored = 8
        instance.HighBit = 7
        restore(instance, (instance.pixel_array_ if False else VOXELS[0] % 200).astype(np.uint8))
    assert np.array_equal(values(ct)[3], VOXELS[0] % 200 - 1024)


@pytest.mark.parametrize("value", [-2000, 63536])
def test_padding_becomes_the_lowest_measured_value(ct: list[Dataset], value: int) -> None:
    for instance, slice_voxels in zip(ct, VOXELS, strict=True):
        stored = np.maximum(slice_voxels, -900).astype(np.int16)
        stored[:5] = -2000
        instance.PixelRepresentation, instance.BitsStored, instance.HighBit = 1, 16, 15
        instance.RescaleIntercept = "-24"
        # Scanners write the value unsigned even where pixels are signed.
        instance.add_new("PixelPaddingValue", "US" if value > 0 else "SS", value)
        restore(instance, stored)
    found = values(ct)
    assert np.array_equal(found[:, 5:], np.maximum(VOXELS[:, 5:], -900) - 24)
    assert (found[:, :5] == found[:, 5:].min()).all()


def test_a_range_of_padding_is_padding(ct: list[Dataset]) -> None:
    for instance in ct:
        instance.add_new("PixelPaddingValue", "US", 0)
        instance.add_new("PixelPaddingRangeLimit", "US", 100)
    assert values(ct).min() == VOXELS[VOXELS > -924].min()


def test_an_instance_that_came_twice_counts_once(ct: list[Dataset], tmp_path: Path) -> None:
    twice = [*ct, *sample.series(voxels=VOXELS)[:2]]
    assert np.array_equal(values(twice), VOXELS)
    assert np.array_equal(values([*sample.write(ct, tmp_path / "a"), *ct[:2]]), VOXELS)


def test_what_was_given_is_not_changed(ct: list[Dataset]) -> None:
    enhanced = sample.enhanced(voxels=VOXELS)
    before = [each.to_json() for each in (*ct, enhanced)]
    loaded = volume.load(ct), volume.load([enhanced])
    for each in loaded:
        each.sources[0].PatientName = "CHANGED"
    assert [each.to_json() for each in (*ct, enhanced)] == before


# The way back.


def seg(source: volume.SourceVolume, mask: hd.Volume) -> hd.seg.Segmentation:
    return hd.seg.Segmentation(
        source_images=source.sources,
        pixel_array=mask,
        segmentation_type="BINARY",
        segment_descriptions=[
            hd.seg.SegmentDescription(
                1, "Lung", codes.SCT.AnatomicalStructure, codes.SCT.Lung, "MANUAL"
            )
        ],
        series_instance_uid=hd.UID(),
        series_number=9,
        sop_instance_uid=hd.UID(),
        instance_number=1,
        manufacturer="Test",
        manufacturer_model_name="Test",
        software_versions="1",
        device_serial_number="1",
    )


def referred(made: hd.seg.Segmentation) -> list[str]:
    return [
        each.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        for each in made.PerFrameFunctionalGroupsSequence
    ]


@pytest.mark.parametrize("kind", [bool, np.uint8])
def test_a_mask_goes_back_to_the_slices_as_they_were_sent(kind: type) -> None:
    directions = np.array(sample.AXIAL).T[:, [2, 0, 1]] * [1, -1, 1]
    instances = sample.series(voxels=VOXELS, directions=directions)
    source = volume.load(instances)
    back = source.on_source((source.image.array > 1000).astype(kind))
    assert back.array.dtype == kind
    for header, found in zip(source.sources, back.array, strict=True):
        index = int(header.InstanceNumber) - 1
        assert header.SOPInstanceUID == instances[index].SOPInstanceUID
        assert np.array_equal(found, VOXELS[index] > 1000)


def test_sources_hold_no_pixels_and_make_a_seg(ct: list[Dataset], tmp_path: Path) -> None:
    for given in (ct, sample.write(ct, tmp_path), [sample.enhanced(voxels=VOXELS)]):
        source = volume.load(given)
        assert not any("PixelData" in each for each in source.sources)
        made = seg(source, source.on_source(source.image.array > 1000))
        assert len(made.PerFrameFunctionalGroupsSequence) == SHAPE[0]
        assert made.PatientID == ct[0].PatientID


def test_rounded_positions_and_directions_keep_their_references() -> None:
    ct = sample.series(shape=(30, 20, 20), spacing_mm=(0.625, 1, 1), directions=ROTATED)
    for index, instance in enumerate(ct):
        place = np.array(instance.ImagePositionPatient, float)
        instance.ImagePositionPatient = [f"{each:.2f}" for each in place]
        noise = 1e-6 * (index % 2)
        instance.ImageOrientationPatient = [
            f"{each + noise:.6f}" for each in np.array(instance.ImageOrientationPatient, float)
        ]
    source = volume.load(ct)
    made = seg(source, source.on_source(np.ones(source.image.spatial_shape, bool)))
    assert sorted(referred(made)) == sorted(each.SOPInstanceUID for each in ct)


def test_frames_in_any_order_with_their_own_orientation_are_stacked() -> None:
    multi = sample.enhanced(voxels=VOXELS)
    shared = multi.SharedFunctionalGroupsSequence[0]
    moved = (
        "PlaneOrientationSequence",
        "PixelMeasuresSequence",
        "PixelValueTransformationSequence",
    )
    order = [4, 2, 0, 5, 1, 3]
    groups = [multi.PerFrameFunctionalGroupsSequence[index] for index in order]
    for group in groups:
        for sequence in moved:
            setattr(group, sequence, [Dataset(shared[sequence][0])])
    for sequence in moved:
        del shared[sequence]
    multi.PerFrameFunctionalGroupsSequence = groups
    restore(multi, multi.pixel_array[order])
    source = volume.load([multi])
    assert np.array_equal(source.image.array, VOXELS)
    made = seg(source, source.on_source(source.image.array > 1000))
    for frame in made.PerFrameFunctionalGroupsSequence:
        number = frame.DerivationImageSequence[0].SourceImageSequence[0].ReferencedFrameNumber
        place = groups[int(number) - 1].PlanePositionSequence[0].ImagePositionPatient
        assert frame.PlanePositionSequence[0].ImagePositionPatient == place


# What is refused, and why.


def every(change: Callable[[Dataset], object]) -> Change:
    return lambda ct: [change(each) for each in ct]


def assign(**attributes: object) -> Callable[[Dataset], object]:
    return lambda each: [setattr(each, *pair) for pair in attributes.items()]


def insert_again(ct: list[Dataset], **changes: object) -> None:
    ct.append(copy.deepcopy(ct[1]))
    assign(**changes)(ct[-1])


def truncate(each: Dataset) -> None:
    each.PixelData = each.PixelData[:-100]


def lean(ct: list[Dataset]) -> None:
    for index, each in enumerate(ct):
        x, y, z = map(float, each.ImagePositionPatient)
        each.ImagePositionPatient = [x, y + 0.5 * index, z]


def repeat(ct: list[Dataset]) -> None:
    again = sample.series(voxels=VOXELS, seed=1)
    for one, other in zip(ct, again, strict=True):
        other.SeriesInstanceUID, other.StudyInstanceUID = (
            one.SeriesInstanceUID,
            one.StudyInstanceUID,
        )
        other.PatientID, other.FrameOfReferenceUID = one.PatientID, one.FrameOfReferenceUID
        other.EchoTime = 80
    ct.extend(again)


def drop(keyword: str) -> Callable[[Dataset], object]:
    return lambda each: delattr(each, keyword)


REFUSED: dict[str, tuple[str, Change]] = {
    "a missing slice": ("missing-slice", lambda ct: ct.pop(2)),
    "a moved slice": (
        "irregular-spacing",
        lambda ct: assign(ImagePositionPatient=[*sample.ORIGIN[:2], -306.0])(ct[1]),
    ),
    "a leaning stack": ("gantry-tilt", lean),
    "another size": ("two-grids", lambda ct: assign(Rows=34, Columns=40)(ct[1])),
    "another spacing": ("two-grids", lambda ct: assign(PixelSpacing=[1, 1])(ct[1])),
    "another frame of reference": (
        "two-grids",
        lambda ct: assign(FrameOfReferenceUID="1.2")(ct[1]),
    ),
    "another cut": (
        "two-grids",
        lambda ct: assign(ImageOrientationPatient=[0, 1, 0, 0, 0, -1])(ct[1]),
    ),
    "a localizer": (
        "localizer",
        lambda ct: assign(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])(ct[1]),
    ),
    "two slices": ("too-few-slices", lambda ct: ct.__delitem__(slice(2, None))),
    "nothing": ("too-few-slices", lambda ct: ct.clear()),
    "colour": (
        "colour",
        every(assign(SamplesPerPixel=3, PhotometricInterpretation="RGB", PlanarConfiguration=0)),
    ),
    "a palette": ("colour", every(assign(PhotometricInterpretation="PALETTE COLOR"))),
    "inverted grey": ("inverted-grey", every(assign(PhotometricInterpretation="MONOCHROME1"))),
    "no frame of reference": ("no-frame-of-reference", every(drop("FrameOfReferenceUID"))),
    "no position": ("no-geometry", lambda ct: drop("ImagePositionPatient")(ct[1])),
    "no orientation": ("no-geometry", lambda ct: drop("ImageOrientationPatient")(ct[1])),
    "no spacing": ("no-geometry", lambda ct: assign(PixelSpacing=None)(ct[1])),
    "spacing of zero": ("no-geometry", every(assign(PixelSpacing=[0, 0]))),
    "a slope of zero": ("no-rescale", lambda ct: assign(RescaleSlope=0)(ct[1])),
    "a second slice in one place": (
        "duplicate-position",
        lambda ct: insert_again(ct, SOPInstanceUID="1.2.3"),
    ),
    "two echoes": ("several-stacks", repeat),
    "cut pixels": ("truncated-pixels", lambda ct: truncate(ct[4])),
    "no pixels": ("not-an-image", lambda ct: drop("PixelData")(ct[4])),
    "no rows": ("not-an-image", lambda ct: drop("Rows")(ct[4])),
    "a screenshot": (
        "unsupported-class",
        lambda ct: assign(SOPClassUID=SecondaryCaptureImageStorage)(ct[4]),
    ),
    "another series": ("two-series", lambda ct: assign(SeriesInstanceUID="1.2")(ct[4])),
    "another patient": ("two-series", lambda ct: assign(PatientID="OTHER")(ct[4])),
    "pixels of 12 bits": ("undecodable", every(assign(BitsAllocated=12))),
    "more bits than fit": ("undecodable", every(assign(BitsStored=17))),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_series_is_refused_with_the_reason(ct: list[Dataset], name: str, tmp_path: Path) -> None:
    reason, change = REFUSED[name]
    change(ct)
    assert refusal(ct).reason == reason
    for index, each in enumerate(ct):
        dcmwrite(tmp_path / f"{index}.dcm", each, enforce_file_format=True)
    assert refusal(sorted(tmp_path.iterdir())).reason == reason


def test_two_different_instances_of_one_uid_are_refused(ct: list[Dataset]) -> None:
    other = sample.series(voxels=VOXELS)[1]
    other.RescaleIntercept = "0"
    assert refusal([*ct, other]).reason == "duplicate-position"


@pytest.mark.parametrize("size", [0, 100, 131, 300])
def test_a_file_that_is_cut_in_its_header_is_no_image(
    ct: list[Dataset], tmp_path: Path, size: int
) -> None:
    paths = sample.write(ct, tmp_path)
    paths[2].write_bytes(paths[2].read_bytes()[:size])
    assert refusal(paths).reason == "not-an-image"


def test_a_file_that_is_cut_in_its_pixels_is_named(ct: list[Dataset], tmp_path: Path) -> None:
    paths = sample.write(ct, tmp_path)
    paths[2].write_bytes(paths[2].read_bytes()[:-1])
    error = refusal(paths)
    assert error.reason == "truncated-pixels"
    assert ct[2].SOPInstanceUID in str(error)


def test_text_is_no_image(tmp_path: Path) -> None:
    path = tmp_path / "notes.dcm"
    path.write_text("not an image " * 100)
    assert refusal([path]).reason == "not-an-image"


@pytest.mark.parametrize("name", ["RLE", "JPEG 2000", "JPEG-LS"])
@pytest.mark.filterwarnings("ignore")
def test_broken_compressed_pixels_name_the_instance(name: str, tmp_path: Path) -> None:
    paths = sample.write(sample.series(voxels=VOXELS, transfer_syntax=SYNTAXES[name]), tmp_path)
    broken = dcmread(paths[1])
    middle = len(broken.PixelData) // 2
    broken.PixelData = broken.PixelData[:60] + bytes(middle - 60) + broken.PixelData[middle:]
    broken.save_as(paths[1])
    error = refusal(paths)
    assert error.reason == "undecodable"
    assert broken.SOPInstanceUID in str(error)


def test_several_multi_frame_instances_are_refused() -> None:
    other = sample.enhanced(shape=SHAPE)
    other.SOPInstanceUID = "1.2.3"
    assert refusal([sample.enhanced(shape=SHAPE), other]).reason == "several-stacks"


def test_frames_without_places_are_refused() -> None:
    multi = sample.enhanced(shape=SHAPE)
    del multi.PerFrameFunctionalGroupsSequence[-1]
    assert refusal([multi]).reason == "no-geometry"


def test_a_localizer_frame_is_refused() -> None:
    multi = sample.enhanced(shape=SHAPE)
    kind = multi.SharedFunctionalGroupsSequence[0].CTImageFrameTypeSequence[0]
    kind.FrameType = ["ORIGINAL", "PRIMARY", "LOCALIZER", "NONE"]
    assert refusal([multi]).reason == "localizer"


# The real one.


def test_a_real_chest_ct_is_read_as_it_lies_in_the_patient() -> None:
    try:
        folder = sample.chest_ct(Path(".cache"))
    except Unavailable as error:
        pytest.skip(str(error))
    source = volume.load(list(folder.iterdir()))
    assert source.image.spatial_shape == (61, 512, 512)
    assert source.spacing_mm == pytest.approx((5.0, 0.78125, 0.78125))
    assert np.array_equal(source.image.affine[:3, 3], [-200.0, -200.0, -267.25])
    highest = max(int(each.InstanceNumber) for each in source.sources)
    assert source.sources[0].InstanceNumber == highest  # it was sent from head to foot
    seen = dcmread(folder / "1-01.dcm")
    assert np.array_equal(source.image.array[-1], seen.pixel_array - 1024.0)
