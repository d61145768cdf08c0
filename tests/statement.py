"""The tables of CONFORMANCE.md that follow from the objects.

`python -m tests.statement` writes them. Between markers stands what the code decides: which
attributes, how often, of which module, which content items and codes. What a value is, is told by
hand in the last column, which is kept.
"""

import functools
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Final

import highdicom as hd
from pydicom import Dataset
from pydicom.datadict import dictionary_description, keyword_for_tag, tag_for_keyword
from pydicom.tag import BaseTag
from pydicom.uid import UID, EnhancedSRStorage

from sr_templates import PROFILES, Code, Predecessor
from tests import drafts
from tests.drafts import PROTOCOLS
from tests.validation import matrix
from tests.validation.judges import LABELMAP_STORAGE

STATEMENT: Final = Path(__file__).parent.parent / "CONFORMANCE.md"
ALL: Final = "all"
TITLES: Final = {
    ALL: "All objects",
    "seg": "Segmentation and Label Map Segmentation",
    "measurements": "Comprehensive 3D SR",
    "draft": "Enhanced SR and Basic Text SR",
    "pdf": "Encapsulated PDF",
    "key-images": "Secondary Capture Image",
    "presentation": "Grayscale Softcopy Presentation State",
    "key-objects": "Key Object Selection Document",
    "record": "Enhanced SR of a run",
}
UNTOLD: Final = "?"
TYPES: Final = ("1", "1C", "2", "2C", "3", "None")
STANDARD: Final = Path(hd.__file__).parent / "_standard"
MODULES: Final[dict[str, list[dict[str, Any]]]] = json.loads(
    (STANDARD / "module_attribute_map.json").read_text()
)
Keywords = tuple[str, ...]


@dataclass
class Attribute:
    """One attribute of one kind of object, counted over all objects made."""

    tag: BaseTag
    vr: str
    parents: int = 0
    present: int = 0
    empty: int = 0

    @property
    def presence(self) -> str:
        """Say how often it has a value, in the words of PS3.2."""
        if self.present < self.parents:
            return "ANAP"
        if self.empty == self.present:
            return "EMPTY"
        return "VNAP" if self.empty else "ALWAYS"


@functools.cache
def made() -> dict[str, list[Dataset]]:
    """Make every kind of object in every form, by kind."""
    earlier = {
        label: Predecessor("1.2.3", "1.2.4", EnhancedSRStorage, "1.2.5")
        for label in ("draft", "measurements")
    }
    found: dict[str, list[Dataset]] = defaultdict(list)
    for each in (
        matrix.case("", "ct_chest", drafts.series(), matrix.ALL, predecessors=earlier),
        matrix.case("", "mr_brain", [matrix.enhanced("mr_brain")], matrix.ALL),
        matrix.case("", "ct_abdomen", drafts.series("ct_abdomen"), matrix.FEW),
        matrix.case("", "ct_chest", drafts.series(), matrix.FEW, outlined=False),
        matrix.case("", "ct_chest", drafts.series(), matrix.FEW, caveat=matrix.MISSING),
        matrix.dirty("", matrix._bare),
        matrix.dirty("", matrix._lossy),
    ):
        for label, instance in each.objects.items():
            found[label.split(".")[0]].append(instance)
    return dict(found)


# --- attributes -----------------------------------------------------------------------------------


def attributes(instances: Iterable[Dataset]) -> dict[Keywords, Attribute]:
    """Count the attributes of some objects, those of sequences too; not the tree of an SR."""
    found: dict[Keywords, Attribute] = {}
    parents: Counter[Keywords] = Counter()
    for each in instances:
        _count(each, (), found, parents)
    for path, one in found.items():
        one.parents = parents[path[:-1]]
    return found


def _count(
    item: Dataset, path: Keywords, found: dict[Keywords, Attribute], parents: Counter[Keywords]
) -> None:
    parents[path] += 1
    for element in item:
        inner = (*path, element.keyword)
        one = found.setdefault(inner, Attribute(element.tag, element.VR))
        one.present += 1
        one.empty += element.is_empty
        if element.VR == "SQ" and element.keyword != "ContentSequence":
            for each in element.value:
                if "CodeMeaning" not in each:
                    _count(each, inner, found, parents)


