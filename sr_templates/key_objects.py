"""Key slices -> Key Object Selection: the images to look at first, and why.

Knows the Key Object Selection Document IOD (PS3.3 A.35.4) and its template, TID 2010. It changes
no image and holds none: a viewer marks the slices in the series that was read.
"""

from collections.abc import Sequence

import highdicom as hd
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes

from . import foreign
from .document import KEY_OBJECTS, Document
from .key_slices import KeySlice, headers
from .provenance import device

MAXIMUM_TEXT = 1024  # characters of a description that lists still show


def encode_key_objects(slices: Sequence[KeySlice], document: Document) -> Dataset:
    """Select the slices on which the segments are largest; of a multi-frame image, the frames."""
    images = headers(slices)
    content = hd.ko.KeyObjectSelection(
        document_title=codes.DCM.OfInterest,
        referenced_objects=images,
        observer_device_context=device(document.algorithm),
        description=describe(slices, document),
    )
    _name_frames(content[0], slices)
    made = hd.ko.KeyObjectSelectionDocument(
        evidence=images, content=content, **document.modules(KEY_OBJECTS)
    )
    for item in made.ContentSequence:
        if item.ValueType == "IMAGE":
            # A purpose of reference, which the library adds, has no place in TID 2010, row 8.
            del item["ConceptNameCodeSequence"]
    made.copy_patient_and_study_information(document.sources[0])
    return document.sign(made)


def describe(slices: Sequence[KeySlice], document: Document) -> str:
    """Say what the selection is worth, and what each slice shows."""
    lines = [f"{document.notice}. {document.voice} outlined on"]
    return foreign.text("\n".join([*lines, *(each.shown for each in slices)]), MAXIMUM_TEXT)


def _name_frames(root: Dataset, slices: Sequence[KeySlice]) -> None:
    """Say which frames are meant; the library can only refer to whole images."""
    for item in root.ContentSequence:
        if item.ValueType == "IMAGE":
            reference = item.ReferencedSOPSequence[0]
            frames = [
                each.image.frame
                for each in slices
                if each.image.sop_instance_uid == reference.ReferencedSOPInstanceUID
                and each.image.frame is not None
            ]
            if frames:
                reference.ReferencedFrameNumber = frames
