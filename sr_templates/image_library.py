"""The images that a report cites -> Image Library (TID 1600), whatever their kind.

Knows source images, single or of many frames. What all of them have in common stands once.
"""

from collections.abc import Sequence

import highdicom as hd
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from .document import Document
from .source_images import SourceImage

CONTAINS = hd.sr.RelationshipTypeValues.CONTAINS
HAS_ACQ_CONTEXT = hd.sr.RelationshipTypeValues.HAS_ACQ_CONTEXT
SOURCE = Code("260753009", "SCT", "Source")
PIXELS = Code("{pixels}", "UCUM", "Pixels")
MODALITIES = {  # PS3.16 CID 29
    "CT": Code("CT", "DCM", "Computed Tomography"),
    "MR": Code("MR", "DCM", "Magnetic Resonance"),
}


def library(images: Sequence[SourceImage], document: Document) -> hd.sr.ContainerContentItem:
    """List images, with their frames, in one group with the descriptors of TID 1602."""
    group = _container(codes.DCM.ImageLibraryGroup)
    group.ContentSequence.extend(_descriptors(document))
    group.ContentSequence.extend(
        hd.sr.ImageContentItem(
            name=SOURCE,
            referenced_sop_class_uid=each.sop_class_uid,
            referenced_sop_instance_uid=each.sop_instance_uid,
            referenced_frame_numbers=each.frames,
            relationship_type=CONTAINS,
        )
        for each in images
    )
    whole = _container(codes.DCM.ImageLibrary)
    whole.ContentSequence.append(group)
    return whole


def _container(name: Code) -> hd.sr.ContainerContentItem:
    container = hd.sr.ContainerContentItem(name=name, relationship_type=CONTAINS)
    container.ContentSequence = hd.sr.ContentSequence()
    return container


def _descriptors(document: Document) -> hd.sr.ContentSequence:
    source = document.sources[0]
    found = hd.sr.ContentSequence()
    found.append(
        hd.sr.CodeContentItem(
            codes.DCM.Modality, MODALITIES[document.protocol.modality], HAS_ACQ_CONTEXT
        )
    )
    if source.get("FrameOfReferenceUID"):
        found.append(
            hd.sr.UIDRefContentItem(
                codes.DCM.FrameOfReferenceUID, source.FrameOfReferenceUID, HAS_ACQ_CONTEXT
            )
        )
    for name, value in (
        (codes.DCM.PixelDataRows, source.Rows),
        (codes.DCM.PixelDataColumns, source.Columns),
    ):
        found.append(hd.sr.NumContentItem(name, value, PIXELS, relationship_type=HAS_ACQ_CONTEXT))
    return found
