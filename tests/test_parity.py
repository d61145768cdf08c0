"""Every golden number of the reference implementation, on every set in the folder.

LAMED_PARITY names another folder in the same layout (tests/data/parity/README.md). The worst
error of each set is printed when the session ends.
"""

import json
import os
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from model.errors import ModelError
from model.network import M3DCLIP, Generated, Lamed, build, generate, load_state

FOLDER = Path(os.environ.get("LAMED_PARITY") or Path(__file__).parent / "data" / "parity")
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Golden:
    name: str
    config: dict[str, Any]
    cases: dict[str, Any]
    inputs: dict[str, Tensor]
    expected: dict[str, Tensor]
    network: Lamed | M3DCLIP

    @property
    def lamed(self) -> Lamed:
        assert isinstance(self.network, Lamed)
        return self.network

    @property
    def clip(self) -> M3DCLIP:
        assert isinstance(self.network, M3DCLIP)
        return self.network

    @property
    def images(self) -> Tensor:
        """float32(u8) / 255; small pictures of a large volume repeat their voxels first."""
        images = self.inputs["image_u8"].float() / 255
        size = self.config.get("image_size") or self.config["img_size"]
        for axis, wanted in enumerate(size, start=2):
            images = images.repeat_interleave(wanted // images.shape[axis], dim=axis)
        return images

    @property
    def segs(self) -> Tensor:
        boxes = self.inputs["train.segs_box_zyx_halfopen"].tolist()
        segs = torch.zeros(len(boxes), 1, *self.config["image_size"])
        for seg, (z0, z1, y0, y1, x0, x1) in zip(segs, boxes, strict=True):
            seg[0, z0:z1, y0:y1, x0:x1] = 1
        return segs

    def case(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = next(case for case in self.cases["cases"] if case["name"] == name)
        return found


def names(*, clip: bool) -> list[str]:
    """Sets of one kind; a folder is a set if it has weights."""
    found = []
    for path in sorted(FOLDER.glob("*/model.safetensors")):
        config = json.loads((path.parent / "config.json").read_text())
        if (config["model_type"] == "m3d_clip") == clip:
            found.append(path.parent.name)
    return found


def groups() -> list[tuple[str, str]]:
    """(set, group) for all expected numbers: encode, prefill, gen.one, train..."""
    found = []
    for name in names(clip=False):
        with safe_open(FOLDER / name / "expected.safetensors", "pt") as file:
            found += sorted({(name, key.rpartition(".")[0]) for key in file.keys()})  # noqa: SIM118
    return found


def cases(*, segmenting: bool) -> list[tuple[str, str]]:
    found = []
    for name in names(clip=False):
        table = json.loads((FOLDER / name / "cases.json").read_text())
        found += [
            (name, case["name"]) for case in table["cases"] if case["seg_enable"] or not segmenting
        ]
    return found


@cache
def golden(name: str) -> Golden:
    folder = FOLDER / name
    config = json.loads((folder / "config.json").read_text())
    with torch.device("meta"):
        network = build(config)
    load_state(network, load_file(folder / "model.safetensors"))
    return Golden(
        name=name,
        config=config,
        cases=json.loads((folder / "cases.json").read_text()),
        inputs=load_file(folder / "inputs.safetensors"),
        expected=load_file(folder / "expected.safetensors"),
        network=network,
    )


@dataclass
class Worst:
    error: float = 0.0
    where: str = ""
    numbers: int = 0


@pytest.fixture(scope="session")
def table(request: pytest.FixtureRequest) -> Iterator[dict[str, Worst]]:
    worst: dict[str, Worst] = {}
    yield worst
    capture = request.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled() if capture else nullcontext():
        print(f"\n\n{'parity set':28} {'worst error':>11} {'numbers':>9}  where")  # noqa: T201
        for name, row in sorted(worst.items()):
            print(f"{name:28} {row.error:11.1e} {row.numbers:9}  {row.where}")  # noqa: T201


def compare(table: dict[str, Worst], name: str, key: str, ours: Tensor, theirs: Tensor) -> None:
    assert ours.shape == theirs.shape, key
    row = table.setdefault(name, Worst())
    row.numbers += theirs.numel()
    if not theirs.is_floating_point():
        assert torch.equal(ours, theirs), key
        return
    finite = theirs.isfinite()
    assert torch.equal(ours[~finite], theirs[~finite]), key
    error = (ours - theirs)[finite].abs().max().item() if finite.any() else 0.0
    if error >= row.error:
        row.error, row.where = error, key
    assert error <= TOLERANCE, f"{key}: worst error {error:.1e}"


def thinned(ours: Tensor, theirs: Tensor, key: str) -> Tensor:
    """Large sets keep a part: strided masks, every nth token, the last positions."""
    if key.endswith("_strided"):
        return ours[..., ::4, ::8, ::8]
    if key == "segvol.image_tokens":
        return ours[:, :: ours.shape[1] // theirs.shape[1]]
    if ours.ndim == 3 and ours.shape[1] > theirs.shape[1]:
        return ours[:, -theirs.shape[1] :]
    return ours


def images_of(known: Golden, group: str) -> Tensor:
    return known.images[: len(known.inputs[f"{group}.input_ids"])]


def encode(known: Golden) -> dict[str, Tensor]:
    features = known.lamed.model.vision_tower(
        known.images[: len(known.expected["encode.vision_features"])]
    )
    return {
        "vision_features": features,
        "projector_out": known.lamed.model.mm_projector(features),
    }


def prefill(known: Golden) -> dict[str, Tensor]:
    read = known.lamed(
        images_of(known, "prefill"), known.inputs["prefill.input_ids"], mode="reference"
    )
    return {"logits": read.logits, "last_hidden": read.hidden}


def prefill_nobos(known: Golden) -> dict[str, Tensor]:
    ids = known.inputs["prefill_nobos.input_ids"]
    read = known.lamed(images_of(known, "prefill_nobos"), ids, mode="reference")
    return {"logits_last": read.logits[:, -1]}


def textonly(known: Golden) -> dict[str, Tensor]:
    ids = known.inputs["textonly.input_ids"]
    length = known.cases["max_new_tokens"]
    return {"ids": generate(known.lamed, None, ids, max_new_tokens=length).ids}


def segvol(known: Golden) -> dict[str, Tensor]:
    return {"image_tokens": known.lamed.encode_segmentation(known.images[:1])}


@cache
def generated(name: str, case: str, mode: Any) -> Generated:
    known = golden(name)
    return generate(
        known.lamed,
        known.images[known.inputs[f"gen.{case}.image_index"]],
        known.inputs[f"gen.{case}.input_ids"],
        max_new_tokens=known.cases["max_new_tokens"],
        segment=known.case(case)["seg_enable"],
        mode=mode,
    )


def gen(known: Golden, case: str) -> dict[str, Tensor]:
    said = generated(known.name, case, "reference")
    ours = {"ids": said.ids}
    hits = said.ids == known.config["seg_token_id"]
    hits[:, 0] = False
    if hits.any():
        last = hits.any(dim=1).nonzero()[-1, 0]
        ours["seg_hidden_last_row"] = said.hidden[last][hits[last]].mean(dim=0, keepdim=True)
    if said.masks is not None and said.prompts is not None:
        ours["seg_prompt"] = said.prompts
        ours["low_res_logits"], ours["iou_pred"] = said.masks.low_res, said.masks.iou
        ours["seg_logits"] = ours["seg_logits_strided"] = said.masks.logits
    return ours


def train(known: Golden) -> dict[str, Tensor]:
    ids = known.inputs["train.input_ids"]
    asked = {key: known.inputs[f"train.{key}"] for key in ("attention_mask", "labels")}
    images = images_of(known, "train")
    segs = known.segs if "train.segs_box_zyx_halfopen" in known.inputs else None
    read = known.lamed(images, ids, **asked, segs=segs, mode="reference")
    assert read.loss is not None
    assert read.language_loss is not None
    ours = {"logits": read.logits, "lm_only_loss": read.language_loss.reshape(1)}
    ours["total_loss"] = read.loss.reshape(1)
    if read.drawn is not None and segs is not None:
        ours["dice_loss"] = read.drawn.dice_loss.reshape(1)
        ours["bce_loss"] = read.drawn.bce_loss.reshape(1)
        ours["seg_prompts"] = read.drawn.prompts
        ours["seg_logits"] = ours["seg_logits_strided"] = read.drawn.logits
        empty = known.lamed(images, ids, **asked, segs=torch.zeros_like(segs), mode="reference")
        assert empty.loss is not None
        ours["loss_all_empty_masks"] = empty.loss.reshape(1)
    return ours


COMPUTE = {
    "encode": encode,
    "prefill": prefill,
    "prefill_nobos": prefill_nobos,
    "textonly": textonly,
    "segvol": segvol,
    "train": train,
}


def test_the_folder_holds_sets_of_both_kinds() -> None:
    assert names(clip=False) or names(clip=True), f"no golden set in {FOLDER}"
    if "LAMED_PARITY" not in os.environ:
        assert len(names(clip=False)) == 4
        assert len(names(clip=True)) == 1


@pytest.mark.parametrize(("name", "group"), groups())
def test_every_expected_number_is_reproduced(
    name: str, group: str, table: dict[str, Worst]
) -> None:
    known = golden(name)
    with torch.no_grad():
        ours = gen(known, group[4:]) if group.startswith("gen.") else COMPUTE[group](known)
    expected = {
        key: value for key, value in known.expected.items() if key.rpartition(".")[0] == group
    }
    for key, theirs in expected.items():
        part = ours[key.rpartition(".")[2]]
        compare(table, name, key, thinned(part, theirs, key), theirs)


@pytest.mark.parametrize("name", names(clip=False))
def test_gradients_have_the_reference_norms(name: str, table: dict[str, Worst]) -> None:
    known = golden(name)
    norms = known.cases.get("train_grad_l2_norms")
    if norms is None:
        pytest.skip("this set has no gradients")
    ids = known.inputs["train.input_ids"]
    asked = {key: known.inputs[f"train.{key}"] for key in ("attention_mask", "labels")}
    segs = known.segs if "train.segs_box_zyx_halfopen" in known.inputs else None
    known.lamed.zero_grad(set_to_none=True)
    read = known.lamed(images_of(known, "train"), ids, **asked, segs=segs, mode="reference")
    assert read.loss is not None
    read.loss.backward()
    ours = {
        key: None if value.grad is None else value.grad.norm()
        for key, value in known.lamed.named_parameters()
    }
    known.lamed.zero_grad(set_to_none=True)
    assert set(ours) == set(norms)
    assert {key for key in ours if ours[key] is None} == {
        key for key in norms if norms[key] is None
    }
    for key, norm in norms.items():
        mine = ours[key]
        if mine is not None:
            compare(table, name, f"gradient of {key}", mine, torch.tensor(norm))


@pytest.mark.parametrize(("name", "case"), cases(segmenting=False))
def test_tokens_and_mask_statistics_match_the_case(
    name: str, case: str, table: dict[str, Worst]
) -> None:
    known, listed = golden(name), golden(name).case(case)
    said = generated(name, case, "reference")
    if "ids" in listed:
        assert said.ids.tolist() == listed["ids"]
    hits = said.ids == known.config["seg_token_id"]
    assert hits.sum(dim=1).tolist() == listed["n_seg_total"]
    assert hits[:, 1:].sum(dim=1).tolist() == listed["n_seg_after_first"]
    if said.masks is None:
        return
    for row, logits in enumerate(said.masks.logits):
        silent = row in listed["all_minus_inf_rows"]
        assert torch.equal(logits.isinf(), torch.full_like(logits, silent).bool())
        doubtful = (logits.abs() < TOLERANCE).sum().item()
        assert abs((logits > 0).sum().item() - listed["mask_voxels"][row]) <= doubtful
        if not silent:
            for key, value in (("logit_mean", logits.mean()), ("logit_std", logits.std())):
                theirs = torch.tensor(listed[key][row])
                compare(table, name, f"{case} {key}", value, theirs)


@pytest.mark.parametrize(("name", "case"), cases(segmenting=False))
def test_each_encoder_runs_as_often_as_in_the_reference(name: str, case: str) -> None:
    known, listed = golden(name), golden(name).case(case)
    calls = {"vision_tower_calls": 0, "segvol_encoder_calls": 0}

    def count(key: str, module: nn.Module | None) -> Any:
        def add(*_: object) -> None:
            calls[key] += 1

        return module.register_forward_hook(add) if module is not None else None

    inner = known.lamed.model
    hooks = [
        count("vision_tower_calls", inner.vision_tower),
        count(
            "segvol_encoder_calls",
            getattr(getattr(inner, "seg_module", None), "image_encoder", None),
        ),
    ]
    generated.__wrapped__(name, case, "reference")
    for hook in hooks:
        if hook is not None:
            hook.remove()
    assert calls == {key: listed[key] for key in calls}


def well_formed(known: Golden, group: str) -> bool:
    """Say whether every prompt is BOS and the image's tokens, by the set's own token table."""
    ids, table = known.inputs[f"{group}.input_ids"], known.cases["token_ids"]
    count = known.lamed.config.image_tokens
    image = ids == table["im_patch"]
    starts = (ids[:, 0] == table["bos"]).all() and image[:, 1 : 1 + count].all()
    return bool(starts and (image.sum(dim=1) == count).all())


@pytest.mark.parametrize("name", names(clip=False))
def test_the_default_mode_reads_a_good_prompt_alike_and_refuses_one_without_bos(name: str) -> None:
    known = golden(name)
    images, ids = images_of(known, "prefill"), known.inputs["prefill.input_ids"]
    if well_formed(known, "prefill"):
        with torch.no_grad():
            ours = known.lamed(images, ids)
        last = known.expected["prefill.logits"]
        assert (ours.logits[:, -last.shape[1] :] - last).abs().max() <= TOLERANCE
    if "prefill_nobos.input_ids" not in known.inputs:
        return
    with pytest.raises(ModelError, match=r"expected BOS \(\d+\) first, got \d+"):
        known.lamed(images_of(known, "prefill_nobos"), known.inputs["prefill_nobos.input_ids"])


@pytest.mark.parametrize(("name", "case"), cases(segmenting=True))
def test_the_default_mode_says_the_same_and_draws_every_seg(name: str, case: str) -> None:
    known, listed = golden(name), golden(name).case(case)
    if not well_formed(known, f"gen.{case}"):
        with pytest.raises(ModelError, match="image tokens"):
            generated(name, case, "default")
        return
    ours, theirs = generated(name, case, "default"), generated(name, case, "reference")
    assert torch.equal(ours.ids, theirs.ids)
    expected = [row for row, count in enumerate(listed["n_seg_total"]) for _ in range(count)]
    assert list(ours.rows) == expected
    if not expected:
        assert ours.masks is None
        return
    assert ours.masks is not None
    assert theirs.masks is not None
    assert len(ours.masks.logits) == len(expected)
    assert ours.masks.logits.isfinite().all()
    for row, count in enumerate(listed["n_seg_total"]):
        if count == listed["n_seg_after_first"][row] == 1:
            mine = ours.masks.logits[expected.index(row)]
            assert (mine - theirs.masks.logits[row]).abs().max() <= TOLERANCE
    assert known.lamed.config.seg_token_id in ours.ids


@pytest.mark.parametrize("name", names(clip=True))
def test_clip_embeds_scores_and_ranks_as_the_reference(name: str, table: dict[str, Worst]) -> None:
    known = golden(name)
    inputs, clip = known.inputs, known.clip
    first: list[Tensor] = []
    hook = clip.vision_encoder.blocks[0].register_forward_hook(
        lambda _module, _input, output: first.append(output)
    )
    text = inputs["input_ids"], inputs["attention_mask"]
    with torch.no_grad():
        matched = clip(known.images, *text, inputs["labels"], mode="reference")
        hook.remove()
        ours = {
            "image_embeds": clip.encode_image(known.images),
            "text_embeds": clip.encode_text(*text),
            "vision_last_with_cls": clip.vision_encoder(known.images),
            "vision_hidden_0": first[0],
            "scores": clip.scores(known.images, *text),
            "logits": matched.logits,
            "loss": matched.loss.reshape(1),
        }
    for key, theirs in known.expected.items():
        compare(table, name, key, ours[key][: len(theirs)], theirs)
    for key, share in known.cases["recall"].items():
        side, depth = key.split("_R")
        ranked = ours["scores"] if side == "IR" else ours["scores"].T
        assert recall(ranked, int(depth)) == pytest.approx(share, abs=1e-6), key


def recall(scores: Tensor, depth: int) -> float:
    """Share of rows whose own column is among the `depth` best."""
    best = scores.topk(min(depth, scores.shape[1]), dim=1).indices
    return (best == torch.arange(len(scores)).unsqueeze(1)).any(dim=1).float().mean().item()
