"""One answer against its truth, as numbers that can be added up.

Knows the metrics of each task; neither images nor tables. A number that does not apply to an
answer, such as the Dice of what is not there, is left out and not counted as zero.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from model.data.prompts import DECIMALS
from model.data.sample import Task, side_of
from model.tokenizer import BOX_START

from . import choices, findings, geometry, text
from .intervals import Statistic, f1, ratio
from .items import Item

Row = tuple[float, ...]
Rows = dict[str, Row]
Entry = Mapping[str, Any]
YES_NO: Final = ("Yes", "No")
WORDS: Final = re.compile(r"\w+")
LETTER: Final = re.compile(r"^\s*[A-D][.):]\s*")


@dataclass(frozen=True)
class Metric:
    """A number of a task: what it is called, how its rows become one, and what is good.

    `unit` is "" for parts of one.
    """

    name: str
    label: str
    told: str
    statistic: Statistic = ratio
    higher: bool = True
    unit: str = ""
    width: int = 2  # numbers of a row


_TEXT: Final = (
    Metric("bleu", "BLEU-4", "mean of the answers' BLEU with four orders, smoothed"),
    Metric("bleu1", "BLEU-1", "mean of the answers' BLEU with one order"),
    Metric("rouge1", "ROUGE-1", "F of shared words"),
    Metric("rougeL", "ROUGE-L", "F of the longest common subsequence"),
    Metric("meteor", "METEOR", "exact and stem matches, without synonyms"),
    Metric("chrf", "chrF", "F of character n-grams"),
    Metric("bertscore", "BERTScore", "F of similarities of tokens, without rescaling"),
)
_DECLINE: Final = (
    Metric("decline", "declined what is absent",
           "of what is not in the image: the part that got no mask and no box"),
    Metric("wrong_decline", "declined what is there",
           "of what is in the image: the part that got no mask and no box", higher=False),
)  # fmt: skip
_SEG: Final = (
    Metric("dice", "Dice", "hard Dice on the grid the image came from; missed ones have 0"),
    Metric("surface_dice", "surface Dice", "part of both within 4 mm, where one was drawn"),
    Metric("mean_mm", "surface distance", "mean distance of the surfaces, where one was drawn",
           higher=False, unit="mm"),
    Metric("hd95_mm", "HD95", "95th percentile of the distances, where one was drawn",
           higher=False, unit="mm"),
    *_DECLINE,
    Metric("ceiling", "Dice at most", "of the true mask on the network's grid and back again"),
)  # fmt: skip
METRICS: Final[Mapping[str, tuple[Metric, ...]]] = {
    Task.CAPTION: (
        Metric("f1", "finding F1", "findings of the report against the true ones, pooled", f1,
               width=3),
        Metric("precision", "finding precision", "of the findings said: the part that is true"),
        Metric("recall", "finding recall", "of the true findings: the part that is said"),
        Metric("laterality", "side", "of findings found with a side: the part with the right one"),
        Metric("sided_f1", "finding F1 with side", "a finding on the wrong side is wrong twice", f1,
               width=3),
        Metric("contradictions", "contradictions", "for each report: findings that it affirms and "
               "the truth denies, or the reverse", higher=False, unit="a report"),
        *_TEXT,
    ),
    Task.CLOSED_VQA: (
        Metric("accuracy", "accuracy", "the one letter given is the right one"),
        Metric("words", "right words", "the words of the right choice, whatever the letter"),
        Metric("unread", "no letter", "no letter, several, or one beside another choice's words",
               higher=False),
    ),
    Task.OPEN_VQA: (
        Metric("exact_finding", "exact finding", "all true findings with their sides, none "
               "invented, what is denied denied; questions about findings"),
        Metric("right", "right", "the right finding, or yes or no, or else the exact words"),
        Metric("exact", "exact words", "equal to the true answer but for case and marks"),
        Metric("yes_no", "yes or no", "the right one of the two; questions for one of them"),
        *_TEXT,
    ),
    Task.REC: (
        Metric("iou", "IoU", "intersection over union; no box has 0"),
        Metric("acc25", "Acc@0.25", "boxes with an IoU of at least 0.25"),
        Metric("acc50", "Acc@0.5", "boxes with an IoU of at least 0.5"),
        *_DECLINE,
    ),
    Task.REG: (
        Metric("exact", "exact words", "equal to the true name but for case and marks"),
        Metric("exact_finding", "exact finding", "the finding with its side; boxes of findings"),
        Metric("side", "side", "of what has a side: the part that is named with the right one"),
        *_TEXT,
    ),
    Task.SEMANTIC_SEGMENTATION: _SEG,
    Task.REFERRING_SEGMENTATION: _SEG,
}  # fmt: skip
_REFERENCE_TEXT: Final = (
    Metric("bleu", "BLEU", "mean of the answers' BLEU-1"),
    Metric("rouge1", "ROUGE", "mean of the answers' ROUGE-1"),
    Metric("meteor", "METEOR", "mean of the answers' METEOR, without WordNet"),
    Metric("bertscore", "BERTScore", "F of similarities of tokens, without rescaling"),
)
_REFERENCE_SEG: Final = (
    Metric("dice", "Dice", "soft Dice, 1 added below; what is absent has 0 whatever was said"),
)
REFERENCE: Final[Mapping[str, tuple[Metric, ...]]] = {
    Task.CAPTION: _REFERENCE_TEXT,
    Task.CLOSED_VQA: (Metric("accuracy", "accuracy", "the letter and a dot, anywhere"),),
    Task.OPEN_VQA: _REFERENCE_TEXT,
    Task.REC: (
        Metric("iou", "IoU", "over the box around both; absent ones are left out"),
        Metric("acc25", "Acc@0.25", "boxes with such an IoU of at least 0.25"),
    ),
    Task.REG: _REFERENCE_TEXT,
    Task.SEMANTIC_SEGMENTATION: _REFERENCE_SEG,
    Task.REFERRING_SEGMENTATION: _REFERENCE_SEG,
}


def judge(item: Item, entry: Entry, *, reference: bool = False) -> Rows:
    """Give the rows of one answer; metrics that do not apply are not among them."""
    by_task = _BY_REFERENCE if reference else _BY_TASK
    return by_task[item.task](item, entry)


def affirmed(item: Item, entry: Entry) -> bool:
    """Tell whether an answer claims that what was asked for is there: it draws, or tries to."""
    if item.task == Task.REC:
        return BOX_START in entry["raw"] or geometry.read_box(entry["raw"]) is not None
    return bool(entry["mask"]["drawn"])


def letter(item: Item, entry: Entry) -> str | None:
    """Read the letter of a closed question's answer."""
    return choices.read(entry["text"], item.choices)


