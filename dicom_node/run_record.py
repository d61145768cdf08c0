"""How a job's objects came to be: inputs, parameters, model, libraries, device, timings, outputs.

Knows what a reading is and nothing of where the record is kept. Everything that a later reader
would need to repeat the job, or to see that it was not changed, stands in it with a digest.
"""

import hashlib
import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final

from .instance import Instance
from .ledger import Result
from .results import Reading
from .validator import Verdict

LIBRARIES: Final = (
    *("lamed-node", "torch", "transformers", "tokenizers", "monai", "numpy"),
    *("pydicom", "highdicom", "pillow", "dicom3tools"),
)


def compose(
    reading: Reading,
    inputs: Sequence[Instance],
    outputs: Sequence[Result],
    verdicts: Mapping[str, Verdict],
) -> dict[str, Any]:
    """Write the record of a job, of values that JSON has.

    `inputs` are the instances that were read, `outputs` the objects as they lie on the disk, and
    `verdicts` are by label; an object without one was not validated.
    """
    protocol, card = reading.protocol, reading.card
    return {
        "inputs": [
            {"sop_instance_uid": each.sop_uid, "sha256": each.sha256}
            for each in sorted(inputs, key=lambda each: each.sop_uid)
        ],
        "parameters": {
            "protocol": protocol.name,
            "protocol_sha256": hashlib.sha256(repr(protocol).encode()).hexdigest(),
            "questions": len(protocol.questions),
            **{key: str(value) for key, value in reading.algorithm.parameters.items()},
        },
        "model": {"name": card.name, "version": card.version, "weights_sha256": card.sha256},
        "libraries": libraries(),
        "timings_s": {key: round(value, 3) for key, value in reading.timings_s.items()},
        "outputs": [
            {
                "label": each.label,
                "sop_class_uid": each.sop_class_uid,
                "sop_instance_uid": each.sop_uid,
                "sha256": each.sha256,
                "validation": asdict(verdicts.get(each.label, Verdict("unchecked"))),
            }
            for each in outputs
        ],
    }


def libraries() -> dict[str, str]:
    """Tell the versions of what the result depends on; what is not installed is left out."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
