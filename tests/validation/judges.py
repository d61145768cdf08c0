"""Who judges, what each one is asked, and what of the answer is a complaint.

A judge gets files and gives lines. It knows neither how the objects are made nor which complaints
are explained.
"""

import json
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import highdicom as hd
from pydicom import Dataset, dcmread
from pydicom.uid import (
    BasicTextSRStorage,
    Comprehensive3DSRStorage,
    EnhancedSRStorage,
    KeyObjectSelectionDocumentStorage,
    SegmentationStorage,
)

from . import older, outlines
from .matrix import Case
from .programs import (
    DCENTVFY,
    DCIODVFY,
    DSR2HTML,
    DSRDUMP,
    JAVA,
    PIXELMED,
    SEGIMAGE2ITKIMAGE,
    TID1500READER,
    Program,
)

LABELMAP_STORAGE: Final = "1.2.840.10008.5.1.4.1.1.66.7"
SEGMENTATIONS: Final = frozenset({SegmentationStorage, LABELMAP_STORAGE})
REPORTS: Final = frozenset({BasicTextSRStorage, EnhancedSRStorage, Comprehensive3DSRStorage})
DOCUMENTS: Final = REPORTS | {KeyObjectSelectionDocumentStorage}
TEXTS: Final = frozenset({"LO", "SH", "PN", "ST", "LT", "UC", "UT"})
LINES: Final = frozenset({"ST", "LT", "UT"})  # may have more than one line
MARKUP: Final = re.compile("<(script|img)", re.IGNORECASE)


@dataclass(frozen=True)
class Judge:
    """Somebody who is asked about single objects.

    `classes`: SOP classes that are judged; none: all. `same`: what a verdict depends on besides, so
    that of two objects that do not differ in it one is asked about.
    """

    name: str
    ask: Callable[[Path], list[str]]
    program: Program | None = None
    classes: frozenset[str] = frozenset()
    same: Callable[[Dataset], str] | None = None

    def wants(self, instance: Dataset) -> bool:
        """Tell whether objects of this class are judged."""
        return not self.classes or str(instance.SOPClassUID) in self.classes


@dataclass(frozen=True)
class Bench:
    """Somebody who is asked about all objects of a case at once; `ask` gives lines by label."""

    name: str
    ask: Callable[[Case, Mapping[str, Path]], Iterator[tuple[str, str]]]
    program: Program | None = None
    classes: frozenset[str] = frozenset()

    def wants(self, instance: Dataset) -> bool:
        """Tell whether objects of this class are judged."""
        return not self.classes or str(instance.SOPClassUID) in self.classes


# --- single objects -------------------------------------------------------------------------------


def iod(path: Path) -> list[str]:
    """Ask dciodvfy: every attribute of the IOD, its type, its value, its representation."""
    code, said = DCIODVFY.run(path)
    return _ended(code, said, _lines(said, "Error", "Warning"))


def templates(path: Path) -> list[str]:
    """Ask PixelMed: every content item against the rows of its template.

    Its exit code says nothing. It gets a copy with the codes that it knows, see `older`.
    """
    copy = path.with_suffix(".older.dcm")
    older.translated(dcmread(path)).save_as(copy, enforce_file_format=True)
    _, said = PIXELMED.run(*JAVA, copy)
    if "Found Root Template" not in said or "Root Template Validation Complete" not in said:
        return [f"Error: no template was found: {' / '.join(said.splitlines()[-2:])}"]
    return [older.short(each) for each in _lines(said, "Error", "Warning")]


def dump(path: Path) -> list[str]:
    """Ask DCMTK's reader of SR: value types, relationships, references."""
    code, said = DSRDUMP.run(path)
    return _ended(code, said, _lines(said, "E:", "W:", "F:"))


def page(path: Path) -> list[str]:
    """Ask DCMTK for a page of the SR, in which markup in an answer is text."""
    html = path.with_suffix(".html")
    code, said = DSR2HTML.run(path, html)
    found = _lines(said, "E:", "F:")
    # The page keeps the document's character set; markup is ASCII in all of them.
    if html.is_file() and MARKUP.search(html.read_text("latin-1")):
        found.append("E: markup in an answer is markup of the page")
    return _ended(code, said, found)


def read(path: Path) -> list[str]:
    """Ask highdicom: a SEG and an SR are read, and every other object by pydicom, to its end."""
    try:
        instance = dcmread(path)
        if instance.SOPClassUID in SEGMENTATIONS:
            hd.seg.segread(path)
        elif instance.SOPClassUID == KeyObjectSelectionDocumentStorage:
            hd.ko.KeyObjectSelectionDocument.from_dataset(instance)
        elif instance.SOPClassUID in REPORTS - {BasicTextSRStorage}:
            hd.sr.srread(path)
        else:  # highdicom has no class for these
            list(instance.iterall())
    except Exception as error:  # noqa: BLE001 - whatever a reader cannot bear is a complaint
        return [f"{type(error).__name__}: {error}"]
    return []


def measured(path: Path) -> list[str]:
    """Ask dcmqi's reader of TID 1500: it finds every measurement group."""
    told = path.with_suffix(".json")
    code, said = TID1500READER.run("--inputDICOM", path, "--outputMetadata", told)
    groups = json.loads(told.read_text()).get("Measurements", []) if told.is_file() else []
    wanted = sum(_is_group(each) for each in _items(dcmread(path)))
    found = [] if len(groups) == wanted else [f"{len(groups)} groups are read of {wanted}"]
    return _ended(code, said, found)


