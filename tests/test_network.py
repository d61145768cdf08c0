"""The networks beyond the goldens: real sizes, every variant, unequal prompts, other types."""

import json
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - torch's own name

from model.errors import ModelError
from model.network import M3DCLIP, Lamed, LamedLlama, LamedPhi3, build, generate, greedy, load_state
from model.network.config import ViTConfig
from model.network.losses import dice_loss
from model.network.vision import ViT

PARITY = Path(__file__).parent / "data" / "parity"
BOS, END, IMAGE, SEG = 1, 2, 47, 50
WIDTHS = {"hidden_size": 24, "mlp_dim": 16, "num_layers": 1, "num_heads": 2}
SEGVOL = {"embed_dim": 24, "mlp_dim": 16, "num_layers": 1, "num_heads": 2}
DECODER = {"decoder_mlp_dim": 20, "decoder_heads": 2, "iou_hidden": 12}
BERT = {"vocab_size": 30, "max_position_embeddings": 16, "num_hidden_layers": 1}
BERT_WIDTHS = {"hidden_size": 24, "intermediate_size": 16, "num_attention_heads": 2}
ODD = [6, 10, 6]  # patches of 2 make a 3 x 5 x 3 grid


def config(**changes: Any) -> dict[str, Any]:
    tiny = {
        "model_type": "lamed_phi3",
        "vocab_size": 51,
        "hidden_size": 32,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "original_max_position_embeddings": 128,
        "bos_token_id": BOS,
        "eos_token_id": END,
        "pad_token_id": END,
        "image_size": ODD,
        "patch_size": [2, 2, 2],
        "mm_hidden_size": 24,
        "mm_projector_type": "spp",
        "proj_layer_type": "mlp",
        "proj_layer_num": 2,
        "proj_pooling_type": "spatial",
        "proj_pooling_size": 2,
        "segmentation_module": "segvol",
        "seg_token_id": SEG,
        "oracle_overrides": {"vision": WIDTHS, "segvol": SEGVOL | DECODER},
    }
    return {**tiny, **changes}


def lamed(**changes: Any) -> Lamed:
    torch.manual_seed(0)
    network = build(config(**changes))
    assert isinstance(network, Lamed)
    return network


def trained() -> tuple[Lamed, dict[str, Tensor], Tensor]:
    """The smallest golden network, its inputs and its images: it does say [SEG]."""
    folder = PARITY / "phi3_segvol_small"
    with torch.device("meta"):
        network = build(json.loads((folder / "config.json").read_text()))
    assert isinstance(network, Lamed)
    load_state(network, load_file(folder / "model.safetensors"))
    inputs = load_file(folder / "inputs.safetensors")
    return network, inputs, inputs["image_u8"].float() / 255


def volumes(count: int = 1) -> Tensor:
    return torch.rand(count, 1, *ODD, generator=torch.Generator().manual_seed(1))


def prompt(network: Lamed, *text: int) -> list[int]:
    return [BOS, *[network.config.image_token_id] * network.config.image_tokens, *text]


