"""Seconds and memory until segments are objects on the disk: 20 and 104 of them, and their SR.

Each subject starts from what costs it least: one array of segment numbers, for dcmqi as a file. A
segment is on a quarter of the slices. A job returns both SR besides, and starts from masks: one
for each target, as the model gives them.
"""

import json
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .alone import MB, Values
from .lab import OURS, Lab, Missing, files

if TYPE_CHECKING:
    import highdicom as hd
    import numpy as np
    from pydicom import Dataset

    from sr_templates import Algorithm, Finding, Protocol

BENCH = "segmentation"
JOB = "0" * 32
WHEN = datetime(2026, 1, 5)  # noqa: DTZ001 - local, as the study's own times
ITKIMAGE2SEGIMAGE = Path(sys.executable).parent / "itkimage2segimage"
SLABS = 4


def run(lab: Lab) -> None:
    size = lab.size(512, 64)
    beside = {OURS: ours, "highdicom": plain, "dcmqi": dcmqi}
    if not ITKIMAGE2SEGIMAGE.exists():
        lab.missing.add("itkimage2segimage (PyPI: dcmqi)")
        del beside["dcmqi"]
    # The last of them, beside the one before, shows how both grow with the frames.
    for targets, slices in ((5, 8),) if lab.quick else ((20, 400), (104, 400), (104, 200)):
        _measure(lab, f"{targets} segments in {slices} x {size} x {size}", beside, slices, targets)
    for targets in (5,) if lab.quick else (5, 20):
        slices = lab.size(200, 8)
        case = f"{targets} targets in {slices} x {size} x {size}, SEG and both SR"
        _measure(lab, case, {OURS: everything}, slices, targets)
    slices, findings = (8, 5) if lab.quick else (400, 100)
    case = f"{findings} findings in {slices} x {size} x {size}, both SR without the SEG"
    _measure(lab, case, {OURS: reports}, slices, findings)


def _measure(
    lab: Lab, case: str, subjects: dict[str, Callable[..., Any]], slices: int, targets: int
) -> None:
    folder = lab.ct(slices, lab.size(512, 64))
    processes = {
        name: partial(lab.alone, function, folder, targets) for name, function in subjects.items()
    }
    lab.turns(BENCH, case, processes)


def ours(folder: str, targets: str) -> Callable[[], None]:
    """Prepare what `sr_templates.encode` does for the SEG, once overlaps are resolved."""
    import highdicom as hd

    from sr_templates import GENERIC, Finding
    from sr_templates.document import Document
    from sr_templates.segmentation import encode_segmentation, number_segments

    sources = _headers(folder)
    protocol = _protocol(int(targets))
    document = Document.about(protocol, sources, _algorithm(), JOB, WHEN)
    answers = [Finding(question, "It is [SEG].") for question in protocol.questions]
    labels = hd.Volume(_labels(sources, int(targets)), _affine(sources), "PATIENT")
    _warm_up(sources)

    def work() -> None:
        outlines = number_segments(labels, answers, document)
        if outlines is None:
            raise RuntimeError("the labels are empty")
        _save(encode_segmentation(outlines, document, GENERIC).objects.values())

    return work


def reports(folder: str, targets: str) -> Callable[[], None]:
    """Prepare both SR of segments that are already written."""
    import highdicom as hd
    import numpy as np

    from sr_templates import GENERIC, Finding
    from sr_templates.document import Document
    from sr_templates.draft_report import encode_draft
    from sr_templates.measurements import encode_measurements
    from sr_templates.segmentation import encode_segmentation, number_segments

    sources = _headers(folder)
    protocol = _protocol(int(targets))
    document = Document.about(protocol, sources, _algorithm(), JOB, WHEN)
    answers = [Finding(each, "It is [SEG].", confidence=0.5) for each in protocol.questions]
    labels = hd.Volume(_labels(sources, int(targets)), _affine(sources), "PATIENT")
    image = labels.with_array(labels.array.astype(np.float32))
    outlines = number_segments(labels, answers, document)
    if outlines is None:
        raise RuntimeError("the labels are empty")
    segments = encode_segmentation(outlines, document, GENERIC)
    _warm_up(sources)

    def work() -> None:
        measured = encode_measurements(answers, outlines, segments, image, document, GENERIC)
        draft = encode_draft(answers, outlines, segments, document, GENERIC)
        _save([draft] if measured is None else [measured, draft])

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
        _save(made.values())

    return work


def plain(folder: str, targets: str) -> Callable[[], None]:
    """Prepare highdicom's constructor."""
    sources = _headers(folder)
    labels = _labels(sources, int(targets))
    _warm_up(sources)
    return lambda: _save([_segmentation(sources, labels)])


