"""The real half of the corpus: one real CT and its label map, bent into other patients.

A low-dose CT of the abdomen and the pelvis at 3 mm with the organs a network found in it, test
data of TotalSegmentator 2.18.0 (Apache-2.0), out of its source distribution on PyPI. It is fetched
by whoever needs it and never stored with this project. A patient made of it is bent, turned and
scaled, scanned in another field of view, phase and noise, with findings planted and organs taken
out; half of them keep the scanner's own texture, half are painted from the labels alone.
"""

import hashlib
import io
import re
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from model.errors import ModelError

from . import paint
from .case import Case, View, harm
from .findings import Patient
from .organs import ABDOMEN, ORGANS
from .space import Shape, Space, bend

Random = np.random.Generator
SDIST: Final = "totalsegmentator==2.18.0"
SDIST_FILE: Final = "totalsegmentator-2.18.0.tar.gz"
SDIST_SHA256: Final = "5d4223ef93973bc36d710869d11e7742ead2c154c72f7f9edcaaadd5b6c4bd03"
ROOT: Final = "totalsegmentator-2.18.0"
FOLDER: Final = f"{ROOT}/tests/reference_files"
IMAGE: Final = "example_ct.nii.gz"
LABELS: Final = "example_seg_fast_force_split.nii.gz"
DOWNLOAD_TIMEOUT_S: Final = 600
BODY_HU: Final = -300.0
FAT_HU: Final = -30.0
HALF: Final = 0.5  # a voxel reaches so far from its centre
PAINTED: Final = 0.5  # of the patients: from labels alone
VIEW: Final = View(ABDOMEN, "CT", 1.0, (270, 300, 366), (30, 0, 0), lambda _: iter(()))

# Their numbers for ours; what is not here is body, muscle or nothing.
_THEIRS: Final[Mapping[str, tuple[int, ...]]] = {
    "bowel": (15, 18, 19, 20),
    "ribs": tuple(range(92, 116)),
    "spine": tuple(range(25, 51)),
    "right psoas muscle": (89,),
    "left psoas muscle": (88,),
    "urinary bladder": (21,),
    "inferior vena cava": (63,),
    "aorta": (52,),
    "heart": (51,),
    "left lung": (10, 11),
    "right lung": (12, 13, 14),
    "stomach": (6,),
    "pancreas": (7,),
    "spleen": (1,),
    "right kidney": (2,),
    "left kidney": (3,),
    "gallbladder": (4,),
    "liver": (5,),
}


@dataclass(frozen=True, eq=False)  # arrays have no one truth
class Scan:
    """The CT in HU and our labels: foot to head, anterior to posterior, right to left."""

    voxels: NDArray[np.float32]
    labels: NDArray[np.uint8]
    spacing_mm: float = 3.0

    @classmethod
    def load(cls, cache: Path) -> "Scan":
        """Read the scan, fetching it once into `cache` (38 MB).

        Raises
        ------
        ModelError
            See `fetch`.
        """
        with tarfile.open(fetch(cache)) as files:
            voxels, theirs = (_array(files, name) for name in (IMAGE, LABELS))
        return cls(voxels.astype(np.float32), _ours(voxels, theirs.astype(int)))

    def case(self, seed: int) -> Case:
        """Make the patient of a seed out of the scan; the same seed, the same patient."""
        random = np.random.default_rng([20_260_102, seed])
        space = self._space(random)
        at = self._indices(space)
        nearest = tuple(
            np.clip(np.rint(each), 0, count - 1).astype(int)
            for each, count in zip(at, self.labels.shape, strict=True)
        )
        outside = np.zeros(space.shape, bool)
        for each, count in zip(at, self.labels.shape, strict=True):
            outside |= (each < -HALF) | (each > count - HALF)
        labels = np.where(outside, 0, self.labels[nearest]).astype(np.uint8)
        patient = Patient(space, labels.copy(), np.zeros(space.shape, np.uint8), [])
        harm(random, patient, VIEW)
        phase = paint.PHASES[int(random.integers(len(paint.PHASES)))]
        scanned = None
        if random.random() >= PAINTED:
            scanned = self._scanned(at, outside, labels != patient.labels)
        voxels = paint.computed_tomography(random, patient, phase, scanned=scanned)
        return Case(
            seed, ABDOMEN, "CT", phase, voxels, patient.labels, patient.planted,
            space.spacing_mm, tuple(patient.findings),
        )  # fmt: skip

    def _space(self, random: Random) -> Space:
        extent = np.array(VIEW.extent_mm) * random.uniform([0.75, 0.92, 0.92], [1.15, 1.08, 1.08])
        spacing = np.array([random.uniform(3.5, 7.5), *[random.uniform(2.6, 3.6)] * 2])
        slices, rows, columns = (int(each) for each in np.maximum(16, np.rint(extent / spacing)))
        grid: Shape = (slices, rows, columns)
        middle = np.array(VIEW.middle) + random.normal(0, (14, 5, 6))
        return bend(
            random,
            grid,
            (float(spacing[0]), float(spacing[1]), float(spacing[2])),
            (float(middle[0]), float(middle[1]), float(middle[2])),
            sway_mm=float(random.uniform(4, 14)),
            size=float(np.clip(random.normal(1, 0.1), 0.8, 1.25)),
        )

    def _indices(self, space: Space) -> tuple[NDArray[np.float32], ...]:
        """Where in the scan each voxel lies; zero mm is the middle of the scan."""
        return tuple(
            each / np.float32(self.spacing_mm) + np.float32((count - 1) / 2)
            for each, count in zip(space.at, self.labels.shape, strict=True)
        )

    def _scanned(
        self,
        at: tuple[NDArray[np.float32], ...],
        outside: NDArray[np.bool_],
        changed: NDArray[np.bool_],
    ) -> NDArray[np.float32]:
        """Give the scanner's own intensities; NaN where the patient is no longer as scanned."""
        from scipy.ndimage import map_coordinates

        found = np.asarray(map_coordinates(self.voxels, np.stack(at), order=1, mode="nearest"))
        found[outside] = paint.AIR_HU
        found[changed] = np.nan
        return found


