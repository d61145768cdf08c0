"""What the header of the images says of the exam, in words: why it was asked for, how it was made.

Knows attributes of the request (PS3.3 C.7.3.1, 10.6) and of CT and MR images, classic and enhanced.
Everything is quoted or read from the header; nothing is concluded from the pixels.
"""

from collections.abc import Iterator

from pydicom.dataset import Dataset
from pydicom.multival import MultiValue

from . import foreign

MAXIMUM_TEXT = 1000  # characters of one quotation
REQUEST = (
    ("Reason given with the request", "ReasonForTheRequestedProcedure"),
    ("Requested", "RequestedProcedureDescription"),
    ("Admitting diagnosis", "AdmittingDiagnosesDescription"),
)
TECHNIQUE = {  # by modality: keyword, and how its value is told
    "CT": (
        ("KVP", "{} kVp"),
        ("SliceThickness", "slice thickness {} mm"),
        ("SpacingBetweenSlices", "spacing between slices {} mm"),
        ("PixelSpacing", "pixel spacing {} mm"),
        ("ConvolutionKernel", "kernel {}"),
    ),
    "MR": (
        ("MagneticFieldStrength", "{} T"),
        ("MRAcquisitionType", "{}"),
        ("ScanningSequence", "sequence {}"),
        ("SequenceVariant", "variant {}"),
        ("PulseSequenceName", "{}"),
        ("RepetitionTime", "TR {} ms"),
        ("EchoTime", "TE {} ms"),
        ("InversionTime", "TI {} ms"),
        ("FlipAngle", "flip angle {} degrees"),
        ("SliceThickness", "slice thickness {} mm"),
        ("SpacingBetweenSlices", "spacing between slices {} mm"),
        ("PixelSpacing", "pixel spacing {} mm"),
    ),
}


def request(source: Dataset) -> Iterator[str]:
    """Quote why and what was asked for; nothing if the header does not say."""
    places = [source, *(source.get("RequestAttributesSequence") or ())]
    for label, keyword in REQUEST:
        found = [str(each.get(keyword) or "") for each in places]
        words = next((plain for each in found if (plain := quoted(each, MAXIMUM_TEXT))), "")
        if words:
            yield f"{label} (quoted from the image header): {words}"


def technique(source: Dataset, modality: str) -> str:
    """Say how the images were made, as far as the header tells it."""
    told = [modality]
    for keyword, words in TECHNIQUE[modality]:
        value = _shown(_value(source, keyword))
        if value:
            told.append(words.format(value))
    agent = _shown(_value(source, "ContrastBolusAgent"))
    told.append(f'contrast agent "{agent}"' if agent else "no contrast agent named")
    return f"{', '.join(told)}; all as the image header says."


def quoted(words: str, limit: int) -> str:
    """Quote the words of another, so that they cannot pass for the document's own."""
    plain = foreign.text(words, limit).replace('"', "'")
    return f'"{plain}"' if plain else ""


def _value(source: Dataset, keyword: str) -> object:
    """Return a value of the header, or of the functional groups (PS3.3 C.7.6.16)."""
    if source.get(keyword):
        return source[keyword].value
    groups = (
        (source.get(each) or [Dataset()])[0]
        for each in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
    )
    macros = (element.value[0] for group in groups for element in group if _is_macro(element))
    return next((each[keyword].value for each in macros if each.get(keyword)), None)


def _is_macro(element: object) -> bool:
    return getattr(element, "VR", "") == "SQ" and bool(getattr(element, "value", None))


def _shown(value: object) -> str:
    """Return a value in words: several side by side, numbers as short as they are."""
    if value is None:
        return ""
    values = list(value) if isinstance(value, MultiValue) else [value]
    return " x ".join(_short(each) for each in values)


def _short(value: object) -> str:
    text = foreign.line(str(value)).replace('"', "'")
    try:
        return f"{float(text):.4g}"
    except ValueError:
        return text
