"""The benchmark as one page: tables, bars, and what answers look like beside the truth.

Knows results, answers and where their images come from; how it looks is in `report.html`. The page
needs no other file and no script.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Any, Final

import jinja2
import numpy as np

from model.data.sample import Task
from model.tokenizer import BOX_END, BOX_START

from . import findings
from .asking import IMAGE, Entry, unpacked
from .findings import Statement
from .geometry import Mask, half_open, read_box
from .items import RETRIEVAL, Item, Source, Subject
from .judging import METRICS, REFERENCE, Metric, affirmed, judge
from .pictures import outlined

WORST: Final = 4  # reports
SHOWN: Final = (Task.REC, Task.SEMANTIC_SEGMENTATION, Task.REFERRING_SEGMENTATION)
TITLES: Final = {
    RETRIEVAL: "Image-text retrieval",
    Task.CAPTION.value: "Report generation",
    Task.CLOSED_VQA.value: "Closed questions",
    Task.OPEN_VQA.value: "Open questions",
    Task.REC.value: "Boxes of words (REC)",
    Task.REG.value: "Words of boxes (REG)",
    Task.SEMANTIC_SEGMENTATION.value: "Semantic segmentation",
    Task.REFERRING_SEGMENTATION.value: "Referring segmentation",
}
Progress = Callable[[int, int], None]


def report(
    results: Mapping[str, Any],
    entries: Sequence[Entry],
    source: Source,
    on_progress: Progress | None = None,
) -> str:
    """Make the page of a run: HTML with everything inside."""
    seen = [each for each in entries if each.get("condition") == IMAGE]
    return _template().render(
        results=results,
        titles=TITLES,
        metrics=_metrics(results),
        examples=_examples(seen, source, on_progress),
        worst=_worst_reports(seen),
        confusion=_confusion(results.get("confusion")),
    )


def _metrics(results: Mapping[str, Any]) -> dict[str, dict[str, Metric]]:
    """Give what is known of each metric of each task, in the order of the tables."""
    known = REFERENCE if results["mode"] == "reference" else METRICS
    told = {str(task): {each.name: each for each in own} for task, own in known.items()}
    for name in results["tasks"][RETRIEVAL].get("scores", {}):
        told.setdefault(RETRIEVAL, {})[name] = Metric(
            name, name.replace("_", " "), "the right one is among the first k"
        )
    return told


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    page = resources.files(__package__).joinpath("report.html").read_text(encoding="utf-8")
    return environment.from_string(page)


def _examples(
    seen: Sequence[Entry], source: Source, on_progress: Progress | None
) -> dict[str, list[dict[str, Any]]]:
    """Draw the best, the median and the worst of each task that places something."""
    chosen = {task.value: _chosen(seen, task) for task in SHOWN}
    wanted = [(task, name, entry) for task, own in chosen.items() for name, entry in own.items()]
    numbers = {source.name(number): number for number in range(len(source))} if wanted else {}
    told: dict[str, list[dict[str, Any]]] = {task: [] for task in chosen}
    for index, (task, name, entry) in enumerate(wanted):
        subject = source.subject(numbers[entry["item"]["subject"]])
        told[task].append(_example(name, Item.read(entry["item"]), entry, subject))
        if on_progress:
            on_progress(index + 1, len(wanted))
    return {task: own for task, own in told.items() if own}


def _chosen(seen: Sequence[Entry], task: Task) -> dict[str, Entry]:
    """Choose by the score among what was drawn; then one that was missed, and one not there."""
    own = [(Item.read(each["item"]), each) for each in seen if each["item"]["task"] == task]
    there = [(item, each) for item, each in own if not item.absent]
    drawn = [each for item, each in sorted(there, key=_by_score) if affirmed(item, each)]
    missed = [each for item, each in there if not affirmed(item, each)]
    alarms = [each for item, each in own if item.absent and each.get("mask", {}).get("bits")]
    chosen: dict[str, Entry] = {}
    if drawn:
        chosen = {"best": drawn[-1], "median": drawn[len(drawn) // 2], "worst": drawn[0]}
    if missed:
        chosen["missed"] = max(missed, key=_size)
    if alarms:
        chosen["not there, and drawn"] = max(alarms, key=_size)
    unique: dict[str, Entry] = {}
    for name, each in chosen.items():
        if all(each is not other for other in unique.values()):
            unique[name] = each
    return unique


def _by_score(pair: tuple[Item, Entry]) -> tuple[float, str]:
    item, entry = pair
    return _overlap(item, entry), item.id


def _size(entry: Entry) -> int:
    """Give the voxels of the larger mask: the largest mistake is shown."""
    return max(map(int, entry.get("mask", {}).get("voxels", [0])))


def _overlap(item: Item, entry: Entry) -> float:
    return judge(item, entry)["iou" if item.task == Task.REC else "dice"][0]


def _example(name: str, item: Item, entry: Entry, subject: Subject) -> dict[str, Any]:
    placement = subject.prepared.placement
    image = placement.restore(subject.prepared.image[0, 0])
    truth: Mask
    drawn: Mask | None
    if item.task == Task.REC:
        truth, drawn = (
            _boxed(item.box, entry, subject),
            _boxed(read_box(entry["raw"]), entry, subject),
        )
    else:
        truth, drawn = subject.masks[item.id], unpacked(entry)
    label = "IoU" if item.task == Task.REC else "Dice"
    found = (entry.get("mask") or {}).get("surface")
    return {
        "name": name,
        "subject": item.subject,
        "question": item.question,
        "answer": entry["raw"].replace(BOX_START, "").replace(BOX_END, ""),
        "score": None if item.absent else f"{label} {_overlap(item, entry):.3f}",
        "apart_mm": found["mean_mm"] if found else None,
        "picture": outlined(image, truth, drawn, subject.spacing_mm),
    }


def _boxed(box: Sequence[float] | None, entry: Entry, subject: Subject) -> Mask:
    """Fill a published box on the grid the image came from."""
    placement = subject.prepared.placement
    mask = np.zeros(placement.shape, bool)
    if box:
        z0, y0, x0, z1, y1, x1 = half_open(box, entry["grid"])
        ends = zip(placement.place((z0, y0, x0)), placement.place((z1, y1, x1)), strict=True)
        mask[
            tuple(slice(round(start), max(round(stop), round(start) + 1)) for start, stop in ends)
        ] = True
    return mask


def _worst_reports(seen: Sequence[Entry]) -> list[dict[str, Any]]:
    """Give the reports that say most wrong, with what they miss and invent."""
    told = []
    for each in seen:
        if each["item"]["task"] == Task.CAPTION:
            said, truth = each["text"], each["item"]["answer"]
            ours, theirs = (
                {one for one in findings.read(text) if one.present} for text in (said, truth)
            )
            told.append(
                {
                    "subject": each["item"]["subject"],
                    "said": said or "no words",
                    "truth": truth,
                    "missed": sorted(map(_named, theirs - ours)),
                    "extra": sorted(map(_named, ours - theirs)),
                }
            )
    told.sort(key=lambda each: (-len(each["missed"]) - len(each["extra"]), each["subject"]))
    return told[:WORST]


def _named(statement: Statement) -> str:
    side = f"{statement.side} " if statement.side else ""
    where = f" ({side}{statement.organ})" if statement.organ or side else ""
    return f"{statement.finding}{where}"


def _confusion(counted: Mapping[str, Mapping[str, int]] | None) -> dict[str, Any] | None:
    """Turn counts into a table whose diagonal is right."""
    if not counted:
        return None
    said = list(
        dict.fromkeys([*counted, *sorted({each for row in counted.values() for each in row})])
    )
    rows = [
        {
            "truth": truth,
            "total": sum(row.values()),
            "cells": [{"said": each, "count": row.get(each, 0)} for each in said],
        }
        for truth, row in counted.items()
    ]
    return {"said": said, "rows": rows}
