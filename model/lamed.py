"""`LaMed.read`: one volume, many questions; one encoding, one prefix, one batch.

Knows arrays and words; the only module that knows where image tokens and [SEG] stand in a text.
Has never heard of DICOM.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .card import Card
from .errors import ModelError
from .network import Lamed, greedy
from .preprocess import Placement, Prepared, prepare
from .tokenizer import BOX_END, BOX_START, IMAGE, Tokenizer

MAXIMUM_LENGTH = 512  # tokens of a question with its image tokens, as in training
MASKS_AT_ONCE = 4
Point = tuple[float, float, float]
BOX = re.compile(re.escape(BOX_START) + r"\s*\[([^\]]*)\]\s*" + re.escape(BOX_END))


@dataclass(frozen=True)
class Question:
    """One question about a volume.

    A `caption` asks for a text about the whole volume: it follows the image tokens without a
    space, as the model was trained. A box stands in the text as the model writes it:
    ``<bx_start>[z0, y0, x0, z1, y1, x1]<bx_end>``, parts of the network's grid. An answer ends by
    itself or after `max_new_tokens`.
    """

    text: str
    id: str = ""
    caption: bool = False
    max_new_tokens: int = 256


@dataclass(frozen=True, eq=False)  # arrays have no one truth
class Mask:
    """One mask, still on the network's grid: float32 logits (depth, height, width)."""

    logits: NDArray[np.float32]
    placement: Placement

    def restore(self) -> NDArray[np.float32]:
        """Give float32 logits on the grid of the volume that was read; positive is inside."""
        return self.placement.restore(torch.from_numpy(self.logits))


@dataclass(frozen=True)
class Box:
    """A box in voxels of the volume that was read, (slice, row, column); voxel i is i to i + 1."""

    start: tuple[float, float, float]
    stop: tuple[float, float, float]


@dataclass(frozen=True)
class Answer:
    """What the model said to one question.

    `text` is for people; `raw` still holds the tokens for masks and boxes. `confidence` is the
    geometric mean of the probabilities of the answer's tokens: how sure of its words the model
    was, not how right; 0 for an answer without any. There is one mask for each [SEG], in order.
    """

    id: str
    question: str
    text: str
    raw: str
    tokens: tuple[int, ...]
    confidence: float
    masks: tuple[Mask, ...] = ()
    boxes: tuple[Box, ...] = ()


@dataclass
class Encodings:
    """How often each encoder ran; for tests and for the curious."""

    vision: int = 0
    prefix: int = 0
    segmentation: int = 0


