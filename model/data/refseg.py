"""Read M3D-RefSeg: a lesion that is described or reasoned about, and its mask.

    M3D_RefSeg.csv   Image, Mask, Mask_ID, Question_Type, Question, Answer
    sXXXX/ct.npy     one prepared image
    sXXXX/mask.npy   a map of labels; Mask_ID is one of them

Knows the layout. An answer says [SEG] once; the published ones sometimes spell it <SEG>.
"""

from functools import cache
from pathlib import Path, PurePosixPath
from typing import Final

import numpy as np

from model.tokenizer import SEG

from .published import Row, gather, table
from .sample import Sample, Task, load_array, side_of

COLUMNS: Final = ("Image", "Mask", "Mask_ID", "Question_Type", "Question", "Answer")
KINDS: Final = {0: "description", 1: "reasoning"}
OTHER_SEG: Final = "<SEG>"
RAW: Final = ".nii.gz"


def read(path: Path, *, root: Path, skip: bool = False) -> list[Sample]:
    """Read a table of M3D-RefSeg.

    Parameters
    ----------
    root
        The folder that the paths of the table begin in, or the one that holds the cases.
    skip
        Leave out rows and files that cannot be used, and log it.

    Raises
    ------
    DataError
        The table or a row cannot be used, a mask has no such label, or files are missing.
    """
    held: dict[Path, list[int]] = {}

    def sample(row: Row) -> list[Sample]:
        mask, label = _file(root, row.text("Mask")), row.integer("Mask_ID")
        if mask.exists():
            if mask not in held:
                held[mask] = sorted(map(int, np.unique(load_array(mask, row.error))))
            if label <= 0 or label not in held[mask]:
                raise row.error(f"label {label} in {mask.name}", f"{held[mask]}")
        return [_sample(row, root, mask, label)]

    return gather(table(path, COLUMNS, root=root), sample, skip=skip)


def _sample(row: Row, root: Path, mask: Path, label: int) -> Sample:
    kind, image = row.integer("Question_Type"), _file(root, row.text("Image"))
    answer, question = row.text("Answer").replace(OTHER_SEG, SEG), row.text("Question")
    if kind not in KINDS:
        raise row.error(f"a question type of {KINDS}", str(kind))
    if answer.count(SEG) != 1:
        raise row.error(f"one {SEG} in the answer", str(answer.count(SEG)))
    return Sample(
        id=row.id,
        task=Task.REFERRING_SEGMENTATION,
        image=image,
        question=question,
        answer=answer,
        patient=image.parent.name,
        kind=KINDS[kind],
        mask=mask,
        mask_label=label,
        side=side_of(f"{question} {answer}"),
    )


@cache
def _file(root: Path, name: str) -> Path:
    """Find a prepared file: tables name the raw ones too, and folders of another machine."""
    path = PurePosixPath(name.replace("\\", "/"))
    if path.name.endswith(RAW):
        path = path.with_name(path.name.removesuffix(RAW) + ".npy")
    places = [root / path, root.joinpath(*path.parts[-2:])]
    return next((each for each in places if each.exists()), places[0])
