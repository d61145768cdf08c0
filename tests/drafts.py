"""What the tests of sr_templates share: a series as a volume, and answers with planted masks."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

import highdicom as hd
import numpy as np
from pydicom import Dataset

from dicom_node.demo import sample
from sr_templates import GENERIC, Algorithm, Finding, Profile, Protocol, encode, load_protocols
from sr_templates.profile import EXTRAS, PDF

PROTOCOLS = load_protocols()
ALGORITHM = Algorithm("LaMed", "1.2.3", "0f" * 32, parameters={"decoding": "greedy"})
CREATED_AT = datetime(2026, 3, 4, 5, 6, 7)  # noqa: DTZ001 - local, as the study's own times
JOB = "0123456789abcdef0123456789abcdef"
KEY_IMAGES, PRESENTATION, KEY_OBJECTS = ((GENERIC.like(extras=(each,)),) for each in EXTRAS[1:])
PAGE, ALL_EXTRAS = (GENERIC.like(extras=(PDF,)),), (GENERIC.like(extras=EXTRAS),)
SHAPE = (12, 20, 24)
SPACING_MM = (3.0, 1.5, 1.25)
SERIES = {
    "ct_chest": {"modality": "CT", "body_part": "CHEST", "description": "CT CHEST"},
    "ct_abdomen": {"modality": "CT", "body_part": "ABDOMEN", "description": "CT ABDOMEN"},
    "mr_brain": {"modality": "MR", "body_part": "BRAIN", "description": "T1 AX"},
}


def series(name: str = "ct_chest", **options: object) -> list[Dataset]:
    return sample.series(shape=SHAPE, spacing_mm=SPACING_MM, **(SERIES[name] | options))


def stack(instances: Sequence[Dataset]) -> tuple[list[Dataset], hd.Volume]:
    """Return the instances in the order of the volume's slices, and the volume."""
    volume = hd.get_volume_from_series(instances, dtype=np.float32)
    places = [np.array(each.ImagePositionPatient, float) for each in instances]
    starts = volume.affine[:3, 3] + np.arange(volume.shape[0])[:, None] * volume.affine[:3, 0]
    order = [int(np.argmin([np.abs(place - start).sum() for place in places])) for start in starts]
    return [instances[index] for index in order], volume


def box(volume: hd.Volume, index: int, count: int) -> hd.Volume:
    """Return a mask without symmetry: the `index`-th of `count` boxes along the columns."""
    mask = np.zeros(volume.spatial_shape, np.uint8)
    slices, rows, columns = volume.spatial_shape
    width = columns // count
    left = index * width
    mask[slices // 4 : slices // 2 + index, rows // 3 : rows // 2, left : left + width] = 1
    mask[slices // 2, rows // 2, left] = 1
    return volume.with_array(mask)


def findings(
    protocol: Protocol, volume: hd.Volume, *, text: str = "No.", without: Sequence[str] = ()
) -> list[Finding]:
    """Answer every question; a target gets its own box, unless its id is in `without`."""
    targets = [each.id for each in protocol.targets]
    return [
        Finding(
            question,
            "Sure, it is [SEG]." if question.target else text,
            box(volume, targets.index(question.id), len(targets))
            if question.target and question.id not in without
            else None,
        )
        for question in protocol.questions
    ]


def encoded(
    name: str = "ct_chest",
    *,
    instances: Sequence[Dataset] | None = None,
    algorithm: Algorithm = ALGORITHM,
    job_id: str = JOB,
    text: str = "No.",
    without: Sequence[str] = (),
    profiles: Sequence[Profile] = (GENERIC,),
    caveat: str = "",
) -> dict[str, Dataset]:
    """Encode a whole answered protocol."""
    sources, volume = stack(series(name) if instances is None else instances)
    return encode(
        PROTOCOLS[name],
        sources,
        findings(PROTOCOLS[name], volume, text=text, without=without),
        algorithm,
        job_id=job_id,
        image=volume,
        created_at=CREATED_AT,
        profiles=profiles,
        caveat=caveat,
    )


def encoded_enhanced(modality: str = "CT", **options: Any) -> dict[str, Dataset]:
    """Encode a whole answered protocol about one multi-frame image."""
    protocol = PROTOCOLS[{"CT": "ct_chest", "MR": "mr_brain"}[modality]]
    source = sample.enhanced(modality=modality, shape=SHAPE)
    volume = hd.image.Image.from_dataset(source).get_volume(dtype=np.float32)
    return encode(
        protocol,
        [source],
        findings(protocol, volume),
        ALGORITHM,
        job_id=JOB,
        image=volume,
        created_at=CREATED_AT,
        **options,
    )


def untrained() -> Algorithm:
    return replace(ALGORITHM, untrained=True)
