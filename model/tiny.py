"""The untrained tiny checkpoint: every part of the network, no knowledge at all.

Its words come from a small text below, its weights from a seed. Two rows of the output layer are
then set by least squares, so that a request for a mask gets a [SEG] and the answer ends there:
without that the mask path would stay dark. It is written into the card.
"""

import io
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from torch import Tensor

from . import checkpoint
from .card import Card
from .errors import ModelError
from .network import Lamed, build
from .tokenizer import ADDED, IMAGE, SEG, Tokenizer

NAME = "lamed-tiny-untrained"
PIECES = 600
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
NOTE = (
    "Weights are random. The output rows of [SEG] and of the end of an answer were set by least "
    "squares, and the prompts of the mask decoder were spread, so that a request for a mask is "
    "answered by one that covers a part of the image. That exercises the way of a mask through "
    "the product; it says nothing about the image."
)
MARGIN = 4.0  # logits by which a row that was set is above or below all others
ENDS = 4  # after every fourth word an answer may end
LUNG = 0.08  # radius squared
COVERED = 0.15  # of the image, by a mask


def init(out: Path, *, seed: int = 0) -> Card:
    """Write the untrained tiny checkpoint; the same seed gives the same bytes.

    Raises
    ------
    ModelError
        `out` exists and is not empty.
    """
    if out.exists() and any(out.iterdir()):
        raise ModelError(f"{out} must be empty or new")
    tokenizer = _tokenizer()
    config = _config(tokenizer)
    network = _network(config, seed)
    _teach_to_point(network, tokenizer)
    _spread_masks(network, tokenizer)
    words = {
        "tokenizer.model": tokenizer.model,
        "added_tokens.json": json.dumps(dict(tokenizer.added), indent=1).encode() + b"\n",
    }
    return checkpoint.write(
        out, config, network.state_dict(), words, name=NAME, untrained=True, note=NOTE
    )


def requests() -> list[str]:
    """Give the requests for a mask that the output rows are set by."""
    return [f"Please segment the {each} in this image." for each in STRUCTURES]


def sentences() -> list[str]:
    """Give the text that the words come from."""
    told = [f"There is a {finding} {place}." for finding in FINDINGS for place in PLACES]
    asked = [f"Is there a {finding}, and where is it?" for finding in FINDINGS]
    normal = [f"The {each} is of normal size and density." for each in STRUCTURES]
    whole = [
        f"Describe the findings of this {each} as a radiologist would." for each in ("CT", "MRI")
    ]
    return [*told, *asked, *normal, *whole, *requests()]


def _tokenizer() -> Tokenizer:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences()),
        model_writer=model,
        vocab_size=PIECES,
        model_type="bpe",
        byte_fallback=True,
        hard_vocab_limit=False,
        num_threads=1,
        minloglevel=2,
    )
    pieces = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue()).get_piece_size()
    return Tokenizer(model.getvalue(), {name: pieces + index for index, name in enumerate(ADDED)})


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
def _teach_to_point(network: Lamed, tokenizer: Tokenizer) -> None:
    """Set two output rows: [SEG] after a request for a mask, the end after [SEG] and some words."""
    asking = _states(network, tokenizer, requests())
    pointing = _states(network, tokenizer, [f"{each}{SEG}" for each in requests()[:4]])
    babble = [f"Is there a {word}" for word in re.findall(r"\w+", " ".join(FINDINGS + PLACES))]
    questions = _states(network, tokenizer, [each for each in sentences() if each.endswith("?")])
    words = _states(network, tokenizer, babble)
    ends = torch.cat((pointing, words[::ENDS]))
    going_on = torch.cat((words[1::ENDS], words[2::ENDS], questions))
    head = network.lm_head.weight
    for token, wanted, unwanted in (
        (network.config.seg_token_id, asking, torch.cat((pointing, words, questions))),
        (
            network.config.eos_token_ids[0],
            ends,
            torch.cat((asking, going_on)),
        ),
    ):
        states = torch.cat((wanted, unwanted))
        top = (states @ head.T).max(dim=1).values
        goal = top.abs() + MARGIN
        goal[len(wanted) :] *= -1
        head[token] = torch.linalg.lstsq(states, goal[:, None], driver="gelsd").solution[:, 0]


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
    logits = network.segment(network.encode_segmentation(_body(network)), states)
    hook.remove()
    mean = fine[0].mean(dim=(0, 2, 3, 4))
    edge = logits.flatten().sort().values[int(logits.numel() * (1 - COVERED))]
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
