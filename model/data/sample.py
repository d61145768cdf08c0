"""One question about one prepared image, with its true answer.

Knows what a sample must hold, and how its image and mask lie on disk; not where it came from.
"""

import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.errors import ModelError

LETTERS = "ABCD"
SIDES = ("left", "right", "")
BOX_NUMBERS = 6
IMAGE_AXES = 4
ROUNDING = 1e-3  # what float32, and an interpolation, may add at the ends of 0..1
SIDED = re.compile(
    r"\b(left|right|lefthand|righthand|bilateral(ly)?|unilateral(ly)?|contralateral|ipsilateral"
    r"|both sides|midline shift|(dextro|levo|sinistro)\w+)\b",
    re.IGNORECASE,
)

Box = tuple[float, float, float, float, float, float]


class Task(StrEnum):
    """What is asked: the tasks of M3D-Bench that have an answer in words."""

    CAPTION = "caption"
    CLOSED_VQA = "closed_vqa"
    OPEN_VQA = "open_vqa"
    REC = "rec"
    REG = "reg"
    SEMANTIC_SEGMENTATION = "semantic_segmentation"
    REFERRING_SEGMENTATION = "referring_segmentation"


class DataError(ModelError):
    """A row of a data set cannot be used; names the file, the row, and what was expected."""

    def __init__(self, file: Path | str, row: int | str | None, expected: str, came: str) -> None:
        self.file, self.row = Path(file), row
        self.expected, self.came = expected, came
        place = str(file) if row is None else f"{file}, row {row}"
        super().__init__(f"{place}: expected {expected}, got {came}")

    def __reduce__(self) -> tuple[type["DataError"], tuple[Path, int | str | None, str, str]]:
        """Travel between processes: exceptions are rebuilt from what their class takes."""
        return type(self), (self.file, self.row, self.expected, self.came)


@dataclass(frozen=True)
class Sample:
    """A question, its answer, and what the answer is about.

    Parameters
    ----------
    id
        ``file#row``; names the place in the published files.
    image
        A prepared ``.npy``: (1, D, H, W) float32 in 0..1.
    question
        All that is asked, a closed question with its choices; without image tokens.
    answer
        The whole true answer, with ``[SEG]`` where a mask and ``<bx_start>`` where a box belongs.
    patient
        Who was scanned: what must not be in two splits.
    kind
        The kind of question, for scores of their own.
    choices, letter
        What was to choose from, and the right one of a closed question.
    box
        (z0, y0, x0, z1, y1, x1) as parts of D, H, W; the last three name the last voxel inside,
        as the released checkpoints write them.
    mask, mask_label
        A boolean mask, or a map of labels and the one that is meant.
    absent
        What is asked for is not in the image.
    side
        The side that is named, if it is one.
    """

    id: str
    task: Task
    image: Path
    question: str
    answer: str
    patient: str
    kind: str = ""
    choices: tuple[str, ...] = ()
    letter: str = ""
    box: Box | None = None
    mask: Path | None = None
    mask_label: int | None = None
    absent: bool = False
    side: str = ""

    def __post_init__(self) -> None:
        for name in ("question", "answer", "patient"):
            if not getattr(self, name).strip():
                raise self.error(f"text for {name}", "nothing")
        if self.side not in SIDES:
            raise self.error("left, right or no side", repr(self.side))
        self._check_choices()
        self._check_target()

    @property
    def sided(self) -> bool:
        """Whether words name a side, so that the image must not be mirrored under them."""
        return bool(self.side or SIDED.search(f"{self.question} {self.answer}"))

    def error(self, expected: str, came: str) -> DataError:
        """Make the error that names this sample's file and row."""
        file, _, row = self.id.rpartition("#")
        return DataError(file or self.id, row if file else None, expected, came)

    def _check_choices(self) -> None:
        if self.task is Task.CLOSED_VQA and not self.letter:
            raise self.error("the letter of the right choice", "none")
        if self.letter and self.letter not in tuple(LETTERS[: len(self.choices)]):
            known = LETTERS[: len(self.choices)] or "no choices"
            raise self.error(f"a letter of {known}", repr(self.letter))

    def _check_target(self) -> None:
        if self.absent and (self.box or self.mask):
            raise self.error("no box and no mask of what is absent", f"{self.box or self.mask}")
        if self.mask_label is not None and self.mask is None:
            raise self.error("a mask for a label", f"label {self.mask_label} alone")
        if self.box is not None and not _is_box(self.box):
            raise self.error("a box (z0, y0, x0, z1, y1, x1) within 0..1", f"{self.box}")


def side_of(text: str) -> str:
    """Name the side a text speaks of: left or right; nothing for none or both."""
    words = set(re.findall(r"\b(left|right)\b", text.lower()))
    return words.pop() if len(words) == 1 else ""


def load_image(sample: Sample) -> NDArray[np.float32]:
    """Load the image of a sample, (1, D, H, W) float32 in 0..1.

    Raises
    ------
    DataError
        It is missing, is no array of that shape, or leaves 0..1.
    """
    image = load_array(sample.image, sample.error)
    if image.ndim != IMAGE_AXES or image.shape[0] != 1 or 0 in image.shape:
        raise sample.error("an image (1, D, H, W)", f"{image.shape} in {sample.image}")
    if image.dtype.kind != "f":
        raise sample.error("an image of floats", f"{image.dtype} in {sample.image}")
    # A NaN is neither, so it fails here too.
    if not (image.min() >= -ROUNDING and image.max() <= 1 + ROUNDING):
        raise sample.error("voxels in 0..1", f"{image.min()} to {image.max()} in {sample.image}")
    return image.astype(np.float32, copy=False)


def load_mask(sample: Sample) -> NDArray[np.bool_]:
    """Load what the sample is about as a mask (1, D, H, W).

    Raises
    ------
    DataError
        The sample has no mask, or there is nothing in it though the sample says so.
    """
    if sample.mask is None:
        raise sample.error("a mask", "a sample without one")
    labels = load_array(sample.mask, sample.error)
    mask = labels > 0 if sample.mask_label is None else labels == sample.mask_label
    mask = mask[None] if mask.ndim == IMAGE_AXES - 1 else mask
    if mask.ndim != IMAGE_AXES or mask.shape[0] != 1:
        raise sample.error("a mask (1, D, H, W)", f"{mask.shape} in {sample.mask}")
    if not mask.any():
        raise sample.error("a voxel in the mask", f"none in {sample.mask}")
    return np.asarray(mask, dtype=np.bool_)


def load_array(path: Path, error: Callable[[str, str], DataError]) -> NDArray[Any]:
    """Load the array of a ``.npy``, or the one named ``mask`` of a ``.npz``; never a pickle.

    `error` makes the error of the row that names the file.
    """
    try:
        with path.open("rb") as file:  # numpy leaves a broken archive open
            found = np.load(file, allow_pickle=False)
            return found if isinstance(found, np.ndarray) else np.asarray(found["mask"])
    except FileNotFoundError as failed:
        raise error(f"the file {path}", "none") from failed
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as failed:
        raise error(f"an array in {path}", f"{type(failed).__name__}: {failed}") from failed


def _is_box(box: Box) -> bool:
    if len(box) != BOX_NUMBERS or not all(0 <= each <= 1 for each in box):
        return False
    return all(first <= last for first, last in zip(box[:3], box[3:], strict=True))
