"""An SR document as text, for a terminal or a page. Knows content items, of any template."""

from collections.abc import Iterator

from pydicom.dataset import Dataset

from . import foreign

INDENT = "  "


def as_text(sr: Dataset) -> str:
    """Return the document's flags and its tree, one line for each content item."""
    flags = [
        str(sr.get(keyword) or "")
        for keyword in ("CompletionFlag", "VerificationFlag", "PreliminaryFlag")
    ]
    head = [str(sr.get("SeriesDescription") or ""), " ".join(filter(None, flags))]
    return "\n".join([*filter(None, head), *_item(sr, 0)]) + "\n"


def _item(item: Dataset, depth: int) -> Iterator[str]:
    first, *more = foreign.text(f"{_name(item)}{_value(item)}", 1_000_000).split("\n")
    yield f"{INDENT * depth}{first}"
    for line in more:
        yield f"{INDENT * (depth + 1)}{line}"
    for child in item.get("ContentSequence") or ():
        yield from _item(child, depth + 1)


def _name(item: Dataset) -> str:
    return _meaning(item.get("ConceptNameCodeSequence")) or str(item.get("ValueType") or "?")


def _meaning(sequence: object) -> str:
    return str(sequence[0].get("CodeMeaning") or "") if sequence else ""  # type: ignore[index]


def _value(item: Dataset) -> str:
    kind = item.get("ValueType")
    if kind == "CONTAINER":
        return ""
    if kind == "CODE":
        return f": {_meaning(item.get('ConceptCodeSequence'))}"
    if kind == "NUM":
        return f": {_measured(item.get('MeasuredValueSequence'))}"
    if "ReferencedSOPSequence" in item:
        return f": {_reference(item.ReferencedSOPSequence[0])}"
    for keyword in ("TextValue", "UID", "PersonName", "DateTime", "Date", "Time"):
        if keyword in item:
            return f": {item[keyword].value}"
    return f": {kind}"


def _measured(sequence: object) -> str:
    if not sequence:
        return "no value"
    measured = sequence[0]  # type: ignore[index]
    unit = measured.MeasurementUnitsCodeSequence[0].CodeValue
    return f"{measured.NumericValue}{'' if unit == '1' else f' {unit}'}"


def _reference(reference: Dataset) -> str:
    segment = reference.get("ReferencedSegmentNumber")
    where = f", segment {segment}" if segment else ""
    return f"{reference.ReferencedSOPInstanceUID}{where}"
