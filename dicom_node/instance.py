"""What the node knows about one received DICOM instance, read from its header.

Knows: the header attributes that reception, completion and routing need. Never decodes pixels.
"""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path


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
