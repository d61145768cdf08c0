"""A patient on the network's grid: what training and the benchmark look at.

Knows cases, how an image is prepared, and a folder where prepared ones are kept: making one takes
0.2 to 0.5 s, reading it a few milliseconds.
"""

import json
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from model.errors import ModelError
from model.preprocess import Prepared, Shape, prepare

from .case import Case, Truth
from .findings import Finding
from .organs import HEAD, ORGANS

VERSION: Final = 3  # of what is kept; raise it when a case of the same seed looks different
SOFT: Final = (40.0, 400.0)  # level and width in HU
BRAIN: Final = (40.0, 120.0)
PERCENTILES: Final = (0.5, 99.5)
BROKEN: Final = (
    *(OSError, EOFError, ValueError, KeyError, TypeError, AttributeError),
    *(zipfile.BadZipFile, zlib.error),
)  # what reading a file that is none of ours, or half of one, can raise


@dataclass(frozen=True, eq=False)  # arrays have no one truth
class Scene:
    """A patient as the network sees it.

    `image` is float32 (D, H, W) in 0..1; `labels` and `planted` are maps of the same shape with the
    numbers of organs and of findings.
    """

    truth: Truth
    image: NDArray[np.float32]
    labels: NDArray[np.uint8]
    planted: NDArray[np.uint8]

    @classmethod
    def of(cls, case: Case, grid: Shape) -> "Scene":
        """Prepare a case as the node prepares a series of its kind."""
        prepared = prepared_image(case, grid)
        return cls(
            case.truth,
            prepared.image[0, 0].numpy(),
            prepared.placement.gather(case.labels, grid),
            prepared.placement.gather(case.planted, grid),
        )

    def mask(self, target: str | Finding) -> NDArray[np.bool_]:
        """Give the mask of an organ, by its name, or of a finding."""
        if isinstance(target, str):
            return np.asarray(self.labels == ORGANS[target].number)
        return np.asarray((self.planted == target.number) & (target.number > 0))


@dataclass(frozen=True)
class Pool:
    """Prepared patients by their seed; those not yet in `folder` are made and kept there."""

    folder: Path
    grid: Shape
    make: Callable[[int], Case] = Case.make

    def __getitem__(self, seed: int) -> Scene:
        path = self.path(seed)
        try:
            return _read(path)
        except FileNotFoundError:
            _write(Scene.of(self.make(seed), self.grid), path)
            return _read(path)  # as every later time: what is kept is rounded

    def path(self, seed: int) -> Path:
        """Tell where a patient is kept."""
        grid = "x".join(map(str, self.grid))
        return self.folder / f"v{VERSION}-{grid}" / f"{seed // 1000:04d}" / f"{seed:07d}.npz"


def prepared_image(case: Case, grid: Shape) -> Prepared:
    """Window, crop and resize a case."""
    window, percentiles = None, None
    if case.modality == "CT":
        window = BRAIN if case.region == HEAD else SOFT
    else:
        percentiles = PERCENTILES
    return prepare(case.voxels, grid, window=window, percentiles=percentiles)


def _read(path: Path) -> Scene:
    try:
        # numpy leaves a broken archive open.
        with path.open("rb") as file, np.load(file) as kept:
            told = json.loads(str(kept["truth"]))
            truth = Truth(
                **{
                    **told,
                    "findings": tuple(Finding(**each) for each in told["findings"]),
                    "present": tuple(told["present"]),
                    "missing": tuple(told["missing"]),
                }
            )
            image = kept["image"].astype(np.float32)
            return Scene(truth, image, kept["labels"], kept["planted"])
    except BROKEN as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise ModelError(f"{path} is no prepared patient; remove it: {error}") from error


def _write(scene: Scene, path: Path) -> None:
    """Write under another name and rename: a patient that is there is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".partial", delete=False) as file:
        try:
            np.savez_compressed(
                file,
                image=scene.image.astype(np.float16),
                labels=scene.labels,
                planted=scene.planted,
                truth=np.array(json.dumps(asdict(scene.truth))),
            )
            file.flush()
            Path(file.name).replace(path)
        except BaseException:  # also a Ctrl-C: nothing is left open or half written
            Path(file.name).unlink(missing_ok=True)
            raise
