"""Examples to the tensors of a batch, one maker for each stage."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.data.tokens import Layout
from model.network.config import Size

from .examples import FIRST_KIND, Example
from .packing import pack

Batch = dict[str, Tensor]
TextTokens = Callable[[Sequence[str]], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Outlines:
    """For `objectives.Segmenting`; `step` is voxels for each cell along each axis."""

    step: Size

    def __call__(self, examples: Sequence[Example]) -> Batch:
        """Stack images and cells, list masks."""
        named = [
            (row, number, mask)
            for row, each in enumerate(examples)
            for number, mask in each.outlined
        ]
        cells = np.stack(
            [_cells(each.classes, self.step) for each in examples if each.classes is not None]
        )
        return {
            "images": _images(examples),
            "classes": torch.from_numpy(cells),
            "rows": torch.tensor([row for row, _, _ in named]),
            "asked": torch.tensor([number for _, number, _ in named]),
            "masks": torch.from_numpy(np.stack([mask for _, _, mask in named])),
        }


@dataclass(frozen=True)
class Pairs:
    """For `objectives.Matching`."""

    tokens: TextTokens

    def __call__(self, examples: Sequence[Example]) -> Batch:
        """Stack images and reports, and number the reports: the same one, the same number."""
        texts = [each.report for each in examples]
        ids, mask = self.tokens(texts)
        return {
            "images": _images(examples),
            "input_ids": ids,
            "attention_mask": mask,
            "reports": torch.tensor([_number(each) for each in texts]),
        }


@dataclass(frozen=True)
class Questions:
    """For `objectives.Speaking`."""

    layout: Layout
    seg_id: int

    def __call__(self, examples: Sequence[Example]) -> Batch:
        """Pack the questions of each image; list masks in the order of their [SEG].

        With what each image token shows, where the examples tell.
        """
        packs = pack(examples, self.layout, self.seg_id)
        masks = [mask for each in examples for mask in each.masks if mask is not None]
        batch = {"images": _images(examples), **vars(packs)}
        named = [each.named for each in examples if each.named is not None]
        for name, arrays in (("masks", masks), ("named", named)):
            if arrays:
                batch[name] = torch.from_numpy(np.stack(arrays))
        return batch


def _images(examples: Sequence[Example]) -> Tensor:
    return torch.from_numpy(np.stack([each.image for each in examples]))


def _number(text: str) -> int:
    """Give a text its number, alike in every process, as Python's own hash is not."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little", signed=True)


def _cells(classes: NDArray[np.uint8], step: Size) -> NDArray[np.uint8]:
    """Say what each cell is: what its middle voxel is, or a finding if any of its voxels is one."""
    depth, height, width = (count // each for count, each in zip(classes.shape, step, strict=True))
    parts = classes.reshape(depth, step[0], height, step[1], width, step[2])
    most = parts.max(axis=(1, 3, 5))  # findings have the highest numbers
    return np.where(
        most >= FIRST_KIND, most, parts[:, step[0] // 2, :, step[1] // 2, :, step[2] // 2]
    )
