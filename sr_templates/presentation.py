"""Key slices -> Grayscale Softcopy Presentation State: outlines that a viewer draws on the images.

Knows the GSPS IOD (PS3.3 A.33.1) and its units. The images stay as they are; the state says in
which window to show them and what to draw over them, one graphic layer for each segment.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import highdicom as hd
from highdicom.pr.enum import AnnotationUnitsValues
from pydicom.dataset import Dataset
from pydicom.valuerep import DA, TM, format_number_as_ds

from . import foreign
from .document import PRESENTATION, Document
from .key_slices import KeySlice, headers, volume
from .segments import Segment
from .source_images import SourceImage, spacing_mm
from .tracing import Contour, contours, simplified

POINTS = 4000  # FL in explicit VR holds 65534 bytes, 8 for each point
PIXEL, DISPLAY = AnnotationUnitsValues.PIXEL, AnnotationUnitsValues.DISPLAY
ALARM = hd.color.CIELabColor.from_rgb(255, 196, 60)
NOTICE_BOX = (0.02, 0.01, 0.98, 0.06)  # left, top, right, bottom of what is displayed
RESCALE = ("RescaleSlope", "RescaleIntercept", "RescaleType", "ModalityLUTSequence")
Rescale = tuple[float, float, str]  # intercept, slope, type


def encode_presentation(
    slices: Sequence[KeySlice],
    window: tuple[float, float] | None,
    document: Document,
) -> Dataset:
    """Write one state for all key slices.

    `window`: lowest and highest value to tell apart, in modality units; None: the images' own.
    """
    segments = {each.number: each for shown in slices for each, _ in shown.segments}
    layers = {
        number: _layer(order, segments[number]) for order, number in enumerate(sorted(segments), 2)
    }
    notice = hd.pr.GraphicLayer("NOTICE", 1, document.notice, ALARM)
    images = {str(each.SOPInstanceUID): _plain(each) for each in headers(slices)}
    annotations = []
    for shown in slices:
        drawn = _Drawn([images[shown.image.sop_instance_uid]], shown.image.frames)
        annotations.append(drawn.notice(notice, document.notice))
        for segment, mask in shown.segments:
            annotations.append(drawn.outline(layers[segment.number], segment, contours(mask)))
    modality, windows = _grey(slices, images, window)
    modules = document.modules(PRESENTATION)
    date, time = modules.pop("content_date"), modules.pop("content_time")
    made = hd.pr.GrayscaleSoftcopyPresentationState(
        referenced_images=list(images.values()),
        content_label="AI_DRAFT",
        content_description=document.notice,
        graphic_layers=[notice, *layers.values()],
        graphic_annotations=annotations,
        modality_lut_transformation=modality,
        voi_lut_transformations=windows or None,
        **modules,
    )
    # The library takes the clock; a repeated job must make the same bytes.
    made.PresentationCreationDate, made.PresentationCreationTime = DA(date), TM(time)
    area = made.DisplayedAreaSelectionSequence[0]
    del area.PresentationPixelAspectRatio
    area.PresentationPixelSpacing = [
        format_number_as_ds(each) for each in spacing_mm(document.sources[0])
    ]
    return document.sign(document.locate(made))


@dataclass(frozen=True)
class _Drawn:
    """The one image, and of a multi-frame one the frames, that something is drawn on."""

    images: Sequence[Dataset]
    frames: Sequence[int] | None

    def notice(self, layer: hd.pr.GraphicLayer, text: str) -> hd.pr.GraphicAnnotation:
        said = hd.pr.TextObject(text, DISPLAY, bounding_box=NOTICE_BOX, text_justification="CENTER")
        return hd.pr.GraphicAnnotation(self.images, layer, self.frames, text_objects=[said])

    def outline(
        self, layer: hd.pr.GraphicLayer, segment: Segment, lines: Sequence[Contour]
    ) -> hd.pr.GraphicAnnotation:
        drawn = [
            hd.pr.GraphicObject(
                "POLYLINE",
                # Column first; like the contours, from the outer corner of the first pixel.
                simplified(line, POINTS)[:, ::-1],
                PIXEL,
                tracking_id=segment.tracking_id,
                tracking_uid=segment.tracking_uid,
            )
            for line in lines
        ]
        row, column = lines[0][lines[0][:, 0].argmin()]
        said = hd.pr.TextObject(
            foreign.line(f"AI: {segment.target.label}, {volume(segment)}", 1024),
            PIXEL,
            anchor_point=(column, row),
            anchor_point_visible=False,
        )
        return hd.pr.GraphicAnnotation(
            self.images, layer, self.frames, graphic_objects=drawn, text_objects=[said]
        )


def _layer(order: int, segment: Segment) -> hd.pr.GraphicLayer:
    colour = hd.color.CIELabColor.from_rgb(*segment.target.colour_rgb)
    return hd.pr.GraphicLayer(f"OUTLINE_{segment.number}", order, segment.target.label, colour)


def _grey(
    slices: Sequence[KeySlice], images: Mapping[str, Dataset], window: tuple[float, float] | None
) -> tuple[hd.ModalityLUTTransformation | None, list[hd.pr.SoftcopyVOILUTTransformation]]:
    """Return how stored values become modality units, and the window.

    A state has one transformation for all its images. Where theirs differ it has none, and the
    window is given for each of them in stored values.
    """
    rescales = [_rescale(each.image) for each in slices]
    first = rescales[0]
    if len(set(rescales)) == 1:
        modality = None if first is None else hd.ModalityLUTTransformation(*first)
        return modality, [] if window is None else [_window(*window)]
    windows = []
    for shown, rescale in zip(slices, rescales, strict=True):
        if window is not None:
            image = images[shown.image.sop_instance_uid]
            intercept, slope, _ = rescale or (0.0, 1.0, "US")
            low, high = ((each - intercept) / slope for each in window)
            windows.append(_window(low, high, [image], shown.image.frames))
    return None, windows


def _window(
    low: float,
    high: float,
    images: Sequence[Dataset] = (),
    frames: Sequence[int] | None = None,
) -> hd.pr.SoftcopyVOILUTTransformation:
    width = high - low
    return hd.pr.SoftcopyVOILUTTransformation(
        window_center=round((low + high) / 2, 4),
        window_width=round(width, 4),
        # PS3.3 C.11.2.1.2.1: LINEAR wants a width of 1 or more.
        voi_lut_function=None if width >= 1 else "LINEAR_EXACT",
        referenced_images=hd.ReferencedImageSequence(images, frames) if images else None,
    )


def _rescale(image: SourceImage) -> Rescale | None:
    """Return how stored values of an image or of its frame become modality units, if they do."""
    groups = (
        image.header.get("PerFrameFunctionalGroupsSequence", [])[(image.frame or 1) - 1 :][:1],
        image.header.get("SharedFunctionalGroupsSequence", []),
    )
    found = [
        item.PixelValueTransformationSequence[0]
        for group in groups
        for item in group
        if item.get("PixelValueTransformationSequence")
    ]
    told = found[0] if found else image.header
    if told.get("RescaleSlope") is None or told.get("RescaleIntercept") is None:
        return None
    kind = str(told.get("RescaleType") or "US")
    return float(told.RescaleIntercept), float(told.RescaleSlope), kind


def _plain(header: Dataset) -> Dataset:
    """Leave out how grey values are to be taken: the library would look for it, and it is ours."""
    for keyword in (*RESCALE, "PerFrameFunctionalGroupsSequence"):
        if keyword in header:
            del header[keyword]
    if "SharedFunctionalGroupsSequence" in header:
        header.SharedFunctionalGroupsSequence = [Dataset()]
    return header
