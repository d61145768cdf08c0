"""Checkpoints: ours and released ones come in whole, everything else is refused by name."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import released
import torch
from released import ENDS, LLAMA, SHARDS, write_json
from safetensors.torch import load_file, save_file

from model import LaMed, ModelError, Question, load
from model.checkpoint import import_checkpoint, write
from model.network import LamedLlama, LamedPhi3

LAYOUT = [
    "README.md",
    "added_tokens.json",
    "config.json",
    "manifest.json",
    "model.safetensors",
    "tokenizer.model",
]
KEY = "model.seg_projector.2.bias"
GAUSSIAN = "model.seg_module.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
SENTENCES = [
    Question(each, max_new_tokens=8) for each in ("There is a nodule in the upper lobe.", "Is it?")
]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    # Two threads on matrices this small spend their time waiting for each other.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return released.lamed(tmp_path / "M3D-LaMed-Phi-3-4B")


@pytest.fixture
def ours(source: Path, tmp_path: Path) -> Path:
    import_checkpoint(source, tmp_path / "ours")
    return tmp_path / "ours"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def change(path: Path, **values: Any) -> None:
    write_json(path, json.loads(path.read_text()) | values)


def answers(lamed: LaMed) -> list[tuple[int, ...]]:
    noise = np.random.default_rng(0).normal(0, 1, (9, 40, 37)).astype(np.float32)
    return [each.tokens for each in lamed.read(noise, SENTENCES)]


def told(folder: Path) -> str:
    """Say why a folder is refused, by `load` and the import alike, which then leaves nothing."""
    with pytest.raises(ModelError) as loading:
        load(folder)
    out = folder.parent / "never"
    with pytest.raises(ModelError) as importing:
        import_checkpoint(folder, out)
    assert str(loading.value) == str(importing.value)
    assert not out.exists()
    return str(loading.value)


def test_a_released_checkpoint_is_imported_into_our_layout(source: Path, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in source.iterdir()}
    card = import_checkpoint(source, tmp_path / "new" / "ours")
    out = tmp_path / "new" / "ours"
    assert names(out) == LAYOUT
    assert (card.name, card.untrained) == ("M3D-LaMed-Phi-3-4B", False)
    assert {path.name: path.read_bytes() for path in source.iterdir()} == before
    config = json.loads((out / "config.json").read_text())
    assert config == released.config() | {"eos_token_id": ENDS}
    assert (out / "tokenizer.model").read_bytes() == before["tokenizer.model"]
    assert (out / "added_tokens.json").read_bytes() == before["added_tokens.json"]
    weights, expected = load_file(out / "model.safetensors"), released.state()
    assert weights.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(weights[key].float(), value.float()), key


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_weights_keep_the_type_they_came_in(tmp_path: Path, dtype: torch.dtype) -> None:
    source = released.lamed(tmp_path / "source")
    released.shard(
        source, *released.halves({key: each.to(dtype) for key, each in released.state().items()})
    )
    import_checkpoint(source, tmp_path / "ours")
    weights = load_file(tmp_path / "ours" / "model.safetensors")
    assert {each.dtype for key, each in weights.items() if key != GAUSSIAN} == {dtype}


def test_the_manifest_holds_the_digest_of_every_file(ours: Path) -> None:
    manifest = json.loads((ours / "manifest.json").read_text())
    digests = {
        name: hashlib.sha256((ours / name).read_bytes()).hexdigest()
        for name in LAYOUT
        if name != "manifest.json"
    }
    assert manifest["files"] == digests
    assert manifest["sha256"] == digests["model.safetensors"]
    assert digests["model.safetensors"] in (ours / "README.md").read_text()
    assert "not for diagnostic use" in (ours / "README.md").read_text()


def test_both_layouts_load_to_the_same_network(source: Path, ours: Path) -> None:
    one, other = load(source), load(ours)
    assert isinstance(one.network, LamedPhi3)
    assert one.network.config == other.network.config
    assert one.network.config.eos_token_ids == tuple(ENDS)
    for (key, value), twin in zip(
        one.network.state_dict().items(), other.network.state_dict().values(), strict=True
    ):
        assert torch.equal(value, twin), key
        assert torch.equal(value, released.state()[key].float()), key
    said = answers(one)
    assert any(said)
    assert said == answers(other)
    assert not one.network.training


def test_llama_is_imported_too(tmp_path: Path) -> None:
    source = released.lamed(tmp_path / "M3D-LaMed-Llama-2-7B", LLAMA)
    assert import_checkpoint(source, tmp_path / "ours").name == "M3D-LaMed-Llama-2-7B"
    lamed = load(tmp_path / "ours")
    assert isinstance(lamed.network, LamedLlama)
    assert answers(lamed) == answers(load(source))


def test_clip_is_imported_and_says_that_it_cannot_answer(tmp_path: Path) -> None:
    source = released.clip(tmp_path / "M3D-CLIP")
    card = import_checkpoint(source, tmp_path / "ours")
    assert card.name == "M3D-CLIP"
    assert "vocab.txt" in names(tmp_path / "ours")
    for folder in (source, tmp_path / "ours"):
        with pytest.raises(ModelError, match=r"config\.json: m3d_clip retrieves, it cannot answer"):
            load(folder)
    weights, expected = (
        load_file(tmp_path / "ours" / "model.safetensors"),
        released.state("m3d_clip_small"),
    )
    assert all(torch.equal(weights[key].float(), expected[key].float()) for key in weights)


def test_the_digest_of_a_released_checkpoint_is_that_of_its_weights(source: Path) -> None:
    first = load(source).card
    change(source / "tokenizer_config.json", note="other")
    assert load(source).card == first
    changed = {key: each + 1 for key, each in load_file(source / SHARDS[1]).items()}
    save_file(changed, source / SHARDS[1])
    assert load(source).card.sha256 != first.sha256
    assert (first.name, first.untrained) == ("M3D-LaMed-Phi-3-4B", False)


def test_an_untrained_checkpoint_stays_untrained_whatever_way_it_takes(
    checkpoint: Path, tmp_path: Path
) -> None:
    copied = import_checkpoint(checkpoint, tmp_path / "imported")
    assert (copied.untrained, copied.name) == (True, load(checkpoint).card.name)
    assert "UNTRAINED" in (tmp_path / "imported" / "README.md").read_text()
    (tmp_path / "imported" / "manifest.json").unlink()
    assert load(tmp_path / "imported").card.untrained
    assert import_checkpoint(tmp_path / "imported", tmp_path / "again").untrained
    change(tmp_path / "again" / "manifest.json", untrained=False)
    assert load(tmp_path / "again").card.untrained


def test_what_was_untrained_is_not_called_so_after_training(source: Path, tmp_path: Path) -> None:
    state = load(source).network.state_dict()
    config = released.config() | {"untrained": True}
    words = {
        name: (source / name).read_bytes() for name in ("tokenizer.model", "added_tokens.json")
    }
    card = write(tmp_path / "trained", config, state, words, name="trained", untrained=False)
    assert load(tmp_path / "trained").card == card == replace(card, untrained=False)


def test_whoever_may_read_the_config_may_read_the_weights(ours: Path) -> None:
    modes = {(ours / name).stat().st_mode for name in LAYOUT}
    assert len(modes) == 1


@pytest.mark.parametrize("name", [each for each in LAYOUT if each != "manifest.json"])
def test_a_missing_file_of_our_layout_is_named(ours: Path, name: str) -> None:
    (ours / name).unlink()
    assert told(ours) == f"{ours / name} is missing"


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.model", "added_tokens.json", SHARDS[0], SHARDS[1]]
)
def test_a_missing_file_of_a_released_checkpoint_is_named(source: Path, name: str) -> None:
    (source / name).unlink()
    assert f"{source / name} is missing" in told(source)


@pytest.mark.parametrize("name", [each for each in LAYOUT if each != "manifest.json"])
def test_one_flipped_bit_is_named_with_both_digests(ours: Path, name: str) -> None:
    content = (ours / name).read_bytes()
    (ours / name).write_bytes(content.replace(b"0", b"1", 1))
    expected, found = (
        hashlib.sha256(each).hexdigest() for each in (content, (ours / name).read_bytes())
    )
    assert expected != found
    assert told(ours) == f"{ours / name}: expected sha256 {expected}, got {found}"


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.model", "README.md"])
def test_a_file_of_our_layout_cut_short_is_named(ours: Path, name: str) -> None:
    (ours / name).write_bytes((ours / name).read_bytes()[:-1])
    assert told(ours).startswith(f"{ours / name}: expected sha256 ")


@pytest.mark.parametrize("cut", [1, 1000, 20000])
def test_weights_cut_short_are_named(source: Path, cut: int) -> None:
    path = source / SHARDS[1]
    path.write_bytes(path.read_bytes()[:-cut])
    assert told(source).startswith(f"{path} is cut short or no safetensors file: ")


def test_an_empty_file_of_weights_is_named(source: Path) -> None:
    (source / SHARDS[0]).write_bytes(b"")
    assert told(source).startswith(f"{source / SHARDS[0]} is cut short")


def test_a_missing_key_is_named(source: Path) -> None:
    first, second = released.halves(released.state())
    released.shard(source, first, {key: each for key, each in second.items() if key != KEY})
    assert told(source) == (
        f"{source / 'model.safetensors.index.json'}: the checkpoint lacks 1 keys, such as {KEY}"
    )


def test_a_foreign_key_is_named(source: Path) -> None:
    first, second = released.halves(released.state())
    released.shard(source, first, second | {"model.evil": torch.zeros(1)})
    assert told(source).endswith("the checkpoint has foreign 1 keys, such as model.evil")


def test_a_wrong_shape_is_named_with_both_shapes(source: Path) -> None:
    first, second = released.halves(released.state())
    released.shard(source, first, second | {KEY: torch.zeros(5, 2)})
    (width,) = released.state()[KEY].shape
    assert told(source) == (
        f"{source / 'model.safetensors.index.json'}: {KEY}: expected shape [{width}], got [5, 2]"
    )


def test_a_key_in_two_shards_is_named_with_both_files(source: Path) -> None:
    first, second = released.halves(released.state())
    released.shard(source, first | {KEY: second[KEY]}, second)
    assert told(source) == f"{source / SHARDS[1]}: expected {KEY} once, got it in {SHARDS[0]} too"


@pytest.mark.parametrize("place", ["../elsewhere.safetensors", "/elsewhere.safetensors", "a/b"])
def test_a_shard_outside_the_folder_is_not_opened(source: Path, place: str) -> None:
    (source.parent / "elsewhere.safetensors").write_bytes((source / SHARDS[1]).read_bytes())
    index = source / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    write_json(index, {"weight_map": content["weight_map"] | {KEY: place}})
    reason = told(source)
    assert reason.startswith(f"{index}: a shard is a file of this folder, not ")
    assert place in reason


@pytest.mark.parametrize("content", [{}, {"weight_map": {}}, {"weight_map": ["a"]}])
def test_an_index_without_a_map_is_named(source: Path, content: object) -> None:
    index = source / "model.safetensors.index.json"
    write_json(index, content)
    assert told(source) == f"{index}: expected a weight_map, not there"


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"model_type": "phi4"}, "model_type must be one of phi3, llama, m3d_clip, not 'phi4'"),
        ({"image_size": [8, 32]}, "image_size must be three positive whole numbers, not [8, 32]"),
        ({"seg_token_id": 209}, "seg_token_id is 209, the tokenizer has [SEG] at 210"),
        ({"image_token_id": 200}, "image_token_id is 200, the tokenizer has <im_patch> at 207"),
        ({"bos_token_id": 3}, "bos_token_id is 3, the tokenizer has BOS at 1"),
    ],
)
def test_a_config_that_does_not_fit_is_named_with_its_key(
    source: Path, values: dict[str, Any], reason: str
) -> None:
    change(source / "config.json", **values)
    assert told(source) == f"{source / 'config.json'}: {reason}"


def test_a_vocabulary_without_room_for_the_words_is_named_with_both_sizes(source: Path) -> None:
    change(source / "added_tokens.json", **{"<|more|>": 211})
    assert told(source) == f"{source / 'config.json'}: vocab_size is 211, the tokenizer has 212"


def test_a_tokenizer_with_other_ids_is_named_with_both(source: Path) -> None:
    change(source / "added_tokens.json", **{"[SEG]": 207, "<im_patch>": 210})
    assert told(source).endswith("seg_token_id is 210, the tokenizer has [SEG] at 207")


def test_an_answer_without_an_end_is_refused(source: Path) -> None:
    (source / "generation_config.json").unlink()
    change(source / "config.json", eos_token_id=None)
    assert told(source).endswith("expected eos_token_id, which ends an answer, got none")


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_a_file_that_is_not_json_is_named(source: Path, name: str) -> None:
    (source / name).write_bytes(b"{\xff")
    assert told(source).startswith(f"{source / name} is not JSON: ")
    write_json(source / name, ["a list"])
    assert told(source) == f"{source / name}: expected a table, got list"


def test_a_folder_that_is_none_is_named(tmp_path: Path) -> None:
    assert told(tmp_path / "nothing here") == f"no folder {tmp_path / 'nothing here'}"


def test_a_model_that_cannot_be_fetched_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="neither a folder nor a model that can be fetched: no/ne"):
        import_checkpoint("no/ne", tmp_path / "out")
    assert names(tmp_path) == []
