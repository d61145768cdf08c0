"""A draft report as plain text, for systems that know no DICOM: what a RIS takes as a file.

Knows the tree of an SR document of any template, and lines of at most 80 columns. It says what the
document says; the first line and the last are the notice.
"""

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pydicom.dataset import Dataset
from pydicom.valuerep import PersonName

from . import foreign
from .document import NOTICE
from .provenance import UNTRAINED

COLUMNS = 80
MAXIMUM_TEXT = 1_000_000
RULE, LINE = "=" * COLUMNS, "-"
FACTS = (  # what a RIS finds the order by, and whose it is
    ("Patient Name", "PatientName"),
    ("Patient ID", "PatientID"),
    ("Birth Date", "PatientBirthDate"),
    ("Sex", "PatientSex"),
    ("Accession Number", "AccessionNumber"),
    ("Study ID", "StudyID"),
    ("Study Date", "StudyDate"),
    ("Study Time", "StudyTime"),
    ("Study Description", "StudyDescription"),
    ("Referring Physician", "ReferringPhysicianName"),
    ("Study Instance UID", "StudyInstanceUID"),
    ("SOP Instance UID", "SOPInstanceUID"),
    ("Written", "ContentDate"),
    ("Written at", "ContentTime"),
)
FLAGS = ("CompletionFlag", "VerificationFlag", "PreliminaryFlag")


@dataclass(frozen=True)
class Section:
    """A heading of a report, its code value, and what stands under it."""

    code: str
    heading: str
    paragraphs: tuple[str, ...]


def plain_text(draft: Dataset) -> str:
    """Write a draft report as text: notice, whose it is, each section, and the notice again."""
    notice = _wrapped(_notice(draft))
    lines = [RULE, *notice, RULE, _title(draft).upper(), "", *_facts(draft), ""]
    for section in sections(draft):
        lines += [section.heading.upper(), LINE * len(section.heading)]
        for paragraph in section.paragraphs:
            lines += [*(line for part in paragraph.split("\n") for line in _wrapped(part)), ""]
    return "\n".join([*lines, RULE, *notice, RULE]) + "\n"


def sections(draft: Dataset) -> tuple[Section, ...]:
    """Return the sections of a report in its order."""
    return tuple(
        Section(
            code=str(item.ConceptNameCodeSequence[0].get("CodeValue") or ""),
            heading=meaning(item),
            paragraphs=tuple(_paragraphs(item)),
        )
        for item in draft.get("ContentSequence") or ()
        if item.ValueType == "CONTAINER"
    )


def meaning(item: Dataset) -> str:
    """Return the name of a content item; of a document, its title."""
    names = item.get("ConceptNameCodeSequence")
    return foreign.line(str(names[0].get("CodeMeaning") or "")) if names else ""


def shown_name(name: PersonName | str | None) -> str:
    """Return a person's name as people write it: family name first, ideographs in brackets."""
    person = PersonName(name or "")
    groups = [person.given_name, person.middle_name, person.name_suffix]
    given = " ".join(filter(None, [person.name_prefix, *groups]))
    plain = ", ".join(filter(None, [person.family_name, given]))
    ideographs = person.ideographic.replace("^", " ").strip()
    return foreign.line(f"{plain} ({ideographs})" if ideographs else plain, 200)


def shown_date(value: object) -> str:
    """Return a date as ISO 8601 writes it; what is none stays as it is."""
    text = str(value or "")
    is_date = len(text) == len("YYYYMMDD") and text.isdigit()
    return f"{text[:4]}-{text[4:6]}-{text[6:]}" if is_date else foreign.line(text)


def shown_time(value: object) -> str:
    """Return a time to the second; what is none stays as it is."""
    text = str(value or "")
    whole = text.split(".", maxsplit=1)[0]
    is_time = len(whole) == len("HHMMSS") and whole.isdigit()
    return f"{whole[:2]}:{whole[2:4]}:{whole[4:]}" if is_time else foreign.line(text)


def _notice(draft: Dataset) -> str:
    is_untrained = UNTRAINED in str(draft.get("ManufacturerModelName") or "").upper()
    return f"{NOTICE} - {UNTRAINED} MODEL" if is_untrained else NOTICE


def _title(draft: Dataset) -> str:
    return f"{meaning(draft)} (draft)"


def _facts(draft: Dataset) -> Iterator[str]:
    for label, keyword in FACTS:
        head = f"{label}:".ljust(21)
        value = _fact(draft, keyword)
        # No identifier is broken: what has no room beside its label stands below it.
        fits = columns(head + value) <= COLUMNS
        yield from [f"{head}{value}".rstrip()] if fits else [head.rstrip(), f"  {value}"]
    flags = [str(draft.get(each)) for each in FLAGS if draft.get(each)]
    yield f"{'Status:'.ljust(21)}{', '.join(flags)}"


def _fact(draft: Dataset, keyword: str) -> str:
    value = draft.get(keyword)
    if keyword.endswith("Name"):
        return shown_name(value)
    if keyword.endswith("Date"):
        return shown_date(value)
    return shown_time(value) if keyword.endswith("Time") else foreign.line(str(value or ""), 78)


def _paragraphs(section: Dataset) -> Iterator[str]:
    for item in section.get("ContentSequence") or ():
        # A code stands for machines; the sentence beside it says the same.
        lines = [] if item.get("ValueType") == "CODE" else list(_lines(item))
        if lines:
            yield "\n".join(lines)


def _lines(item: Dataset) -> Iterator[str]:
    """Return what an item and those below it say in words; references say nothing to people."""
    kind, told = item.get("ValueType"), ""
    if kind == "TEXT":
        told = foreign.text(str(item.get("TextValue") or ""), MAXIMUM_TEXT)
    elif kind == "CONTAINER":
        told = meaning(item)
    elif kind == "CODE" and item.get("ConceptCodeSequence"):
        told = f"{meaning(item)}: {item.ConceptCodeSequence[0].get('CodeMeaning')}"
    elif kind == "NUM" and item.get("MeasuredValueSequence"):
        told = f"{meaning(item)}: {_measured(item.MeasuredValueSequence[0])}"
    elif kind in ("DATE", "TIME", "DATETIME", "PNAME"):
        keyword = {"DATETIME": "DateTime", "PNAME": "PersonName"}.get(kind, kind.title())
        told = f"{meaning(item)}: {item.get(keyword)}"
    if told:
        yield told
    for child in item.get("ContentSequence") or ():
        yield from _lines(child)


def _measured(value: Dataset) -> str:
    unit = value.MeasurementUnitsCodeSequence[0]
    return f"{value.NumericValue} {'' if unit.CodeValue == '1' else unit.CodeValue}".rstrip()


def columns(text: str) -> int:
    """Return how many columns a text takes on a terminal: an ideograph takes two."""
    return sum(_column(each) for each in text)


def _column(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def _wrapped(text: str) -> Sequence[str]:
    """Break a line at spaces, and what has none wherever it must."""
    lines, line = [], ""
    for word in text.split():
        rest = word
        if line and columns(f"{line} {rest}") > COLUMNS:
            lines.append(line)
            line = ""
        while columns(rest) > COLUMNS:
            head = _head(rest)
            lines.append(head)
            rest = rest[len(head) :]
        line = f"{line} {rest}" if line else rest
    return [*lines, line] if line else lines


def _head(word: str) -> str:
    end = taken = 0
    while taken + _column(word[end]) <= COLUMNS:
        taken += _column(word[end])
        end += 1
    return word[:end]