def dcmqi(folder: str, targets: str) -> Callable[[], Values]:
    """Prepare the program and its files; what is measured is the program."""
    sources = _headers(folder)
    scratch = tempfile.TemporaryDirectory()
    image, metadata, made = (
        Path(scratch.name) / each for each in ("labels.nrrd", "metadata.json", "seg.dcm")
    )
    _nrrd(sources, int(targets), image)
    metadata.write_text(json.dumps(_metadata(int(targets))))
    command = [ITKIMAGE2SEGIMAGE, "--inputImageList", image, "--inputMetadata", metadata]
    command += ["--inputDICOMDirectory", folder, "--outputDICOM", made, "--skip", "1"]

    def work() -> Values:
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        if not made.exists():
            raise Missing("what itkimage2segimage should have written")
        scratch.cleanup()
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / MB
        return {"MB added": peak, "MB peak": peak}

    return work


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


def _metadata(count: int) -> dict[str, Any]:
    def code(value: str, meaning: str) -> dict[str, str]:
        return {"CodeValue": value, "CodingSchemeDesignator": "SCT", "CodeMeaning": meaning}

    return {
        "ContentLabel": "BENCH",
        "SeriesDescription": "Bench",
        "segmentAttributes": [
            [
                {
                    "labelID": number,
                    "SegmentDescription": f"Target {number}",
                    "SegmentAlgorithmType": "MANUAL",
                    "SegmentedPropertyCategoryCodeSequence": code(
                        "91723000", "Anatomical Structure"
                    ),
                    "SegmentedPropertyTypeCodeSequence": code("10200004", "Liver"),
                }
                for number in range(1, count + 1)
            ]
        ],
    }


def _nrrd(sources: "Sequence[Dataset]", count: int, path: Path) -> None:
    """Write the labels slice by slice: what is in this process is not the program's memory."""
    slices, rows, columns = len(sources), int(sources[0].Rows), int(sources[0].Columns)
    affine = _affine(sources)
    told = [",".join(map(str, affine[:3, axis])) for axis in (2, 1, 0, 3)]
    head = (
        "NRRD0004\ntype: unsigned char\ndimension: 3\nencoding: raw\n"
        f"space: left-posterior-superior\nsizes: {columns} {rows} {slices}\n"
        f"space directions: ({told[0]}) ({told[1]}) ({told[2]})\nspace origin: ({told[3]})\n\n"
    )
    with path.open("wb") as file:
        file.write(head.encode())
        for place in range(slices):
            file.write(_plane((slices, rows, columns), place, count).tobytes())


def _affine(sources: "Sequence[Dataset]") -> "np.ndarray":
    """Return the matrix from indices to patient coordinates; the headers are in slice order."""
    import numpy as np

    first, second = (np.array(each.ImagePositionPatient, float) for each in sources[:2])
    cosines = np.array(sources[0].ImageOrientationPatient, float)
    between_rows, between_columns = map(float, sources[0].PixelSpacing)
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 3] = second - first, first
    affine[:3, 1], affine[:3, 2] = cosines[3:] * between_rows, cosines[:3] * between_columns
    return affine


def _headers(folder: str) -> "list[Dataset]":
    from pydicom import dcmread

    return [dcmread(path, stop_before_pixels=True) for path in files(Path(folder))]


def _labels(sources: "Sequence[Dataset]", count: int) -> "np.ndarray":
    import numpy as np

    shape = len(sources), int(sources[0].Rows), int(sources[0].Columns)
    labels = np.empty(shape, np.uint8)
    for place, plane in enumerate(labels):
        plane[...] = _plane(shape, place, count)
    return labels


def _plane(shape: tuple[int, int, int], place: int, count: int) -> "np.ndarray":
    """Draw a slice: of each four segments one, side by side in the middle rows."""
    import numpy as np

    slices, rows, columns = shape
    slab = place * SLABS // slices
    here = np.arange(slab, count, SLABS)
    plane = np.zeros((rows, columns), np.uint8)
    plane[rows // 4 : 3 * rows // 4] = here[np.arange(columns) * len(here) // columns] + 1
    return plane


def _read(folder: str, count: int) -> "tuple[Protocol, list[Dataset], hd.Volume, list[Finding]]":
    """Load the series and give each of `count` targets its mask."""
    from dicom_node import volume
    from sr_templates import Finding

    source = volume.load(list(files(Path(folder))))
    labels = _labels(_headers(folder), count)
    protocol = _protocol(count)
    findings = [
        Finding(question, "It is [SEG].", source.on_source(labels == number), 0.5)
        for number, question in enumerate(protocol.questions, 1)
    ]
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


def _save(objects: "Iterable[Dataset]") -> None:
    with tempfile.TemporaryDirectory() as folder:
        for index, each in enumerate(objects):
            each.save_as(Path(folder) / f"{index}.dcm", enforce_file_format=True)
