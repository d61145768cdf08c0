"""Patients of the anatomy corpus as DICOM series: a study of which everything is known.

Knows how a patient of the corpus becomes instances, and what is said of it on the way; how they are
written is `sample`'s. For trying a node, and for measuring one: the truth is told beside the study.
"""

import uuid
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import numpy as np
from pydicom import Dataset

from dicom_node.errors import BadInput, Unavailable
from model import ModelError
from model.data.corpus.case import Case
from model.data.corpus.organs import ABDOMEN, CHEST, HEAD
from model.data.corpus.scan import SDIST, Scan
from model.data.corpus.telling import report

from . import sample

# Body Part Examined (PS3.16 Annex L) of a region and modality; the protocols go by it.
BODY_PARTS: Final = {
    (CHEST, "CT"): "CHEST",
    (ABDOMEN, "CT"): "ABDOMEN",
    (HEAD, "CT"): "HEAD",
    (HEAD, "MR"): "BRAIN",
}
# Repetition and echo time in ms: long ones are what makes an image T2-weighted (PS3.3 C.8.3.1).
TIMES_MS: Final = {"T1": ("500", "15"), "T2": ("4000", "100")}


def write(seed: int, out: Path, *, scan: Path | None = None) -> dict[str, Any]:
    """Write the patient of a seed into a folder and tell what is true of it.

    `scan` is the folder that the real scan is fetched into, to bend the patient out of it;
    without it the patient is drawn.

    Raises
    ------
    NodeError
        There is no such seed, or the scan cannot be had.
    """
    if seed < 0:
        raise BadInput(f"a seed is 0 or more, not {seed}")
    try:
        case = Case.make(seed) if scan is None else Scan.load(scan).case(seed)
    except ModelError as error:
        raise Unavailable(str(error)) from error
    instances = series(case, scanned=scan is not None)
    paths = sample.write(instances, out)
    return {
        "folder": str(out),
        "instances": len(paths),
        "study_instance_uid": str(instances[0].StudyInstanceUID),
        **asdict(case.truth),
        "spacing_mm": case.spacing_mm,
        "report": report(case),
    }


def series(case: Case, *, scanned: bool = False) -> list[Dataset]:
    """Make the instances of a patient, from foot to head; its middle is where all axes are 0.

    Voxels are whole numbers, and so kept exactly for CT; `scanned` says that the patient is one
    out of the real scan.
    """
    body_part = BODY_PARTS[case.region, case.modality]
    slices, rows, columns = case.voxels.shape
    ends = [
        -(count - 1) / 2 * step
        for count, step in zip((columns, rows, slices), case.spacing_mm[::-1], strict=True)
    ]
    source = f"scan {SDIST}" if scanned else "phantom"
    made = sample.series(
        modality=case.modality,
        spacing_mm=case.spacing_mm,
        # Patient axes go to the left, to the back and to the head (PS3.3 C.7.6.2.1.1), as those
        # of the corpus do: its columns run from the patient's right to left.
        directions=np.array(sample.AXIAL).T,
        origin=(ends[0], ends[1], ends[2]),
        seed=case.seed,
        study_uid=_study_uid(source, case.seed),
        description=f"{case.modality} {body_part} {case.phase}",
        body_part=body_part,
        voxels=np.rint(case.voxels),
    )
    for each in made:
        each.ImageComments = f"Synthetic: {source}, seed {case.seed}. Nobody was scanned so."
        if case.modality == "MR":
            each.RepetitionTime, each.EchoTime = TIMES_MS[case.phase]
    return made


def describe(told: dict[str, Any]) -> str:
    """Say what was written, for a person."""
    seen = f"{told['modality']} of the {told['region']}, {told['phase']}, seed {told['seed']}"
    lines = [f"{told['instances']} instances in {told['folder']}", f"SYNTHETIC: {seen}"]
    return "\n".join([*lines, told["report"]])


def _study_uid(source: str, seed: int) -> str:
    """Return a UID that is the same for the same patient (PS3.5 B.2)."""
    return f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, f'anatomy corpus/{source}/{seed}').int}"
