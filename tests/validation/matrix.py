"""What is judged: every kind of object, of every modality, form of source, profile, and dirt.

New kinds of objects come in by themselves: a case holds whatever `encode` makes for all profiles.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

import highdicom as hd
import numpy as np
from pydicom import Dataset, dcmread
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.tag import BaseTag

from dicom_node.demo import sample
from dicom_node.errors import Unavailable
from sr_templates import GENERIC, PROFILES, Finding, Predecessor, Profile, Protocol, encode
from sr_templates.run_record import encode_record
from tests.drafts import (
    ALGORITHM,
    CREATED_AT,
    JOB,
    PROTOCOLS,
    SERIES,
    SHAPE,
    SPACING_MM,
    findings,
    series,
    stack,
)

CACHE: Final = Path(".cache")
# What no shipped profile wants and a destination may.
WANTED: Final = (
    GENERIC.like(name="labelmap", segmentation="LABELMAP"),
    GENERIC.like(name="fractional", segmentation="FRACTIONAL"),
    GENERIC.like(name="all-frames", omit_empty_frames=False),
    GENERIC.like(name="eight-frames", maximum_frames=8),
    GENERIC.like(name="two-segments", maximum_segments=2),
)
ALL: Final = (*PROFILES.values(), *WANTED)
FEW: Final = tuple(PROFILES[name] for name in ("generic-pacs", "ohif", "legacy-pacs"))
MISSING = "INCOMPLETE: 2 of 3 instances are missing."
PATIENTS: Final[dict[str, tuple[str | list[str], str]]] = {
    "Japanese": (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎=やまだ^たろう"),
    "Chinese": ("GB18030", "Wang^XiaoDong=王^小东"),
    "Cyrillic": ("ISO_IR 144", "Щербаков^Юрий"),
    "Latin": ("ISO_IR 100", "Müller^Jürgen"),
}
ATTACKS: Final = {
    "control characters": "No.\x00\x07\x1b$B\x0c\x9b31m\r\n\tYes.\x7f",
    "direction marks": "No \u202egnilaef\u202c \u200fand\u200e \u2066so\u2069.",
    "length": "Very long. " * 9_091,
    "markup": "<script>alert('x')</script><img src=x onerror=alert(1)> & </body> \\ ^ = %s {0}",
    "nothing": "\n \t\u200b",
}
RECORD: Final = {
    "model": {"name": "LaMed", "weights_sha256": "0f" * 32},
    "inputs": [{"sop_instance_uid": "1.2.3", "sha256": "00" * 32}],
    "timings_s": {"read": 1.5},
    "failed": None,
}


@dataclass(frozen=True)
class Case:
    """One job: the images it read, what was made of them, and what was outlined where."""

    name: str
    sources: Sequence[Dataset]
    objects: Mapping[str, Dataset]
    masks: Mapping[str, hd.Volume]  # by label of the target
    profiles: Sequence[Profile]


def cases(*, quick: bool = False) -> Iterator[Case]:
    """Make every case; a few of them if it is to be quick."""
    names = ("ct_chest",) if quick else tuple(PROTOCOLS)
    for name in names:
        yield case(f"{name}, classic", name, series(name), ALL)
    if quick:
        yield dirty("ct_chest, nothing right", _everything)
        return
    for name in names:
        yield case(f"{name}, multi-frame", name, [enhanced(name)], ALL)
    for script, (charset, name) in PATIENTS.items():
        spoil = partial(_named, charset=charset, name=name)
        yield dirty(f"ct_chest, {script} patient", spoil)
    for what, words in ATTACKS.items():
        yield case(f"ct_chest, {what} in answers", "ct_chest", series(), FEW, words=words)
    yield dirty("ct_chest, illegal values", _illegal)
    yield dirty("ct_chest, Type 2 missing", _bare)
    yield dirty("ct_chest, nothing right", _everything)
    yield dirty("ct_chest, lossy compression", _lossy)
    yield case("ct_chest, nothing outlined", "ct_chest", series(), FEW, outlined=False)
    yield case("ct_chest, images missing", "ct_chest", series(), FEW, caveat=MISSING)
    yield from real()


def real() -> Iterator[Case]:
    """Give the real chest CT, which has faults of its own; nothing if it cannot be fetched."""
    try:
        folder = sample.chest_ct(CACHE)
    except Unavailable:
        if os.environ.get("CI") == "true":
            raise
        return
    instances = [dcmread(each) for each in sorted(folder.iterdir())]
    yield case("real chest CT", "ct_chest", instances, FEW)


def enhanced(name: str) -> Dataset:
    return sample.enhanced(shape=SHAPE, spacing_mm=SPACING_MM, **SERIES[name])


def case(
    title: str,
    name: str,
    instances: Sequence[Dataset],
    profiles: Sequence[Profile],
    *,
    words: str = "No.",
    outlined: bool = True,
    predecessors: Mapping[str, Predecessor] | None = None,
    caveat: str = "",
) -> Case:
    """Encode a whole answered protocol for all profiles at once, as the worker does."""
    protocol = PROTOCOLS[name]
    sources, volume = _stacked(instances)
    without = () if outlined else [each.id for each in protocol.targets]
    answers = [_probable(each) for each in findings(protocol, volume, text=words, without=without)]
    objects = encode(
        protocol,
        sources,
        answers,
        ALGORITHM,
        job_id=JOB,
        image=volume,
        created_at=CREATED_AT,
        profiles=profiles,
        predecessors=predecessors,
        caveat=caveat,
    )
    if profiles == ALL:
        objects["record"] = encode_record(
            RECORD, protocol, sources, ALGORITHM, job_id=JOB, created_at=CREATED_AT
        )
    return Case(title, instances, objects, _masks(protocol, answers), profiles)


def _stacked(instances: Sequence[Dataset]) -> tuple[Sequence[Dataset], hd.Volume]:
    if "PerFrameFunctionalGroupsSequence" not in instances[0]:
        return stack(instances)
    return instances, hd.image.Image.from_dataset(instances[0]).get_volume(dtype=np.float32)


def _probable(answer: Finding) -> Finding:
    """Give an outline the probabilities that it was cut from: a slope with the mask above half."""
    mask = answer.mask
    if mask is None:
        return answer
    slope = np.where(mask.array, 0.75, 0.25).astype(np.float32)
    return replace(answer, probability=lambda: mask.with_array(slope))


def _masks(protocol: Protocol, answers: Sequence[Finding]) -> dict[str, hd.Volume]:
    targets = {each.id: each.target.label for each in protocol.targets if each.target}
    return {targets[each.question.id]: each.mask for each in answers if each.mask is not None}


# --- dirt -----------------------------------------------------------------------------------------


def dirty(title: str, spoil: Callable[[Dataset], None]) -> Case:
    """Make a case about a chest CT of which every header was spoiled."""
    instances = series()
    for each in instances:
        spoil(each)
    return case(title, "ct_chest", instances, FEW)


def _put(spoiled: Dataset, keyword: str, value: str) -> None:
    """Put a value in as a file has it, whatever its value representation allows."""
    tag, encoded = BaseTag(tag_for_keyword(keyword) or 0), value.encode()
    spoiled[tag] = RawDataElement(
        tag,
        dictionary_VR(tag),
        len(encoded),
        encoded,
        0,
        is_implicit_VR=False,
        is_little_endian=True,
    )


def _named(spoiled: Dataset, charset: str | list[str], name: str) -> None:
    spoiled.SpecificCharacterSet = charset
    spoiled.PatientName = name


def _illegal(spoiled: Dataset) -> None:
    for keyword, value in {
        "PatientSex": "male",
        "PatientBirthDate": "1960/01/01",
        "PatientAge": "66",
        "PatientSize": "about 1.7",
        "PatientWeight": "80.123456789012345678",
        "StudyTime": "9:15",
        "StudyDescription": "Chest, " * 20,
        "StudyID": "a study's id of more than 16 characters",
        "AccessionNumber": "accession of more than 16 characters",
        "ReferringPhysicianName": "Dr.\x00Who^^^^^^^",
        "PatientComments": "bell \x07 escape \x1b",
        "SoftwareVersions": "x" * 80,
    }.items():
        _put(spoiled, keyword, value)


def _bare(spoiled: Dataset) -> None:
    for keyword in (
        "PatientName",
        "PatientBirthDate",
        "PatientSex",
        "StudyDate",
        "StudyTime",
        "StudyID",
        "AccessionNumber",
        "ReferringPhysicianName",
        "SeriesNumber",
        "SeriesDescription",
        "StudyDescription",
        "PositionReferenceIndicator",
        "Manufacturer",
        "SpecificCharacterSet",
        "BodyPartExamined",
    ):
        del spoiled[keyword]


def _lossy(spoiled: Dataset) -> None:
    spoiled.LossyImageCompression = "01"
    spoiled.LossyImageCompressionRatio = "12.5"
    spoiled.LossyImageCompressionMethod = "ISO_15444_1"


def _everything(spoiled: Dataset) -> None:
    _bare(spoiled)
    _illegal(spoiled)
    spoiled.add_new(0x00091001, "LO", "private, without a creator")
    spoiled.ProcedureCodeSequence = [Dataset(), _code()]
    spoiled.ReferencedStudySequence = []


def _code() -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator = "CTCHEST", "99SITE"
    return item
