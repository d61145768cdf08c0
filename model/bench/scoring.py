"""Answers to numbers: each task, each slice of it, blind beside it, and how sure all that is.

Knows entries of the journal and what `results.json` holds:

    schema       of this file, 1
    mode         "own", or "reference": the published scripts' scoring, for comparison only
    checkpoint   name, version, sha256, untrained
    clip         sha256 of M3D-CLIP's weights, or null
    data         what was asked and where it comes from; equal for equal questions
    settings     how it was asked and scored
    seconds      asking, in this run and in those it goes on from; scoring
    counts       images, patients, answers
    tasks        for each of the eight:
                   measured   false: `why` says so, and nothing else is there
                   primary    the metric that stands for the task
                   items      questions; patients
                   scores     metric -> score
                   slices     dimension -> value -> score of the primary metric
    declining    what is not there, asked for: {"scores", "slices"} over three tasks
    confusion    answers to "which of these is seen", true -> meant -> count
    calibration  how sure of its words it was against how often right: bins, and their mean error
    notes        what these numbers do not say

A score is {"value", "low", "high", "blind", "blind_low", "blind_high", "difference",
"difference_low", "difference_high", "items"}: the 95 % interval by resampling patients, the same
questions with the image withheld, and the image's part in it. Parts are of one. null: not counted.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np

from model.data.sample import Task
from model.errors import ModelError

from . import findings
from .asking import BLIND, IMAGE, Entry
from .bertscore import BertScore
from .intervals import Array, Interval, difference, interval, ratio
from .items import DIMENSIONS, RETRIEVAL, Item
from .judging import METRICS, REFERENCE, Metric, Row, Rows, affirmed, judge, meant
from .retrieving import retrieval

SCHEMA: Final = 1
RESAMPLES: Final = 2000
FEWER_RESAMPLES: Final = 500  # of a slice
BINS: Final = 8
PLACED: Final = (Task.SEMANTIC_SEGMENTATION, Task.REFERRING_SEGMENTATION, Task.REC)


def _balanced(sums: Array) -> Array:
    return (ratio(sums[..., :2]) + ratio(sums[..., 2:])) / 2


DECLINING: Final = (
    Metric("decline", "declined what is absent", "the part that got no mask and no box"),
    Metric("accept", "accepted what is there", "the part that got a mask or a box"),
    Metric("balanced", "mean of the two", "0.5 is what always or never declining gets", _balanced,
           width=4),
)  # fmt: skip


@dataclass(frozen=True)
class Pair:
    """One question with the rows of what was said to it, with and without the image."""

    item: Item
    seen: Entry
    rows: Rows
    blind: Entry | None = None
    blind_rows: Rows = field(default_factory=dict)


def score(
    entries: Sequence[Entry], *, reference: bool = False, bert: BertScore | None = None
) -> dict[str, Any]:
    """Score all answers: "tasks", "counts", and but for the reference what else is told."""
    pairs = _pairs(entries, reference=reference, bert=bert)
    tasks: dict[str, Any] = {RETRIEVAL: retrieval(entries, reference=reference)}
    for task in Task:
        own = [each for each in pairs if each.item.task == task]
        tasks[task.value] = _task(task, own, reference=reference)
    told: dict[str, Any] = {"tasks": tasks, "counts": _counts(pairs)}
    if not reference:
        told["declining"] = _declining([each for each in pairs if each.item.task in PLACED])
        told["confusion"] = _confusion(pairs)
        told["calibration"] = _calibration(pairs)
    return told


def notes(data: Mapping[str, Any], found: Mapping[str, Any], *, bert: bool) -> list[str]:
    """Say what the numbers do not."""
    said = ["This measures a research model. It is not for clinical use."]
    if "corpus" in data:
        said.append(
            "The patients of the corpus are drawn, not scanned: shapes, painted intensities and "
            "planted findings. A score here says whether the model looks at the image; it says "
            "nothing about patients."
        )
    if data.get("scan"):
        said.append(
            "All scanned patients are bent from one real CT that training bends too. They are not "
            "independent patients, and their intervals are too narrow."
        )
    if "folders" in data:
        said.append(
            "Masks and boxes are judged on the prepared grid. The published files do not tell the "
            "size of its voxels, so there are no distances in mm."
        )
    for task, each in found["tasks"].items():
        if not each["measured"]:
            said.append(f"{task} was not measured: {each['why']}.")
    if not bert:
        said.append("BERTScore was not measured: no weights for it were given.")
    said.append(
        "Blind: the same questions, the image replaced by mid-grey. What blind answers get needs "
        "no image. For retrieval it is chance."
    )
    said.append(
        "Intervals are 95 % percentile intervals of resampled patients; they know nothing of other "
        "trainings, other scanners or other words."
    )
    return said


def scored(
    metric: Metric,
    patients: Sequence[str],
    rows: Sequence[Row | None],
    blind: Sequence[Row | None],
    *,
    resamples: int = RESAMPLES,
) -> dict[str, Any] | None:
    """Give the score of rows, one for each question; None where nothing was counted."""
    ours, theirs = (_table(metric, each) for each in (rows, blind))
    some = {"seed": 0, "resamples": resamples}
    own = _known(interval, ours, patients, metric.statistic, **some)
    if own is None:
        return None
    without = _known(interval, theirs, patients, metric.statistic, **some)
    apart = _known(difference, ours, theirs, patients, metric.statistic, **some)
    told: dict[str, Any] = {"items": sum(each is not None and any(each) for each in rows)}
    for name, each in (("value", own), ("blind", without), ("difference", apart)):
        before = "" if name == "value" else f"{name}_"
        told[name] = each.estimate if each else None
        told[f"{before}low"] = each.low if each else None
        told[f"{before}high"] = each.high if each else None
    return told


def _known(sure: Callable[..., Interval], *given: Any, **options: Any) -> Interval | None:  # noqa: ANN401 - what it takes
    """Give an interval; None if there was nothing to count."""
    try:
        return sure(*given, **options)
    except ModelError:
        return None


def _table(metric: Metric, rows: Sequence[Row | None]) -> Array:
    none = (0.0,) * metric.width
    return np.array([none if each is None else each for each in rows], np.float64)


def _pairs(entries: Sequence[Entry], *, reference: bool, bert: BertScore | None) -> list[Pair]:
    asked = [each for each in entries if "item" in each]
    blind = {each["item"]["id"]: each for each in asked if each["condition"] == BLIND}
    pairs = []
    for seen in asked:
        if seen["condition"] == IMAGE:
            item = Item.read(seen["item"])
            unseen = blind.get(item.id)
            rows, blind_rows = (
                _judged(item, each, reference=reference, bert=bert) if each else {}
                for each in (seen, unseen)
            )
            pairs.append(Pair(item, seen, rows, unseen, blind_rows))
    return pairs


def _judged(item: Item, entry: Entry, *, reference: bool, bert: BertScore | None) -> Rows:
    rows = judge(item, entry, reference=reference)
    if bert and "meteor" in rows:
        rows["bertscore"] = (bert.f1(entry["text"], item.answer), 1.0)
    return rows


def _task(task: Task, pairs: Sequence[Pair], *, reference: bool) -> dict[str, Any]:
    if not pairs:
        return {"measured": False, "why": "no question of this task was asked"}
    metrics = (REFERENCE if reference else METRICS)[task]
    scores = {each.name: _score(each, pairs) for each in metrics}
    told: dict[str, Any] = {
        "measured": True,
        "primary": metrics[0].name,
        "items": len(pairs),
        "patients": len({each.item.patient for each in pairs}),
        "scores": {name: each for name, each in scores.items() if each is not None},
        "slices": _slices(metrics[0], pairs),
    }
    if not reference:
        told["slices"] |= _further_slices(task, pairs)
    return told


def _further_slices(task: Task, pairs: Sequence[Pair]) -> dict[str, dict[str, Any]]:
    """Slice what the primary metric cannot: a report by its findings, open questions by kind."""
    metrics = {each.name: each for each in METRICS[task]}
    if task is Task.CAPTION:
        return {"finding": _by_finding(metrics["f1"], pairs)}
    if task is Task.OPEN_VQA:
        kinds = _slices(metrics["right"], pairs)
        return {"kind": kinds["kind"]} if "kind" in kinds else {}
    return {}


def _score(
    metric: Metric, pairs: Sequence[Pair], *, resamples: int = RESAMPLES
) -> dict[str, Any] | None:
    return scored(
        metric,
        [each.item.patient for each in pairs],
        [each.rows.get(metric.name) for each in pairs],
        [each.blind_rows.get(metric.name) for each in pairs],
        resamples=resamples,
    )


def _slices(metric: Metric, pairs: Sequence[Pair]) -> dict[str, dict[str, Any]]:
    """Give the score of each value of each dimension that has several."""
    found: dict[str, dict[str, Any]] = {}
    for dimension in DIMENSIONS:
        groups: dict[str, list[Pair]] = defaultdict(list)
        for each in pairs:
            if dimension in each.item.groups:
                groups[each.item.groups[dimension]].append(each)
        scores = {
            value: _score(metric, own, resamples=FEWER_RESAMPLES)
            for value, own in sorted(groups.items())
        }
        kept = {value: each for value, each in scores.items() if each is not None}
        if len(kept) > 1:
            found[dimension] = kept
    return found


def _by_finding(metric: Metric, pairs: Sequence[Pair]) -> dict[str, Any]:
    """Score each finding of the reports alone."""
    seen = [_told(each.item, each.seen) for each in pairs]
    blind = [_told(each.item, each.blind) if each.blind else {} for each in pairs]
    patients = [each.item.patient for each in pairs]
    found = {}
    for name in sorted({name for each in seen for name in each}):
        rows = [each.get(name) for each in seen]
        others = [each.get(name) for each in blind]
        own = scored(metric, patients, rows, others, resamples=FEWER_RESAMPLES)
        if own:
            found[name] = own
    return found


def _told(item: Item, entry: Entry) -> dict[str, Row]:
    compared = findings.by_finding(entry["text"], item.answer)
    return {name: (each.found, each.extra, each.missed) for name, each in compared.items()}


def _declining(pairs: Sequence[Pair]) -> dict[str, Any] | None:
    """Score over all tasks that place something whether what is not there is declined."""
    if not pairs:
        return None
    own = [_with_declining(each) for each in pairs]
    scores = {each.name: _score(each, own) for each in DECLINING}
    groups: dict[str, list[Pair]] = {}
    for name in PLACED:
        groups[name.value] = [each for each in own if each.item.task == name]
    for kind in sorted({each.item.groups.get("absence", "") for each in own} - {""}):
        alike = [each for each in own if each.item.groups.get("absence") == kind]
        groups[f"absent: {kind}"] = alike
    return {
        "scores": {name: each for name, each in scores.items() if each is not None},
        "slices": {
            value: {
                each.name: found
                for each in DECLINING
                if (found := _score(each, some, resamples=FEWER_RESAMPLES)) is not None
            }
            for value, some in groups.items()
            if some
        },
    }


def _with_declining(pair: Pair) -> Pair:
    rows, blind = (_declined(pair.item, each) if each else {} for each in (pair.seen, pair.blind))
    return replace(pair, rows=rows, blind_rows=blind)


def _declined(item: Item, entry: Entry) -> Rows:
    claimed = float(affirmed(item, entry))
    if item.absent:
        return {"decline": (1 - claimed, 1.0), "balanced": (1 - claimed, 1.0, 0.0, 0.0)}
    return {"accept": (claimed, 1.0), "balanced": (0.0, 0.0, claimed, 1.0)}


def _confusion(pairs: Sequence[Pair]) -> dict[str, dict[str, int]] | None:
    """Count which words were said for which, where one asks what is seen."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for each in pairs:
        item = each.item
        if item.task == Task.CLOSED_VQA and item.groups.get("kind") == "abnormality":
            truth = item.choices["ABCD".index(item.letter)]
            counts[truth][meant(item, each.seen) or "no choice"] += 1
    return {truth: dict(counts[truth]) for truth in sorted(counts)} or None


def _calibration(pairs: Sequence[Pair]) -> dict[str, Any] | None:
    """Compare how sure it was of its words with how often they were right, in equal bins."""
    judged = [
        (each.seen["confidence"], each.rows[name][0])
        for each in pairs
        for name in ("accuracy", "right")
        if name in each.rows
    ]
    judged.sort(key=lambda each: each[0])  # not by what was right, where it was equally sure
    if not judged:
        return None
    bins = [each for each in np.array_split(np.array(judged, float), BINS) if len(each)]
    told = [
        {"confidence": float(each[:, 0].mean()), "right": float(each[:, 1].mean()),
         "items": len(each)}
        for each in bins
    ]  # fmt: skip
    apart = sum(each["items"] * abs(each["confidence"] - each["right"]) for each in told)
    return {"bins": told, "error": apart / len(judged), "items": len(judged)}


def _counts(pairs: Sequence[Pair]) -> dict[str, int]:
    return {
        "images": len({each.item.subject for each in pairs}),
        "patients": len({each.item.patient for each in pairs}),
        "questions": len(pairs),
        "absent": sum(each.item.absent and each.item.task in PLACED for each in pairs),
        "blind": sum(each.blind is not None for each in pairs),
    }
