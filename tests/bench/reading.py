"""The questions of the chest protocol about one volume: as one batch, and one at a time.

The tiny checkpoint is nearly all overhead. With a released one (`--checkpoint DIR`) encoding is
most of the work, and what a batch spares comes near the count of encoder runs.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .lab import OURS, Lab, Values

if TYPE_CHECKING:
    from model import LaMed, Question

BENCH = "reading"


def run(lab: Lab) -> None:
    checkpoint = lab.checkpoint or lab.folder / "lamed-tiny-untrained"
    if lab.checkpoint is None:
        lab.tell("making the untrained tiny checkpoint")
        lab.alone(make_checkpoint, checkpoint)
    count = lab.size(18, 2)
    lab.turns(
        BENCH,
        f"{count} questions of ct_chest, {checkpoint.name}",
        {
            f"{OURS}, one batch": partial(lab.alone, batch, checkpoint, count),
            "one at a time": partial(lab.alone, singly, checkpoint, count),
        },
    )


def make_checkpoint(folder: str) -> Callable[[], None]:
    from model import tiny

    def work() -> None:
        tiny.init(Path(folder))

    return work


def batch(checkpoint: str, count: str) -> Callable[[], Values]:
    lamed, questions, voxels = _ready(checkpoint, int(count))

    def work() -> None:
        lamed.read(voxels, questions, window=(40, 400))

    return _counted(lamed, work)


def singly(checkpoint: str, count: str) -> Callable[[], Values]:
    lamed, questions, voxels = _ready(checkpoint, int(count))

    def work() -> None:
        for each in questions:
            lamed.read(voxels, [each], window=(40, 400))

    return _counted(lamed, work)


def _ready(checkpoint: str, count: int) -> "tuple[LaMed, list[Question], Any]":
    import numpy as np

    from dicom_node.demo import sample
    from model import Question, load
    from sr_templates import load_protocols

    voxels = np.stack([each.pixel_array for each in sample.series(shape=(40, 128, 128))])
    questions = [
        Question(each.text, each.id, each.caption, each.max_new_tokens)
        for each in load_protocols()["ct_chest"].questions[-count:]
    ]
    lamed = load(checkpoint)
    lamed.read(voxels, [Question("Is it warm?", max_new_tokens=1)])
    lamed.encodings.vision = lamed.encodings.prefix = 0
    return lamed, questions, voxels.astype(np.float32) - 1024


def _counted(lamed: "LaMed", work: Callable[[], None]) -> Callable[[], Values]:
    def counted() -> Values:
        work()
        runs = lamed.encodings
        return {"runs of the encoders": runs.vision + runs.segmentation, "prefixes": runs.prefix}

    return counted
