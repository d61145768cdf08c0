"""What came of a reading, and what it leaves on the disk: objects, text, picture, summary.

One folder for each job: ``LABEL.dcm`` of each object, as ``seg.dcm``, ``measurements.dcm``,
``draft.dcm``; ``draft.txt``, ``report.txt``, ``overlay.png``, ``summary.json``. A repeated job
writes the same names again.
"""

import hashlib
import json
import os
import re
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom import Dataset

import model
import sr_templates
from sr_templates import Algorithm, Finding, Protocol
from sr_templates.plain_text import plain_text
from sr_templates.profile import EXTRAS
from sr_templates.run_record import RECORD

from . import overlay
from .ledger import Result
from .text_drop import SOURCE
from .volume import SourceVolume

KINDS = ("seg", "measurements", "draft", *EXTRAS, RECORD.name)
LABEL = re.compile(rf"({'|'.join(KINDS)})(\.[a-z0-9-]+)*")


@dataclass(frozen=True)
class Reading:
    """What came of one series."""

    protocol: Protocol
    source: SourceVolume
    card: model.Card
    answers: tuple[model.Answer, ...]
    findings: tuple[Finding, ...]  # one for each answer; masks on the source grid
    masks: Mapping[str, NDArray[np.bool_]]  # by question, on the canonical grid
    objects: Mapping[str, Dataset]  # by label: seg, measurements, draft, measurements.ohif, ...
    draft: Dataset  # the one that all destinations can show
    algorithm: Algorithm
    timings_s: Mapping[str, float]


def save(reading: Reading, folder: Path) -> dict[str, Any]:
    """Write everything, see it onto the disk (fsync), and return the summary.

    Each file appears whole or not at all: a worker that has lost its job may write while what the
    other one wrote is being sent. What an earlier reading left here and this one does not have is
    removed: a SEG beside somebody else's draft would be taken for its own.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for label, instance in reading.objects.items():
        save_object(instance, folder, label)
    for label in labels(folder).difference(reading.objects):
        (folder / f"{label}.dcm").unlink(missing_ok=True)
    texts = {
        "draft.txt": sr_templates.as_text(reading.draft),
        SOURCE: plain_text(reading.draft),
    }
    drawn, summary = picture(reading), summarize(reading, folder)
    told = json.dumps(summary, ensure_ascii=False, indent=2) + "\n"
    for name, text in texts.items():
        _write(folder / name, partial(Path.write_text, data=text, encoding="utf-8"))
    _write(folder / "overlay.png", lambda path: drawn.save(path, format="PNG"))
    _write(folder / "summary.json", lambda path: path.write_text(told, encoding="utf-8"))
    for each in (folder, folder.parent):
        _sync(each)
    return summary


def save_object(instance: Dataset, folder: Path, label: str) -> None:
    """Write one object under its label, whole or not at all."""
    _write(folder / f"{label}.dcm", partial(instance.save_as, enforce_file_format=True))


def labels(folder: Path) -> set[str]:
    """Tell of which labels there are files; other DICOM files that lie there are not ours."""
    return {each.stem for each in folder.glob("*.dcm") if LABEL.fullmatch(each.stem)}


def rows(reading: Reading, folder: Path, job_id: str) -> list[Result]:
    """Tell the ledger which objects lie there, in the order in which they are to be sent."""
    return [row(each, folder, job_id, label) for label, each in reading.objects.items()]


def row(instance: Dataset, folder: Path, job_id: str, label: str) -> Result:
    """Tell the ledger of one object that lies there."""
    path = folder / f"{label}.dcm"
    return Result(
        job_id=job_id,
        label=label,
        sop_class_uid=str(instance.SOPClassUID),
        sop_uid=str(instance.SOPInstanceUID),
        series_uid=str(instance.SeriesInstanceUID),
        path=path,
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
    )


def picture(reading: Reading) -> Image.Image:
    """Draw the masks on the volume that was read."""
    layers = [
        overlay.Layer(question.target.label, question.target.colour_rgb, reading.masks[question.id])
        for question in reading.protocol.questions
        if question.target is not None and question.id in reading.masks
    ]
    return overlay.montage(
        reading.source.image.array,
        reading.source.spacing_mm,
        layers,
        window=reading.protocol.window,
        percentiles=reading.protocol.percentiles or (1.0, 99.0),
        note=_model_line(reading),
    )


def summarize(reading: Reading, folder: Path) -> dict[str, Any]:
    """Give the machine-readable report of the run (the contract of ``summary.json``)."""
    card = reading.card
    return {
        "series": _series(reading),
        "protocol": reading.protocol.name,
        "model": {
            "name": card.name,
            "version": card.version,
            "sha256": card.sha256,
            "untrained": card.untrained,
        },
        "answers": [
            {
                "id": answer.id,
                "question": answer.question,
                "text": answer.text,
                "mask": _measured(reading, answer.id),
            }
            for answer in reading.answers
        ],
        "outputs": [
            {
                "label": label,
                "path": str(folder / f"{label}.dcm"),
                "sop_class": str(instance.SOPClassUID),
                "sop_instance_uid": str(instance.SOPInstanceUID),
            }
            for label, instance in reading.objects.items()
        ],
        "timings_s": {key: round(value, 3) for key, value in reading.timings_s.items()},
    }


def _series(reading: Reading) -> dict[str, Any]:
    first = reading.source.sources[0]
    return {
        "study_instance_uid": str(first.StudyInstanceUID),
        "series_instance_uid": str(first.SeriesInstanceUID),
        "modality": str(first.Modality),
        "description": str(first.get("SeriesDescription") or ""),
        "instances": len(reading.source.sources),
        "shape": list(reading.source.image.spatial_shape),
        "spacing_mm": [round(each, 4) for each in reading.source.spacing_mm],
    }


def _measured(reading: Reading, question: str) -> dict[str, Any] | None:
    if question not in reading.masks:
        return None
    voxels = int(reading.masks[question].sum())
    voxel_ml = float(np.prod(reading.source.spacing_mm)) / 1000
    return {"voxels": voxels, "volume_ml": round(voxels * voxel_ml, 3)}


def _model_line(reading: Reading) -> str:
    line = f"model {reading.card.name} {reading.card.version}"
    # First, since what is last may be cut.
    return f"UNTRAINED: the answers mean nothing - {line}" if reading.card.untrained else line


def _write(path: Path, write: Callable[[Path], object]) -> None:
    beside = path.with_name(f"{uuid.uuid4().hex}.partial")
    try:
        write(beside)
        _sync(beside)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
