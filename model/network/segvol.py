"""SegVol as LaMed uses it: an image encoder and a mask decoder told what to draw.

Knows volumes, prompt vectors and mask logits; has never heard of words. State-dict names are the
released ones, so parts this product never calls (point prompts, mask prompts) are kept as weights.
"""

from dataclasses import dataclass
from math import pi

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own name

from .config import SegVolConfig, Size
from .vision import ViT

MASK_TOKENS = 4  # one whole mask and three parts; only the whole one is used


@dataclass(frozen=True)
class Masks:
    """N decoded masks: `low_res` (N, 1, 4 x grid), `iou` (N, 1), `logits` (N, 1, D, H, W)."""

    low_res: Tensor
    iou: Tensor
    logits: Tensor


class SegVol(nn.Module):
    """Prompt vectors and an encoded image in, mask logits out; positive is inside."""

    def __init__(self, config: SegVolConfig) -> None:
        super().__init__()
        self.image_size = config.encoder.image_size
        self.grid = config.encoder.grid
        self.image_encoder = ViT(config.encoder, classify=False)
        self.mask_decoder = MaskDecoder(config)
        self.prompt_encoder = PromptEncoder(config.encoder.hidden)

    def forward(self, image_tokens: Tensor, prompts: Tensor) -> Masks:
        """Decode one mask per prompt.

        `image_tokens` (N or 1, patches, E) from `image_encoder`, `prompts` (N, E).
        """
        places = self.prompt_encoder.pe_layer(self.grid).to(image_tokens.dtype)
        source = image_tokens + self.prompt_encoder.no_mask_embed.weight
        source = source.expand(len(prompts), -1, -1)
        low_res, iou = self.mask_decoder(source, places, prompts, self.grid)
        logits = F.interpolate(low_res, self.image_size, mode="trilinear", align_corners=False)
        return Masks(low_res, iou, logits)


