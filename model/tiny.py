"""The untrained tiny checkpoint: every part of the network, no knowledge at all.

Its words come from a small text below, its weights from a seed. What it says is then set by hand: a
request for a mask gets a [SEG], everything else the same sentence, which says that nothing is
known. Without that the mask path would stay dark and answers would ramble. It is written into the
card.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import checkpoint
from .card import Card
from .errors import ModelError
from .network import Lamed, build
from .tokenizer import IMAGE, SEG, Tokenizer, learn

NAME = "lamed-tiny-untrained"
PIECES = 600
SEEDS = 1 << 32
STRUCTURES = (
    "liver", "spleen", "pancreas", "left kidney", "right kidney", "left lung", "right lung",
    "heart", "aorta", "trachea", "brain", "ventricles of the brain", "cerebellum", "gallbladder",
)  # fmt: skip
FINDINGS = (
    "nodule", "mass", "effusion", "stone", "cyst", "haemorrhage", "fracture", "consolidation",
    "pneumothorax", "oedema", "calcification", "enlarged lymph nodes", "dilatation", "stenosis",
)  # fmt: skip
PLACES = (
    "in the upper lobe",
    "at the base",
    "near the hilum",
    "on the left side",
    "on the right side",
)
ANSWER = "This model is untrained and knows nothing"
REQUESTED = "\u2581image."  # how a request for a mask ends, as one piece
NOTE = (
    "Weights are random, except those that decide what it says: a text that ends in "
    f"{REQUESTED[1:]!r} is answered by [SEG], any other by {ANSWER!r}. The prompts of the mask "
    "decoder were spread, so that a mask covers a part of the image. That exercises the way of "
    "words and masks through the product; it says nothing about the image."
)
STRENGTH = 0.5  # of the embedding in a token's own channel
SPREAD = 0.1  # of the embedding in all other channels
CERTAINTY = 2.0  # of what follows; the other logits stay below 1
GLIMPSE = 0.01  # of the image in the words, so that it does not drown what is asked
LUNG = 0.08  # radius squared
COVERED = 0.15  # of the image, by a mask


def init(out: Path, *, seed: int = 0) -> Card:
    """Write the untrained tiny checkpoint; on one machine the same seed gives the same bytes.

    Raises
    ------
    ModelError
        `out` exists and is no empty folder, or cannot be written; the seed is no 32-bit number.
    """
    if not 0 <= seed < SEEDS:
        raise ModelError(f"seed must be 0 to {SEEDS - 1}, not {seed}")
    checkpoint.must_be_free(out)
    tokenizer = _tokenizer()
    config = _config(tokenizer)
    network = _network(config, seed)
    _teach_to_speak(network, tokenizer)
    _spread_masks(network, tokenizer)
    words = {
        "tokenizer.model": tokenizer.model,
        "added_tokens.json": json.dumps(dict(tokenizer.added), indent=1).encode() + b"\n",
    }
    return checkpoint.write(
        out, config, network.state_dict(), words, name=NAME, untrained=True, note=NOTE
    )


def requests() -> list[str]:
    """Give the requests for a mask that the masks are spread by."""
    return [f"Please segment the {each} in this image." for each in STRUCTURES]


def sentences() -> list[str]:
    """Give the text that the words come from."""
    told = [f"There is a {finding} {place}." for finding in FINDINGS for place in PLACES]
    asked = [f"Is there a {finding}, and where is it?" for finding in FINDINGS]
    normal = [f"The {each} is of normal size and density." for each in STRUCTURES]
    whole = [
        f"Describe the findings of this {each} as a radiologist would." for each in ("CT", "MRI")
    ]
    return [*told, *asked, *normal, *whole, *requests(), *[ANSWER] * len(STRUCTURES)]


def _tokenizer() -> Tokenizer:
    return learn(sentences(), pieces=PIECES, whole=[REQUESTED])


def _config(tokenizer: Tokenizer) -> dict[str, Any]:
    widths = {"mlp_dim": 96, "num_layers": 2, "num_heads": 4}
    return {
        "model_type": "lamed_phi3",
        "vocab_size": len(tokenizer),
        "hidden_size": 96,
        "intermediate_size": 192,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 1024,
        "original_max_position_embeddings": 1024,
        "rms_norm_eps": 1e-05,
        "rope_theta": 10000.0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
        "seg_token_id": tokenizer.added[SEG],
        "image_channel": 1,
        "image_size": [32, 256, 256],
        "patch_size": [4, 16, 16],
        "mm_hidden_size": 48,
        "mm_projector_type": "spp",
        "proj_layer_num": 2,
        "proj_layer_type": "mlp",
        "proj_pooling_size": 2,
        "proj_pooling_type": "spatial",
        "vision_tower": "vit3d",
        "vision_select_layer": -1,
        "vision_select_feature": "patch",
        "segmentation_module": "segvol",
        "oracle_overrides": {
            "vision": {"hidden_size": 48, **widths},
            "segvol": {
                "embed_dim": 48,
                **widths,
                "decoder_mlp_dim": 96,
                "decoder_heads": 4,
                "iou_hidden": 32,
            },
        },
    }


def _network(config: dict[str, Any], seed: int) -> Lamed:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build(config)
    if not isinstance(network, Lamed):
        raise ModelError(f"expected a LaMed network of {config['model_type']}")
    return network


@torch.inference_mode()
def _teach_to_speak(network: Lamed, tokenizer: Tokenizer) -> None:
    """Set by hand which token follows which.

    Channel 0 stands for most tokens, the next ones for one token each; no layer writes to them, so
    the output layer finds the last token there, whatever came before.
    """
    words = tokenizer.encode(f" {ANSWER}")
    seg, end = network.config.seg_token_id, network.config.eos_token_ids[0]
    follows = {tokenizer.encode(REQUESTED)[0]: seg, seg: end}
    follows |= dict(zip(words, [*words[1:], end], strict=True))
    channels = 1 + len(follows)
    embedding, head = network.model.embed_tokens.weight, network.lm_head.weight
    embedding *= SPREAD / embedding.std()
    embedding[:, :channels] = 0
    embedding[:, 0] = STRENGTH
    head[:, :channels] = 0
    head[words[0], 0] = CERTAINTY
    for channel, (token, following) in enumerate(follows.items(), start=1):
        embedding[token, 0], embedding[token, channel] = 0, STRENGTH
        head[following, channel] = CERTAINTY
    for layer in network.model.layers:
        layer.self_attn.o_proj.weight[:channels] = 0
        layer.mlp.down_proj.weight[:channels] = 0
    network.model.mm_projector.projector[-1].weight *= GLIMPSE


@torch.inference_mode()
def _spread_masks(network: Lamed, tokenizer: Tokenizer) -> None:
    """Let masks differ between structures and cover a part of the image, not all or nothing."""
    states = _states(network, tokenizer, requests())
    first = network.model.seg_projector[0]
    first.weight /= (states - states.mean(dim=0)).std()
    first.bias.copy_(-first.weight @ states.mean(dim=0))
    decoder = network.model.seg_module.mask_decoder
    fine: list[Tensor] = []
    hook = decoder.output_upscaling.register_forward_hook(lambda *told: fine.append(told[-1]))
    masks = network.decode_masks(
        network.encode_segmentation(_body(network)), network.prompts(states)
    )
    hook.remove()
    mean = fine[0].mean(dim=(0, 2, 3, 4))
    edge = masks.low_res.flatten().sort().values[int(masks.low_res.numel() * (1 - COVERED))]
    decoder.txt_align_upscaled_embedding.bias -= edge * mean / mean.square().sum()


def _body(network: Lamed) -> Tensor:
    """Make an image (1, 1, depth, height, width) of an ellipse with something in it."""
    depth, height, width = network.config.vision.image_size
    y, x = torch.meshgrid(
        torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij"
    )
    body, lungs = x**2 + 1.5 * y**2 < 1, (x.abs() - 0.4).square() + y**2 < LUNG
    whole = 0.6 * body.float() - 0.4 * lungs.float()
    return whole.expand(1, 1, depth, height, width).contiguous()


def _states(network: Lamed, tokenizer: Tokenizer, texts: Sequence[str]) -> Tensor:
    """Give the last hidden state (texts, hidden) of each text behind an image."""
    config = network.config
    features = network.encode_image(_body(network))
    prefix = [config.bos_token_id, *[config.image_token_id] * config.image_tokens]
    states = []
    for text in texts:
        ids = torch.tensor([prefix + tokenizer.encode(f"{IMAGE} {text}")[1:]])
        states.append(network.language(network.embed(ids, features)).hidden[0, -1])
    return torch.stack(states)
