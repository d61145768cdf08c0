"""The bridge from vision tokens to word embeddings: the spatial pooling perceiver.

Knows a grid of tokens and two widths; must not know images or prompts.
"""

from itertools import chain

from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own name

from .config import LamedConfig
from .vision import sines


def build_projector(config: LamedConfig) -> nn.Module:
    """Return the projector the config names: (B, vision tokens, width) -> (B, image tokens, H)."""
    if config.projector.kind == "identity":
        return nn.Identity()
    if config.projector.kind == "linear":
        return FullLinear(config)
    return SpatialPoolingPerceiver(config)


def turned(words: Tensor) -> Tensor:
    """Turn words (..., H) to where an image token that shows them is to lie: half the channels on.

    A word is most like itself. What looks for what is like a turned word looks past the words.
    """
    return words.roll(words.shape[-1] // 2, dims=-1)


class FullLinear(nn.Module):
    """Every vision token through one Linear, unpooled."""

    def __init__(self, config: LamedConfig) -> None:
        super().__init__()
        self.linear = nn.Linear(config.vision.hidden, config.hidden)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, width) -> (B, N, H)."""
        words: Tensor = self.linear(tokens)
        return words


class SpatialPoolingPerceiver(nn.Module):
    """Pool neighbours, and project them into the language model's width.

    `spatial`: the mean of a block; `sequence`: of a run of the flat order; both as published,
    before they are projected. `max` (ours): every token through the first layer by itself,
    and of a block, in each channel, the strongest: what one patch of many shows is not averaged
    away.

    `places` (ours) is how strong the sines are that are added to tell image tokens apart by their
    place: a language model of rotary positions hardly counts up to a place.
    """

    def __init__(self, config: LamedConfig) -> None:
        super().__init__()
        shape = config.projector
        self.grid, self.window = config.vision.grid, shape.window
        self.pooling, self.places = shape.pooling, shape.places
        first = nn.Linear(config.vision.hidden, config.hidden)
        deeper = [nn.Linear(config.hidden, config.hidden) for _ in range(1, shape.depth)]
        if shape.layer == "mlp":
            self.projector = nn.Sequential(first, *chain(*((nn.GELU(), more) for more in deeper)))
        else:
            self.projector = nn.Sequential(first, *deeper)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, width) -> (B, pooled, H)."""
        if self.pooling == "max":
            start = 2  # behind the first layer and what bends it
            words: Tensor = self.projector[start:](self._pooled(self.projector[:start](tokens)))
        else:
            words = self.projector(self._pooled(tokens))
        if self.places:
            z, y, x = (each // self.window for each in self.grid)
            # Made anew each time: a network on its way from the disk has no buffers.
            words = words + self.places * sines((z, y, x), words.shape[-1]).to(words)
        return words

    def _pooled(self, tokens: Tensor) -> Tensor:
        # In float32: the CPU pools no bfloat16.
        channels = tokens.transpose(1, 2).float()
        if self.pooling == "sequence":
            pooled = F.avg_pool1d(channels, self.window**3)
        else:
            blocks = channels.reshape(*channels.shape[:2], *self.grid)
            pool = F.max_pool3d if self.pooling == "max" else F.avg_pool3d
            pooled = pool(blocks, self.window).flatten(2)
        return pooled.transpose(1, 2).to(tokens.dtype)
