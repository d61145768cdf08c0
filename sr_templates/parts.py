"""Which frames the SEG of a profile has, in which of its objects, and what is on them.

Knows encodings and limits; nothing of headers. Segments stay together: only one that alone has more
frames than an object may have is spread over several.
"""

import sys
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from io import BufferedReader

import highdicom as hd
import numpy as np
from numpy.typing import NDArray

from .frames import TOGETHER, Frame, bits, octets
from .profile import Profile
from .protocol import TemplateError
from .segments import MAXIMUM_SEGMENTS, Outlines, Segment

FULL = 255  # Maximum Fractional Value: what probability 1 is written as

Draw = Callable[[Sequence[Segment], Sequence[Frame]], BufferedReader]
Presence = NDArray[np.bool_]  # which segment has a frame on which slice: (slices, segments)


@dataclass(frozen=True)
class Part:
    """What one object holds. Its segments are numbered from 1 on; `pixels` makes its Pixel Data."""

    segments: tuple[Segment, ...]
    frames: tuple[Frame, ...]
    pixels: Callable[[], BufferedReader]


def parts(outlines: Outlines, profile: Profile, order: Sequence[int]) -> list[Part]:
    """Return what each of the objects holds; segments in their order, slices in `order`.

    Raises
    ------
    TemplateError
        A probability is none, or lies on another grid.
    """
    labels = outlines.labels.array
    presence = outlines.areas > 0
    draw: Draw = partial(_silhouettes, labels)
    if profile.segmentation == "LABELMAP":
        draw = partial(_map, labels)
    if profile.segmentation == "FRACTIONAL":
        planes = {each.number: _probabilities(each, outlines.labels) for each in outlines.segments}
        presence = np.array(
            [[place in each for each in planes.values()] for place in range(len(labels))]
        )
        draw = partial(_shades, labels[0].size, planes)
    if not profile.omit_empty_frames:
        presence = np.ones_like(presence)
    return [
        Part(tuple(segments), tuple(frames), partial(draw, segments, frames))
        for segments, frames in _split(outlines.segments, presence, profile, order)
    ]


def _split(
    segments: Sequence[Segment], presence: Presence, profile: Profile, order: Sequence[int]
) -> Iterator[tuple[Sequence[Segment], Sequence[Frame]]]:
    most_frames = profile.maximum_frames or sys.maxsize
    most_segments = profile.maximum_segments or sys.maxsize
    is_map = profile.segmentation == "LABELMAP"
    groups: list[list[int]] = []
    for index in range(len(segments)):
        joined = [*groups[-1], index] if groups else []
        frames = _shown(presence[:, joined], is_map=is_map).sum()
        if 0 < len(joined) <= most_segments and frames <= most_frames:
            groups[-1] = joined
        else:
            groups.append([index])
    for group in groups:
        shown = _shown(presence[:, group], is_map=is_map)
        frames = [
            Frame(number, place)
            for number, places in enumerate(shown.T, TOGETHER if is_map else 1)
            for place in order
            if places[place]
        ]
        for start in range(0, len(frames), most_frames):
            yield [segments[index] for index in group], frames[start : start + most_frames]


def _shown(presence: Presence, *, is_map: bool) -> Presence:
    """Put the segments of a map into one column: a frame shows all of them."""
    return np.array(presence.any(axis=1, keepdims=True)) if is_map else presence


def _silhouettes(
    labels: NDArray[np.uint8], segments: Sequence[Segment], frames: Sequence[Frame]
) -> BufferedReader:
    numbers = {number: each.number for number, each in enumerate(segments, 1)}
    return bits(labels, [Frame(numbers[each.segment], each.place) for each in frames])


def _map(
    labels: NDArray[np.uint8], segments: Sequence[Segment], frames: Sequence[Frame]
) -> BufferedReader:
    numbers = np.zeros(MAXIMUM_SEGMENTS + 1, np.uint8)
    for number, each in enumerate(segments, 1):
        numbers[each.number] = number
    return octets(
        lambda index: numbers[labels[frames[index].place]].tobytes(), labels[0].size, len(frames)
    )


def _shades(
    size: int,
    planes: Mapping[int, Mapping[int, bytes]],
    segments: Sequence[Segment],
    frames: Sequence[Frame],
) -> BufferedReader:
    nothing = zlib.compress(bytes(size))
    held = [planes[segments[each.segment - 1].number].get(each.place, nothing) for each in frames]
    return octets(lambda index: zlib.decompress(held[index]), size, len(held))


def _probabilities(segment: Segment, grid: hd.Volume) -> dict[int, bytes]:
    """Return the planes that hold something, by slice: 0 to `FULL`, put by small.

    One volume of probabilities is held at a time; most of what it holds is nothing.
    """
    volume = segment.probability()
    if not volume.geometry_equal(grid):
        raise TemplateError(
            f"expected probabilities of {segment.question_id} on the masks' grid of "
            f"{grid.spatial_shape} voxels, got {volume.spatial_shape}"
        )
    planes = {}
    for place, plane in enumerate(volume.array):
        low, high = plane.min(), plane.max()
        if not 0 <= low <= high <= 1:
            raise TemplateError(
                f"expected probabilities of {segment.question_id} from 0 to 1, "
                f"got {low} to {high} on slice {place}"
            )
        shades = np.rint(plane * np.float32(FULL)).astype(np.uint8)
        if shades.any():
            planes[place] = zlib.compress(shades.tobytes(), 1)
    # A segment is there, however unlikely: it has a frame.
    return planes or {segment.key_slice: zlib.compress(bytes(grid.array[0].size))}
