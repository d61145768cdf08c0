"""Key slices -> Secondary Capture: pictures that every archive stores and every viewer shows.

Knows the Secondary Capture Image IOD (PS3.3 A.8.1). The pictures carry the notice and the names of
what is outlined in their pixels, and nothing of the patient: Burned In Annotation says so.
"""

from collections.abc import Sequence

import highdicom as hd
import numpy as np
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes

from . import drawing
from .document import KEY_IMAGES, Document
from .key_slices import KeySlice
from .source_images import SourceImage

PIXELS = 768  # the longer side of a slice
LOSSY = ("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod")


def encode_key_images(
    slices: Sequence[KeySlice], image: hd.Volume, document: Document
) -> dict[str, Dataset]:
    """Write one RGB picture for each key slice, all in one series: the objects by label.

    `image` holds modality units on the grid of the masks, as `grid.aligned` turns it.
    """
    seen = drawing.scene(image, document.protocol)
    return {
        f"{KEY_IMAGES.name}.{number}": _key_image(seen, each, document, number)
        for number, each in enumerate(slices, 1)
    }


def _key_image(seen: drawing.Scene, shown: KeySlice, document: Document, number: int) -> Dataset:
    drawn = drawing.plate(seen, shown, document.notice, PIXELS)
    made = hd.sc.SCImage.from_ref_dataset(
        ref_dataset=document.sources[0],
        pixel_array=np.asarray(drawn),
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system="PATIENT",
        patient_orientation=seen.orientation,
        **document.modules(KEY_IMAGES, number=number),
    )
    made.copy_patient_and_study_information(document.sources[0])
    made.ConversionType = "WSD"
    # The library takes the clock; a repeated job must make the same bytes.
    made.DateOfSecondaryCapture, made.TimeOfSecondaryCapture = made.ContentDate, made.ContentTime
    made.BurnedInAnnotation = "NO"
    made.ImageComments = f"{document.notice}. {shown.shown}"
    made.DerivationDescription = "Outlines and legend drawn on a slice in a fixed window"
    made.SourceImageSequence = [_source(shown.image)]
    for keyword in LOSSY:
        if keyword in shown.image.header:
            made[keyword] = shown.image.header[keyword]
    return document.sign(document.locate(made))


def _source(image: SourceImage) -> Dataset:
    """Make an item of Source Image Sequence (PS3.3 C.7.6.1.1.4)."""
    item = Dataset()
    item.ReferencedSOPClassUID = image.sop_class_uid
    item.ReferencedSOPInstanceUID = image.sop_instance_uid
    if image.frame is not None:
        item.ReferencedFrameNumber = image.frame
    item.PurposeOfReferenceCodeSequence = [
        hd.sr.CodedConcept.from_code(codes.DCM.SourceImageForImageProcessingOperation)
    ]
    return item
