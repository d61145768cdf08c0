"""Files that appear whole under their names, or not at all.

Knows folders and arrays. A killed run leaves at most a ``.part`` beside what it was writing; the
next run writes over it.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Shelf:
    """A folder that is being filled; `names` is what was put there."""

    folder: Path
    names: list[str] = field(default_factory=list)

    def array(self, name: str, array: NDArray[Any]) -> None:
        """Keep an array as ``.npy``."""
        with self._whole(name) as file:
            np.save(file, array, allow_pickle=False)

    def mask(self, name: str, mask: NDArray[Any]) -> None:
        """Keep a mask as ``.npz``: a thin one takes a thousandth of its ``.npy``."""
        with self._whole(name) as file:
            np.savez_compressed(file, mask=mask)

    def text(self, name: str, text: str) -> None:
        """Keep a text in UTF-8."""
        with self._whole(name) as file:
            file.write(text.encode())

    def copy(self, name: str, source: Path) -> None:
        """Keep a copy of a file."""
        with self._whole(name) as file, source.open("rb") as original:
            shutil.copyfileobj(original, file)

    @contextmanager
    def _whole(self, name: str) -> Iterator[IO[bytes]]:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.part")
        with part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        self.names.append(name)
