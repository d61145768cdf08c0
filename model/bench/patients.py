"""The anatomy corpus as a benchmark: patients that no training has seen.

Knows seeds and what is true of a case. Masks are judged where a node would use them, on the
patient's own grid; boxes on the network's grid, which the words are of.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from model.data.corpus import scene, telling
from model.data.corpus.case import Case
from model.data.corpus.findings import KINDS, Finding
from model.data.corpus.organs import ORGANS
from model.data.corpus.scan import SDIST, SDIST_SHA256, Scan
from model.data.corpus.scene import Scene, prepared_image
from model.data.corpus.telling import Turn
from model.data.sample import Task
from model.preprocess import Shape
from model.training.examples import SMALLEST, sample_of

from .geometry import Mask
from .items import OUTLINED, Item, Subject, chosen

FIRST_SEED: Final = 1_000_000  # training has those below
PHANTOM, SCANNED = "phantom", "scanned"
PLACED: Final = frozenset({Task.REC, Task.REG, *OUTLINED})  # tasks about one structure
_TRUTH: Final = {
    (kind, absent): "not there" if absent else "there"
    for kind in ("topic", "yes_no")
    for absent in (False, True)
}


@dataclass(frozen=True)
class Patients:
    """Patients of the corpus, `phantoms` of shapes alone and then `scanned` ones bent from a CT."""

    grid: Shape
    phantoms: int
    limits: Mapping[Task, int]
    scan: Scan | None = None
    scanned: int = 0
    first_seed: int = FIRST_SEED

    def __len__(self) -> int:
        return self.phantoms + self.scanned

    @property
    def told(self) -> dict[str, Any]:
        """Say which patients, and of which version of the corpus."""
        seeds = {
            PHANTOM: [self.first_seed, self.first_seed + self.phantoms],
            SCANNED: [self.first_seed, self.first_seed + self.scanned],
        }
        counts = {PHANTOM: self.phantoms, SCANNED: self.scanned}
        return {
            "corpus": scene.VERSION,
            "seeds": {name: each for name, each in seeds.items() if counts[name]},
            "grid": list(self.grid),
            "limits": {task.value: count for task, count in self.limits.items()},
            "scan": f"{SDIST}, sha256 {SDIST_SHA256}" if self.scanned else None,
        }

    def name(self, number: int) -> str:
        """Give the source and the seed of a patient."""
        if number < self.phantoms:
            return f"{PHANTOM}/{self.first_seed + number}"
        return f"{SCANNED}/{self.first_seed + number - self.phantoms}"

    def subject(self, number: int) -> Subject:
        """Make a patient and choose what is asked."""
        name = self.name(number)
        source, _, seed = name.partition("/")
        make: Callable[[int], Case] = Case.make
        if source == SCANNED and self.scan:
            make = self.scan.case
        case = make(int(seed))
        prepared = prepared_image(case, self.grid)
        shown = Scene(
            case.truth,
            prepared.image[0, 0].numpy(),
            prepared.placement.gather(case.labels, self.grid),
            prepared.placement.gather(case.planted, self.grid),
        )
        asked = [(f"{name}#{index}", turn) for index, turn in enumerate(_turns(case, shown))]
        kept = chosen(asked, lambda each: _about(each[1]), self.limits, number)
        return Subject(
            id=name,
            patient=name,
            prepared=prepared,
            items=tuple(_item(id_, turn, shown, source) for id_, turn in kept),
            masks={id_: _mask(case, turn) for id_, turn in kept if turn.task in OUTLINED},
            spacing_mm=case.spacing_mm,
            report=telling.report(case),
        )


def _turns(case: Case, shown: Scene) -> list[Turn]:
    """Give all that can be asked, in random order, what is hard to decline first."""
    random = np.random.default_rng([case.seed, FIRST_SEED])
    turns = [
        each
        for each in telling.turns(case.truth, random)
        if each.target is None or np.count_nonzero(shown.mask(each.target)) >= SMALLEST
    ]
    mixed = [turns[int(index)] for index in random.permutation(len(turns))]
    return sorted(mixed, key=lambda each: telling.absence(each, case.region) == telling.ELSEWHERE)


def _about(turn: Turn) -> tuple[Task, str, bool]:
    return Task(turn.task), turn.kind, turn.absent


def _item(id_: str, turn: Turn, shown: Scene, source: str) -> Item:
    truth = shown.truth
    name = f"{source}/{truth.seed}"
    sample = replace(sample_of(shown, turn), patient=name)
    finding, organ = _target(turn)
    placed = turn.task in PLACED
    groups = {
        "kind": "" if placed else turn.kind,
        "target": ("lesion" if finding else "organ") if placed else "",
        "finding": finding,
        "organ": organ,
        "side": turn.side,
        "region": truth.region,
        "modality": truth.modality,
        "phase": truth.phase,
        "truth": _TRUTH.get((turn.kind, turn.absent), ""),
        "absence": telling.absence(turn, truth.region),
        "source": source,
    }
    return Item.of(sample, id_, name, groups)


def _target(turn: Turn) -> tuple[str, str]:
    """Name the kind of finding, or the organ, that a question is about, if it is about one."""
    if isinstance(turn.target, Finding):
        return turn.target.kind, ""
    name = turn.target or telling.gone(turn)
    if name in ORGANS:
        return "", ORGANS[name].plain
    return turn.kind if turn.kind in KINDS else _kind(name), ""


def _kind(name: str) -> str:
    """Tell the kind of a finding from its words: a stone of the kidney, or of the gallbladder."""
    for kind in KINDS.values():
        word = telling.WORDS.get(kind.name, kind.name)
        places = {ORGANS[each].plain for each in kind.organs} | {"pleural"}
        if word in name and any(each in name for each in places):
            return kind.name
    return ""


def _mask(case: Case, turn: Turn) -> Mask:
    """Give the true mask on the patient's own grid; nothing of what is absent."""
    if turn.target is None:
        return np.zeros(case.labels.shape, bool)
    if isinstance(turn.target, Finding):
        return case.finding(turn.target)
    return case.organ(turn.target)
