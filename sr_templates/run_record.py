"""How a job's objects came to be, as an instance of the study: what only those who audit will read.

An Enhanced SR, the class of the draft: whatever took the draft takes it, keeps it with the study
and shows it as text. Raw Data would be kept too, but shown by nothing; an Encapsulated Document has
no class for JSON. Knows nothing of what is in a record but that it is text, numbers, lists and
tables. There is no template for it: its headings are codes of our own scheme.
"""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime

import highdicom as hd
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from . import foreign
from .document import Document, Kind
from .protocol import Protocol
from .provenance import Algorithm, observer

RECORD = Kind("record", "run record", 9008)
SCHEME = "99LAMED"
CONTAINS = hd.sr.RelationshipTypeValues.CONTAINS
MAXIMUM_TEXT = 1_000_000


def encode_record(
    record: Mapping[str, object],
    protocol: Protocol,
    sources: Sequence[Dataset],
    algorithm: Algorithm,
    *,
    job_id: str,
    created_at: datetime,
) -> Dataset:
    """Write a record as an SR that has the sources as evidence.

    What was made of them is named in words only: a destination does not get all of it. Each entry
    of `record` becomes a heading; below it stand the entries of a table, and the items of a list,
    a line each.

    Raises
    ------
    TemplateError
        The sources are none, or not of one series.
    """
    document = Document.about(protocol, sources, algorithm, job_id, created_at)
    root = _container("run-record", "Run record of an AI draft")
    root.ContentSequence = hd.sr.ContentSequence()
    root.ContentSequence.extend(document.language)
    root.ContentSequence.extend(observer(algorithm))
    root.ContentSequence.append(_text(document.notice))
    root.ContentSequence.extend(_section(key, value) for key, value in record.items())
    written = document.report(RECORD, hd.sr.EnhancedSR, document.sources, root)
    scheme = Dataset()
    scheme.CodingSchemeDesignator = SCHEME
    scheme.CodingSchemeName = "Headings of LaMed Node"
    written.CodingSchemeIdentificationSequence = [scheme]
    return written


def _section(key: str, value: object) -> hd.sr.ContainerContentItem:
    section = _container(key.replace("_", "-"), key.replace("_", " ").capitalize(), CONTAINS)
    text = foreign.text("\n".join(_lines(value)), MAXIMUM_TEXT) or "nothing"
    section.ContentSequence = hd.sr.ContentSequence([_text(text)])
    return section


def _container(
    value: str, meaning: str, relationship: hd.sr.RelationshipTypeValues | None = None
) -> hd.sr.ContainerContentItem:
    return hd.sr.ContainerContentItem(
        name=Code(value[:16], SCHEME, meaning),
        is_content_continuous=False,
        relationship_type=relationship,
    )


def _text(value: str) -> hd.sr.TextContentItem:
    return hd.sr.TextContentItem(name=codes.DCM.Comment, value=value, relationship_type=CONTAINS)


def _lines(value: object) -> Iterator[str]:
    if isinstance(value, Mapping):
        yield from (f"{key}: {_line(each)}" for key, each in value.items())
    elif isinstance(value, Sequence) and not isinstance(value, str):
        yield from map(_line, value)
    else:
        yield _line(value)


def _line(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_line(each)}" for key, each in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "; ".join(map(_line, value)) or "none"
    return str(value)
