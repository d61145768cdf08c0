"""The codes of TID 2000 as PixelMed's tables of 2003 to 2007 have them, and its lines made short.

PixelMed looks only into containers whose concept is in its context groups: of a report titled with
a code of today it would check nothing. LOINC replaced the codes of 7001 and 7002 one for one.
"""

import re
from collections.abc import Iterable, Iterator
from copy import deepcopy
from typing import Final

from pydicom import Dataset

# (scheme, value) of today -> of then, with the meaning of then. CID 7000, 7001 and 7003.
OLDER: Final = {
    ("LN", "24627-2"): ("LN", "11538-6", "CT Chest Report"),
    ("LN", "41806-1"): ("LN", "11540-2", "CT Abdomen Report"),
    ("LN", "24590-2"): ("LN", "11541-0", "MRI Head Report"),
    ("LN", "55112-7"): ("DCM", "121111", "Summary"),
    ("LN", "55111-9"): ("DCM", "121064", "Current Procedure Descriptions"),
    ("LN", "59776-5"): ("DCM", "121070", "Findings"),
    ("LN", "19005-8"): ("DCM", "121072", "Impressions"),
    ("LN", "18785-6"): ("DCM", "121109", "Indications for Procedure"),
    ("LN", "55114-3"): ("DCM", "121066", "Prior Procedure Descriptions"),
    ("LN", "55113-5"): ("DCM", "121180", "Key Images"),
    ("LN", "55115-0"): ("DCM", "121062", "Request"),
    ("LN", "18783-1"): ("DCM", "121074", "Recommendations"),
    ("DCM", "121200"): ("DCM", "121080", "Best illustration of finding"),
}
TREE: Final = ("ContentTemplateSequence", "ConceptNameCodeSequence", "ContentSequence")
CODED: Final = {"CS", "SH", "LO", "UC"}


def translated(report: Dataset) -> Dataset:
    """Return a copy of an SR in which the concepts of TID 2000 have their older codes."""
    copy = deepcopy(report)
    (template,) = copy.get("ContentTemplateSequence") or [Dataset()]
    if template.get("TemplateIdentifier") == "2000":
        for name in _concepts(copy):
            older = OLDER.get((name.CodingSchemeDesignator, name.get("CodeValue", "")))
            if older:
                name.CodingSchemeDesignator, name.CodeValue, name.CodeMeaning = older
    return copy


def short(line: str) -> str:
    """Leave of a line of PixelMed what is wrong, and of the place only its last two items."""
    level, _, rest = line.partition(": ")
    items = re.split(r"/(?=[A-Z]+ \()", rest)
    if len(items) > 1 and ": Content Item not in template" in rest:
        rest = "/".join(items[-2:])
    return f"{level}: {re.sub(r'(?<![0-9])1([.][0-9]+)+', '#', rest)}"


def skeleton(report: Dataset) -> str:
    """Write what a template checker looks at: the tree with its codes, but no text, number or UID.

    Two documents of one skeleton get one verdict.
    """
    return "\n".join(each for top in TREE for each in _skeleton(top, report.get(top)))


def _skeleton(keyword: str, items: Iterable[Dataset] | None) -> Iterator[str]:
    for item in items or ():
        yield keyword
        for each in item:
            if each.VR == "SQ":
                yield from _skeleton(f" {keyword}.{each.keyword}", each.value)
            else:
                yield f" {each.keyword} {each.value if each.VR in CODED else ''}"


def _concepts(item: Dataset) -> Iterator[Dataset]:
    yield from item.get("ConceptNameCodeSequence", [])
    for each in item.get("ContentSequence", []):
        yield from _concepts(each)