@functools.cache
def tables() -> dict[str, dict[Keywords, Attribute]]:
    """Give the attributes of every kind; what all kinds have in common stands under `ALL`."""
    each = {name: attributes(instances) for name, instances in made().items()}
    common = {path[0] for path in set.intersection(*(set(paths) for paths in each.values()))}
    shared = attributes(instance for instances in made().values() for instance in instances)
    return {
        ALL: {path: one for path, one in shared.items() if path[0] in common},
        **{
            name: {path: one for path, one in found.items() if path[0] not in common}
            for name, found in each.items()
        },
    }


def attribute_table(name: str, told: Mapping[Keywords, str]) -> str:
    lines = [
        "| attribute | tag | VR | module | type | presence | value |",
        "|---|---|---|---|---|---|---|",
    ]
    found = tables()[name]
    for path, each in sorted(found.items(), key=lambda one: _place(one[0])):
        module, kind_of = _module(path, name)
        lines.append(
            f"| {'>' * (len(path) - 1)}{dictionary_description(each.tag)} "
            f"| ({each.tag.group:04X},{each.tag.element:04X}) | {each.vr} | {module} | {kind_of} "
            f"| {each.presence} | {told.get(path, UNTOLD)} |"
        )
    return "\n".join(lines) + "\n"


def _place(path: Keywords) -> tuple[int, ...]:
    return tuple(tag_for_keyword(each) or 0 for each in path)


@functools.cache
def _module(path: Keywords, name: str) -> tuple[str, str]:
    """Find module and type; of an attribute in functional groups, those of the macro."""
    iods = json.loads((STANDARD / "iod_module_map.json").read_text())
    classes = json.loads((STANDARD / "sop_class_iod_map.json").read_text())
    kinds = made() if name == ALL else [name]
    uids = sorted({str(one.SOPClassUID) for each in kinds for one in made()[each]})
    own = [each["key"] for uid in uids for each in iods.get(classes.get(uid, ""), [])]
    places = [path, path[1:]] if path[0].endswith("FunctionalGroupsSequence") else [path]
    for keys in (own, MODULES):
        found = [
            (one["type"], key)
            for key in keys
            for one in MODULES[key]
            if (*one["path"], one["keyword"]) in places
        ]
        if found:
            # Where an IOD specializes a module, the stricter type holds.
            strictest, key = min(found, key=lambda one: TYPES.index(one[0]))
            return key.replace("-", " ").replace("multi frame ", ""), strictest
    return "-", "3"


# --- content items, codes, profiles ---------------------------------------------------------------


def content_table(name: str) -> str:
    """Write the tree of an SR, each kind of item once below its parent."""
    tree: dict[Keywords, None] = {}
    for instance in made()[name]:
        tree |= dict.fromkeys(_content(instance, ()))
    children: dict[Keywords, list[str]] = defaultdict(list)
    for path in tree:
        children[path[:-1]].append(path[-1])
    lines = ["| content item | relationship |", "|---|---|"]
    return "\n".join([*lines, *_branch(children, ())]) + "\n"


def _content(item: Dataset, path: Keywords) -> Iterator[Keywords]:
    for each in item.get("ContentSequence", []):
        (name,) = each.get("ConceptNameCodeSequence") or [None]
        named = f" {code(name)}" if name else ""
        inner = (*path, f"{each.ValueType}{named}\t{each.RelationshipType}")
        yield inner
        yield from _content(each, inner)


def _branch(children: Mapping[Keywords, list[str]], path: Keywords) -> Iterator[str]:
    for each in children[path]:
        item, relationship = each.split("\t")
        yield f"| {'>' * len(path)}{item} | {relationship} |"
        yield from _branch(children, (*path, each))


def code(item: Dataset) -> str:
    return f"({item.CodeValue}, {item.CodingSchemeDesignator}, {item.CodeMeaning})"