class PromptEncoder(nn.Module):
    """Positions and the "no mask given" vector; the other released weights are only carried."""

    def __init__(self, hidden: int, mask_channels: int = 16) -> None:
        super().__init__()
        self.pe_layer = FourierPositions(hidden // 2)
        self.point_embeddings = nn.ModuleList(nn.Embedding(1, hidden) for _ in range(4))
        self.not_a_point_embed = nn.Embedding(1, hidden)
        few = mask_channels // 4
        self.mask_downscaling = nn.Sequential(
            nn.Conv2d(1, few, kernel_size=2, stride=2),
            nn.LayerNorm(few),
            nn.GELU(),
            nn.Conv2d(few, mask_channels, kernel_size=2, stride=2),
            nn.LayerNorm(mask_channels),
            nn.GELU(),
            nn.Conv2d(mask_channels, hidden, kernel_size=1),
        )
        self.no_mask_embed = nn.Embedding(1, hidden)


class FourierPositions(nn.Module):
    """Random Fourier features of voxel places, always computed in float32."""

    positional_encoding_gaussian_matrix: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        self.register_buffer("positional_encoding_gaussian_matrix", torch.randn(3, features))

    def forward(self, grid: Size) -> Tensor:
        """Return (1, patches, 2 * features) for the centres of a (D, H, W) grid."""
        matrix = self.positional_encoding_gaussian_matrix.float()
        axes = [(torch.arange(n, device=matrix.device) + 0.5) / n for n in grid]
        first, second, third = torch.meshgrid(*axes, indexing="ij")
        # The release was trained with the first two axes exchanged here.
        places = torch.stack((second, first, third), dim=-1).flatten(0, 2)
        angles = 2 * pi * ((2 * places - 1) @ matrix)
        return torch.cat((angles.sin(), angles.cos()), dim=-1).unsqueeze(0)


class MaskDecoder(nn.Module):
    """Two-way transformer over prompt and image, upscaling x4, and one dot product per voxel."""

    def __init__(self, config: SegVolConfig) -> None:
        super().__init__()
        width = config.encoder.hidden
        middle, fine = width // 4, width // 8
        doubled = [2 * axis for axis in config.encoder.grid]
        self.transformer = TwoWayTransformer(config)
        self.iou_token = nn.Embedding(1, width)
        self.mask_tokens = nn.Embedding(MASK_TOKENS, width)
        self.output_upscaling = nn.Sequential(
            nn.ConvTranspose3d(width, middle, kernel_size=2, stride=2),
            nn.LayerNorm((middle, *doubled)),
            nn.GELU(),
            nn.ConvTranspose3d(middle, fine, kernel_size=2, stride=2),
            nn.GELU(),
        )
        self.output_hypernetworks_mlps = nn.ModuleList(
            Perceptron(width, width, fine) for _ in range(MASK_TOKENS)
        )
        self.iou_prediction_head = Perceptron(width, config.iou_hidden, MASK_TOKENS)
        self.txt_align_upscaled_embedding = nn.Linear(width, fine)

    def forward(
        self, source: Tensor, places: Tensor, prompts: Tensor, grid: Size
    ) -> tuple[Tensor, Tensor]:
        """(N, patches, E), (1, patches, E), (N, E) -> (N, 1, 4 x grid) logits, (N, 1) IoU."""
        asked = torch.cat((self.iou_token.weight, self.mask_tokens.weight))
        tokens = torch.cat((asked.expand(len(prompts), -1, -1), prompts.unsqueeze(1)), dim=1)
        tokens, source = self.transformer(source, places, tokens)
        fine = self.output_upscaling(source.transpose(1, 2).reshape(len(source), -1, *grid))
        drawn = torch.stack(
            [mlp(tokens[:, 1 + index]) for index, mlp in enumerate(self.output_hypernetworks_mlps)],
            dim=1,
        )
        voxels = fine.flatten(2)
        named = self.txt_align_upscaled_embedding(prompts).unsqueeze(1)
        masks = (drawn @ voxels + named @ voxels).reshape(len(fine), -1, *fine.shape[2:])
        iou: Tensor = self.iou_prediction_head(tokens[:, 0])
        return masks[:, :1], iou[:, :1]


class TwoWayTransformer(nn.Module):
    """Tokens look at the image and the image at the tokens, twice, then once more."""

    def __init__(self, config: SegVolConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            TwoWayBlock(config, skip_first_places=index == 0) for index in range(2)
        )
        self.final_attn_token_to_image = Attention(
            config.encoder.hidden, config.decoder_heads, shrink=2
        )
        self.norm_final_attn = nn.LayerNorm(config.encoder.hidden)

    def forward(self, source: Tensor, places: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """(N, patches, E), (1, patches, E), (N, T, E) -> tokens and image after the talk."""
        queries, keys = tokens, source
        for layer in self.layers:
            queries, keys = layer(queries, keys, tokens, places)
        queries = queries + self.final_attn_token_to_image(queries + tokens, keys + places, keys)
        return self.norm_final_attn(queries), keys


class TwoWayBlock(nn.Module):
    """Self attention of tokens, tokens to image, MLP, image to tokens; a norm after each."""

    def __init__(self, config: SegVolConfig, *, skip_first_places: bool) -> None:
        super().__init__()
        width, heads = config.encoder.hidden, config.decoder_heads
        self.self_attn = Attention(width, heads)
        self.norm1 = nn.LayerNorm(width)
        self.cross_attn_token_to_image = Attention(width, heads, shrink=2)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = TwoLayers(width, config.decoder_mlp)
        self.norm3 = nn.LayerNorm(width)
        self.norm4 = nn.LayerNorm(width)
        self.cross_attn_image_to_token = Attention(width, heads, shrink=2)
        self.skip_first_places = skip_first_places

    def forward(
        self, queries: Tensor, keys: Tensor, tokens: Tensor, places: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Tokens' and image's states, and where each came from, -> both states."""
        if self.skip_first_places:
            queries = self.self_attn(queries, queries, queries)
        else:
            placed = queries + tokens
            queries = queries + self.self_attn(placed, placed, queries)
        queries = self.norm1(queries)
        seen = self.cross_attn_token_to_image(queries + tokens, keys + places, keys)
        queries = self.norm2(queries + seen)
        queries = self.norm3(queries + self.mlp(queries))
        told = self.cross_attn_image_to_token(keys + places, queries + tokens, queries)
        return queries, self.norm4(keys + told)


class Attention(nn.Module):
    """Multi-head attention whose inner width is the outer one divided by `shrink`."""

    def __init__(self, width: int, heads: int, shrink: int = 1) -> None:
        super().__init__()
        inner = width // shrink
        self.heads = heads
        self.q_proj = nn.Linear(width, inner)
        self.k_proj = nn.Linear(width, inner)
        self.v_proj = nn.Linear(width, inner)
        self.out_proj = nn.Linear(inner, width)

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """(N, Q, width), (N, K, width) twice -> (N, Q, width)."""
        mixed = F.scaled_dot_product_attention(
            self._split(self.q_proj(query)),
            self._split(self.k_proj(key)),
            self._split(self.v_proj(value)),
        )
        out: Tensor = self.out_proj(mixed.transpose(1, 2).flatten(2))
        return out

    def _split(self, tokens: Tensor) -> Tensor:
        return tokens.reshape(*tokens.shape[:2], self.heads, -1).transpose(1, 2)


class TwoLayers(nn.Module):
    """Linear, ReLU, Linear under the names the release uses inside the two-way blocks."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.lin1 = nn.Linear(width, inner)
        self.lin2 = nn.Linear(inner, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """(N, T, width) -> (N, T, width)."""
        out: Tensor = self.lin2(F.relu(self.lin1(tokens)))
        return out


class Perceptron(nn.Module):
    """Three Linear layers with ReLU between."""

    def __init__(self, width: int, inner: int, out: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            (nn.Linear(width, inner), nn.Linear(inner, inner), nn.Linear(inner, out))
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """(N, width) -> (N, out)."""
        first, second, last = self.layers
        out: Tensor = last(F.relu(second(F.relu(first(tokens)))))
        return out
