"""A case in front of its judges: files are written, every judge is asked once about each object."""

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from pydicom import Dataset, config

from .judges import BENCHES, JUDGES, Bench, Judge
from .matrix import Case
from .report import Complaint, Outcome, kind, load

Tell = Callable[[str], None]


class Court:
    """Judges one case after the other; remembers what it need not ask twice."""

    def __init__(
        self,
        folder: Path,
        judges: Sequence[Judge] = JUDGES,
        benches: Sequence[Bench] = BENCHES,
        *,
        limits: dict[str, int] | None = None,
    ) -> None:
        self._folder, self._limits = folder, dict(limits or {})
        self.outcome = Outcome(explanations=load())
        self._judges = [each for each in judges if self._is_there(each)]
        self._benches = [each for each in benches if self._is_there(each)]
        self._heard = 0
        self._known: dict[tuple[str, str], Future[list[str]]] = {}

    def _is_there(self, each: Judge | Bench) -> bool:
        missing = each.program.missing if each.program else ""
        if missing:
            self.outcome.missing[each.name] = missing
        return not missing

    def hear(self, case: Case, tell: Tell = lambda _: None) -> None:
        """Ask everybody about a case."""
        self._heard += 1
        paths = _write(case, self._folder / f"{self._heard}")
        asked = [
            (judge, label, instance)
            for judge in self._judges
            for label, instance in case.objects.items()
            if judge.wants(instance) and self._may(judge)
        ]
        for judge, label, verdict in self._verdicts(asked, paths):
            tell(f"{case.name}: {judge.name} on {label}")
            self._note(case, judge.name, [label], ((label, each) for each in verdict))
        for bench in self._benches:
            tell(f"{case.name}: {bench.name}")
            labels = [label for label, each in case.objects.items() if bench.wants(each)]
            self._note(case, bench.name, labels, bench.ask(case, paths))

    def _may(self, judge: Judge) -> bool:
        """Count down how many objects a judge may see; it may see all if nothing is said."""
        left = self._limits.get(judge.name, 1)
        if judge.name in self._limits:
            self._limits[judge.name] = left - 1
        return left > 0

    def _verdicts(
        self, asked: Sequence[tuple[Judge, str, Dataset]], paths: Mapping[str, Path]
    ) -> Iterator[tuple[Judge, str, list[str]]]:
        """Ask as many at once as there are cores, and nobody twice about the same."""
        keys = [
            (judge.name, judge.same(instance) if judge.same else str(paths[label]))
            for judge, label, instance in asked
        ]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for key, (judge, label, _) in zip(keys, asked, strict=True):
                if key not in self._known:
                    self._known[key] = pool.submit(judge.ask, paths[label])
            for key, (judge, label, _) in zip(keys, asked, strict=True):
                yield judge, label, self._known[key].result()

    def _note(
        self, case: Case, judge: str, labels: Iterable[str], found: Iterable[tuple[str, str]]
    ) -> None:
        self.outcome.seen.update((kind(label), judge) for label in labels)
        self.outcome.complaints += [
            Complaint(case.name, label, judge, self._without_folder(text)) for label, text in found
        ]

    def _without_folder(self, text: str) -> str:
        return re.sub(rf"{re.escape(str(self._folder))}/\d+/", "", text)


def _write(case: Case, folder: Path) -> dict[str, Path]:
    """Write the images that were read and the objects; dirty images as they are."""
    (folder / "source").mkdir(parents=True)
    config.settings.writing_validation_mode = config.IGNORE
    try:
        for number, each in enumerate(case.sources):
            each.save_as(folder / "source" / f"{number}.dcm", enforce_file_format=True)
    finally:
        config.settings.writing_validation_mode = config.RAISE
    paths = {label: folder / f"{label}.dcm" for label in case.objects}
    for label, each in case.objects.items():
        each.save_as(paths[label], enforce_file_format=True)
    return paths
