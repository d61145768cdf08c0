"""Models that know the truth, or nothing, or a part of it: what the benchmark must find out."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from model.bench.asking import IMAGE
from model.bench.items import OUTLINED, Item, Source, Subject
from model.card import Card
from model.lamed import Answer, Mask, Question
from model.preprocess import Placement, Prepared
from model.tokenizer import SEG

ORACLE = Card("oracle", "1", "ab" * 32, untrained=False)
CPU = torch.device("cpu")


@dataclass(frozen=True, eq=False)
class Drawn(Mask):
    """A mask that is already where the image came from."""

    def restore(self) -> np.ndarray:
        return self.logits


def mask(inside: np.ndarray, prepared: Prepared) -> Drawn:
    return Drawn(np.where(inside, 5.0, -5.0).astype(np.float32), prepared.placement)


def answer(
    question: Question, raw: str, masks: Sequence[Mask] = (), confidence: float = 0.9
) -> Answer:
    text = " ".join(raw.replace(SEG, " ").split())
    return Answer(question.id, question.text, text, raw, (), confidence, tuple(masks))


@dataclass
class Asked(ABC):
    """What every model here has beside its answers; `asked` is which questions saw an image."""

    card: Card = ORACLE
    dtype: torch.dtype = torch.float32
    device: torch.device = CPU
    asked: list[tuple[str, bool]] = field(default_factory=list)

    def ask(self, prepared: Prepared, questions: Sequence[Question]) -> list[Answer]:
        sees = bool(prepared.image.std() > 0)
        self.asked += [(each.id, sees) for each in questions]
        return [self.answer(each, prepared, sees=sees) for each in questions]

    @abstractmethod
    def answer(self, question: Question, prepared: Prepared, *, sees: bool) -> Answer: ...


@dataclass
class Oracle(Asked):
    """Answers with the truth where there is an image, and with a fixed sentence where not.

    `spoil` may turn a true answer into another one.
    """

    spoil: Callable[[Item, Answer], Answer] | None = None
    blind: str = "I see nothing."
    subjects: dict[str, Subject] = field(default_factory=dict)

    @classmethod
    def of(cls, source: Source, **options: Any) -> "Oracle":
        subjects = [source.subject(number) for number in range(len(source))]
        by_item = {each.id: subject for subject in subjects for each in subject.items}
        return cls(subjects=by_item, **options)

    def answer(self, question: Question, prepared: Prepared, *, sees: bool) -> Answer:
        if not sees:
            return answer(question, self.blind)
        subject = self.subjects[question.id]
        item = next(each for each in subject.items if each.id == question.id)
        assert question.text == item.question
        assert question.caption == (item.task == "caption")
        drawn = []
        if item.task in OUTLINED and not item.absent:
            drawn = [mask(subject.masks[item.id], prepared)]
        said = answer(question, item.answer, drawn)
        return self.spoil(item, said) if self.spoil else said


@dataclass
class Silly(Asked):
    """Says the same of everything, and paints over all of it."""

    def answer(self, question: Question, prepared: Prepared, *, sees: bool) -> Answer:  # noqa: ARG002
        said = f"B. There is a {SEG} at <bx_start>[0.0, 0.0, 0.0, 1.0, 1.0, 1.0]<bx_end>."
        return answer(question, said, [mask(np.ones(prepared.placement.shape, bool), prepared)])


def item(task: str, question: str = "What?", truth: str = "That.", **more: Any) -> Item:
    """Make a question by hand; its patient is its subject, unless told."""
    name = more.pop("id", f"{task}: {question}")
    subject = more.pop("subject", name)
    patient = more.pop("patient", subject)
    return Item(name, subject, task, question, truth, patient, **more)


def said(
    about: Item,
    raw: str,
    *,
    condition: str = IMAGE,
    confidence: float = 0.5,
    mask: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Make an entry of the journal by hand."""
    entry = {
        "item": about.told,
        "condition": condition,
        "text": raw.replace(SEG, "").strip(),
        "raw": raw,
        "confidence": confidence,
        "grid": [32, 256, 256],
    }
    return entry | ({"mask": dict(mask)} if mask else {})


@dataclass
class Made:
    """A source made by hand: subjects whose grid is that of their masks."""

    subjects: Sequence[Subject]
    told: dict[str, Any] = field(default_factory=lambda: {"made": 1})

    def __len__(self) -> int:
        return len(self.subjects)

    def name(self, number: int) -> str:
        return self.subjects[number].id

    def subject(self, number: int) -> Subject:
        return self.subjects[number]


def subject(
    items: Sequence[Item],
    masks: Mapping[str, np.ndarray],
    *,
    shape: tuple[int, int, int] = (8, 10, 12),
    spacing_mm: tuple[float, float, float] | None = (5.0, 2.0, 3.0),
    report: str = "",
) -> Subject:
    """Make an image by hand, with questions about it."""
    random = np.random.default_rng(len(items))
    image = torch.from_numpy(random.random((1, 1, *shape), dtype=np.float32))
    prepared = Prepared(image, Placement(shape, (0, 0, 0), shape))
    name = items[0].subject
    return Subject(name, items[0].patient, prepared, tuple(items), masks, spacing_mm, report)
