import shutil
from pathlib import Path

import pydicom
import pytest

from dicom_node.errors import Mismatch, NotDicom
from dicom_node.ledger import Ledger
from dicom_node.spool import Spool
from dicom_node.spool.arrivals import Arrival, NoStorage


def test_a_file_is_stored_as_if_it_had_come_by_c_store(
    spool: Spool, ledger: Ledger, ct_files: list[Path]
) -> None:
    for _ in range(2):
        stored = Arrival.of(bytearray(ct_files[0].read_bytes()), "a folder").store(spool)
    head = pydicom.dcmread(stored.path)
    assert head == pydicom.dcmread(ct_files[0])
    assert [each.kind for each in ledger.events() if each.kind.startswith("instance")] == [
        "instance.stored",
        "instance.duplicate",
    ]


def test_of_another_study_nothing_is_stored(
    spool: Spool, ledger: Ledger, ct_files: list[Path]
) -> None:
    arrival = Arrival.of(bytearray(ct_files[0].read_bytes()), "a folder")
    with pytest.raises(Mismatch, match=r"study 1\.2\.3 was announced"):
        arrival.store(spool, study_uid="1.2.3")
    assert not ledger.studies()


def test_what_is_no_storage_class_is_not_stored(
    spool: Spool, ct_files: list[Path], tmp_path: Path
) -> None:
    ds = pydicom.dcmread(ct_files[0])
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.1.3.10"
    ds.save_as(tmp_path / "directory")
    with pytest.raises(NoStorage) as caught:
        Arrival.of(bytearray((tmp_path / "directory").read_bytes()), "a folder").store(spool)
    assert caught.value.status == 0x0122


@pytest.mark.parametrize(
    "content", [b"", b"x" * 200, bytes(128) + b"DICM", bytes(128) + b"DICM" + b"\x02\x00" * 9]
)
def test_what_is_no_file_of_part_10_is_told(content: bytes) -> None:
    with pytest.raises(NotDicom):
        Arrival.of(bytearray(content), "a folder")


def test_a_uid_that_is_a_path_stays_in_the_spool(
    spool: Spool, ledger: Ledger, ct_files: list[Path], tmp_path: Path
) -> None:
    content = ct_files[0].read_bytes()
    uid = str(pydicom.dcmread(ct_files[0]).SOPInstanceUID)
    evil = ("../" * 30)[: len(uid)].encode()
    before = {each for each in tmp_path.rglob("*") if "node" not in each.parts}
    stored = Arrival.of(bytearray(content.replace(uid.encode(), evil)), "a folder").store(spool)
    assert stored.path.name.startswith("x-")
    assert {each for each in tmp_path.rglob("*") if "node" not in each.parts} == before
    shutil.rmtree(stored.path.parent)
    assert ledger.studies()