def words(path: Path) -> list[str]:
    """Look for characters that command a terminal or turn the direction of what follows."""
    found = []
    for element in dcmread(path).iterall():
        if element.VR in TEXTS:
            allowed = "\r\n\t" if element.VR in LINES else ""
            if any(_commands(each) and each not in allowed for each in str(element.value)):
                found.append(f"Error: {element.keyword} holds characters that command")
    return found


def _commands(character: str) -> bool:
    return unicodedata.category(character) in {"Cc", "Cf", "Cs"}


def _lines(said: str, *marks: str) -> list[str]:
    return [each.strip() for each in said.splitlines() if each.startswith(marks)]


def _ended(code: int, said: str, found: list[str]) -> list[str]:
    """Add that a program failed, if it did so without a complaint."""
    if code == 0 or found:
        return found
    return [f"Error: exit code {code}: {' / '.join(said.splitlines()[-3:])}"]


def _items(report: Dataset) -> Iterator[Dataset]:
    for item in report.get("ContentSequence", []):
        yield item
        yield from _items(item)


def _is_group(item: Dataset) -> bool:
    names = item.get("ConceptNameCodeSequence") or [Dataset()]
    return item.get("ValueType") == "CONTAINER" and str(names[0].get("CodeValue")) == "125007"


# --- all objects of a job -------------------------------------------------------------------------


def entities(_: Case, paths: Mapping[str, Path]) -> Iterator[tuple[str, str]]:
    """Ask dcentvfy, with every image that was read: what is said of patient, study, series."""
    sources = sorted(paths[next(iter(paths))].parent.glob("source/*.dcm"))
    said = DCENTVFY.run(*sources, *paths.values())[1]
    by_name = {path.name: label for label, path in paths.items()}
    found: dict[tuple[str, str], None] = {}
    for line in _lines(said, "Error", "Warning"):
        named = [Path(each).name for each in re.findall(r"<([^<>]+\.dcm)>", line)]
        ours = [by_name[each] for each in named if each in by_name]
        # Of two images that were read nothing is ours; which one it is does not matter.
        if ours or not named:
            text = re.sub(r"<[^<>]*/source/\d+\.dcm>", "<a source image>", line)
            found[(ours or list(paths))[0], text] = None
    yield from found


def references(case: Case, paths: Mapping[str, Path]) -> Iterator[tuple[str, str]]:
    """Look for what an object refers to: it is there, and of the class that is said."""
    there = {
        str(each.SOPInstanceUID): str(each.SOPClassUID)
        for each in (*case.sources, *case.objects.values())
    }
    for label, path in paths.items():
        for uid, told in sorted(set(_references(dcmread(path)))):
            if uid not in there:
                yield label, f"Error: refers to {uid}, which is not there"
            elif told != there[uid]:
                yield label, f"Error: refers to {uid} as {told}, it is {there[uid]}"


def _references(item: Dataset) -> Iterator[tuple[str, str]]:
    if "ReferencedSOPInstanceUID" in item:
        yield str(item.ReferencedSOPInstanceUID), str(item.ReferencedSOPClassUID)
    for element in item:
        if element.VR == "SQ":
            for inner in element.value:
                yield from _references(inner)


def placed(case: Case, paths: Mapping[str, Path], *, by: str) -> Iterator[tuple[str, str]]:
    """Look for every voxel that was outlined, in each form of the SEG."""
    whole: dict[str, list[str]] = {}
    for label, instance in case.objects.items():
        if str(instance.SOPClassUID) in SEGMENTATIONS:
            whole.setdefault(re.sub(r"\.\d+$", "", label), []).append(label)
    for labels in whole.values():
        for line in outlines.compare([paths[each] for each in labels], case.masks, by):
            yield labels[0], f"Error: {line}"


def identity(case: Case, paths: Mapping[str, Path]) -> Iterator[tuple[str, str]]:
    """Look for patient and study: they are the source's, character by character."""
    source = case.sources[0]
    for label, path in paths.items():
        written = dcmread(path)
        for keyword in ("PatientID", "PatientName", "StudyInstanceUID", "AccessionNumber"):
            if str(written.get(keyword) or "") != str(source.get(keyword) or ""):
                yield label, f"Error: {keyword} is another one than the source's"


JUDGES: Final = (
    Judge("dciodvfy", iod, DCIODVFY),
    Judge("PixelMed", templates, PIXELMED, DOCUMENTS, older.skeleton),
    Judge("dsrdump", dump, DSRDUMP, DOCUMENTS),
    Judge("dsr2html", page, DSR2HTML, DOCUMENTS),
    Judge("highdicom", read),
    Judge("tid1500", measured, TID1500READER, frozenset({Comprehensive3DSRStorage})),
    Judge("text", words),
)
BENCHES: Final = (
    Bench("dcentvfy", entities, DCENTVFY),
    Bench("references", references),
    Bench("dcmqi voxels", partial(placed, by="dcmqi"), SEGIMAGE2ITKIMAGE, SEGMENTATIONS),
    Bench("highdicom voxels", partial(placed, by="highdicom"), None, SEGMENTATIONS),
    Bench("identity", identity),
)
