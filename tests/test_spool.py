import struct
import subprocess
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.uid import RLELossless

from dicom_node.config import Config
from dicom_node.demo import sample
from dicom_node.errors import Mismatch, NotDicom, OutOfResources
from dicom_node.ledger import Ledger
from dicom_node.spool import Announced, Spool


@pytest.fixture
def ct() -> Dataset:
    return sample.series(shape=(3, 16, 16))[0]


def encoded(instance: Dataset) -> bytes:
    file = BytesIO()
    instance.save_as(file, enforce_file_format=True)
    (meta_length,) = struct.unpack_from("<I", file.getvalue(), 128 + 4 + 8)
    return file.getvalue()[128 + 4 + 12 + meta_length :]


def announced(instance: Dataset) -> Announced:
    return Announced(
        str(instance.SOPClassUID),
        str(instance.SOPInstanceUID),
        str(instance.file_meta.TransferSyntaxUID),
        "SCANNER",
    )


def files(spool_dir: Path) -> list[Path]:
    return sorted(path for path in spool_dir.rglob("*") if path.is_file())


def test_an_instance_is_kept_as_it_came(spool: Spool, ledger: Ledger, ct: Dataset) -> None:
    stored = spool.store(encoded(ct), announced(ct))
    assert stored.path.read_bytes().endswith(encoded(ct))
    assert pydicom.dcmread(stored.path) == ct
    assert ledger.instances(str(ct.StudyInstanceUID)) == [stored]
    assert stored.path.parts[-3:] == (
        ct.StudyInstanceUID,
        ct.SeriesInstanceUID,
        f"{ct.SOPInstanceUID}.dcm",
    )


def test_the_same_instance_again_changes_nothing(spool: Spool, ledger: Ledger, ct: Dataset) -> None:
    first = spool.store(encoded(ct), announced(ct))
    assert spool.store(encoded(ct), announced(ct)) == first
    assert [each.kind for each in ledger.events()][-1] == "instance.duplicate"


def test_another_content_of_the_same_uid_is_current_and_the_earlier_one_stays(
    spool: Spool, ledger: Ledger, ct: Dataset
) -> None:
    first = spool.store(encoded(ct), announced(ct))
    ct.SeriesDescription = "corrected"
    later = spool.store(encoded(ct), announced(ct))
    assert first.path.exists()
    assert pydicom.dcmread(later.path).SeriesDescription == "corrected"
    assert ledger.instances(str(ct.StudyInstanceUID)) == [later]


@pytest.mark.parametrize("cut", [1, 40, 200, 500])
def test_a_data_set_cut_short_is_refused_and_leaves_nothing(
    spool: Spool, ledger: Ledger, ct: Dataset, cut: int
) -> None:
    with pytest.raises(NotDicom):
        spool.store(encoded(ct)[:-cut], announced(ct))
    assert files(spool._root) == []
    assert ledger.events() == []


def test_compressed_pixels_cut_short_are_refused(spool: Spool) -> None:
    compressed = sample.series(shape=(3, 16, 16), transfer_syntax=RLELossless)[0]
    stored = spool.store(encoded(compressed), announced(compressed))
    assert pydicom.dcmread(stored.path).pixel_array.shape == (16, 16)
    with pytest.raises(NotDicom, match="cut short"):
        spool.store(encoded(compressed)[:-8], announced(compressed))


@pytest.mark.parametrize(
    "garbage", [b"", b"no DICOM at all", b"\x00" * 4096, bytes(range(256)) * 8]
)
def test_garbage_is_refused(spool: Spool, ct: Dataset, garbage: bytes) -> None:
    with pytest.raises(NotDicom):
        spool.store(garbage, announced(ct))


def test_another_instance_than_the_announced_one_is_refused(spool: Spool, ct: Dataset) -> None:
    with pytest.raises(Mismatch, match=r"1\.2\.3 was announced"):
        spool.store(encoded(ct), replace(announced(ct), sop_uid="1.2.3"))


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("uid", ["../../../etc/passwd", "..", "1/2", "1" * 65, "a b"])
def test_no_uid_leads_out_of_the_spool(spool: Spool, ct: Dataset, uid: str) -> None:
    with pydicom.config.disable_value_validation():
        ct.StudyInstanceUID = uid
        ct.SOPInstanceUID = uid
        raw = DicomBytesIO()
        raw.is_little_endian, raw.is_implicit_VR = True, False
        write_dataset(raw, ct)
        stored = spool.store(raw.getvalue(), replace(announced(ct), sop_uid=uid))
    assert stored.path.resolve().is_relative_to(spool._root)
    assert stored.path.name.startswith("x-")


def test_too_little_room_is_said_before_anything_is_written(
    config: Config, ledger: Ledger, ct: Dataset
) -> None:
    spool = Spool(config.spool_dir, ledger, minimum_free_mb=1 << 30)
    with pytest.raises(OutOfResources, match="MB free"):
        spool.store(encoded(ct), announced(ct))
    assert files(config.spool_dir) == []


def test_a_full_disk_is_said_and_leaves_no_debris(tmp_path: Path, ledger: Ledger) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", small], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip("only root can mount a small file system")
    try:
        spool = Spool(small, ledger, minimum_free_mb=0)
        big = sample.series(shape=(3, 256, 256))[0]
        with pytest.raises(OutOfResources, match=r"cannot store|free"):
            spool.store(encoded(big), announced(big))
        assert files(small) == []
    finally:
        subprocess.run(["umount", small], check=True)


def test_a_crash_between_rename_and_ledger_is_made_good(
    config: Config, spool: Spool, ct: Dataset
) -> None:
    stored = spool.store(encoded(ct), announced(ct))
    (config.spool_dir / "incoming" / "half.partial").write_bytes(b"half")
    (stored.path.parent / "1.2.dcm").write_bytes(b"not DICOM")
    with Ledger(config.data_dir / "empty.sqlite") as lost:
        again = Spool(config.spool_dir, lost, minimum_free_mb=1)
        assert again.recover() == 1
        assert lost.instance(stored.study_uid, stored.sop_uid).sha256 == stored.sha256
        assert "spool.unreadable" in [each.kind for each in lost.events()]
        assert again.recover() == 0
    assert list((config.spool_dir / "incoming").iterdir()) == []


def test_a_name_that_a_power_cut_took_back_is_given_again(
    config: Config, spool: Spool, ledger: Ledger, ct: Dataset
) -> None:
    stored = spool.store(encoded(ct), announced(ct))
    incoming = config.spool_dir / "incoming"
    stored.path.rename(incoming / f"{stored.sha256}.0123.partial")
    stored.path.parent.rmdir()
    (incoming / f"{'0' * 64}.4567.partial").write_bytes(b"of nobody")
    again = Spool(config.spool_dir, ledger, minimum_free_mb=1)
    assert again.recover() == 0
    assert pydicom.dcmread(stored.path) == ct
    assert list(incoming.iterdir()) == []
