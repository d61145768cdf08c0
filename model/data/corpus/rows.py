"""A patient as rows of the published layouts: what each turn and each mask becomes.

Knows the columns of M3D-VQA and M3D-RefSeg and the classes of an M3D-Seg set; writes nothing. What
no layout can hold, and why, is said of each turn.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from model.data import refseg, vqa
from model.data.sample import Task
from model.errors import ModelError

from .findings import KINDS
from .organs import ORGANS
from .scene import Scene
from .telling import SEG, WORDS, Turn

Mask = NDArray[np.bool_]
CODE: Final = "anatomy"  # of the M3D-Seg set
CLOSED, OPEN, YES_NO = "M3D_VQA", "M3D_VQA_open", "M3D_VQA_yn"
CAP, REFSEG = "M3D_Cap", "M3D_RefSeg"
TOO_SMALL: Final = "nowhere: what is meant is too small for this grid"
COLUMNS: Final[Mapping[str, Sequence[str]]] = {
    **dict.fromkeys(
        (CLOSED, OPEN, YES_NO),
        ("Image Path", "Text", "Question Type", "Question", *vqa.CHOICES, "Answer",
         "Answer Choice"),
    ),
    REFSEG: refseg.COLUMNS,
}  # fmt: skip
# Our kinds of questions by the published numbers: 2 phase, 3 organ, 4 abnormality, 5 location.
TYPES: Final[Mapping[str, str]] = {
    "phase": "2", "technique": "2", "region": "3", "organ": "3", "abnormality": "4", "topic": "4",
    "beyond": "4", "side": "5", "yes_no": "",
}  # fmt: skip
NO_CHOICES: Final = ("NA",) * 4  # as the published tables say it
CHOICES: Final = " Choices: "
DESCRIPTION: Final = "0"  # the question type of M3D-RefSeg
FIRST_FINDING: Final = 101  # the class; those of organs are their numbers


@dataclass(frozen=True)
class Class:
    """One class of the M3D-Seg set: an organ, or a kind of finding in an organ, of a side."""

    number: int
    name: str
    kind: str = ""
    organ: str = ""
    side: str = ""


def classes() -> tuple[Class, ...]:
    """Give every class; a finding of either side is one of its own."""
    organs = [Class(each.number, name) for name, each in ORGANS.items() if each.asked]
    findings = [
        (kind.name, ORGANS[organ].plain, side)
        for kind in KINDS.values()
        for organ in kind.organs
        for side in (("right", "left") if organ == "brain" else (ORGANS[organ].side,))
    ]
    return (
        *organs,
        *(
            Class(number, _named(*each), *each)
            for number, each in enumerate(findings, FIRST_FINDING)
        ),
    )


def outlined(scene: Scene) -> Iterator[tuple[Class, Mask]]:
    """Give each class that can be asked of a scene with its mask; nothing in it: absent.

    An organ of which too little is in the image to ask, and what is in it but too small for the
    grid, is neither present nor absent: it is not given.
    """
    truth = scene.truth
    for each in classes():
        if not each.kind:
            there, absent = each.name in truth.present, each.name in truth.missing
            mask = np.asarray(scene.labels == each.number)
        else:
            kind = KINDS[each.kind]
            shown = kind.region == truth.region and truth.modality in kind.values
            numbers = [
                found.number
                for found in truth.findings
                if (found.kind, found.organ, found.side) == (each.kind, each.organ, each.side)
            ]
            there, absent = bool(numbers), shown and not numbers
            mask = np.isin(scene.planted, numbers)
        if absent or (there and mask.any()):
            yield each, mask if there else np.zeros_like(mask)


def lost(scene: Scene) -> list[str]:
    """Name what is in the patient but too small for the grid."""
    organs = [each for each in scene.truth.present if not scene.mask(each).any()]
    findings = [each for each in scene.truth.findings if each.number]
    return organs + [
        f"{each.kind} {each.number}" for each in findings if not scene.mask(each).any()
    ]


def place(turn: Turn, scene: Scene) -> str:
    """Name the list or table that a turn goes to; or say why none can hold it.

    A question for an outline or a box stands in the list of the M3D-Seg set as a mask with its
    name: the words are the reader's. An absent finding stands there too, as M3D-RefSeg has no
    negatives.
    """
    if turn.target is not None and not scene.mask(turn.target).any():
        return TOO_SMALL
    task = Task(turn.task)
    if task is Task.CAPTION:
        return CAP
    if task is Task.CLOSED_VQA:
        return CLOSED
    if task is Task.OPEN_VQA:
        return YES_NO if turn.kind == "yes_no" else OPEN
    if task is Task.REFERRING_SEGMENTATION and SEG in turn.answer:
        return REFSEG
    return CODE


def vqa_row(turn: Turn, image: str, report: str) -> list[str]:
    """Make a row of `M3D_VQA*.csv`.

    Raises
    ------
    ModelError
        No type of question stands for the kind of this one.
    """
    if turn.kind not in TYPES:
        raise ModelError(f"a question of {', '.join(TYPES)} was expected, not {turn.kind!r}")
    question, _, _ = turn.question.partition(CHOICES if turn.choices else "\0")
    answer = turn.answer.removeprefix(f"{turn.letter}. ") if turn.letter else turn.answer
    return [
        *(image, report, TYPES[turn.kind], question),
        *(turn.choices or NO_CHOICES),
        *(answer, turn.letter or "NA"),
    ]


def refseg_row(turn: Turn, image: str, mask: str) -> list[str]:
    """Make a row of `M3D_RefSeg*.csv`: a planted finding that is described."""
    number = getattr(turn.target, "number", 0)
    return [image, mask, str(number), DESCRIPTION, turn.question, turn.answer]


def _named(kind: str, organ: str, side: str) -> str:
    word = WORDS.get(kind, kind)
    if kind == "effusion":
        return f"{side} {word}"
    if organ == "brain":
        return f"{word} in the {side} side of the brain"
    joined = "of" if kind in {"fracture", "lesion"} else "in"
    return f"{word} {joined} the {f'{side} {organ}'.strip()}"
