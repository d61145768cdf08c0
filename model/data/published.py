"""What the published tables and lists share: rows, splits, paths, and files that are missing.

A row that cannot be used is an error with its file and number, never another row in its place.
Numbers count from 1, without the header. Tables are read as text: a choice that says
"NA" or "None" is a choice. Knows no task.
"""

import csv
import json
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, Final

from .sample import DataError, Sample

NAMES: Final = {"train": ("train", "training"), "validation": ("validation", "val")}
SHOWN: Final = 5  # of the missing files and the broken rows
CASE: Final = slice(-3, -1)  # of a path: ct_case/000123/Axial.npy -> ct_case/000123

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Row:
    """One row of a table, or one entry of a list: the file and the number, and what it says."""

    file: str
    number: int | str
    cells: Mapping[str, object]

    @property
    def id(self) -> str:
        """The name of what is read from this row."""
        return f"{self.file}#{self.number}"

    def text(self, name: str) -> str:
        """Give a cell that must not be empty."""
        found = self.cells.get(name)
        if not isinstance(found, str) or not found.strip():
            raise self.error(f"text in {name}", "nothing" if not found else repr(found))
        return found.strip()

    def integer(self, name: str) -> int:
        """Give a cell that is a whole number."""
        found = self.cells.get(name)
        try:
            # pandas writes whole numbers of a column with gaps as 3.0.
            number = float(str(found))
        except ValueError as error:
            raise self.error(f"a whole number in {name}", repr(found)) from error
        if not number.is_integer():
            raise self.error(f"a whole number in {name}", repr(found))
        return int(number)

    def error(self, expected: str, came: str) -> DataError:
        """Make the error that names this row."""
        return DataError(self.file, self.number, expected, came)


def table(path: Path, columns: Sequence[str], *, root: Path) -> Iterator[Row]:
    """Read a CSV file.

    Raises
    ------
    DataError
        There is no such table, a column is missing, or it is no CSV from some line on.
    """
    csv.field_size_limit(sys.maxsize)  # a report stands in a cell
    name = relative(path, root)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            missing = [each for each in columns if each not in (reader.fieldnames or ())]
            if missing:
                raise DataError(name, None, f"the columns {columns}", f"no {', '.join(missing)}")
            for number, cells in enumerate(reader, 1):
                if None in cells:
                    raise DataError(name, number, f"{len(cells) - 1} cells", "more")
                yield Row(name, number, cells)
    except OSError as error:
        raise DataError(name, None, "a table", str(error.strerror)) from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(name, None, "a CSV file in UTF-8", str(error)) from error


def content(path: Path, *, root: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object."""
    name = relative(path, root)
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise DataError(name, None, "a list", str(error.strerror)) from error
    except ValueError as error:
        raise DataError(name, None, "JSON in UTF-8", str(error)) from error
    if not isinstance(found, dict):
        raise DataError(name, None, "a JSON object", type(found).__name__)
    return found


def listing(path: Path, split: str, *, root: Path) -> list[Row]:
    """Read one split of a JSON list; train may be spelled training."""
    found, name = content(path, root=root), relative(path, root)
    keys = [each for each in NAMES.get(split, (split,)) if each in found]
    if len(keys) != 1:
        known = ", ".join(key for key, value in found.items() if isinstance(value, list))
        raise DataError(name, None, f"one list named {split}", f"{' and '.join(keys) or known}")
    entries = found[keys[0]]
    if not isinstance(entries, list) or not all(isinstance(each, dict) for each in entries):
        raise DataError(name, None, f"a list of objects named {keys[0]}", "something else")
    return [Row(name, f"{split}/{number}", each) for number, each in enumerate(entries, 1)]


def gather(
    rows: Iterable[Row], read: Callable[[Row], Iterable[Sample]], *, skip: bool
) -> list[Sample]:
    """Read every row, then look once for every file that the samples name.

    With `skip`, rows that cannot be used and samples without their files are left out, and the
    log says how many; without it they are an error.

    Raises
    ------
    DataError
        Names the first broken row, or counts the missing files and names the first ones.
    """
    samples: list[Sample] = []
    broken: list[DataError] = []
    for row in rows:
        try:
            samples += list(read(row))  # all of a row, or nothing
        except DataError as error:
            broken.append(error)
    if broken:
        _tell(_broken(broken), len(broken), skip=skip)
    missing = _missing(samples)
    if missing:
        whole = [each for each in samples if not _needs(each, missing)]
        _tell(_absent(samples, missing), len(samples) - len(whole), skip=skip)
        return whole
    return samples


def relative(path: Path, root: Path) -> str:
    """Name a file so that it is called the same on every machine: below the root, or alone."""
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name


def located(root: Path, name: str, anchor: str = "") -> Path:
    """Find a file that a list names: below the root, or where another machine had it.

    The reference writes absolute paths; what follows the folder `anchor` is looked for
    below the root.
    """
    path = PurePosixPath(name.replace("\\", "/"))
    if anchor and anchor in path.parts:
        last = len(path.parts) - 1 - path.parts[::-1].index(anchor)
        return root.joinpath(*path.parts[last:])
    return root / path


def case(name: str) -> str:
    """Give the case of an image: the folder it lies in, and the folder of that."""
    return "/".join(PurePosixPath(name.replace("\\", "/")).parts[CASE])


def _missing(samples: Iterable[Sample]) -> set[Path]:
    wanted = {each for sample in samples for each in (sample.image, sample.mask) if each}
    return {each for each in wanted if not os.path.exists(each)}  # noqa: PTH110 - half a million


def _needs(sample: Sample, missing: set[Path]) -> bool:
    return sample.image in missing or (sample.mask is not None and sample.mask in missing)


def _broken(broken: Sequence[DataError]) -> DataError:
    first, *rest = broken
    if not rest:
        return first
    rows = ", ".join(str(each.row) for each in islice(rest, SHOWN))
    more = f"{first.came}; and {len(rest)} more rows cannot be used, first: {rows}"
    return DataError(first.file, first.row, first.expected, more)


def _absent(samples: Sequence[Sample], missing: set[Path]) -> DataError:
    first = next(each for each in samples if _needs(each, missing))
    wanted = {each for sample in samples for each in (sample.image, sample.mask) if each}
    named = ", ".join(map(str, sorted(missing)[:SHOWN]))
    return first.error(f"{len(wanted)} files", f"{len(missing)} missing, first: {named}")


def _tell(error: DataError, count: int, *, skip: bool) -> None:
    if not skip:
        raise error
    log.warning("data.skipped: %s", error, extra={"left_out": count})
