"""What a checkpoint's config.json says about its network, checked once.

Knows the released names and their defaults. Must not know torch, files or tokenizers.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

from model.errors import ModelError

Size = tuple[int, int, int]

Mode = Literal["default", "reference"]
"""`reference` repeats the reference implementation where we differ on purpose: it checks no
prompt, does not see a [SEG] that comes first, and draws the mean of several [SEG] as one mask."""

STEM_STEP: Size = (2, 4, 4)
"""Voxels between two cells of a stem."""

_LANGUAGE_KEYS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "max_position_embeddings",
    "original_max_position_embeddings",
    "initializer_range",
    "rms_norm_eps",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "partial_rotary_factor",
    "sliding_window",
    "attention_bias",
    "mlp_bias",
    "attention_dropout",
    "resid_pdrop",
    "embd_pdrop",
)


@dataclass(frozen=True)
class ViTConfig:
    """Widths of one 3D vision transformer; the defaults are the released ones.

    `stem` is the channels of convolutions beside the patches' Linear; 0, as released: there are
    none. See `vision.Stem`.
    """

    image_size: Size
    patch_size: Size
    channels: int = 1
    hidden: int = 768
    mlp: int = 3072
    layers: int = 12
    heads: int = 12
    stem: int = 0

    def __post_init__(self) -> None:
        if self.stem and any(
            patch % step for patch, step in zip(self.patch_size, STEM_STEP, strict=True)
        ):
            raise ModelError(
                f"patch_size under a stem must be whole steps of {STEM_STEP}, not {self.patch_size}"
            )
        if any(
            image % patch for image, patch in zip(self.image_size, self.patch_size, strict=True)
        ):
            raise ModelError(
                f"image_size must be whole patches of {self.patch_size}, not {self.image_size}"
            )
        if self.hidden % self.heads:
            raise ModelError(f"vision width must be a multiple of {self.heads}, not {self.hidden}")

    @property
    def grid(self) -> Size:
        """Patches along depth, height and width."""
        depth, height, width = (
            image // patch for image, patch in zip(self.image_size, self.patch_size, strict=True)
        )
        return depth, height, width

    @property
    def tokens(self) -> int:
        """Patches in one image."""
        return prod(self.grid)


@dataclass(frozen=True)
class ProjectorConfig:
    """How vision tokens become words: `spp` pools, `linear` and `identity` keep every token."""

    kind: str = "spp"
    layer: str = "mlp"
    depth: int = 2
    pooling: str = "spatial"
    window: int = 2
    places: float = 0.0

    def __post_init__(self) -> None:
        _one_of("mm_projector_type", self.kind, ("spp", "linear", "identity"))
        _one_of("proj_layer_type", self.layer, ("linear", "mlp"))
        _one_of("proj_pooling_type", self.pooling, ("spatial", "sequence", "max"))
        if self.pooling == "max" and (self.layer != "mlp" or self.depth == 1):
            raise ModelError(
                "pooling by max needs proj_layer_type mlp and proj_layer_num of 2 or more, "
                f"got {self.layer} and {self.depth}"
            )
        if self.places and (self.kind != "spp" or self.pooling == "sequence"):
            raise ModelError(f"proj_places needs blocks, not {self.kind} by {self.pooling}")
        if self.depth < 1 or self.window < 1:
            raise ModelError(
                "proj_layer_num and proj_pooling_size must be 1 or more, "
                f"not {self.depth} and {self.window}"
            )


@dataclass(frozen=True)
class SegVolConfig:
    """Widths of the mask branch: its own image encoder and the two-way mask decoder."""

    encoder: ViTConfig
    decoder_mlp: int = 2048
    decoder_heads: int = 8
    iou_hidden: int = 256


@dataclass(frozen=True)
class LamedConfig:
    """One M3D-LaMed network: `language` is what transformers' own config class is given."""

    family: str
    vision: ViTConfig
    keep_cls: bool
    projector: ProjectorConfig
    segvol: SegVolConfig | None
    language: Mapping[str, Any]
    hidden: int
    vocabulary: int
    bos_token_id: int
    eos_token_ids: tuple[int, ...]
    pad_token_id: int
    seg_token_id: int
    image_token_id: int

    @property
    def vision_tokens(self) -> int:
        """Tokens the vision tower hands to the projector."""
        return self.vision.tokens + int(self.keep_cls)

    @property
    def image_tokens(self) -> int:
        """Positions the image takes in a prompt, directly after BOS; odd grids floor."""
        if self.projector.kind != "spp":
            return self.vision_tokens
        if self.projector.pooling == "sequence":
            return self.vision_tokens // self.projector.window**3
        return prod(axis // self.projector.window for axis in self.vision.grid)


@dataclass(frozen=True)
class ClipConfig:
    """One M3D-CLIP network: `bert` is what transformers' BertConfig is given."""

    vision: ViTConfig
    bert: Mapping[str, Any]


def family(config: Mapping[str, Any]) -> str:
    """Return "phi3", "llama" or "m3d_clip"; released configs say `phi3` and `lamed_phi3` alike."""
    kind = str(config.get("model_type")).removeprefix("lamed_")
    return _one_of("model_type", kind, ("phi3", "llama", "m3d_clip"))


def read_lamed(config: Mapping[str, Any]) -> LamedConfig:
    """Check a LaMed config.json; ModelError names the key, what was expected and what came."""
    widths = _section(config, "oracle_overrides")
    vision = _vit(config, _section(widths, "vision"), "hidden_size")
    hidden, mm_hidden = _integer(config, "hidden_size"), _integer(config, "mm_hidden_size", 768)
    _same("mm_hidden_size", mm_hidden, "the vision tower's width", vision.hidden)
    if config.get("vision_select_layer", -1) != -1:
        raise ModelError(f"vision_select_layer must be -1, not {config['vision_select_layer']!r}")
    feature = _one_of(
        "vision_select_feature",
        config.get("vision_select_feature", "patch"),
        ("patch", "cls_patch"),
    )
    eos, pad = _ends(config), config.get("pad_token_id")
    # The release adds <im_patch>, <bx_start>, <bx_end>, [SEG] last, in this order.
    vocabulary = _integer(config, "vocab_size")
    seg = _integer(config, "seg_token_id", vocabulary - 1)
    lamed = LamedConfig(
        family=family(config),
        vision=vision,
        keep_cls=feature == "cls_patch",
        projector=_projector(config),
        segvol=_segvol(config, widths, mm_hidden),
        language=_language(config, eos),
        hidden=hidden,
        vocabulary=vocabulary,
        bos_token_id=_integer(config, "bos_token_id", 1),
        eos_token_ids=eos,
        pad_token_id=(*eos, 0)[0] if pad is None else pad,
        seg_token_id=seg,
        image_token_id=_integer(config, "image_token_id", seg - 3),
    )
    if lamed.projector.kind == "identity":
        _same("mm_hidden_size", mm_hidden, "hidden_size of an identity projector", hidden)
    if lamed.image_tokens < 1:
        raise ModelError(
            f"pooling by {lamed.projector.window} leaves nothing of a {vision.grid} grid"
        )
    return lamed


def read_clip(config: Mapping[str, Any]) -> ClipConfig:
    """Check an M3D-CLIP config.json; ModelError names the key."""
    _one_of("pos_embed", config.get("pos_embed", "perceptron"), ("perceptron",))
    vision = _vit(config, config, "hidden_size")
    bert = {
        "vocab_size": _integer(config, "vocab_size", 30522),
        **_section(_section(config, "oracle_overrides"), "bert"),
    }
    _same("hidden_size", vision.hidden, "the text encoder's width", bert.get("hidden_size", 768))
    return ClipConfig(vision, bert)


def _language(config: Mapping[str, Any], eos: tuple[int, ...]) -> dict[str, Any]:
    language = {key: config[key] for key in _LANGUAGE_KEYS if config.get(key) is not None}
    if family(config) == "phi3" and "sliding_window" in language:
        # Phi-3 looks back W tokens and at itself; transformers 5 counts itself among the W.
        language["sliding_window"] += 1
    ids = {"bos_token_id": _integer(config, "bos_token_id", 1), "eos_token_id": list(eos)}
    return {**language, **ids, "pad_token_id": config.get("pad_token_id")}


def _ends(config: Mapping[str, Any]) -> tuple[int, ...]:
    match config.get("eos_token_id"):
        case None:
            return ()
        case int(end):
            return (end,)
        case [*ends] if all(isinstance(end, int) for end in ends):
            return tuple(ends)
        case other:
            raise ModelError(f"eos_token_id must be token ids, not {other!r}")


def _vit(config: Mapping[str, Any], widths: Mapping[str, Any], hidden_key: str) -> ViTConfig:
    return ViTConfig(
        image_size=_size(config, "img_size" if "img_size" in config else "image_size"),
        patch_size=_size(config, "patch_size"),
        channels=_integer(config, "in_channels" if "in_channels" in config else "image_channel", 1),
        hidden=_integer(widths, hidden_key, 768),
        mlp=_integer(widths, "mlp_dim", 3072),
        layers=_integer(widths, "num_layers", 12),
        heads=_integer(widths, "num_heads", 12),
        stem=_integer(widths, "stem_channels", 0),
    )


def _projector(config: Mapping[str, Any]) -> ProjectorConfig:
    return ProjectorConfig(
        kind=str(config.get("mm_projector_type", "spp")),
        layer=str(config.get("proj_layer_type", "mlp")),
        depth=_integer(config, "proj_layer_num", 2),
        pooling=str(config.get("proj_pooling_type", "spatial")),
        window=_integer(config, "proj_pooling_size", 2),
        places=float(config.get("proj_places", 0)),
    )


def _segvol(
    config: Mapping[str, Any], overrides: Mapping[str, Any], mm_hidden: int
) -> SegVolConfig | None:
    kind = config.get("segmentation_module")
    if kind is None:
        return None
    _one_of("segmentation_module", kind, ("segvol",))
    widths = _section(overrides, "segvol")
    encoder = _vit(config, widths, "embed_dim")
    _same("mm_hidden_size", mm_hidden, "SegVol's width", encoder.hidden)
    return SegVolConfig(
        encoder=encoder,
        decoder_mlp=_integer(widths, "decoder_mlp_dim", 2048),
        decoder_heads=_integer(widths, "decoder_heads", 8),
        iou_hidden=_integer(widths, "iou_hidden", 256),
    )


def _section(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = config.get(key)
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ModelError(f"{key} must be a table, not {value!r}")
    return value


def _integer(config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = config.get(key)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int):
        raise ModelError(f"{key} must be a whole number, not {value!r}")
    return value


def _size(config: Mapping[str, Any], key: str) -> Size:
    match config.get(key):
        case [int(depth), int(height), int(width)] if min(depth, height, width) > 0:
            return depth, height, width
        case other:
            raise ModelError(f"{key} must be three positive whole numbers, not {other!r}")


def _one_of(key: str, value: str, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise ModelError(f"{key} must be one of {', '.join(allowed)}, not {value!r}")
    return value


def _same(key: str, value: int, other: str, expected: int) -> None:
    if value != expected:
        raise ModelError(f"{key} must equal {other}, {expected}, not {value}")
