"""What others wrote, made safe to write again: image headers, and the words of the model.

Knows value representations (PS3.5 6.2) and nothing of reports. What is valid is kept as it is.
"""

import math
import re
import unicodedata
from collections.abc import Iterator
from copy import copy

from pydicom.config import IGNORE, RAISE
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.valuerep import MAX_VALUE_LEN, STR_VR, VR, DSfloat, validate_value

# Type 2 of Patient, General Study and what highdicom asks for besides (PS3.3 C.7.1.1, C.7.2.1).
EXPECTED = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyDate",
    "StudyTime",
    "StudyID",
    "AccessionNumber",
    "ReferringPhysicianName",
)
IDENTITY = ("PatientID", "PatientName", "IssuerOfPatientID", "StudyID", "AccessionNumber")
SEXES = ("M", "F", "O", "")
TEXTS = (VR.LO, VR.SH, VR.PN, VR.ST, VR.LT, VR.UC, VR.UT)
PARAGRAPHS = (VR.ST, VR.LT, VR.UT)
CODE_VALUES = ("CodeValue", "LongCodeValue", "URNCodeValue")
SKIPPED = (0x0000, 0x0002, 0x0004, 0x7FE0)  # command, file meta, directory, pixels
FUNCTIONAL_GROUPS = 0x5200  # by frame: an item left out would move all that follow
JOINERS = "\u200c\u200d"  # part of the spelling in Persian and in Indian scripts
# What selects a character set (PS3.5 6.1.2.5); of that for Chinese, readers leave it in the text.
DESIGNATION = re.compile(r"\x1b[$()*+,./-]+[@-~]")
CUT = " [...]"


def text(value: str, limit: int) -> str:
    """Return text of several lines: no control or direction characters, at most `limit` long."""
    value = DESIGNATION.sub("", value)
    lines = value.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    plain = "\n".join("".join(_printable(line)).rstrip() for line in lines)
    plain = re.sub(r"\n{3,}", "\n\n", plain).strip()
    return plain if len(plain) <= limit else plain[: limit - len(CUT)].rstrip() + CUT


def line(value: str, limit: int = 64) -> str:
    """Return one line that is a single value of LO: `text` without line breaks or backslash."""
    return " ".join(text(value.replace("\\", "/"), 10 * limit).split())[:limit].rstrip()


def _printable(value: str) -> Iterator[str]:
    for character in value:
        category = unicodedata.category(character)
        # Cf holds the marks that turn the reading direction, Cs halves that no encoding takes.
        if category in ("Cc", "Zl", "Zp"):
            yield " "
        elif character in JOINERS or category not in ("Cf", "Cs", "Co", "Cn"):
            yield character


def header(source: Dataset) -> Dataset:
    """Copy an image's header so that other objects can inherit patient and study from it.

    Values are copied exactly where they are valid. An over-long text is cut, unless it identifies
    patient or study; control characters go. What cannot be repaired is emptied if the Standard
    expects it (Type 2), or else left out; so are sequence items without content and codes without
    value or meaning. Private elements and pixels stay behind. Missing Type 2 values become empty.
    """
    clean = _cleaned(source)
    if clean.get("PatientSex") not in SEXES:
        clean.PatientSex = ""
    if not clean.get("Laterality"):  # Type 2C: empty, it would say that the part is a paired one
        clean.pop("Laterality", None)
    for keyword in EXPECTED:
        if keyword not in clean:
            setattr(clean, keyword, "")
    return clean


def _cleaned(source: Dataset) -> Dataset:
    clean = Dataset()
    for tag in source.keys():  # noqa: SIM118 - iterating a data set converts every element
        if tag.is_private or tag.element == 0 or tag.group in SKIPPED:
            continue
        try:
            element = source[tag]
        except (ValueError, TypeError, KeyError, NotImplementedError, OverflowError):
            continue
        # A copy: setting a value later must not reach into the source.
        kept = copy(element) if tag.group == FUNCTIONAL_GROUPS else _kept(element)
        if kept is not None:
            clean.add(kept)
    return clean


def _kept(element: DataElement) -> DataElement | None:
    return _sequence(element) if element.VR == VR.SQ else _element(element)


def _sequence(element: DataElement) -> DataElement | None:
    items = [_cleaned(item) for item in element.value]
    coded = element.keyword.endswith("CodeSequence")
    items = [item for item in items if len(item) and (not coded or _is_code(item))]
    return DataElement(element.tag, "SQ", items) if items else None


def _is_code(item: Dataset) -> bool:
    return any(item.get(each) for each in CODE_VALUES) and bool(item.get("CodeMeaning"))


def _element(element: DataElement) -> DataElement | None:
    """Keep a valid element, repair a text or a number, empty a Type 2 value, drop the rest."""
    vr = element.VR
    values = list(element.value) if isinstance(element.value, MultiValue) else [element.value]
    # A UID names something elsewhere: also an illegal one must stay the same.
    if vr == VR.UI or all(_valid(vr, value) for value in values):
        return _person(element) if vr == VR.PN else copy(element)
    if vr in TEXTS:
        # Cut, an identifier would be another patient's.
        limit = 10_000 if element.keyword in IDENTITY else MAX_VALUE_LEN.get(vr, 64)
        mend = text if vr in PARAGRAPHS else line
        repaired = [mend(str(value), limit) for value in values]
        return _person(DataElement(element.tag, vr, repaired, validation_mode=IGNORE))
    if vr == VR.DS and all(_is_number(value) for value in values):
        return DataElement(element.tag, vr, [DSfloat(each, auto_format=True) for each in values])
    if element.keyword in EXPECTED:
        return DataElement(element.tag, vr, "")
    return None


def _person(element: DataElement) -> DataElement:
    """Leave of a name the five components that there are (PS3.5 6.2.1), unless it identifies.

    The value is a new one: pydicom's keeps the bytes it was last written as, in another character
    set than ours.
    """
    if element.VR != VR.PN:
        return copy(element)
    values = list(element.value) if isinstance(element.value, MultiValue) else [element.value]
    names = [str(each or "") for each in values]
    if element.keyword not in IDENTITY:
        groups = [each.split("=")[:3] for each in names]
        names = ["=".join("^".join(one.split("^")[:5]) for one in each) for each in groups]
    return DataElement(element.tag, VR.PN, names, validation_mode=IGNORE)


def _is_number(value: object) -> bool:
    try:
        return math.isfinite(float(str(value)))
    except ValueError:
        return False


def _valid(vr: str, value: object) -> bool:
    allowed = "\t\n\f\r" if vr in PARAGRAPHS else ""  # PS3.5 6.1.3
    if vr in TEXTS and any(
        unicodedata.category(each) in ("Cc", "Cs") and each not in allowed for each in str(value)
    ):
        return False
    try:
        validate_value(vr, str(value) if vr in STR_VR and value is not None else value, RAISE)
    except ValueError:
        return False
    return True