def meant(item: Item, entry: Entry) -> str | None:
    """Give the choice whose words an answer says; without words of one, that of its letter."""
    said = _said(LETTER.sub("", entry["text"]))
    named = [each for each in item.choices if _said(each) == said]
    given = letter(item, entry)
    if len(named) == 1:
        return named[0]
    return item.choices["ABCD".index(given)] if given else None


def _said(text: str) -> list[str]:
    return WORDS.findall(text.lower())


def _one(value: float) -> Row:
    return float(value), 1.0


def _words(item: Item, entry: Entry) -> Rows:
    return {name: _one(each) for name, each in text.score(entry["text"], item.answer).items()}


def _reference_words(item: Item, entry: Entry) -> Rows:
    return {name: _one(each) for name, each in text.reference(entry["text"], item.answer).items()}


def _same(item: Item, entry: Entry) -> bool:
    return _said(entry["text"]) == _said(item.answer)


def _caption(item: Item, entry: Entry) -> Rows:
    found = findings.compare(entry["text"], item.answer)
    wrong = found.sided - found.right_side
    return _words(item, entry) | {
        "f1": (found.found, found.extra, found.missed),
        "precision": (found.found, found.found + found.extra),
        "recall": (found.found, found.found + found.missed),
        "laterality": (found.right_side, found.sided),
        "sided_f1": (found.found - wrong, found.extra + wrong, found.missed + wrong),
        "contradictions": _one(found.contradictions),
    }