def fetch(cache: Path) -> Path:
    """Give the archive the scan is in, fetching it once into `cache`.

    Raises
    ------
    ModelError
        The package index cannot be reached, what it serves is not the known file, or `cache`
        cannot be written.
    """
    archive = cache / SDIST_FILE
    try:
        if not (archive.is_file() and _sha256(archive) == SDIST_SHA256):
            _download(archive)
    except OSError as error:
        raise ModelError(f"{SDIST_FILE} cannot be kept in {cache}: {error}") from error
    return archive


def licence(cache: Path) -> str:
    """Give the text of the licence that the scan is under, which goes where the scan goes."""
    with tarfile.open(fetch(cache)) as files:
        return _member(files, f"{ROOT}/LICENSE").decode()


def _ours(voxels: NDArray[Any], theirs: NDArray[np.int_]) -> NDArray[np.uint8]:
    from scipy import ndimage

    inside = ndimage.binary_opening(voxels > BODY_HU, iterations=2)
    parts, count = ndimage.label(inside)
    largest = 1 + int(np.argmax(ndimage.sum_labels(inside, parts, range(1, count + 1))))
    body = np.stack([ndimage.binary_fill_holes(each) for each in parts == largest])
    labels = np.zeros(voxels.shape, np.uint8)
    labels[(voxels > BODY_HU) & ~body] = ORGANS["table"].number
    labels[body] = ORGANS["body"].number
    labels[body & ((voxels > FAT_HU) | (theirs > 0))] = ORGANS["muscle"].number
    for name, numbers in _THEIRS.items():
        labels[np.isin(theirs, numbers)] = ORGANS[name].number
    return labels


def _array(files: tarfile.TarFile, name: str) -> NDArray[Any]:
    """Read a NIfTI out of the archive in our order of axes."""
    import gzip

    import nibabel

    content = gzip.decompress(_member(files, f"{FOLDER}/{name}"))
    image = nibabel.Nifti1Image.from_stream(io.BytesIO(content))
    ours = nibabel.orientations.axcodes2ornt(("L", "P", "S"))
    turned = image.as_reoriented(
        nibabel.orientations.ornt_transform(nibabel.io_orientation(image.affine), ours)
    )
    return np.ascontiguousarray(np.asarray(turned.dataobj).transpose(2, 1, 0))


def _member(files: tarfile.TarFile, name: str) -> bytes:
    try:
        stream = files.extractfile(name)
    except KeyError:
        stream = None
    if stream is None:
        raise ModelError(f"{SDIST_FILE} should hold {name}; it does not")
    return stream.read()


def _download(archive: Path) -> None:
    archive.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=archive.parent) as fresh:
        # pip runs what is in a source distribution to learn its name: with the digest told, only
        # after it has looked whether this is the known file.
        wanted = Path(fresh) / "requirements.txt"
        wanted.write_text(f"{SDIST} --hash=sha256:{SDIST_SHA256}\n")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input"]
        command += ["--disable-pip-version-check", "--no-deps", "--no-build-isolation"]
        command += ["--no-binary", ":all:", "--dest", fresh, "--require-hashes", "-r", str(wanted)]
        try:
            subprocess.run(command, check=True, capture_output=True, timeout=DOWNLOAD_TIMEOUT_S)  # noqa: S603 - fixed words
        except subprocess.SubprocessError as error:
            raise ModelError(_why(error)) from error
        (Path(fresh) / SDIST_FILE).replace(archive)


def _why(error: subprocess.SubprocessError) -> str:
    """Give pip's last line, which is the one that says why; of a time-out, that."""
    said = (getattr(error, "stderr", None) or b"").decode(errors="replace")
    other = re.search(r"Got\s+([0-9a-f]{64})", said)
    if other:
        return f"{SDIST_FILE} should have sha256 {SDIST_SHA256}, got {other[1]}"
    told = [each.strip() for each in said.splitlines() if each.strip()]
    failed = isinstance(error, subprocess.CalledProcessError)
    reason = f"pip says: {told[-1]}" if failed and told else str(error)
    return f"{SDIST} cannot be downloaded; is there a network? {reason}"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
