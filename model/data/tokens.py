"""A sample as the network gets it: input ids, labels, attention mask.

    [BOS] <im_patch> x N, question, " ", answer, [EOS], padding

A caption's question follows the image tokens at once, every other one after a space. Only the
answer and its EOS are learnt; labels of all else are -100. A text that is too long is cut, and
then it has no EOS.

The default differs from the reference where that is odd, and `Layout.reference` gives it back:

- the attention mask covers the EOS, which the reference writes after it has made the mask, so
  that the one token that ends an answer is attended to as it will be when the model answers;
- an unknown word in an answer is learnt, also where its id is that of the padding;
- an answer that is cut away altogether, or loses the [SEG] of its mask, is an error and not a
  sample that teaches nothing (or that a mask comes without its token).

Knows ids; neither files nor images.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from model.network.config import LamedConfig
from model.tokenizer import IMAGE, SEG, Tokenizer

from .sample import Sample, Task

IGNORED: Final = -100  # the label that no loss looks at
MAXIMUM_LENGTH: Final = 512  # of the released checkpoints


@dataclass(frozen=True)
class Layout:
    """What the ids depend on besides the words.

    `reference`: ids, labels and masks as the reference makes them, its quirks included.
    """

    image_tokens: int
    eos_id: int
    pad_id: int
    max_length: int = MAXIMUM_LENGTH
    reference: bool = False

    @classmethod
    def of(cls, config: LamedConfig, *, max_length: int | None = None) -> "Layout":
        """Take the layout that a network was made for.

        Without a `max_length` it is that of the released ones, or as much text as image where the
        image has more tokens than theirs, 256.
        """
        room = max(MAXIMUM_LENGTH, 2 * config.image_tokens) if max_length is None else max_length
        return cls(config.image_tokens, config.eos_token_ids[0], config.pad_token_id, room)


@dataclass(frozen=True)
class Tokens:
    """One sample without padding; all three of one length."""

    input_ids: tuple[int, ...]
    labels: tuple[int, ...]
    attention_mask: tuple[int, ...]


@dataclass(frozen=True)
class Batch:
    """Samples of one length, padded on the right: (B, T) int64 each."""

    input_ids: Tensor
    labels: Tensor
    attention_mask: Tensor


def encode(sample: Sample, tokenizer: Tokenizer, layout: Layout) -> Tokens:
    """Turn a sample into ids and what is learnt of them.

    Raises
    ------
    DataError
        The question leaves no room for the answer, or the answer is cut before its [SEG].
    """
    question = prompt(sample, layout)
    asked = [tokenizer.bos_id, *tokenizer.encode(question)]
    # Both at once: how a word is split depends on what stands before it.
    whole = [tokenizer.bos_id, *tokenizer.encode(f"{question} {sample.answer}")]
    kept = whole[: layout.max_length]
    start = min(len(asked), len(kept))
    if not layout.reference:
        _check(sample, tokenizer, layout, whole, start)
    ended = len(kept) < layout.max_length
    ids = [*kept, layout.eos_id] if ended else kept
    labels = [IGNORED] * start + ids[start:]
    if layout.reference:  # padding is told by its id there, which a word may have too
        labels[: len(kept)] = [
            IGNORED if each == layout.pad_id else each for each in labels[: len(kept)]
        ]
    seen = [1] * len(kept) + [0 if layout.reference else 1] * ended
    return Tokens(tuple(ids), tuple(labels), tuple(seen))


def prompt(sample: Sample, layout: Layout) -> str:
    """Give the question behind its image tokens, as text."""
    space = "" if sample.task is Task.CAPTION else " "
    return IMAGE * layout.image_tokens + space + sample.question


def collate(samples: Sequence[Tokens], layout: Layout, *, length: int | None = None) -> Batch:
    """Pad samples on the right, to the longest of them or to `length`."""
    longest = max(len(each.input_ids) for each in samples) if length is None else length

    def padded(rows: Sequence[tuple[int, ...]], filler: int) -> Tensor:
        return torch.tensor([[*row, *[filler] * (longest - len(row))] for row in rows])

    return Batch(
        padded([each.input_ids for each in samples], layout.pad_id),
        padded([each.labels for each in samples], IGNORED),
        padded([each.attention_mask for each in samples], 0),
    )


def _check(
    sample: Sample, tokenizer: Tokenizer, layout: Layout, whole: Sequence[int], start: int
) -> None:
    room = layout.max_length
    if start >= room:
        raise sample.error(f"a question of fewer than {room} tokens", f"{start} or more")
    seg = tokenizer.added[SEG]
    if sample.mask and seg in whole and seg not in whole[start:room]:
        raise sample.error(f"{SEG} within {room} tokens", f"it as token {whole.index(seg) + 1}")