def _closed(item: Item, entry: Entry) -> Rows:
    given = letter(item, entry)
    said = _said(LETTER.sub("", entry["text"]))
    return {
        "accuracy": _one(given == item.letter),
        "words": _one(said == _said(item.choices["ABCD".index(item.letter)])),
        "unread": _one(given is None),
    }


def _reference_closed(item: Item, entry: Entry) -> Rows:
    return {"accuracy": _one(choices.reference(entry["text"], item.letter))}


def _open(item: Item, entry: Entry) -> Rows:
    rows = _words(item, entry) | {"exact": _one(_same(item, entry))}
    agreed = findings.agree(entry["text"], item.answer)
    if agreed is not None:
        rows["exact_finding"] = _one(agreed)
    if item.choices == YES_NO or item.groups.get("kind") == "yes_no":
        given, truth = (choices.read(each, YES_NO) for each in (entry["text"], item.answer))
        rows["yes_no"] = _one(given == truth)
    asked = next(each for each in ("yes_no", "exact_finding", "exact") if each in rows)
    return rows | {"right": rows[asked]}


def _rec(item: Item, entry: Entry) -> Rows:
    declined = not affirmed(item, entry)
    if item.box is None:
        return {"decline": _one(declined)}
    said = geometry.read_box(entry["raw"])
    # Words have three decimals, so the truth has no more.
    truth = [round(each, DECIMALS) for each in item.box]
    shape = entry["grid"]
    iou = 0.0
    if said:
        iou = geometry.iou(geometry.half_open(said, shape), geometry.half_open(truth, shape))
    return {
        "iou": _one(iou),
        "acc25": _one(iou >= 0.25),  # noqa: PLR2004 - its name
        "acc50": _one(iou >= 0.5),  # noqa: PLR2004 - its name
        "wrong_decline": _one(declined),
    }


def _reference_rec(item: Item, entry: Entry) -> Rows:
    if item.box is None:
        return {}
    said = geometry.reference_read_box(entry["raw"])
    truth = [round(each, DECIMALS) for each in item.box]
    iou = geometry.reference_iou(said, truth) if said else 0.0
    return {"iou": _one(iou), "acc25": _one(iou >= 0.25)}  # noqa: PLR2004 - its name


def _reg(item: Item, entry: Entry) -> Rows:
    rows = _words(item, entry) | {"exact": _one(_same(item, entry))}
    agreed = findings.agree(entry["text"], item.answer)
    if agreed is not None:
        rows["exact_finding"] = _one(agreed)
    if item.side:
        rows["side"] = _one(side_of(entry["text"]) == item.side)
    return rows


def _outline(item: Item, entry: Entry) -> Rows:
    mask, declined = entry["mask"], not affirmed(item, entry)
    if item.absent:
        return {"decline": _one(declined)}
    rows = {"dice": _one(mask["dice"]), "wrong_decline": _one(declined)}
    if "ceiling" in mask:
        rows["ceiling"] = _one(mask["ceiling"])
    if mask["surface"]:
        rows["surface_dice"] = _one(mask["surface"]["dice"])
        rows["mean_mm"] = _one(mask["surface"]["mean_mm"])
        rows["hd95_mm"] = _one(mask["surface"]["hd95_mm"])
    return rows


def _reference_outline(item: Item, entry: Entry) -> Rows:  # noqa: ARG001 - as the others
    return {"dice": _one(entry["mask"]["reference_dice"])}


Judge = Callable[[Item, Entry], Rows]
_BY_TASK: Final[Mapping[str, Judge]] = {
    Task.CAPTION: _caption,
    Task.CLOSED_VQA: _closed,
    Task.OPEN_VQA: _open,
    Task.REC: _rec,
    Task.REG: _reg,
    Task.SEMANTIC_SEGMENTATION: _outline,
    Task.REFERRING_SEGMENTATION: _outline,
}
_BY_REFERENCE: Final[Mapping[str, Judge]] = {
    Task.CAPTION: _reference_words,
    Task.CLOSED_VQA: _reference_closed,
    Task.OPEN_VQA: _reference_words,
    Task.REC: _reference_rec,
    Task.REG: _reference_words,
    Task.SEMANTIC_SEGMENTATION: _reference_outline,
    Task.REFERRING_SEGMENTATION: _reference_outline,
}
