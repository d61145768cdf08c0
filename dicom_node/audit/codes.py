"""The codes of audit messages: PS3.15 A.5.3, PS3.16 CID 400 to 405, RFC 3881 for identifiers."""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Code:
    """One coded value."""

    value: str
    scheme: str
    meaning: str


def _dcm(value: int, meaning: str) -> Code:
    return Code(str(value), "DCM", meaning)


# What happened (CID 400).
APPLICATION_ACTIVITY: Final = _dcm(110100, "Application Activity")
AUDIT_LOG_USED: Final = _dcm(110101, "Audit Log Used")
BEGIN_TRANSFERRING: Final = _dcm(110102, "Begin Transferring DICOM Instances")
INSTANCES_ACCESSED: Final = _dcm(110103, "DICOM Instances Accessed")
INSTANCES_TRANSFERRED: Final = _dcm(110104, "DICOM Instances Transferred")
STUDY_DELETED: Final = _dcm(110105, "DICOM Study Deleted")
EXPORT: Final = _dcm(110106, "Export")
QUERY: Final = _dcm(110112, "Query")
SECURITY_ALERT: Final = _dcm(110113, "Security Alert")
USER_AUTHENTICATION: Final = _dcm(110114, "User Authentication")

# Of which kind it was (CID 401, 403).
APPLICATION_START: Final = _dcm(110120, "Application Start")
APPLICATION_STOP: Final = _dcm(110121, "Application Stop")
LOGIN: Final = _dcm(110122, "Login")
LOGOUT: Final = _dcm(110123, "Logout")
NODE_AUTHENTICATION: Final = _dcm(110126, "Node Authentication")
SECURITY_CONFIGURATION: Final = _dcm(110129, "Security Configuration")

# Who took part, as what (CID 402).
APPLICATION: Final = _dcm(110150, "Application")
LAUNCHER: Final = _dcm(110151, "Application Launcher")
DESTINATION: Final = _dcm(110152, "Destination Role ID")
SOURCE: Final = _dcm(110153, "Source Role ID")
DESTINATION_MEDIA: Final = _dcm(110154, "Destination Media")

# What it was about (CID 404), and on what medium (CID 405).
STUDY_UID: Final = _dcm(110180, "Study Instance UID")
SOP_CLASS_UID: Final = _dcm(110181, "SOP Class UID")
NODE_ID: Final = _dcm(110182, "Node ID")
PATIENT_NUMBER: Final = Code("2", "RFC-3881", "Patient Number")
URI: Final = Code("12", "RFC-3881", "URI")
URI_MEDIA: Final = _dcm(110037, "URI")
