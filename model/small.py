"""The small network that ships: its words, its widths, and how it begins.

Knows the corpus' sentences and the shape of a network; trains nothing.
"""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from tokenizers import normalizers, pre_tokenizers

from . import checkpoint
from .card import Card
from .data.corpus import telling
from .data.corpus.case import VIEWS, Truth
from .data.corpus.findings import KINDS, Finding
from .data.corpus.organs import ABDOMEN, HEAD, ORGANS
from .data.corpus.paint import PHASES, SEQUENCES
from .data.prompts import box_text
from .errors import ModelError
from .network import Lamed, build
from .network.config import Size
from .network.perceiver import turned
from .network.vision import sines
from .tokenizer import BOX_END, BOX_START, SEG, Tokenizer, learn

NAME: Final = "lamed-small"
GRID: Final[Size] = (32, 80, 80)
PATCH: Final[Size] = (4, 8, 8)
WIDTH: Final = 192
SEGVOL_MLP: Final = 384
STEM: Final = 32
PIECES: Final = 900
NUMBERS: Final = ("[0.", ",▁0.")  # pieces of a box, as sentencepiece writes them: half the tokens
CLIP_WORDS: Final = 700
CONTROLS: Final = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
STRENGTH: Final = 0.5  # of the sines of a place
CONTRAST: Final = 2.0  # of the first weights against torch's own
MEAN: Final = 0.25  # of what a prepared image holds
LIKENESS: Final = 1.7  # how sharply a word looks for what is like it, before it has learnt to
PLACES: Final = 0.3  # strength of the sines that tell image tokens apart by their place
COPIED: Final = 0.5  # how much of what it looks at it takes over
VISION: Final = {"mlp_dim": 4 * WIDTH, "num_layers": 6, "num_heads": 6, "stem_channels": STEM}


def init(out: Path, *, seed: int = 0) -> Card:
    """Write the small checkpoint before it has learned anything.

    Raises
    ------
    ModelError
        `out` exists and is no empty folder, or cannot be written.
    """
    checkpoint.must_be_free(out)
    words = tokenizer()
    config = lamed_config(words)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build(config)
    if not isinstance(network, Lamed):
        raise ModelError(f"expected a LaMed network of {config['model_type']}")
    place(network)
    alike(network)
    files = {
        "tokenizer.model": words.model,
        "added_tokens.json": json.dumps(dict(words.added), indent=1).encode() + b"\n",
    }
    return checkpoint.write(
        out, config, network.state_dict(), files, name=f"{NAME}-untrained", untrained=True
    )


@torch.no_grad()
def place(network: Lamed) -> None:
    """Let the vision encoders know where a patch is from the start, and centre what they see.

    Sines of the place along each axis, instead of noise that hides it for thousands of steps.
    """
    vits = [network.model.vision_tower.vision_tower]
    vits += [network.model.seg_module.image_encoder] if network.config.segvol else []
    for vit in vits:
        embedding = vit.patch_embedding
        embedding.position_embeddings.copy_(STRENGTH * sines(network.config.vision.grid, WIDTH))
        linear = embedding.patch_embeddings[1]
        linear.weight.mul_(CONTRAST)
        linear.bias.copy_(-MEAN * linear.weight.sum(dim=1))


@torch.no_grad()
def alike(network: Lamed, *, seed: int = 0) -> None:
    """Let a word look from the start for image tokens that are like it, and take them over.

    Queries and keys are one random rotation, values and outputs another and its inverse: mimetic
    initialisation (arXiv 2305.09828), with queries turned (`perceiver.turned`). Words begin as
    large as what the layers add to them.
    """
    random = torch.Generator().manual_seed(seed)
    width = network.config.hidden
    network.model.embed_tokens.weight.normal_(generator=random)
    for layer in network.model.layers:
        alike, copied = (
            torch.linalg.qr(torch.randn(width, width, generator=random))[0] for _ in range(2)
        )
        query, key, value = layer.self_attn.qkv_proj.weight.split(width)
        query.add_(LIKENESS * turned(alike))
        key.add_(LIKENESS * alike)
        value.add_(COPIED * copied)
        layer.self_attn.o_proj.weight.add_(COPIED * copied.T)


