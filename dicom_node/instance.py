"""What the node knows about one received DICOM instance, read from its header.

Knows: the header attributes that reception, completion and routing need. Never decodes pixels.
"""

import re
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

STRUCTURED_REPORTS: Final = "1.2.840.10008.5.1.4.1.1.88."
KEY_OBJECTS: Final = "1.2.840.10008.5.1.4.1.1.88.59"
SEGMENTATIONS: Final = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
# Pictures of a scanner, of which we make none: CT and MR Image Storage, and the Enhanced ones.
PICTURES: Final = frozenset(f"1.2.840.10008.5.1.4.1.1.{end}" for end in ("2", "2.1", "4", "4.1"))
UID_FORM: Final = re.compile(r"[0-9]+(\.[0-9]+)*")
UID_LENGTH: Final = 64


def is_uid(text: str) -> bool:
    """Say whether this is a UID, leading zeros forgiven (PS3.5 9.1)."""
    return len(text) <= UID_LENGTH and bool(UID_FORM.fullmatch(text))


@dataclass(frozen=True)
class Instance:
    """One stored instance.

    Text attributes are as sent, decoded by the instance's own character set, empty when absent.
    """

    study_uid: str
    series_uid: str
    sop_uid: str
    sop_class_uid: str
    transfer_syntax_uid: str
    path: Path  # absolute, below the spool
    sha256: str  # of the whole Part 10 file
    size: int  # bytes of the whole Part 10 file
    received_at: datetime  # UTC
    patient_id: str = ""
    patient_name: str = ""
    accession_number: str = ""
    study_date: str = ""
    study_description: str = ""
    modality: str = ""

    @property
    def may_answer(self) -> bool:
        """Whether it may be somebody's answer to a draft: an SR document, or a segmentation.

        Such an instance is no image to be read (PS3.4 B.5); a Key Object Selection is none either.
        """
        answers = self.sop_class_uid.startswith(STRUCTURED_REPORTS)
        return (answers and self.sop_class_uid != KEY_OBJECTS) or (
            self.sop_class_uid in SEGMENTATIONS
        )
