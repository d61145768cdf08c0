"""Read M3D-Cap: an image and its report.

    M3D_Cap.json                    {"train": [{"image": ..., "text": ...}], "validation", "test"}
    ct_case/<case>/<plane>.npy      one prepared image; a case has several
    ct_case/<case>/text.txt         the report of the case, prepared too

Knows the layout; the questions are ours.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path

from . import prompts
from .published import Row, case, gather, listing, located
from .sample import Sample, Task, side_of


def read(path: Path, split: str, *, root: Path, seed: int = 0, skip: bool = False) -> list[Sample]:
    """Read one split of M3D-Cap.

    Parameters
    ----------
    path
        M3D_Cap.json.
    split
        train, validation, test, or a named part of the test such as test1k.
    root
        The folder that the paths of the list begin in.
    seed
        Of the choice of questions.
    skip
        Leave out rows and files that cannot be used, and log it.

    Raises
    ------
    DataError
        The list, a row or a report cannot be used, or images are missing.
    """
    report = cache(_report)  # the images of a case share it
    rows = listing(path, split, root=root)
    return gather(rows, lambda row: [_sample(row, root, seed, report)], skip=skip)


def _sample(row: Row, root: Path, seed: int, report: Callable[[Path], str]) -> Sample:
    image, text = row.text("image"), row.text("text")
    try:
        answer = report(located(root, text))
    except (OSError, UnicodeDecodeError) as error:
        raise row.error("a report in UTF-8", str(error)) from error
    if not answer:
        raise row.error("a report", f"nothing in {text}")
    return Sample(
        id=row.id,
        task=Task.CAPTION,
        image=located(root, image),
        question=prompts.caption(seed, row.id),
        answer=answer,
        patient=case(image),
        side=side_of(answer),
    )


def _report(file: Path) -> str:
    return " ".join(file.read_text(encoding="utf-8").split())
