"""The 3D vision transformer of M3D, used by LaMed, by SegVol and by M3D-CLIP.

Knows volumes and tokens; has never heard of words or masks. State-dict names are the released
ones. MONAI's MLPBlock fits them; its TransformerBlock carries a cross-attention norm the release
has not, and its attention and patch blocks need einops, so those are ours.
"""

import torch
from monai.networks.blocks.mlp import MLPBlock
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own name

from model.errors import ModelError

from .config import STEM_STEP, Size, ViTConfig


class ViT(nn.Module):
    """Pre-norm transformer over all patches; with `classify` a CLS token comes first."""

    def __init__(self, config: ViTConfig, *, classify: bool) -> None:
        super().__init__()
        self.image_shape = (config.channels, *config.image_size)
        self.patch_embedding = PatchEmbedding(config)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.hidden)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.hidden)) if classify else None

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, D, H, W) -> (B, [1 +] patches, hidden), after the final norm."""
        if images.ndim != 1 + len(self.image_shape) or images.shape[1:] != self.image_shape:
            raise ModelError(
                f"images must be (batch, {', '.join(map(str, self.image_shape))}), "
                f"not {tuple(images.shape)}"
            )
        tokens: Tensor = self.patch_embedding(images)
        if self.cls_token is not None:
            tokens = torch.cat((self.cls_token.expand(len(tokens), -1, -1), tokens), dim=1)
        for block in self.blocks:
            tokens = block(tokens)
        normed: Tensor = self.norm(tokens)
        return normed


class VisionTower(nn.Module):
    """LaMed's eye: the last layer's patch tokens, with CLS only for `cls_patch`."""

    def __init__(self, config: ViTConfig, *, keep_cls: bool) -> None:
        super().__init__()
        self.vision_tower = ViT(config, classify=True)
        self.keep_cls = keep_cls

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, D, H, W) -> (B, [1 +] patches, hidden)."""
        tokens: Tensor = self.vision_tower(images)
        return tokens if self.keep_cls else tokens[:, 1:]


class PatchEmbedding(nn.Module):
    """Flattened patches through one Linear ("perceptron") plus a learned position each."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        volume = config.patch_size[0] * config.patch_size[1] * config.patch_size[2]
        self.patch_embeddings = nn.Sequential(
            Patches(config.grid, config.patch_size),
            nn.Linear(config.channels * volume, config.hidden),
        )
        self.position_embeddings = nn.Parameter(torch.zeros(1, config.tokens, config.hidden))
        nn.init.trunc_normal_(self.position_embeddings, std=0.02)
        self.stem = Stem(config) if config.stem else None

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, D, H, W) in any float type -> (B, patches, hidden) in the weights' type."""
        dtype = self.position_embeddings.dtype
        images = images.to(dtype)
        tokens: Tensor = self.patch_embeddings(images)
        if self.stem is not None:
            tokens = tokens + self.stem(images)
        return tokens + self.position_embeddings


class Stem(nn.Module):
    """Convolutions that see what is small, wherever in its patch it lies.

    One Linear sees a dot in each place of a patch as another thing, and a small network does not
    live long enough to learn them all; this finds it in one place and adds it to the patch's token.
    The released networks have none.
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        wide = config.stem
        depth, height, width = (
            patch // step for patch, step in zip(config.patch_size, STEM_STEP, strict=True)
        )
        self.convolutions = nn.Sequential(
            *_convolution(config.channels, wide // 2, (1, 2, 2)),
            *_convolution(wide // 2, wide, (2, 2, 2)),
            *_convolution(wide, wide, (1, 1, 1)),
        )
        self.patches = Patches(config.grid, (depth, height, width))
        self.linear = nn.Linear(wide * depth * height * width, config.hidden, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, D, H, W) -> (B, patches, hidden)."""
        tokens: Tensor = self.linear(self.patches(self.convolutions(images)))
        return tokens


def _convolution(given: int, wide: int, stride: Size) -> tuple[nn.Module, ...]:
    convolution = nn.Conv3d(given, wide, 3, stride=stride, padding=1, bias=False)
    return convolution, nn.GroupNorm(1, wide), nn.GELU()


class Patches(nn.Module):
    """Cut a volume into its patches, channels fastest within a patch."""

    def __init__(self, grid: Size, patch: Size) -> None:
        super().__init__()
        self.split = (grid[0], patch[0], grid[1], patch[1], grid[2], patch[2])

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, D, H, W) -> (B, patches, patch voxels)."""
        batch, channels = images.shape[:2]
        parts = images.reshape(batch, channels, *self.split)
        return parts.permute(0, 2, 4, 6, 3, 5, 7, 1).flatten(4).flatten(1, 3)


class Block(nn.Module):
    """One pre-norm layer: attention, then a GELU MLP."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.mlp = MLPBlock(config.hidden, config.mlp)
        self.norm1 = nn.LayerNorm(config.hidden)
        self.attn = SelfAttention(config.hidden, config.heads)
        self.norm2 = nn.LayerNorm(config.hidden)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, hidden) -> (B, N, hidden)."""
        tokens = tokens + self.attn(self.norm1(tokens))
        mixed: Tensor = tokens + self.mlp(self.norm2(tokens))
        return mixed


class SelfAttention(nn.Module):
    """Multi-head attention with one fused qkv Linear without bias."""

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.out_proj = nn.Linear(hidden, hidden)
        self.qkv = nn.Linear(hidden, 3 * hidden, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, hidden) -> (B, N, hidden)."""
        parts = self.qkv(tokens).reshape(*tokens.shape[:2], 3, self.heads, -1)
        query, key, value = parts.permute(2, 0, 3, 1, 4)  # each (B, heads, N, hidden / heads)
        mixed = F.scaled_dot_product_attention(query, key, value)
        out: Tensor = self.out_proj(mixed.transpose(1, 2).flatten(2))
        return out


def sines(grid: Size, width: int) -> torch.Tensor:
    """Tell places of a grid apart, (1, patches, width): along each axis width / 6 frequencies."""
    axes = [(torch.arange(count) + 0.5) / count for count in grid]
    waves = torch.pi * 2 ** torch.linspace(0, 3.5, width // 6)
    angles = [each.flatten()[:, None] * waves for each in torch.meshgrid(*axes, indexing="ij")]
    told = torch.cat([part for each in angles for part in (each.sin(), each.cos())], dim=1)
    return torch.nn.functional.pad(told, (0, width - told.shape[1]))[None]
