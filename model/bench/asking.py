"""Every question asked once, with its image and without; what was said is kept at once.

Knows the journal of a run: a line for each answer, so that a run that was killed goes on where it
was, and a first line that says whose answers to which questions these are, so that no other run
goes on from it. Masks are judged here, while there is something to judge them by.
"""

import base64
import json
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import monotonic
from typing import Any, Final, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.data.journal import Journal
from model.data.sample import DataError, Task
from model.errors import ModelError
from model.lamed import Answer, LaMed, Question
from model.preprocess import Prepared

from .geometry import Mask, dice, mask_overlap, reference_dice, surface
from .items import OUTLINED, Item, Source, Subject

FORMAT: Final = 1  # of the journal
JOURNAL: Final = "answers.jsonl"
SETTINGS: Final = "settings"
IMAGE, BLIND = "image", "blind"
GREY: Final = 0.5  # the image of one that sees none
TOLERANCE_MM: Final = 4.0  # about a voxel of the corpus
NEW_TOKENS: Final = {Task.CAPTION: 256}
FEWER_TOKENS: Final = 96  # of an answer that is no report

Entry = Mapping[str, Any]
Progress = Callable[[int, int], None]


class Embedder(Protocol):
    """M3D-CLIP: images and texts as unit vectors."""

    def embed_images(self, images: Tensor) -> Tensor:
        """Embed (B, 1, D, H, W) as (B, width)."""

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """Embed reports as (B, width)."""


@dataclass(frozen=True)
class Run:
    """Who is asked what; `identity` is what makes the answers of two runs the same."""

    lamed: LaMed
    source: Source
    clip: Embedder | None = None
    clip_sha256: str | None = None

    @property
    def identity(self) -> dict[str, Any]:
        """Say what the journal's answers depend on."""
        return {
            "format": FORMAT,
            "checkpoint": self.lamed.card.sha256,
            "clip": self.clip_sha256,
            "dtype": str(self.lamed.dtype).removeprefix("torch."),
            "tolerance_mm": TOLERANCE_MM,
            **self.source.told,
        }


