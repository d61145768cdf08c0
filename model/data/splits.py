"""Splits by patient, and what leaks between two of them.

M3D's train and test share cases, so that its scores are too good. Here a patient goes
to a split by a hash: a seed decides, patients that come later move nobody, and nobody is in two.
`leakage` looks at any two splits, ours or published, and names the pairs.

Knows samples; images only as bytes.
"""

import hashlib
import logging
import re
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from model.errors import ModelError

from .sample import Sample, Task, load_image

FRACTIONS: Final = {"train": 0.8, "validation": 0.1, "test": 0.1}
WORDS: Final = 3  # of a shingle: one word that differs in a short report leaves it alike
SHORTEST: Final = 20  # words: shorter texts are alike by nature
ALIKE: Final = 0.8  # Jaccard index of the shingles
TEMPLATED: Final = {Task.REC, Task.REG, Task.SEMANTIC_SEGMENTATION}  # in nobody's words
HASHES: Final = 128
BANDS: Final = 32  # of four hashes: texts of index 0.8 meet in one with a chance of 1 - 6e-8
PRIME: Final = (1 << 31) - 1
WHOLE: Final = 1e-9

Key = TypeVar("Key", bound=Hashable)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pair:
    """Two samples, one of each split, that know of each other; `why` is what they share."""

    train: str
    test: str
    why: str


@dataclass(frozen=True)
class Leakage:
    """What two splits share: one pair for each patient, image and text that is in both."""

    patients: tuple[Pair, ...]
    images: tuple[Pair, ...]
    texts: tuple[Pair, ...]
    test_samples: int
    leaked_samples: int  # of the test: their patient, image or text is in the training too

    @property
    def clean(self) -> bool:
        """Whether nothing is shared."""
        return not (self.patients or self.images or self.texts)

    @property
    def told(self) -> dict[str, object]:
        """The report, ready for JSON."""
        pairs = {
            name: [vars(each) for each in getattr(self, name)]
            for name in ("patients", "images", "texts")
        }
        return {
            "clean": self.clean,
            "test_samples": self.test_samples,
            "leaked_samples": self.leaked_samples,
            **pairs,
        }


def assign(patient: str, *, seed: int = 0, fractions: Mapping[str, float] = FRACTIONS) -> str:
    """Give the split of a patient, whoever else there is.

    Raises
    ------
    ModelError
        The fractions are not shares of a whole.
    """
    if min(fractions.values(), default=0) < 0 or abs(sum(fractions.values()) - 1) > WHOLE:
        raise ModelError(f"fractions must be shares that sum to 1, not {dict(fractions)}")
    digest = hashlib.sha256(f"{seed}\0{patient}".encode()).digest()
    place, reached = int.from_bytes(digest[:8], "big") / 2**64, 0.0
    for name, share in fractions.items():
        reached += share
        if share and place < reached:
            return name
    return [name for name, share in fractions.items() if share][-1]


def split(
    samples: Iterable[Sample], *, seed: int = 0, fractions: Mapping[str, float] = FRACTIONS
) -> dict[str, list[Sample]]:
    """Divide samples by patient; every split is there, if only empty."""
    found: dict[str, list[Sample]] = {name: [] for name in fractions}
    for each in samples:
        found[assign(each.patient, seed=seed, fractions=fractions)].append(each)
    return found


