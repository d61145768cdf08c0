"""What is asked: one image with its questions, and everything that is true of it.

Knows how many questions of which task one image gets, and how they are told apart in the tables.
A question that is asked for what is not there stands beside one for what is: declining all, or
nothing, is worth half.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain, zip_longest
from typing import Any, Final, Protocol, TypeVar

from numpy.typing import NDArray

from model.data.sample import Box, Sample, Task
from model.preprocess import Prepared

from .geometry import Mask

# How many questions of a task one image gets at most, so that 300 images give about 300 of each
# kind that the tables tell apart.
LIMITS: Final[Mapping[Task, int]] = {
    Task.CAPTION: 1,
    Task.CLOSED_VQA: 4,
    Task.OPEN_VQA: 4,
    Task.REC: 2,
    Task.REG: 2,
    Task.SEMANTIC_SEGMENTATION: 3,
    Task.REFERRING_SEGMENTATION: 2,
}
BY_KIND: Final = frozenset({Task.CLOSED_VQA, Task.OPEN_VQA})
OUTLINED: Final = frozenset({Task.SEMANTIC_SEGMENTATION, Task.REFERRING_SEGMENTATION})
RETRIEVAL: Final = "retrieval"
TASKS: Final = (RETRIEVAL, *(each.value for each in Task))
DIMENSIONS: Final = (
    "kind", "truth", "target", "finding", "organ", "side", "region", "modality", "phase", "absence",
    "source", "set",
)  # fmt: skip

T = TypeVar("T")


@dataclass(frozen=True)
class Item:
    """One question with its true answer; `groups` says in which rows of the tables it counts.

    `box` is as published: (z0, y0, x0, z1, y1, x1), parts of the grid, ending at the last voxel.
    """

    id: str
    subject: str
    task: str
    question: str
    answer: str
    patient: str
    choices: tuple[str, ...] = ()
    letter: str = ""
    box: Box | None = None
    absent: bool = False
    groups: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, sample: Sample, id_: str, subject: str, groups: Mapping[str, str]) -> "Item":
        """Take a sample's words; groups without a name are left out."""
        return cls(
            id=id_,
            subject=subject,
            task=sample.task.value,
            question=sample.question,
            answer=sample.answer,
            patient=sample.patient,
            choices=sample.choices,
            letter=sample.letter,
            box=sample.box,
            absent=sample.absent,
            groups={name: value for name, value in groups.items() if value},
        )

    @property
    def side(self) -> str:
        """Give the side that is asked for or true; nothing for none or both."""
        return self.groups.get("side", "")

    @property
    def told(self) -> dict[str, Any]:
        """Give what the journal keeps."""
        return asdict(self)

    @classmethod
    def read(cls, told: Mapping[str, Any]) -> "Item":
        """Read what the journal kept."""
        box = tuple(told["box"]) if told["box"] else None
        return cls(**{**told, "choices": tuple(told["choices"]), "box": box})


@dataclass(frozen=True, eq=False)  # arrays have no one truth
class Subject:
    """One image and what is asked of it.

    `masks` are the true ones by the id of their item, on the grid the image came from, whose
    voxels are of `spacing_mm`; None: nobody knows. `report` is what retrieval pairs the image with.
    """

    id: str
    patient: str
    prepared: Prepared
    items: tuple[Item, ...]
    masks: Mapping[str, Mask]
    spacing_mm: tuple[float, float, float] | None
    report: str = ""

    def mask(self, item: Item) -> NDArray[Any] | None:
        """Give the true mask of a question for one."""
        return self.masks.get(item.id)


class Source(Protocol):
    """Images by number, always the same ones."""

    def __len__(self) -> int: ...

    @property
    def told(self) -> dict[str, Any]:
        """Say what was asked and where it comes from; equal for equal questions."""
        ...

    def name(self, number: int) -> str:
        """Give the id of a subject without making it."""
        ...

    def subject(self, number: int) -> Subject:
        """Make one."""
        ...


def chosen(
    asked: Sequence[T],
    about: Callable[[T], tuple[Task, str, bool]],
    limits: Mapping[Task, int],
    turn: int,
) -> list[T]:
    """Choose what one image is asked, the `turn`-th: kinds in turn, present and absent in turn.

    `about` gives task, kind, and whether it asks for what is not there. Those that come first in
    `asked` are preferred.
    """
    kept: list[T] = []
    for task in Task:
        own = [each for each in asked if about(each)[0] is task]
        kinds: dict[str, list[T]] = {}
        for each in own:
            kinds.setdefault(about(each)[1] if task in BY_KIND else "", []).append(each)
        mixed = [
            _alternating([each for each in some if about(each)[2]],
                         [each for each in some if not about(each)[2]], turn + index)
            for index, some in enumerate(kinds.values())
        ]  # fmt: skip
        start = turn % len(mixed) if mixed else 0
        rounds = chain.from_iterable(zip_longest(*mixed[start:], *mixed[:start]))
        kept += [each for each in rounds if each is not None][: limits.get(task, 0)]
    return kept


def _alternating(absent: Sequence[T], present: Sequence[T], turn: int) -> list[T]:
    first, second = (absent, present) if turn % 2 else (present, absent)
    both = chain.from_iterable(zip_longest(first, second))
    return [each for each in both if each is not None]