def ask(run: Run, out: Path, on_progress: Progress | None = None) -> list[Entry]:
    """Ask all that is not yet answered in `out`, and give every entry of its journal.

    An entry is an answer (it has an "item"), the vectors of M3D-CLIP (an "image"), or the seconds
    that an image took.

    Raises
    ------
    ModelError
        `out` holds answers of another checkpoint or to other questions, or a question is none.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ModelError(f"{out} cannot be written: {error.strerror}") from error
    entries: list[Entry] = []
    total = len(run.source)
    if not total:
        raise ModelError("there is nothing to ask: no image has a question")
    with Journal(out / JOURNAL, entries.append) as journal:
        _check(journal, run.identity, out)
        told: dict[str, Answer] = {}
        for number in range(total):
            if journal.get(_done(run, number)) is None:
                begun = monotonic()
                entries += _ask(run, run.source.subject(number), journal, told)
                seconds = {"seconds": round(monotonic() - begun, 3)}
                entries.append(_kept(journal, _done(run, number), seconds))
            if on_progress:
                on_progress(number + 1, total)
    return entries


def unpacked(entry: Entry) -> Mask | None:
    """Give the mask of an answer on its source grid; None if it drew none."""
    kept = entry.get("mask") or {}
    if not kept.get("bits"):
        return None
    shape = tuple(kept["shape"])
    packed = np.frombuffer(zlib.decompress(base64.b64decode(kept["bits"])), np.uint8)
    return np.unpackbits(packed, count=int(np.prod(shape))).reshape(shape).astype(bool)


def vector(told: str) -> NDArray[np.float32]:
    """Read a vector as the journal keeps it."""
    return np.frombuffer(base64.b64decode(told), np.float32)


def _check(journal: Journal, identity: Mapping[str, Any], out: Path) -> None:
    """Begin a journal, or make sure that it is one of the same run."""
    wanted = json.loads(json.dumps(identity))
    kept = journal.get(SETTINGS)
    if kept is None and not len(journal):
        journal.add(SETTINGS, {"run": wanted})
        return
    had = kept.get("run") if kept else None
    if not isinstance(had, dict):
        raise DataError(journal.path, 1, "the settings of a benchmark", "something else")
    for name in dict.fromkeys([*wanted, *had]):
        if wanted.get(name) != had.get(name):
            raise ModelError(
                f"{out} holds the answers of another run, whose {name} is {had.get(name)}, "
                f"not {wanted.get(name)}; give another --out"
            )


def _done(run: Run, number: int) -> str:
    return f"{run.lamed.card.sha256[:16]}|{run.source.name(number)}|done"


def _ask(run: Run, subject: Subject, journal: Journal, told: dict[str, Answer]) -> list[Entry]:
    """Ask one image what is not yet answered."""
    digest = run.lamed.card.sha256[:16]
    fresh: list[Entry] = []

    def keep(key: str, entry: dict[str, Any]) -> None:
        fresh.append(_kept(journal, f"{digest}|{key}", entry))

    def open_(condition: str) -> list[Item]:
        keys = {each.id: f"{digest}|{each.id}|{condition}" for each in subject.items}
        return [each for each in subject.items if journal.get(keys[each.id]) is None]

    for item, answer in _answered(run.lamed, subject.prepared, open_(IMAGE), subject.id):
        keep(f"{item.id}|{IMAGE}", _entry(item, IMAGE, answer, subject))
    grey = replace(subject.prepared, image=torch.full_like(subject.prepared.image, GREY))
    for item, answer in _blind(run.lamed, grey, open_(BLIND), subject.id, told):
        keep(f"{item.id}|{BLIND}", _entry(item, BLIND, answer, subject))
    if run.clip and subject.report and journal.get(f"{digest}|{subject.id}|vectors") is None:
        keep(f"{subject.id}|vectors", _vectors(run.clip, subject))
    return fresh


def _kept(journal: Journal, key: str, entry: dict[str, Any]) -> Entry:
    """Keep an entry, and give it as a run that goes on from here will read it."""
    journal.add(key, entry)
    found: Entry = json.loads(json.dumps({"key": key} | entry))
    return found


def _answered(
    lamed: LaMed, prepared: Prepared, items: Sequence[Item], name: str
) -> list[tuple[Item, Answer]]:
    if not items:
        return []
    try:
        return list(
            zip(items, lamed.ask(prepared, [_question(each) for each in items]), strict=True)
        )
    except ModelError as error:
        raise ModelError(f"{name}: {error}") from error


def _question(item: Item) -> Question:
    task = Task(item.task)
    return Question(
        item.question,
        id=item.id,
        caption=task is Task.CAPTION,
        max_new_tokens=NEW_TOKENS.get(task, FEWER_TOKENS),
    )


def _blind(
    lamed: LaMed, grey: Prepared, items: Sequence[Item], name: str, told: dict[str, Answer]
) -> Iterable[tuple[Item, Answer]]:
    """Ask without the image; the same words get the same answer, so they are asked once."""
    new = [each for each in items if each.question not in told]
    drawn = dict[str, Answer]()
    for item, answer in _answered(lamed, grey, new, name):
        # A mask takes megabytes and belongs on this image's own grid.
        (drawn if answer.masks else told)[item.question] = answer
    return [(each, drawn.get(each.question) or told[each.question]) for each in items]


def _entry(item: Item, condition: str, answer: Answer, subject: Subject) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "item": item.told,
        "condition": condition,
        "text": answer.text,
        "raw": answer.raw,
        "confidence": answer.confidence,
        "grid": list(subject.prepared.image.shape[2:]),
    }
    if Task(item.task) in OUTLINED:
        entry["mask"] = _judged(item, answer, subject, keep=condition == IMAGE)
    return entry


def _judged(item: Item, answer: Answer, subject: Subject, *, keep: bool) -> dict[str, Any]:
    """Compare what was drawn, all its masks together, with the true mask on the source grid."""
    truth = subject.masks[item.id]
    if answer.masks:
        logits = np.maximum.reduce([each.restore() for each in answer.masks])
    else:  # as the published script has it: certainly nothing
        logits = np.full(truth.shape, -np.inf, np.float32)
    said = logits > 0
    spacing = subject.spacing_mm
    found = surface(said, truth, spacing, tolerance_mm=TOLERANCE_MM) if spacing else None
    judged: dict[str, Any] = {
        "drawn": len(answer.masks),
        "voxels": [int(said.sum()), int(truth.sum())],
        "dice": mask_overlap(said, truth).score,
        "surface": asdict(found) if found else None,
        "reference_dice": reference_dice(logits[None], truth[None]),
        "shape": list(said.shape),
    }
    if keep and truth.any():
        judged["ceiling"] = _ceiling(truth, subject.prepared)
    if keep and said.any():
        judged["bits"] = base64.b64encode(zlib.compress(np.packbits(said).tobytes())).decode()
    return judged


def _ceiling(truth: Mask, prepared: Prepared) -> float:
    """Give the Dice of the true mask after the way to the network's grid and back: the most."""
    z, y, x = prepared.image.shape[2:]
    nearest = prepared.placement.gather(truth.astype(np.uint8), (z, y, x))
    back = prepared.placement.restore(torch.from_numpy(nearest.astype(np.float32)) - 0.5)
    return dice(back > 0, truth)


def _vectors(clip: Embedder, subject: Subject) -> dict[str, Any]:
    """Embed an image and its report."""
    image, text = clip.embed_images(subject.prepared.image), clip.embed_texts([subject.report])
    found = [each[0].detach().float().cpu().numpy().tobytes() for each in (image, text)]
    ours, theirs = (base64.b64encode(each).decode() for each in found)
    return {
        "subject": subject.id,
        "patient": subject.patient,
        "report": subject.report,
        "image": ours,
        "text": theirs,
    }
