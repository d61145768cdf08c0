import struct
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)

from dicom_node.demo import sample
from dicom_node.errors import BadInput, NotDicom
from dicom_node.spool import header

SYNTAXES = (ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian)


def encoded(dataset: Dataset, syntax: str = ExplicitVRLittleEndian) -> bytes:
    raw = DicomBytesIO()
    raw.is_little_endian = syntax != ExplicitVRBigEndian
    raw.is_implicit_VR = syntax == ImplicitVRLittleEndian
    write_dataset(raw, dataset)
    return raw.getvalue()


@pytest.fixture
def ct() -> Dataset:
    dataset = sample.series(shape=(1, 16, 16))[0]
    inner = Dataset()
    inner.PatientID = "of another"
    inner.ReferencedSOPSequence = Sequence([Dataset()])
    for each in (inner, inner.ReferencedSOPSequence[0]):
        each.is_undefined_length_sequence_item = True
    dataset.OtherPatientIDsSequence = Sequence([inner])
    dataset["OtherPatientIDsSequence"].is_undefined_length = True
    inner["ReferencedSOPSequence"].is_undefined_length = True
    return dataset


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_the_identity_is_that_of_the_data_set_and_of_no_item(ct: Dataset, syntax: str) -> None:
    found = header.read(encoded(ct, syntax), syntax)
    assert found == {name: str(ct.get(key, "")) for name, key in header.HEADER.items()}


@pytest.mark.parametrize("syntax", SYNTAXES[:2])
def test_what_is_in_order_is_read_by_the_scan(ct: Dataset, syntax: str) -> None:
    raw = encoded(ct, syntax)
    scanned = header._scanned(raw, explicit=syntax == ExplicitVRLittleEndian)
    assert scanned == header._read(raw, syntax)


def test_texts_are_decoded_by_the_character_set_of_the_data_set(ct: Dataset) -> None:
    ct.SpecificCharacterSet = "ISO_IR 144"
    ct.PatientName = "Люксембург"
    assert header.read(encoded(ct), ExplicitVRLittleEndian)["patient_name"] == "Люксембург"
    ct.SpecificCharacterSet = ["", "ISO 2022 IR 87"]
    ct.PatientName = "Yamada^Tarou=山田^太郎"
    assert header.read(encoded(ct), ExplicitVRLittleEndian)["patient_name"] == ct.PatientName


def test_compressed_pixels_end_the_data_set() -> None:
    ct = sample.series(shape=(1, 16, 16), transfer_syntax=RLELossless)[0]
    raw = encoded(ct)
    assert header._scanned(raw, explicit=True) is not None
    with pytest.raises(NotDicom, match="no end of their last fragment"):
        header.read(raw[:-8], RLELossless)


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_wherever_it_is_cut_it_is_refused_or_whole(ct: Dataset, syntax: str) -> None:
    raw, first = encoded(ct, syntax), Dataset()
    whole = set()
    for element in ct:
        first.add(element)
        whole.add(len(encoded(first, syntax)))
    for end in range(0, len(raw), 7):
        rest = raw[max([0, *(each for each in whole if each <= end)]) : end]
        if rest.strip(b"\0"):  # else it is whole, or whole with zeros after it
            with pytest.raises(BadInput):
                header.read(raw[:end], syntax)


def test_elements_without_end_are_not_counted_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(header, "MOST_ELEMENTS", 1000)
    many = b"".join(struct.pack("<HHI", 9, 0x1000 + number, 0) for number in range(2000))
    for raw in (many, struct.pack("<HHI", 0x0008, 1, 0) + struct.pack("<HHI", 8, 0, 0) + many):
        with pytest.raises(NotDicom, match="more than 1000 elements"):
            header.read(raw, ImplicitVRLittleEndian)


def test_items_in_items_without_end_are_refused() -> None:
    deep = struct.pack("<HHI", 0x0008, 0x1140, header.UNDEFINED)
    nested = (struct.pack("<II", header.ITEM, header.UNDEFINED) + deep) * 5000
    with pytest.raises(BadInput):
        header.read(deep + nested, ImplicitVRLittleEndian)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_the_scan_and_pydicom_agree_on_what_is_changed(data: st.DataObject) -> None:
    raw = bytearray(encoded(sample.series(shape=(1, 8, 8))[0]))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    scanned = header._scanned(bytes(raw), explicit=True)
    if scanned is not None:
        # pydicom decodes values that the scan only copies: of those it may find one broken.
        with suppress(NotDicom):
            assert header._read(bytes(raw), ExplicitVRLittleEndian) == scanned


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=400), st.sampled_from([*SYNTAXES, DeflatedExplicitVRLittleEndian]))
def test_any_bytes_get_an_answer(raw: bytes, syntax: str) -> None:
    with pytest.raises(BadInput):
        header.read(raw, syntax)