def left_padded(rows: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
    longest = max(map(len, rows))
    ids = [[pad] * (longest - len(row)) + list(row) for row in rows]
    mask = [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
    return torch.tensor(ids), torch.tensor(mask)


@pytest.mark.parametrize("name", ["phi3_4b", "llama2_7b", "m3d_clip"])
def test_a_real_size_network_has_exactly_the_released_keys_and_shapes(name: str) -> None:
    released = json.loads((PARITY / f"keys_{name}.json").read_text())
    with torch.device("meta"):
        network = build(released["config"])
    ours = {key: list(value.shape) for key, value in network.state_dict().items()}
    assert ours == {entry["key"]: entry["shape"] for entry in released["keys"]}
    assert sum(map(prod, ours.values())) == released["n_values"]
    buffers = {key for key, _ in network.named_buffers()} & set(ours)
    assert buffers == {e["key"] for e in released["keys"] if e["kind"] == "buffer"}


def test_the_released_phi3_config_describes_the_same_network() -> None:
    released = json.loads((PARITY / "config_phi3_reconstructed.json").read_text())
    with torch.device("meta"):
        network = build(released)
    assert isinstance(network, LamedPhi3)
    assert len(network.state_dict()) == 617
    assert network.config.image_tokens == 256
    assert network.config.image_token_id == 32011


@pytest.mark.parametrize("depth", [1, 2, 4])
@pytest.mark.parametrize("layer", ["linear", "mlp"])
@pytest.mark.parametrize("pooling", ["spatial", "sequence"])
@pytest.mark.parametrize("window", [1, 2, 3])
def test_the_perceiver_pools_blocks_and_floors_odd_grids(
    depth: int, layer: str, pooling: str, window: int
) -> None:
    network = lamed(
        proj_layer_num=depth,
        proj_layer_type=layer,
        proj_pooling_type=pooling,
        proj_pooling_size=window,
        segmentation_module=None,
    )
    tokens = torch.rand(2, 45, 24)
    means = []
    if pooling == "sequence":
        run = window**3
        means = [tokens[:, i * run : (i + 1) * run].mean(dim=1) for i in range(45 // run)]
    else:
        grid = tokens.reshape(2, 3, 5, 3, 24)
        for z in range(3 // window):
            for y in range(5 // window):
                for x in range(3 // window):
                    z0, y0, x0 = z * window, y * window, x * window
                    block = grid[:, z0 : z0 + window, y0 : y0 + window, x0 : x0 + window]
                    means.append(block.mean(dim=(1, 2, 3)))
    words = torch.stack(means, dim=1)
    state = network.model.mm_projector.state_dict()
    step = 2 if layer == "mlp" else 1
    for index in range(depth):
        if index and layer == "mlp":
            words = F.gelu(words)
        words = F.linear(
            words,
            state[f"projector.{index * step}.weight"],
            state[f"projector.{index * step}.bias"],
        )
    ours = network.model.mm_projector(tokens)
    assert ours.shape == (2, network.config.image_tokens, 32)
    assert torch.allclose(ours, words, atol=1e-5)


def test_image_tokens_tell_their_place() -> None:
    """The same place adds the same to every image, neighbours the most alike; none by default."""
    told = [
        lamed(image_size=[6, 16, 16], proj_places=strength, segmentation_module=None)
        for strength in (0.0, 0.5)
    ]
    told[1].load_state_dict(told[0].state_dict())
    tokens = torch.rand(2, told[0].config.vision.tokens, 24)
    plain, placed = (each.model.mm_projector(tokens) for each in told)
    added = (placed - plain)[0]
    assert torch.allclose(placed - plain, added.expand_as(plain), atol=1e-6)
    assert len(torch.unique(added.round(decimals=4), dim=0)) == told[0].config.image_tokens
    assert torch.isclose(added.abs().max(), torch.tensor(0.5), atol=0.05)


@pytest.mark.parametrize("depth", [2, 3])
def test_pooling_by_max_keeps_what_one_patch_of_a_block_shows(depth: int) -> None:
    network = lamed(proj_layer_num=depth, proj_pooling_type="max", segmentation_module=None)
    projector = network.model.mm_projector
    tokens = torch.rand(2, 45, 24)
    first, *rest = (each for each in projector.projector if isinstance(each, torch.nn.Linear))
    seen = F.gelu(first(tokens)).reshape(2, 3, 5, 3, 32)
    blocks = [seen[:, :2, y : y + 2, :2].amax(dim=(1, 2, 3)) for y in (0, 2)]
    words = torch.stack(blocks, dim=1)
    for index, each in enumerate(rest):
        words = each(F.gelu(words) if index else words)
    assert torch.allclose(projector(tokens), words, atol=1e-5)
    assert projector(tokens).shape == (2, network.config.image_tokens, 32)


@pytest.mark.parametrize(
    ("changes", "tokens"),
    [
        ({"mm_projector_type": "linear"}, 45),
        ({"mm_projector_type": "linear", "vision_select_feature": "cls_patch"}, 46),
        ({"mm_projector_type": "identity", "hidden_size": 24}, 45),
        ({"proj_pooling_type": "sequence"}, 5),
        ({"proj_pooling_type": "sequence", "vision_select_feature": "cls_patch"}, 5),
        ({"model_type": "lamed_llama", "proj_layer_num": 3}, 2),
        ({"model_type": "phi3", "image_size": [4, 4, 4]}, 1),
    ],
)
def test_every_variant_reads_speaks_and_draws(changes: dict[str, Any], tokens: int) -> None:
    network = lamed(**changes)
    size = network.config.vision.image_size
    images = torch.rand(2, 1, *size)
    assert network.config.image_tokens == tokens
    assert network.encode_image(images).shape[1] == tokens
    ids = torch.tensor([prompt(network, 7, 8), prompt(network, 9, 10)])
    ours = generate(network, images, ids, max_new_tokens=3)
    theirs = generate(network, images, ids, max_new_tokens=3, mode="reference")
    assert torch.equal(ours.ids, theirs.ids)
    assert theirs.masks is not None
    assert theirs.masks.logits.shape == (2, 1, *size)
    masks = network.segment(
        network.encode_segmentation(images[:1]), torch.rand(3, 32)[:, : network.config.hidden]
    )
    assert masks.shape == (3, 1, *size)


def test_a_prompt_without_bos_is_refused_with_both_tokens() -> None:
    network = lamed()
    ids = torch.tensor([[5, IMAGE, IMAGE, 8]])
    with pytest.raises(ModelError, match=r"prompt 0: expected BOS \(1\) first, got 5"):
        network(volumes(), ids)
    with pytest.raises(ModelError, match="expected BOS"):
        generate(network, volumes(), ids)
    assert network(volumes(), ids, mode="reference").logits.shape == (1, 4, 51)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_wrong_number_of_image_tokens_is_refused_with_both_numbers(count: int) -> None:
    network = lamed()
    ids = torch.tensor([[BOS, *[IMAGE] * count, 8, 9]])
    with pytest.raises(ModelError, match=rf"expected 2 image tokens \(47\), got {count}"):
        network(volumes(), ids)


def test_image_tokens_that_do_not_follow_bos_are_refused() -> None:
    with pytest.raises(ModelError, match="directly after BOS, got 8 there"):
        lamed()(volumes(), torch.tensor([[BOS, 8, IMAGE, IMAGE]]))


def test_a_volume_of_another_size_is_refused_with_both_shapes() -> None:
    network = lamed()
    with pytest.raises(ModelError, match=r"\(batch, 1, 6, 10, 6\), not \(1, 1, 6, 10, 8\)"):
        network.encode_image(torch.rand(1, 1, 6, 10, 8))


def test_a_network_without_segvol_says_so_when_asked_for_a_mask() -> None:
    network = lamed(segmentation_module=None)
    with pytest.raises(ModelError, match="expected segvol, got none"):
        network.encode_segmentation(volumes())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gpt2"}, "model_type must be one of phi3, llama, m3d_clip, not 'gpt2'"),
        ({"image_size": [6, 10]}, "image_size must be three positive whole numbers"),
        ({"image_size": [6, 10, 5]}, "image_size must be whole patches"),
        ({"proj_pooling_size": 4}, "pooling by 4 leaves nothing"),
        (
            {"proj_pooling_type": "median"},
            "proj_pooling_type must be one of spatial, sequence, max",
        ),
        (
            {"proj_pooling_type": "max", "proj_layer_num": 1},
            "proj_layer_num of 2 or more, got mlp and 1",
        ),
        (
            {"proj_pooling_type": "max", "proj_layer_type": "linear"},
            "max needs proj_layer_type mlp",
        ),
        ({"proj_pooling_type": "sequence", "proj_places": 0.3}, "proj_places needs blocks"),
        ({"mm_projector_type": "minigpt"}, "mm_projector_type must be one of"),
        ({"vision_select_layer": -2}, "vision_select_layer must be -1, not -2"),
        ({"mm_hidden_size": 48}, "mm_hidden_size must equal the vision tower's width, 24, not 48"),
        ({"hidden_size": "32"}, "hidden_size must be a whole number, not '32'"),
        ({"eos_token_id": "x"}, "eos_token_id must be token ids, not 'x'"),
        ({"num_hidden_layers": "two"}, "does not describe a phi3"),
        ({"segmentation_module": "unet"}, "segmentation_module must be one of segvol"),
        (
            {"oracle_overrides": {"vision": WIDTHS | {"stem_channels": 4}}},
            r"patch_size under a stem must be whole steps of \(2, 4, 4\), not \(2, 2, 2\)",
        ),
    ],
)
def test_a_config_this_code_cannot_compute_is_refused(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        build(config(**changes))


@torch.no_grad()
def test_a_stem_sees_what_is_small_alike_wherever_it_lies() -> None:
    network = ViT(ViTConfig((24, 48, 48), (4, 8, 8), 1, 24, 16, 1, 2, stem=6), classify=False)
    stem = network.patch_embedding.stem
    assert stem is not None
    here, there = torch.zeros(2, 1, 1, 24, 48, 48)
    here[0, 0, 9, 18, 19] = there[0, 0, 9 + 2, 18 + 4, 19 + 4] = 1
    first, second = stem.convolutions(here), stem.convolutions(there)
    assert first.shape == (1, 6, 12, 12, 12)
    torch.testing.assert_close(second[..., 3:9, 3:9, 3:9], first[..., 2:8, 2:8, 2:8])
    assert not torch.allclose(first, second)
    assert network(here).shape == (1, 216, 24)


def test_rows_of_unequal_length_decode_as_they_would_alone() -> None:
    network, inputs, images = trained()
    names = ["one", "several", "first_only", "none"]
    rows = [inputs[f"gen.{name}.input_ids"][0].tolist() for name in names]
    seen = images[[int(inputs[f"gen.{name}.image_index"]) for name in names]]
    ids, mask = left_padded(rows, END)
    together = generate(network, seen, ids, attention_mask=mask, max_new_tokens=14)
    assert together.masks is not None
    place = 0
    for index, row in enumerate(rows):
        alone = generate(network, seen[index : index + 1], torch.tensor([row]), max_new_tokens=14)
        said = alone.ids[0]
        assert torch.equal(together.ids[index, : len(said)], said)
        assert torch.allclose(together.hidden[index, : len(said)], alone.hidden[0], atol=1e-5)
        for logits in [] if alone.masks is None else alone.masks.logits:
            assert together.rows[place] == index
            assert torch.allclose(together.masks.logits[place], logits, atol=1e-4)
            place += 1
    assert place == len(together.rows) == 6


def test_a_left_padded_batch_is_read_as_its_rows_are_alone() -> None:
    network = lamed()
    rows = [prompt(network, 7, 8, 9, 10), prompt(network, 11), prompt(network, 5, 6)]
    ids, mask = left_padded(rows, END)
    images = volumes(3)
    together = network(images, ids, mask)
    for index, row in enumerate(rows):
        alone = network(images[index : index + 1], torch.tensor([row]))
        assert torch.allclose(together.logits[index, -len(row) :], alone.logits[0], atol=1e-5)


@pytest.mark.parametrize("family", ["lamed_phi3", "lamed_llama"])
def test_questions_on_a_cached_image_decode_as_whole_prompts_do(family: str) -> None:
    network = lamed(model_type=family)
    images, questions = volumes(), [[7, 8, 9], [10], [11, 12]]
    with torch.no_grad():
        features = network.encode_image(images)
        start = network.embed(torch.tensor([prompt(network)]), features)
        cache = network.language(start).cache
    cache.batch_repeat_interleave(len(questions))
    ids, mask = left_padded(questions, END)
    prefix = torch.ones(len(questions), start.shape[1], dtype=torch.long)
    said = greedy(
        network,
        network.embed(ids),
        attention_mask=torch.cat((prefix, mask), dim=1),
        past_key_values=cache,
        max_new_tokens=[6, 4, 5],
    )
    for row, (question, length) in enumerate(zip(questions, [6, 4, 5], strict=True)):
        whole = torch.tensor([prompt(network, *question)])
        alone = generate(network, images, whole, max_new_tokens=length)
        count = alone.ids.shape[1]
        assert torch.equal(said.ids[row, :count], alone.ids[0])
        assert torch.allclose(said.hidden[row, :count], alone.hidden[0], atol=1e-5)
        assert (said.ids[row, count:] == END).all()


def test_a_length_below_one_is_refused() -> None:
    with pytest.raises(ModelError, match="max_new_tokens must be 1 or more"):
        generate(lamed(), None, torch.tensor([[BOS, 7]]), max_new_tokens=0)


def test_phi3_looks_back_its_window_and_one() -> None:
    network = lamed(num_hidden_layers=1, sliding_window=6, segmentation_module=None)
    ids = torch.randint(3, 40, (1, 20), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        last = network(None, ids).logits[0, -1]
        for back, seen in ((6, True), (7, False)):
            changed = ids.clone()
            changed[0, 19 - back] = 41
            same = torch.allclose(network(None, changed).logits[0, -1], last, atol=1e-6)
            assert same is not seen


def test_all_that_a_mask_needs_learns_and_an_empty_mask_teaches_nothing() -> None:
    network = lamed().train()
    ids = torch.tensor([prompt(network, 7, SEG, END), prompt(network, 8, 9, END)])
    labels = ids.masked_fill(ids == IMAGE, -100)
    segs = torch.zeros(2, 1, *ODD)
    segs[0, 0, 1:3, 2:6] = 1
    read = network(volumes(2), ids, labels=labels, segs=segs)
    assert read.drawn is not None
    assert read.drawn.rows == (0,)
    assert torch.allclose(
        read.loss, read.language_loss + read.drawn.dice_loss + read.drawn.bce_loss
    )
    read.loss.backward()
    for part in ("vision_tower", "mm_projector", "seg_projector", "layers", "embed_tokens"):
        assert all(p.grad is not None for p in getattr(network.model, part).parameters()), part
    encoder = network.model.seg_module.image_encoder
    assert all(p.grad is not None for p in encoder.parameters())
    network.zero_grad()
    empty = network(volumes(2), ids, labels=labels, segs=torch.zeros_like(segs))
    assert empty.drawn is None
    assert torch.equal(empty.loss, empty.language_loss)


def test_the_dice_loss_smooths_the_denominator_only() -> None:
    target = torch.zeros(2, 1, 1, 2, 2)
    target[0, 0, 0, 0, 0] = 1
    certain = torch.where(target > 0, 50.0, -50.0)
    # A perfect voxel: 1 - 2 / (1 + 1 + 1); a perfect nothing: 1 - 0 / 1.
    assert dice_loss(certain, target).item() == pytest.approx((1 / 3 + 1) / 2)


def test_the_language_loss_is_of_the_next_token_and_skips_minus_100() -> None:
    network = lamed()
    ids = torch.tensor([prompt(network, 7, 8, 9)])
    labels = torch.full_like(ids, -100)
    labels[0, -1] = 9
    read = network(volumes(), ids, labels=labels)
    expected = -read.logits[0, -2].log_softmax(dim=-1)[9]
    assert torch.allclose(read.loss, expected)


@pytest.mark.parametrize("family", ["lamed_phi3", "lamed_llama"])
def test_in_bfloat16_it_reads_speaks_and_draws(family: str) -> None:
    exact = lamed(model_type=family)
    with torch.device("meta"):
        network = build(config(model_type=family))
    assert isinstance(network, Lamed)
    load_state(network, exact.state_dict(), dtype=torch.bfloat16)
    ids = torch.tensor([prompt(network, 7, SEG, 9)])
    segs = torch.ones(1, 1, *ODD)
    read = network(volumes(), ids, labels=ids, segs=segs)
    assert read.logits.dtype == torch.bfloat16
    assert read.loss.isfinite()
    close = exact(volumes(), ids, labels=ids, segs=segs)
    assert torch.allclose(read.loss, close.loss, rtol=0.02)
    assert read.drawn is not None
    assert close.drawn is not None
    assert torch.allclose(read.drawn.logits, close.drawn.logits, atol=0.05)
    said = generate(network, volumes(), ids, max_new_tokens=2, mode="reference")
    assert said.masks is not None
    assert said.masks.logits.dtype == torch.bfloat16


def test_positions_stay_float32_however_the_network_is_cast() -> None:
    exact = lamed().model.rotary_emb.inv_freq
    cast = lamed().to(torch.bfloat16)
    assert cast.lm_head.weight.dtype == torch.bfloat16
    assert torch.equal(cast.model.rotary_emb.inv_freq, exact)
    with torch.device("meta"):
        loaded = build(config())
    load_state(loaded, lamed().state_dict(), dtype=torch.bfloat16)
    assert isinstance(loaded, Lamed)
    assert torch.equal(loaded.model.rotary_emb.inv_freq, exact)
    places = loaded.model.seg_module.prompt_encoder.pe_layer
    assert places.positional_encoding_gaussian_matrix.dtype == torch.float32


def test_a_checkpoint_with_a_missing_foreign_or_misshapen_tensor_is_refused() -> None:
    network, state = lamed(), lamed().state_dict()
    lacking = {key: value for key, value in state.items() if key != "lm_head.weight"}
    with pytest.raises(ModelError, match=r"lacks 1 keys, such as lm_head\.weight"):
        load_state(network, lacking)
    with pytest.raises(ModelError, match=r"has foreign 1 keys, such as lm_head\.bias"):
        load_state(network, {**state, "lm_head.bias": torch.zeros(51)})
    with pytest.raises(
        ModelError, match=r"lm_head\.weight: expected shape \[51, 32\], got \[50, 32\]"
    ):
        load_state(network, {**state, "lm_head.weight": torch.zeros(50, 32)})


def test_a_network_is_built_for_use_not_for_training() -> None:
    network = lamed(model_type="lamed_llama")
    assert isinstance(network, LamedLlama)
    assert not network.training
    load_state(network.train(), network.state_dict())
    assert not network.training


def clip_config() -> dict[str, Any]:
    return {
        "model_type": "m3d_clip",
        "language_model_name_or_path": "no/such-model",
        "img_size": ODD,
        "patch_size": [2, 2, 2],
        **WIDTHS,
        "oracle_overrides": {"bert": BERT | BERT_WIDTHS},
    }


def test_clip_is_built_from_its_config_and_ignores_padding() -> None:
    torch.manual_seed(0)
    made = build(clip_config())
    with torch.device("meta"):
        clip = build(clip_config())
    assert isinstance(clip, M3DCLIP)
    old = {"language_encoder.embeddings.position_ids": torch.arange(16).unsqueeze(0)}
    load_state(clip, {**made.state_dict(), **old})
    ids, mask = torch.tensor([[5, 6, 7, 0, 0]]), torch.tensor([[1, 1, 1, 0, 0]])
    short = clip.scores(volumes(2), ids[:, :3])
    assert short.shape == (2, 1)
    assert torch.allclose(clip.scores(volumes(2), ids, mask), short, atol=1e-6)
    low = clip.to(torch.bfloat16)
    assert low(volumes(2), ids.expand(2, -1)).logits.isfinite().all()


def test_clip_without_its_own_text_width_is_refused() -> None:
    broken = clip_config()
    broken["oracle_overrides"] = {"bert": BERT | BERT_WIDTHS | {"hidden_size": 48}}
    with pytest.raises(ModelError, match="hidden_size must equal the text encoder's width"):
        build(broken)
