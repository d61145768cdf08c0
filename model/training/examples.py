"""What one step of training looks at: an image and everything that is asked about it.

Knows where examples come from (the corpus, or prepared samples) and the order they come in. A
place in the stream is one example for ever: the same seed, the same place, the same bytes, so that
a run that was killed goes on as if it had not been.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from model.data.corpus import telling
from model.data.corpus.findings import KINDS, Finding
from model.data.corpus.organs import ORGANS
from model.data.corpus.scene import Pool, Scene
from model.data.prompts import box_text
from model.data.sample import Box, Sample, Task, load_image, load_mask
from model.data.tokens import Layout, Tokens, encode
from model.errors import ModelError
from model.network.config import Size
from model.tokenizer import SEG, Tokenizer

from .augment import Augment

Random = np.random.Generator
Mask = NDArray[np.bool_]
FIRST_KIND: Final = 1 + len(ORGANS)
CLASSES: Final = FIRST_KIND + len(KINDS)  # what a voxel can be: nothing, an organ, a finding
MASKED: Final = frozenset({Task.SEMANTIC_SEGMENTATION, Task.REFERRING_SEGMENTATION})
COUNTED: Final = 200  # patients of a pool that are looked at for the weights of classes
RAREST: Final = 1e-6
HEAVIEST: Final = 100.0
# How eagerly a question is asked where not all are, and one about what is not there.
EAGER: Final[Mapping[Task, float]] = {
    Task.CAPTION: 6, Task.CLOSED_VQA: 3, Task.OPEN_VQA: 2, Task.REC: 1.5, Task.REG: 0.7,
    Task.SEMANTIC_SEGMENTATION: 1, Task.REFERRING_SEGMENTATION: 2,
}  # fmt: skip
ABSENT: Final[Mapping[str, float]] = {"": 1, "finding": 1, "same region": 3, telling.ELSEWHERE: 0.3}
ENOUGH: Final = 0.05  # of a block that an organ fills: less is not named
SMALLEST: Final = 3  # voxels of the grid: a target of fewer is not asked about


@dataclass(frozen=True, eq=False)  # arrays have no one truth
class Example:
    """One image and what is asked about it.

    `image` is float32 (1, D, H, W) in 0..1. `masks[i]`, (D, H, W), is what question i outlines, or
    None, and `targets` the class of each mask that is there. `report` is the text of the whole
    image, where there is one. `classes` is what each voxel is (uint8), and `outlined` masks with
    the class each is of: only for SegVol's own training. `named`, bool (image tokens, `CLASSES`),
    is what each image token shows.
    """

    image: NDArray[np.float32]
    tokens: tuple[Tokens, ...] = ()
    masks: tuple[Mask | None, ...] = ()
    targets: tuple[int, ...] = ()
    report: str = ""
    classes: NDArray[np.uint8] | None = None
    outlined: tuple[tuple[int, Mask], ...] = ()
    named: Mask | None = None


class Source(Protocol):
    """Examples by number; `random` decides all that varies."""

    def __len__(self) -> int: ...

    def example(self, number: int, random: Random) -> Example:
        """Make one example."""
        ...


@dataclass
class Stream(Dataset[Example]):
    """A source in a new order at each pass, `length` examples long."""

    source: Source
    length: int
    seed: int = 0
    _last: tuple[int, NDArray[np.int64]] | None = field(default=None, init=False, repr=False)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, place: int) -> Example:
        turn, within = divmod(place, len(self.source))
        random = np.random.default_rng([self.seed, 1, place])
        return self.source.example(int(self._order(turn)[within]), random)

    def _order(self, turn: int) -> NDArray[np.int64]:
        if self._last is None or self._last[0] != turn:
            random = np.random.default_rng([self.seed, turn])
            self._last = turn, random.permutation(len(self.source))
        return self._last[1]


@dataclass
class Patients:
    """The anatomy corpus: patients by seed, with questions in new words each time.

    `questions` is how many are asked of an image at most, `masks` how many of them draw; `outlines`
    is how many masks SegVol's own training gets. Only in `mask_share` of the images is anything
    outlined. `surveys` times all kinds of findings are gone through, besides. With `blocks`, the
    voxels of an image token along each axis, it is told what each of them shows.
    """

    pools: Sequence[tuple[Pool, Sequence[int]]]
    augment: Augment = field(default_factory=Augment)
    tokenizer: Tokenizer | None = None
    layout: Layout | None = None
    questions: int = 24
    masks: int = 0
    mask_share: float = 1.0
    outlines: int = 0
    tasks: frozenset[Task] | None = None
    kinds: frozenset[str] | None = None
    surveys: int = 0
    blocks: Size | None = None

    def __len__(self) -> int:
        return sum(len(seeds) for _, seeds in self.pools)

    def example(self, number: int, random: Random) -> Example:
        """Take a patient, vary the image, ask."""
        scene = self.augment(self._scene(number), random)
        image = scene.image[None]
        if self.outlines:
            return Example(image, classes=classes(scene), outlined=self._outlined(scene, random))
        if self.tokenizer is None or self.layout is None:
            return Example(image, report=telling.report(scene.truth))
        return self._asked(scene, random, self.tokenizer, self.layout)

    def _scene(self, number: int) -> Scene:
        for pool, seeds in self.pools:
            if number < len(seeds):
                return pool[seeds[number]]
            number -= len(seeds)
        raise IndexError(number)

    def _outlined(self, scene: Scene, random: Random) -> tuple[tuple[int, Mask], ...]:
        """Choose what to outline: a finding, if there is one, and organs."""
        findings = [each for each in scene.truth.findings if np.count_nonzero(scene.mask(each))]
        chosen: list[str | Finding] = [
            findings[int(index)] for index in random.permutation(len(findings))[:1]
        ]
        organs = list(random.permutation(scene.truth.present))
        chosen += [str(each) for each in organs[: self.outlines - len(chosen)]]
        return tuple((number_of(each), scene.mask(each)) for each in chosen)

    def _asked(self, scene: Scene, random: Random, tokenizer: Tokenizer, layout: Layout) -> Example:
        asked = self._turns(scene, random)
        if not asked:
            wanted = ", ".join((*(self.tasks or Task), *sorted(self.kinds or ())))
            raise ModelError(
                f"patient {scene.truth.seed}: expected a question of {wanted}, got none"
            )
        asked += [(telling.survey(scene.truth, random), None) for _ in range(self.surveys)]
        tokens = [
            _tokens(sample_of(scene, turn), tokenizer, layout, draws=mask is not None)
            for turn, mask in asked
        ]
        drawn = [turn.target for turn, mask in asked if mask is not None]
        return Example(
            scene.image[None],
            tuple(tokens),
            tuple(mask for _, mask in asked),
            tuple(number_of(each) for each in drawn if each is not None),
            telling.report(scene.truth),
            named=None if self.blocks is None else shown(classes(scene), self.blocks),
        )

    def _turns(self, scene: Scene, random: Random) -> list[tuple[telling.Turn, Mask | None]]:
        """Choose questions; no more than `masks` of them want an outline."""
        turns = [
            each
            for each in telling.turns(scene.truth, random)
            if (self.tasks is None or Task(each.task) in self.tasks)
            and (self.kinds is None or each.kind in self.kinds)
        ]
        chosen: list[tuple[telling.Turn, Mask | None]] = []
        masks = self.masks if random.random() < self.mask_share else 0
        drawn = 0
        for index in _order(turns, scene.truth.region, random):
            turn = turns[index]
            mask = None if turn.target is None else scene.mask(turn.target)
            if mask is not None and np.count_nonzero(mask) < SMALLEST:
                continue
            if mask is not None and Task(turn.task) in MASKED:
                # More would only teach the words again.
                if drawn >= (masks or 2):
                    continue
                drawn += 1
            outlined = mask if Task(turn.task) in MASKED and masks else None
            chosen.append((turn, outlined))
            if len(chosen) >= self.questions:
                break
        return chosen


@dataclass
class Samples:
    """Prepared samples of M3D-Data: those of one image stand behind it together.

    Without a tokenizer only images and their reports are given. `questions` is how many are asked
    of an image at once, `masks` how many of them draw. `grid` is what images must be.
    """

    samples: Sequence[Sample]
    tokenizer: Tokenizer | None = None
    layout: Layout | None = None
    questions: int = 1
    augment: Augment = field(default_factory=Augment)
    masks: int = 0
    grid: Size | None = None

    def __post_init__(self) -> None:
        ordered = sorted(self.samples, key=lambda each: str(each.image))
        self._groups: list[tuple[Sample, ...]] = []
        for _, group in groupby(ordered, key=lambda each: each.image):
            several = list(group)
            self._groups += [
                tuple(several[first : first + self.questions])
                for first in range(0, len(several), self.questions)
            ]

    def __len__(self) -> int:
        return len(self._groups)

    def example(self, number: int, random: Random) -> Example:
        """Load an image and its masks; vary both alike, and nothing that words speak of."""
        group = self._groups[number]
        image = load_image(group[0])
        if self.grid is not None and image.shape[1:] != self.grid:
            raise group[0].error(f"an image {(1, *self.grid)}", f"{image.shape}")
        masks = [
            _mask(each, image) if draws else None for each, draws in self._draws(group, random)
        ]
        image, masks = self.augment.samples(image, masks, group, random)
        report = next((each.answer for each in group if each.task is Task.CAPTION), "")
        if self.tokenizer is None or self.layout is None:
            return Example(image, report=report)
        tokens = tuple(
            _tokens(each, self.tokenizer, self.layout, draws=mask is not None)
            for each, mask in zip(group, masks, strict=True)
        )
        return Example(image, tokens, tuple(masks), report=report)

    def _draws(self, group: Sequence[Sample], random: Random) -> list[tuple[Sample, bool]]:
        """Choose which questions draw: no more than `masks` of them."""
        could = [index for index, each in enumerate(group) if each.mask]
        if len(could) > self.masks:
            could = [could[int(index)] for index in random.permutation(len(could))[: self.masks]]
        return [(each, index in could) for index, each in enumerate(group)]


def sample_of(scene: Scene, turn: telling.Turn) -> Sample:
    """Make a turn of the corpus the sample a reader would give; boxes are of this very grid.

    But a choice is given by its words alone: a letter would be said before what it stands for.
    """
    box = None
    if turn.target is not None and telling.BOX in turn.question + turn.answer:
        box = box_of(scene.mask(turn.target))
    told = "" if box is None else box_text(box)
    return Sample(
        id=f"corpus/{scene.truth.seed}#{turn.task}",
        task=Task(turn.task),
        image=Path(f"corpus/{scene.truth.seed}"),
        question=turn.question.replace(telling.BOX, told),
        answer=turn.answer.removeprefix(f"{turn.letter}. ").replace(telling.BOX, told),
        patient=str(scene.truth.seed),
        kind=turn.kind,
        choices=turn.choices,
        letter=turn.letter,
        box=box,
        absent=turn.absent,
        side=turn.side,
    )


def _order(turns: Sequence[telling.Turn], region: str, random: Random) -> list[int]:
    """Draw an order in which the eager are likely to come first (Efraimidis and Spirakis)."""
    eager = [EAGER[Task(each.task)] * ABSENT[telling.absence(each, region)] for each in turns]
    drawn = random.exponential(size=len(turns)) / eager
    return [int(each) for each in np.argsort(drawn)]


def _tokens(sample: Sample, tokenizer: Tokenizer, layout: Layout, *, draws: bool) -> Tokens:
    tokens = encode(sample, tokenizer, layout)
    if draws and tokenizer.added[SEG] not in tokens.input_ids:
        cut = len(tokens.input_ids) >= layout.max_length
        raise sample.error(
            f"{SEG} in the answer, within {layout.max_length} tokens",
            "an answer that is cut before it" if cut else repr(sample.answer),
        )
    return tokens


def _mask(sample: Sample, image: NDArray[np.float32]) -> Mask:
    mask: Mask = load_mask(sample)[0]
    if mask.shape != image.shape[1:]:
        raise sample.error(f"a mask {image.shape[1:]}, as its image", f"{mask.shape}")
    return mask


def box_of(mask: Mask) -> Box:
    """Give the box of a mask as published: parts of the axes, the last voxel inside it."""
    places = np.argwhere(mask)
    low, high = places.min(axis=0) / mask.shape, places.max(axis=0) / mask.shape
    z0, y0, x0, z1, y1, x1 = (float(each) for each in (*low, *high))
    return z0, y0, x0, z1, y1, x1


def classes(scene: Scene) -> NDArray[np.uint8]:
    """Say what each voxel is: an organ, or the finding in it."""
    found = scene.labels.copy()
    for each in scene.truth.findings:
        if each.number:
            found[scene.planted == each.number] = number_of(each)
    return found


def shown(found: NDArray[np.uint8], blocks: Size) -> Mask:
    """Say what each block of a grid of classes shows: organs, and findings however small.

    (D, H, W) -> bool (blocks, `CLASSES`); what is left over at an axis' end is in no block.
    """
    counts = [each // size for each, size in zip(found.shape, blocks, strict=True)]
    (depth, z), (height, y), (width, x) = zip(counts, blocks, strict=True)
    parts = found[: depth * z, : height * y, : width * x]
    parts = parts.reshape(depth, z, height, y, width, x).transpose(0, 2, 4, 1, 3, 5)
    voxels = parts.reshape(depth * height * width, z * y * x).astype(np.int64)
    first = CLASSES * np.arange(len(voxels))[:, None]
    numbers = np.bincount((voxels + first).ravel(), minlength=CLASSES * len(voxels))
    least = np.full(CLASSES, ENOUGH * z * y * x)
    least[FIRST_KIND:] = SMALLEST
    seen: Mask = numbers.reshape(len(voxels), CLASSES) >= least
    seen[:, 0] = False  # nothing has no name
    return seen


def names() -> tuple[str, ...]:
    """Name every class as the corpus' sentences do; the first, nothing, has no name."""
    return "", *ORGANS, *map(telling.named, KINDS)


def weights(patients: Patients) -> NDArray[np.float32]:
    """Weigh classes by the inverse root of how many voxels are of each; the mean voxel weighs 1."""
    counts = np.zeros(CLASSES)
    for pool, seeds in patients.pools:
        for seed in seeds[:: max(1, len(seeds) // COUNTED)]:
            counts += np.bincount(classes(pool[seed]).ravel(), minlength=CLASSES)
    share = counts / counts.sum() + RAREST
    found = share**-0.5
    return np.asarray(np.clip(found / (found * share).sum(), None, HEAVIEST), np.float32)


def number_of(target: str | Finding) -> int:
    """Give the number that an organ or a kind of finding has in `classes`."""
    if isinstance(target, str):
        return ORGANS[target].number
    return FIRST_KIND + list(KINDS).index(target.kind)