@dataclass(frozen=True)
class LaMed:
    """A loaded checkpoint that can be asked.

    `network` is the torch module, `device` and `dtype` are where and how it computes.
    """

    network: Lamed
    tokenizer: Tokenizer
    card: Card
    device: torch.device
    dtype: torch.dtype
    encodings: Encodings = field(default_factory=Encodings)

    @torch.inference_mode()
    def read(
        self,
        voxels: NDArray[np.floating[Any]],
        questions: Sequence[str | Question],
        *,
        window: tuple[float, float] | None = None,
        percentiles: tuple[float, float] | None = None,
    ) -> list[Answer]:
        """Answer questions about one volume, greedily.

        The volume is encoded once, the prefix over its image tokens is computed once, all
        questions decode on it as one batch. SegVol's encoder runs once, if a [SEG] came.

        Parameters
        ----------
        voxels
            (slices, rows, columns), foot to head, anterior to posterior, right to left; any
            integers or floats. They are not changed.
        window
            Level and width in the units of the voxels.
        percentiles
            Low and high, where there are no units.

        Raises
        ------
        ModelError
            The volume or a question cannot be used; says what was expected and what came.
        """
        asked = _listed(questions)
        prompts = [self._prompt(each) for each in asked]
        if not asked:
            return []
        grid = self.network.config.vision.image_size
        prepared = prepare(voxels, grid, window=window, percentiles=percentiles)
        return self._answers(prepared, asked, prompts)

    @torch.inference_mode()
    def ask(self, prepared: Prepared, questions: Sequence[str | Question]) -> list[Answer]:
        """Answer questions about an image that is already on the network's grid, as `read` does.

        Raises
        ------
        ModelError
            The image is not of the network's shape, or a question cannot be used.
        """
        asked = _listed(questions)
        shape = (1, 1, *self.network.config.vision.image_size)
        if prepared.image.shape != shape:
            raise ModelError(f"an image must be {shape}, not {tuple(prepared.image.shape)}")
        prompts = [self._prompt(each) for each in asked]
        return self._answers(prepared, asked, prompts) if asked else []

    def _answers(
        self, prepared: Prepared, asked: Sequence[Question], prompts: Sequence[list[int]]
    ) -> list[Answer]:
        image = prepared.image.to(self.device, self.dtype)
        ids, hidden = self._decode(image, prompts, [each.max_new_tokens for each in asked])
        masks = self._draw(image, ids, hidden, prepared.placement)
        return [
            self._answer(question, row, states, masks[index], prepared)
            for index, (question, row, states) in enumerate(zip(asked, ids, hidden, strict=True))
        ]

    def _prompt(self, question: Question) -> list[int]:
        """Check a question and give the ids that follow the image tokens."""
        name = f"question {question.id}" if question.id else "a question"
        found = self.tokenizer.reserved(BOX.sub(_without_box, question.text))
        if found:
            raise ModelError(f"{name} must not hold {', '.join(found)}")
        if not question.text.strip():
            raise ModelError(f"{name} is empty")
        # The image tokens stand in front, so that the text is split as in the whole prompt.
        text = question.text.strip() if question.caption else f" {question.text.strip()}"
        ids = self.tokenizer.encode(IMAGE + text)[1:]
        image = 1 + self.network.config.image_tokens
        room = max(MAXIMUM_LENGTH - image, 0)
        if len(ids) > room:
            raise ModelError(f"{name} must have at most {room} tokens, not {len(ids)}")
        most = self.network.model.config.max_position_embeddings - image - len(ids)
        if not 1 <= question.max_new_tokens <= most:
            raise ModelError(
                f"{name}: max_new_tokens must be 1 to {most}, not {question.max_new_tokens}"
            )
        return ids

    def _decode(
        self, image: Tensor, prompts: Sequence[list[int]], limits: Sequence[int]
    ) -> tuple[list[list[int]], list[Tensor]]:
        network, config = self.network, self.network.config
        features = network.encode_image(image)
        self.encodings.vision += 1
        prefix = [config.bos_token_id, *[config.image_token_id] * config.image_tokens]
        embedded = network.embed(torch.tensor([prefix], device=self.device), features)
        cache = network.language(embedded).cache
        self.encodings.prefix += 1
        cache.batch_repeat_interleave(len(prompts))
        longest = max(map(len, prompts))
        padded = [[config.pad_token_id] * (longest - len(each)) + each for each in prompts]
        seen = [
            [1] * len(prefix) + [0] * (longest - len(each)) + [1] * len(each) for each in prompts
        ]
        decoded = greedy(
            network,
            network.embed(torch.tensor(padded, device=self.device)),
            attention_mask=torch.tensor(seen, device=self.device),
            past_key_values=cache,
            max_new_tokens=list(limits),
        )
        lengths = [
            _length(row, limit, config.eos_token_ids)
            for row, limit in zip(decoded.ids.tolist(), limits, strict=True)
        ]
        ids = [row[:size] for row, size in zip(decoded.ids.tolist(), lengths, strict=True)]
        return ids, [row[:size] for row, size in zip(decoded.hidden, lengths, strict=True)]

    def _draw(
        self,
        image: Tensor,
        ids: Sequence[list[int]],
        hidden: Sequence[Tensor],
        placement: Placement,
    ) -> list[tuple[Mask, ...]]:
        """Draw one mask for each [SEG], a few at a time: at full size each takes 50 MB."""
        seg = self.network.config.seg_token_id
        places = [
            (row, step)
            for row, each in enumerate(ids)
            for step, id_ in enumerate(each)
            if id_ == seg
        ]
        drawn: list[list[Mask]] = [[] for _ in ids]
        if places and self.network.config.segvol is not None:
            tokens = self.network.encode_segmentation(image)
            self.encodings.segmentation += 1
            for first in range(0, len(places), MASKS_AT_ONCE):
                some = places[first : first + MASKS_AT_ONCE]
                states = torch.stack([hidden[row][step] for row, step in some])
                logits = self.network.segment(tokens, states).float().cpu().numpy()
                for (row, _), mask in zip(some, logits, strict=True):
                    drawn[row].append(Mask(mask[0], placement))
        return [tuple(each) for each in drawn]

    def _answer(
        self,
        question: Question,
        ids: list[int],
        hidden: Tensor,
        masks: tuple[Mask, ...],
        prepared: Prepared,
    ) -> Answer:
        raw = self.tokenizer.decode(ids).strip()
        return Answer(
            id=question.id,
            question=question.text,
            text=_plain(raw, self.tokenizer.added),
            raw=raw,
            tokens=tuple(ids),
            confidence=self._confidence(ids, hidden),
            masks=masks,
            boxes=tuple(_boxes(raw, prepared)),
        )

    def _confidence(self, ids: list[int], hidden: Tensor) -> float:
        if not ids:
            return 0.0
        logits = self.network.lm_head(hidden).float()
        chosen = logits.log_softmax(-1).gather(1, torch.tensor(ids, device=self.device)[:, None])
        return float(chosen.mean().exp())


