"""Instances go out: by C-STORE and by STOW-RS."""

from .scu import (
    COMMITMENT,
    MAXIMUM_CONTEXTS,
    STUDY_ROOT_FIND,
    VERIFICATION,
    Caller,
    Session,
    batches,
    echo,
    find_dicom,
    offers_of,
    send,
    session,
)

__all__ = [
    "COMMITMENT",
    "MAXIMUM_CONTEXTS",
    "STUDY_ROOT_FIND",
    "VERIFICATION",
    "Caller",
    "Session",
    "batches",
    "echo",
    "find_dicom",
    "offers_of",
    "send",
    "session",
]