def lamed_config(words: Tokenizer) -> dict[str, Any]:
    """Describe the network: a Phi-3 of 4 layers, 800 patches, 100 image tokens."""
    return {
        "model_type": "lamed_phi3",
        "vocab_size": len(words),
        "hidden_size": 256,
        "intermediate_size": 768,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 1024,
        "original_max_position_embeddings": 1024,
        "rms_norm_eps": 1e-05,
        "rope_theta": 10000.0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
        "seg_token_id": words.added[SEG],
        "image_channel": 1,
        "image_size": list(GRID),
        "patch_size": list(PATCH),
        "mm_hidden_size": WIDTH,
        "mm_projector_type": "spp",
        "proj_layer_num": 2,
        "proj_layer_type": "mlp",
        "proj_pooling_size": 2,
        "proj_pooling_type": "max",
        "proj_places": PLACES,
        "vision_tower": "vit3d",
        "vision_select_layer": -1,
        "vision_select_feature": "patch",
        "segmentation_module": "segvol",
        "oracle_overrides": {
            "vision": {"hidden_size": WIDTH, **VISION},
            "segvol": {
                "embed_dim": WIDTH,
                **VISION,
                "decoder_mlp_dim": SEGVOL_MLP,
                "decoder_heads": 6,
                "iou_hidden": 64,
            },
        },
    }


def clip_config(words: int) -> dict[str, Any]:
    """Describe the small M3D-CLIP, whose vision is the LaMed's."""
    return {
        "model_type": "m3d_clip",
        "pos_embed": "perceptron",
        "img_size": list(GRID),
        "patch_size": list(PATCH),
        "in_channels": 1,
        "hidden_size": WIDTH,
        **VISION,
        "vocab_size": words,
        "oracle_overrides": {
            "bert": {
                "hidden_size": WIDTH,
                "intermediate_size": 2 * WIDTH,
                "num_hidden_layers": 3,
                "num_attention_heads": 6,
                "max_position_embeddings": 512,
            }
        },
    }


def tokenizer() -> Tokenizer:
    """Learn the words of what the corpus can say; the same text, the same words."""
    return learn(sorted(sentences()), pieces=PIECES, whole=NUMBERS)


def clip_words() -> bytes:
    """Take the WordPiece words of the small M3D-CLIP from what the corpus says: a ``vocab.txt``.

    Letters to spell anything, and whole words, the most frequent first. A trainer of tokenizers
    breaks ties by chance, and then no two runs of one seed would be alike.
    """
    normal, split = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    counts = Counter(
        word
        for text in sentences()
        for word, _ in split.pre_tokenize_str(normal.normalize_str(text))
    )
    letters = sorted({letter for word in counts for letter in word})
    ordered = sorted(counts, key=lambda word: (-counts[word], word))
    whole = [each for each in ordered if len(each) > 1 and not each.isdigit()]
    words = [*CONTROLS, *letters, *(f"##{each}" for each in letters), *whole][:CLIP_WORDS]
    return "".join(f"{each}\n" for each in words).encode()


def sentences() -> set[str]:
    """Give what the corpus can say, of made-up truths: no voxel is drawn for it."""
    told: set[str] = set()
    random = np.random.default_rng(0)
    for truth in _truths(random):
        told.add(telling.report(truth))
        for turn in telling.turns(truth, random):
            for text in (turn.question, turn.answer):
                told.add(text.replace(telling.BOX, _numbers(random)).replace(telling.SEG, ""))
    return told


def _truths(random: np.random.Generator) -> Iterator[Truth]:
    """Make up what could be true: every kind of finding in every place."""
    asked = {name: each for name, each in ORGANS.items() if each.asked}
    for view in VIEWS:
        kinds = [
            each
            for each in KINDS.values()
            if each.region == view.region and view.modality in each.values
        ]
        phases = SEQUENCES if view.modality == "MR" else PHASES
        for number in range(60):
            kind = kinds[number % len(kinds)]
            organ = ORGANS[kind.organs[number % len(kind.organs)]]
            side = organ.side or (("left", "right")[number % 2] if organ.name == "brain" else "")
            zones = ("anterior", "posterior") if view.region == HEAD else ("upper", "lower")
            zone = "" if view.region == ABDOMEN else zones[(number // 2) % 2]
            found = Finding(kind.name, organ.plain, side, zone, 1)
            present = [name for name, each in asked.items() if view.region in each.region]
            gone = [name for name in asked if name not in present]
            yield Truth(
                number, view.region, view.modality, phases[number % len(phases)],
                (found,), tuple(random.permutation(present)), tuple(gone),
            )  # fmt: skip


def _numbers(random: np.random.Generator) -> str:
    return box_text(tuple(random.uniform(0, 1, 6))).removeprefix(BOX_START).removesuffix(BOX_END)
