"""Read M3D-VQA: closed, open and yes/no questions about the images of M3D-Cap.

    M3D_VQA_*.csv      Image Path, Text, Question Type, Question, Choice A to D, Answer,
                       Answer Choice; a row is both a closed and an open question
    M3D_VQA_yn_*.csv   the same columns without choices; the answer is yes or no

Knows the layout and how a closed question is written.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Final

from .prompts import choice_text
from .published import Row, case, gather, located, table
from .sample import LETTERS, Sample, Task, side_of

KINDS: Final = {1: "plane", 2: "phase", 3: "organ", 4: "abnormality", 5: "location"}
COLUMNS: Final = ("Image Path", "Question", "Answer")
CHOICES: Final = tuple(f"Choice {letter}" for letter in LETTERS)
YES_NO: Final = ("Yes", "No")


def read_closed(path: Path, *, root: Path, skip: bool = False) -> list[Sample]:
    """Read a table as questions with four choices; the answer is the letter with its choice.

    Raises
    ------
    DataError
        The table or a row cannot be used, the answer is not the choice of its letter, or images
        are missing.
    """
    columns = (*COLUMNS, *CHOICES, "Question Type", "Answer Choice")
    return _read(path, columns, _closed, root, skip=skip)


def read_open(path: Path, *, root: Path, skip: bool = False) -> list[Sample]:
    """Read a table as questions without choices."""
    return _read(path, (*COLUMNS, "Question Type"), _open, root, skip=skip)


def read_yes_no(path: Path, *, root: Path, skip: bool = False) -> list[Sample]:
    """Read a table of yes/no questions: open ones, with two choices to score them by."""
    return _read(path, COLUMNS, _yes_no, root, skip=skip)


def _read(
    path: Path,
    columns: tuple[str, ...],
    read: Callable[[Row, Path], Sample],
    root: Path,
    *,
    skip: bool,
) -> list[Sample]:
    rows = table(path, columns, root=root)
    return gather(rows, lambda row: [read(row, root)], skip=skip)


def _closed(row: Row, root: Path) -> Sample:
    # An empty choice is kept in its place: letters must go on naming their choices.
    choices = tuple(str(row.cells[each] or "").strip() for each in CHOICES)
    letter, answer = row.text("Answer Choice").rstrip("."), row.text("Answer")
    if letter not in tuple(LETTERS):
        raise row.error(f"a letter of {LETTERS} in Answer Choice", repr(letter))
    right = choices[LETTERS.index(letter)]
    if _plain(right) != _plain(answer):
        raise row.error(f"the answer to be choice {letter}, {right!r}", repr(answer))
    return Sample(
        id=row.id,
        task=Task.CLOSED_VQA,
        image=located(root, row.text("Image Path")),
        question=choice_text(row.text("Question"), choices),
        answer=f"{letter}. {answer}",
        patient=case(row.text("Image Path")),
        kind=_kind(row),
        choices=choices,
        letter=letter,
        side=side_of(f"{row.text('Question')} {answer}"),
    )


def _open(row: Row, root: Path) -> Sample:
    question, answer = row.text("Question"), row.text("Answer")
    return Sample(
        id=row.id,
        task=Task.OPEN_VQA,
        image=located(root, row.text("Image Path")),
        question=question,
        answer=answer,
        patient=case(row.text("Image Path")),
        kind=_kind(row),
        side=side_of(f"{question} {answer}"),
    )


def _yes_no(row: Row, root: Path) -> Sample:
    question, answer = row.text("Question"), row.text("Answer")
    if _plain(answer.split(",")[0].split(".")[0]) not in {_plain(each) for each in YES_NO}:
        raise row.error("an answer that begins with Yes or No", repr(answer))
    return Sample(
        id=row.id,
        task=Task.OPEN_VQA,
        image=located(root, row.text("Image Path")),
        question=question,
        answer=answer,
        patient=case(row.text("Image Path")),
        kind=_kind(row) if row.cells.get("Question Type") else "yes_no",
        choices=YES_NO,
        side=side_of(question),
    )


def _kind(row: Row) -> str:
    number = row.integer("Question Type")
    if number not in KINDS:
        raise row.error(f"a question type of {KINDS}", str(number))
    return KINDS[number]


def _plain(text: str) -> str:
    return " ".join(text.casefold().split()).rstrip(".")
