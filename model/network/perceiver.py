"""The bridge from vision tokens to word embeddings: the spatial pooling perceiver.

Knows a grid of tokens and two widths; must not know images or prompts.
"""

from itertools import chain

from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own name

from .config import LamedConfig


def build_projector(config: LamedConfig) -> nn.Module:
    """Return the projector the config names: (B, vision tokens, width) -> (B, image tokens, H)."""
    if config.projector.kind == "identity":
        return nn.Identity()
    if config.projector.kind == "linear":
        return FullLinear(config)
    return SpatialPoolingPerceiver(config)


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
    """Mean over blocks of neighbours (`spatial`) or over runs of the flat order (`sequence`)."""

    def __init__(self, config: LamedConfig) -> None:
        super().__init__()
        shape = config.projector
        self.grid, self.window = config.vision.grid, shape.window
        self.spatial = shape.pooling == "spatial"
        first = nn.Linear(config.vision.hidden, config.hidden)
        deeper = [nn.Linear(config.hidden, config.hidden) for _ in range(1, shape.depth)]
        if shape.layer == "mlp":
            self.projector = nn.Sequential(first, *chain(*((nn.GELU(), more) for more in deeper)))
        else:
            self.projector = nn.Sequential(first, *deeper)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, width) -> (B, pooled, H)."""
        # In float32: the CPU pools no bfloat16.
        channels = tokens.transpose(1, 2).float()
        if self.spatial:
            blocks = channels.reshape(*channels.shape[:2], *self.grid)
            pooled = F.avg_pool3d(blocks, self.window).flatten(2)
        else:
            pooled = F.avg_pool1d(channels, self.window**3)
        words: Tensor = self.projector(pooled.transpose(1, 2).to(tokens.dtype))
        return words
