"""Seconds and memory until masks are objects on the disk: 5 and 20 targets.

Highdicom's plain call gets what costs it least, one array of segment numbers; ours gets one mask
for each target, as the model gives them, and resolves their overlaps. A job returns the SEG and
both SR.
"""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .lab import OURS, Lab, files

if TYPE_CHECKING:
    import highdicom as hd
    from pydicom import Dataset

    from sr_templates import Algorithm, Finding, Protocol

BENCH = "segmentation"
JOB = "0" * 32
WHEN = datetime(2026, 1, 5)  # noqa: DTZ001 - local, as the study's own times


def run(lab: Lab) -> None:
    slices, size = lab.size(200, 8), lab.size(512, 64)
    folder = lab.ct(slices, size)
    for targets in (5,) if lab.quick else (5, 20):
        case = f"{targets} targets in {slices} x {size} x {size}"
        beside = {OURS: ours, "highdicom": plain}
        for what, subjects in (("SEG", beside), ("SEG and both SR", {OURS: everything})):
            processes = {
                name: partial(lab.alone, function, folder, targets)
                for name, function in subjects.items()
            }
            lab.turns(BENCH, f"{case}, {what}", processes)


def ours(folder: str, targets: str) -> Callable[[], None]:
    """Prepare what `sr_templates.encode` does for the SEG."""
    from sr_templates.document import Document
    from sr_templates.segmentation import encode_segmentation, outline

    protocol, sources, _, findings = _read(folder, int(targets))
    document = Document.about(protocol, sources, _algorithm(), JOB, WHEN)
    _warm_up(sources)

    def work() -> None:
        outlines = outline(findings, document)
        if outlines is None:
            raise RuntimeError("the masks are empty")
        _save([encode_segmentation(outlines, document)])

    return work


def everything(folder: str, targets: str) -> Callable[[], None]:
    """Prepare the whole of `sr_templates.encode`."""
    import sr_templates

    protocol, sources, image, findings = _read(folder, int(targets))
    _warm_up(sources)

    def work() -> None:
        made = sr_templates.encode(
            protocol, sources, findings, _algorithm(), job_id=JOB, image=image, created_at=WHEN
        )
        _save(list(made.values()))

    return work


def plain(folder: str, targets: str) -> Callable[[], None]:
    """Prepare highdicom's constructor."""
    import numpy as np
    from pydicom import dcmread

    sources = [dcmread(path, stop_before_pixels=True) for path in files(Path(folder))]
    labels = np.zeros((len(sources), int(sources[0].Rows), int(sources[0].Columns)), np.uint8)
    for index in range(int(targets)):
        labels[_box(labels.shape, index, int(targets))] = index + 1
    _warm_up(sources)
    return lambda: _save([_segmentation(sources, labels)])


def _segmentation(sources: "Sequence[Dataset]", labels: Any) -> "Dataset":
    import highdicom as hd
    from pydicom.sr.codedict import codes

    described = [
        hd.seg.SegmentDescription(
            segment_number=number,
            segment_label=f"Target {number}",
            segmented_property_category=codes.SCT.AnatomicalStructure,
            segmented_property_type=codes.SCT.Liver,
            algorithm_type="MANUAL",
        )
        for number in range(1, int(labels.max()) + 1)
    ]
    return hd.seg.Segmentation(
        source_images=sources,
        pixel_array=labels,
        segmentation_type="BINARY",
        segment_descriptions=described,
        series_instance_uid=hd.UID(),
        series_number=1,
        sop_instance_uid=hd.UID(),
        instance_number=1,
        manufacturer="Bench",
        manufacturer_model_name="Bench",
        software_versions="1",
        device_serial_number="1",
    )


def _warm_up(sources: "Sequence[Dataset]") -> None:
    """Let highdicom load what it loads at its first use."""
    import numpy as np

    few = sources[:3]
    _segmentation(few, np.ones((len(few), int(few[0].Rows), int(few[0].Columns)), np.uint8))


def _read(folder: str, count: int) -> "tuple[Protocol, list[Dataset], hd.Volume, list[Finding]]":
    """Load the series and give `count` targets a box each, side by side."""
    import numpy as np

    from dicom_node import volume
    from sr_templates import Finding

    source = volume.load(list(files(Path(folder))))
    protocol = _protocol(count)
    findings = []
    for index, question in enumerate(protocol.questions):
        mask = np.zeros(source.image.spatial_shape, bool)
        mask[_box(mask.shape, index, count)] = True
        findings.append(Finding(question, "It is [SEG].", source.on_source(mask), 0.5))
    return protocol, source.sources, source.image, findings


def _protocol(count: int) -> "Protocol":
    from sr_templates import Code, Question, Target, load_protocols

    kind = Code("SCT", "91723000", "Anatomical Structure")
    liver = Code("SCT", "10200004", "Liver")
    questions = tuple(
        Question(
            f"seg_{number}",
            "Outlines",
            "Please segment it.",
            target=Target(f"Target {number}", kind, liver),
        )
        for number in range(1, count + 1)
    )
    return replace(load_protocols()["ct_abdomen"], questions=questions)


def _algorithm() -> "Algorithm":
    from sr_templates import Algorithm

    return Algorithm("Bench", "1", "0" * 64)


def _box(shape: Sequence[int], index: int, count: int) -> tuple[slice, ...]:
    """Choose a part of the middle half, one of `count` along the columns."""
    slices, rows, columns = shape
    return (
        slice(slices // 4, 3 * slices // 4),
        slice(rows // 4, 3 * rows // 4),
        slice(columns * index // count, columns * (index + 1) // count),
    )


def _save(objects: "Sequence[Dataset]") -> None:
    with tempfile.TemporaryDirectory() as folder:
        for index, each in enumerate(objects):
            each.save_as(Path(folder) / f"{index}.dcm", enforce_file_format=True)