def leakage(
    train: Sequence[Sample],
    test: Sequence[Sample],
    *,
    images: bool = True,
    on_progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> Leakage:
    """Look for patients, images and long texts that are in both.

    With `images` every one is read once, to find the same voxels under two names; `on_progress`
    is told how many were, and of how many.

    Raises
    ------
    DataError
        An image cannot be read.
    """
    seen = _images(train, test, on_progress) if images else {}
    keys: tuple[Callable[[Sample], str], ...] = (
        lambda each: each.patient,
        lambda each: seen.get(each.image, ""),
        _plain,
    )
    patients, voxels = (_shared(train, test, key) for key in keys[:2])
    texts, told = _texts(train, test)
    shared = [{each.why for each in patients}, {each.why for each in voxels}, told]
    leaked = sum(
        any(key(each) in some for key, some in zip(keys, shared, strict=True)) for each in test
    )
    return Leakage(patients, voxels, texts, len(test), leaked)


def _texts(train: Sequence[Sample], test: Sequence[Sample]) -> tuple[tuple[Pair, ...], set[str]]:
    """Pair samples with texts that are alike; and give those texts of the test."""
    alike = list(_alike(train, test))
    first, last = _first(train, _plain), _first(test, _plain)
    pairs = (
        Pair(first[one].id, last[other].id, f"{index:.0%} of the words")
        for one, other, index in alike
    )
    return tuple(pairs), {text for _, text, _ in alike}


def _shared(
    train: Iterable[Sample], test: Iterable[Sample], key: Callable[[Sample], str]
) -> tuple[Pair, ...]:
    """Pair the first samples of both that have one key; no key, no pair."""
    first, last = _first(train, key), _first(test, key)
    return tuple(
        Pair(first[each].id, last[each].id, each) for each in last if each and each in first
    )


def _first(samples: Iterable[Sample], key: Callable[[Sample], Key]) -> dict[Key, Sample]:
    found: dict[Key, Sample] = {}
    for each in samples:
        found.setdefault(key(each), each)
    return found


def _images(
    train: Iterable[Sample], test: Iterable[Sample], on_progress: Callable[[int, int], None]
) -> dict[Path, str]:
    """Hash the voxels of every image: not of its file, whose header may differ."""
    paths = _first((*train, *test), lambda each: each.image)
    found: dict[Path, str] = {}
    for done, (path, sample) in enumerate(paths.items(), 1):
        voxels = load_image(sample)
        digest = hashlib.sha256(repr(voxels.shape).encode())
        digest.update(np.ascontiguousarray(voxels).data)
        found[path] = digest.hexdigest()
        on_progress(done, len(paths))
    return found


def _plain(sample: Sample) -> str:
    """Give an answer as its words alone, if it is long enough to be somebody's."""
    if sample.task in TEMPLATED:
        return ""
    words = re.findall(r"\w+", sample.answer.casefold())
    return " ".join(words) if len(words) >= SHORTEST else ""


def _alike(train: Iterable[Sample], test: Iterable[Sample]) -> Iterator[tuple[str, str, float]]:
    """Find long texts that share most of their shingles; equal ones among them."""
    known, asked = (
        list(dict.fromkeys(text for each in samples if (text := _plain(each))))
        for samples in (train, test)
    )
    buckets: dict[Hashable, list[int]] = defaultdict(list)
    for number, text in enumerate(known):
        for band in _bands(text):
            buckets[band].append(number)
    for text in asked:
        met = {number for band in _bands(text) for number in buckets.get(band, ())}
        near = [(_index(known[number], text), known[number]) for number in sorted(met)]
        index, best = max(near, default=(0.0, ""))
        if index >= ALIKE:
            yield best, text, index


def _shingles(text: str) -> set[str]:
    words = text.split()
    return {" ".join(words[place : place + WORDS]) for place in range(len(words) - WORDS + 1)}


def _index(one: str, other: str) -> float:
    first, second = _shingles(one), _shingles(other)
    return len(first & second) / len(first | second)


def _bands(text: str) -> Iterator[Hashable]:
    """MinHash: texts that are alike have the same least hashes, in some band all four."""
    prints = np.array(
        [
            int.from_bytes(hashlib.blake2b(each.encode(), digest_size=4).digest()) % PRIME
            for each in _shingles(text)
        ],
        dtype=np.uint64,
    )
    least = ((FACTORS[:, None] * prints + OFFSETS[:, None]) % PRIME).min(axis=1)
    for band, hashes in enumerate(least.reshape(BANDS, -1)):
        yield band, hashes.tobytes()


def _numbers(count: int, seed: int) -> NDArray[np.uint64]:
    random = np.random.default_rng(seed)
    return random.integers(1, PRIME, count).astype(np.uint64)


FACTORS: Final = _numbers(HASHES, 1)
OFFSETS: Final = _numbers(HASHES, 2)