def _length(ids: Sequence[int], limit: int, ends: Sequence[int]) -> int:
    """Count what a row said before its end or its limit, without the EOS."""
    said = ids[:limit]
    return next((index for index, each in enumerate(said) if each in ends), len(said))


def _plain(raw: str, tokens: Iterable[str]) -> str:
    text = BOX.sub(" ", raw)
    for token in tokens:  # with the colon that announced it
        text = re.sub(rf":?\s*{re.escape(token)}", " ", text)
    # Single bytes that the model may say make control characters; no report holds any.
    text = "".join(each if each.isprintable() else " " for each in text)
    return " ".join(re.sub(r"\s+([.,;:?!])", r"\1", text).split())


def _boxes(raw: str, prepared: Prepared) -> list[Box]:
    """Read ``<bx_start>[z0, y0, x0, z1, y1, x1]<bx_end>``, normalised on the network's grid.

    The model learnt the last voxel inside as the end, so a box ends one voxel later.
    """
    grid = prepared.image.shape[2:]
    boxes = []
    for first, last in filter(None, map(_corners, BOX.finditer(raw))):
        z, y, x = (min(end + 1 / size, 1.0) for end, size in zip(last, grid, strict=True))
        place = prepared.placement.place
        boxes.append(Box(place(first), place((z, y, x))))
    return boxes


def _corners(match: re.Match[str]) -> tuple[Point, Point] | None:
    """Read the two corners of a box; None if something else stands between the markers."""
    try:
        z0, y0, x0, z1, y1, x1 = map(float, match[1].split(","))
    except ValueError:
        return None
    if 0 <= z0 <= z1 <= 1 and 0 <= y0 <= y1 <= 1 and 0 <= x0 <= x1 <= 1:
        return (z0, y0, x0), (z1, y1, x1)
    return None


def _without_box(match: re.Match[str]) -> str:
    """Leave a whole box out of a text; what only looks like one stays."""
    return " " if _corners(match) else match[0]


def _listed(questions: Sequence[str | Question]) -> list[Question]:
    if isinstance(questions, str):  # it is a sequence of letters
        raise ModelError("questions are a list, not one text")
    return [each if isinstance(each, Question) else Question(each) for each in questions]