def code_table() -> str:
    """List every code of the objects and the protocols, with what it is used in."""
    used: dict[tuple[str, str, str], set[str]] = defaultdict(set)
    for name, instances in made().items():
        for each in instances:
            for item in _items(each):
                if "CodeMeaning" in item:
                    key = item.CodingSchemeDesignator, str(item.CodeValue), item.CodeMeaning
                    used[key].add(name)
    for protocol in PROTOCOLS.values():
        for one in _codes(protocol):
            used[one.scheme, one.value, one.meaning].add("protocols")
    lines = ["| scheme | code | meaning | in |", "|---|---|---|---|"]
    lines += [f"| {' | '.join(key)} | {', '.join(sorted(used[key]))} |" for key in sorted(used)]
    return "\n".join(lines) + "\n"


def _items(item: Dataset) -> Iterator[Dataset]:
    yield item
    for element in item:
        if element.VR == "SQ":
            for each in element.value:
                yield from _items(each)


def _codes(value: object) -> Iterator[Code]:
    """Find the codes in a protocol, wherever they are."""
    if isinstance(value, Code):
        yield value
    elif is_dataclass(value):
        for each in fields(value):
            yield from _codes(getattr(value, each.name))
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _codes(each)
    elif isinstance(value, tuple | list):
        for each in value:
            yield from _codes(each)


def profile_table() -> str:
    lines = [
        "| profile | SEG | empty frames | frames, segments at most | TID 1500 | report | besides |",
        "|---|---|---|---|---|---|---|",
    ]
    for each in PROFILES.values():
        most = ", ".join(str(one or "any") for one in (each.maximum_frames, each.maximum_segments))
        lines.append(
            f"| `{each.name}` | {each.segmentation or 'none'} "
            f"| {'omitted' if each.omit_empty_frames else 'kept'} | {most} "
            f"| {each.measurements or 'none'} | {each.report} | {', '.join(each.extras)} |"
        )
    return "\n".join(lines) + "\n"


def proposed_table() -> str:
    """Write what is proposed for results: each SOP class with the transfer syntax it has."""
    lines = ["| abstract syntax | transfer syntax | role |", "|---|---|---|"]
    pairs = {
        (str(each.SOPClassUID), str(each.file_meta.TransferSyntaxUID)): None
        for instances in made().values()
        for each in instances
    }
    lines += [
        f"| {named(first)} ({first}) | {named(second)} ({second}) | SCU |"
        for first, second in sorted(pairs)
    ]
    return "\n".join(lines) + "\n"


def named(uid: str) -> str:
    return {LABELMAP_STORAGE: "Label Map Segmentation Storage"}.get(uid) or UID(uid).name


# --- the document ---------------------------------------------------------------------------------


def generated(text: str) -> dict[str, str]:
    """Give what must stand between the markers, by marker."""
    blocks = {"profiles": profile_table(), "proposed": proposed_table(), "codes": code_table()}
    for name in TITLES:
        blocks[f"attributes {name}"] = attribute_table(name, told(between(text, name)))
    for name in ("measurements", "draft", "key-objects", "record"):
        blocks[f"content {name}"] = content_table(name)
    return blocks


def between(text: str, name: str) -> str:
    found = re.search(rf"<!-- attributes {name} -->\n(.*?)<!-- / -->", text, re.DOTALL)
    return found[1] if found else ""


def told(table: str) -> dict[Keywords, str]:
    """Read the last column, which is written by hand, by attribute."""
    values: dict[Keywords, str] = {}
    path: list[str] = []
    for line in table.splitlines()[2:]:
        name, tag, *_, value = (each.strip() for each in line.strip("|").split("|"))
        depth = len(name) - len(name.lstrip(">"))
        group, element = tag.strip("()").split(",")
        path = [*path[:depth], keyword_for_tag(int(group + element, 16))]
        values[tuple(path)] = value
    return values


def written(text: str) -> str:
    """Return the document with every generated block as it must be.

    Raises
    ------
    KeyError
        A marker is of no block.
    """
    blocks = generated(text)
    return re.sub(
        r"<!-- ([a-z -]+) -->\n.*?<!-- / -->",
        lambda found: f"<!-- {found[1]} -->\n{blocks[found[1]]}<!-- / -->",
        text,
        flags=re.DOTALL,
    )


if __name__ == "__main__":
    STATEMENT.write_text(written(STATEMENT.read_text()))
