"""What must never happen: a pickle opened, code run, half a folder, weights nobody vouches for."""

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import released
import torch
from released import SHARDS, write_json

from model import ModelError, load
from model.checkpoint import choose, describe_device, import_checkpoint, write

INDEX = "model.safetensors.index.json"
CUDA = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
BLOCKED = """
import sys, time
from collections.abc import Iterator, Mapping
from pathlib import Path
import torch
from model.checkpoint import write

class Endless(Mapping):
    def __getitem__(self, key): return b"words"
    def __len__(self): return 2
    def __iter__(self) -> Iterator[str]:
        yield "tokenizer.model"
        Path(sys.argv[2]).touch()
        time.sleep(60)

write(Path(sys.argv[1]), {"model_type": "phi3"}, {"a": torch.ones(3)}, Endless(), name="x",
      untrained=False)
"""


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.touch, (self.path,)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return released.lamed(tmp_path / "M3D-LaMed-Phi-3-4B")


@pytest.fixture
def ours(source: Path, tmp_path: Path) -> Path:
    import_checkpoint(source, tmp_path / "ours")
    return tmp_path / "ours"


@pytest.fixture
def trapped(source: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A released checkpoint in which every pickle and every module writes a file when opened."""
    mark = tmp_path / "executed"
    code = f"from pathlib import Path\nPath({str(mark)!r}).touch()\n"
    for name in ("modeling_m3d_lamed", "configuration_m3d_lamed", "tokenization_m3d", "__init__"):
        (source / f"{name}.py").write_text(code)
    for name in ("pytorch_model.bin", "model.bin", "pretrained_ViT.bin", "training_args.bin"):
        (source / name).write_bytes(pickle.dumps(Bomb(mark)))
    torch.save({"a": Bomb(mark)}, source / "model.pt")
    config = json.loads((source / "config.json").read_text())
    remote = {
        "AutoConfig": "configuration_m3d_lamed.LamedPhi3Config",
        "AutoModelForCausalLM": "modeling_m3d_lamed.LamedPhi3ForCausalLM",
        "AutoTokenizer": ["tokenization_m3d.Tokenizer", None],
    }
    write_json(source / "config.json", config | {"auto_map": remote})
    write_json(source / "tokenizer_config.json", {"auto_map": remote})
    return source, mark


def test_the_traps_of_these_tests_would_be_seen(trapped: tuple[Path, Path]) -> None:
    folder, mark = trapped
    pickle.loads((folder / "pytorch_model.bin").read_bytes())
    assert mark.exists()
    mark.unlink()
    subprocess.run([sys.executable, folder / "modeling_m3d_lamed.py"], check=True)
    assert mark.exists()


def test_no_code_of_a_checkpoint_runs_and_no_pickle_is_opened(
    trapped: tuple[Path, Path], tmp_path: Path
) -> None:
    folder, mark = trapped
    load(folder)
    import_checkpoint(folder, tmp_path / "ours")
    load(tmp_path / "ours")
    assert not mark.exists()
    assert not list((tmp_path / "ours").glob("*.py")) + list((tmp_path / "ours").glob("*.bin"))
    assert "auto_map" not in (tmp_path / "ours" / "config.json").read_text()


@pytest.mark.parametrize("weights", [SHARDS[0], "model.safetensors"])
def test_a_checkpoint_of_pickles_alone_is_refused_and_they_are_named(
    trapped: tuple[Path, Path], tmp_path: Path, weights: str
) -> None:
    folder, mark = trapped
    for name in SHARDS:
        (folder / name).unlink()
    if weights not in SHARDS:
        (folder / INDEX).unlink()
    for refuse in (load, lambda folder: import_checkpoint(folder, tmp_path / "ours")):
        with pytest.raises(ModelError) as caught:
            refuse(folder)
        assert str(caught.value) == (
            f"{folder / weights} is missing; model.bin, model.pt, pretrained_ViT.bin, "
            "pytorch_model.bin, training_args.bin is a pickle and is not read"
        )
    assert not mark.exists()
    assert not (tmp_path / "ours").exists()


def test_an_index_that_points_at_a_pickle_is_refused(trapped: tuple[Path, Path]) -> None:
    folder, mark = trapped
    keys = json.loads((folder / INDEX).read_text())["weight_map"]
    write_json(folder / INDEX, {"weight_map": dict.fromkeys(keys, "pytorch_model.bin")})
    with pytest.raises(ModelError, match=r"pytorch_model\.bin is cut short or no safetensors file"):
        load(folder)
    assert not mark.exists()


@pytest.mark.parametrize("name", ["generation_config.json", INDEX])
def test_a_file_beside_the_manifest_that_would_be_read_is_refused(
    source: Path, ours: Path, name: str
) -> None:
    """An index would bring other weights than the manifest's, a generation config other ends."""
    for each in (name, *SHARDS):
        shutil.copy(source / each, ours)
    with pytest.raises(ModelError) as caught:
        load(ours)
    assert str(caught.value) == f"{ours / name} is foreign: not in manifest.json"


def test_a_note_beside_the_manifest_does_no_harm(ours: Path) -> None:
    card = load(ours).card
    (ours / "NOTES.txt").write_text("ours since May")
    assert load(ours).card == card


@pytest.mark.parametrize("key", ["name", "version", "sha256", "untrained", "files"])
def test_a_manifest_without_a_key_is_refused_and_names_it(ours: Path, key: str) -> None:
    path = ours / "manifest.json"
    manifest = json.loads(path.read_text())
    for spoilt in ({each: manifest[each] for each in manifest if each != key}, manifest | {key: 0}):
        write_json(path, spoilt)
        with pytest.raises(ModelError) as caught:
            load(ours)
        assert str(caught.value).startswith(f"{path}: expected {key} as ")
        assert str(caught.value).endswith(f", got {spoilt.get(key)!r}")


def test_a_manifest_that_calls_other_weights_its_own_is_refused(ours: Path) -> None:
    path = ours / "manifest.json"
    write_json(path, json.loads(path.read_text()) | {"sha256": "ab" * 32})
    with pytest.raises(
        ModelError, match=f"expected sha256 of model.safetensors, .* got {'ab' * 32}"
    ):
        load(ours)


@pytest.mark.parametrize("left", ["a file", ".hidden"])
def test_a_place_that_holds_something_is_left_as_it_is(
    source: Path, tmp_path: Path, left: str
) -> None:
    out = tmp_path / "taken"
    out.mkdir()
    (out / left).write_text("mine")
    with pytest.raises(ModelError) as caught:
        import_checkpoint(source, out)
    assert str(caught.value) == f"{out} must be new or an empty folder"
    assert [path.name for path in out.iterdir()] == [left]


def test_a_file_is_no_place_for_a_checkpoint(source: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ModelError, match="file must be new or an empty folder"):
        import_checkpoint(source, tmp_path / "file")
    with pytest.raises(ModelError, match=r"below cannot be (read|written): .*[Nn]ot a directory"):
        import_checkpoint(source, tmp_path / "file" / "below")
    assert (tmp_path / "file").read_text() == "mine"


def test_an_empty_folder_and_the_folder_one_is_in_can_be_filled(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    import_checkpoint(source, tmp_path / "empty")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    import_checkpoint(source, Path())
    assert load(tmp_path / "here").card == load(tmp_path / "empty").card


@pytest.mark.slow
def test_a_killed_write_leaves_nothing_under_the_name_and_the_next_one_succeeds(
    source: Path, tmp_path: Path
) -> None:
    out, half = tmp_path / "ours", tmp_path / "half"
    writer = subprocess.Popen([sys.executable, "-c", BLOCKED, out, half], env=os.environ)
    for _ in range(600):
        if half.exists() or writer.poll() is not None:
            break
        time.sleep(0.1)
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    assert half.exists()
    assert not out.exists()
    assert (tmp_path / "ours.partial" / "model.safetensors").exists()
    import_checkpoint(source, out)
    assert not (tmp_path / "ours.partial").exists()
    assert load(out).card.name == source.name


def test_a_write_that_fails_says_where(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=f"{tmp_path / 'ours'} cannot be written: "):
        write(
            tmp_path / "ours",
            {"model_type": "phi3"},
            {"a": torch.ones(4)},
            {"no/such/folder": b""},
            name="x",
            untrained=False,
        )
    assert not (tmp_path / "ours").exists()


@CUDA
def test_auto_is_float32_on_the_cpu_without_a_gpu() -> None:
    assert choose("auto", "auto") == (torch.device("cpu"), torch.float32)
    assert describe_device("auto", "auto").startswith("cpu in float32 (")


@CUDA
@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_a_gpu_that_is_not_there_is_said_before_anything_is_read(
    tmp_path: Path, device: str
) -> None:
    with pytest.raises(ModelError, match=f"device is {device}, but torch sees no CUDA device"):
        load(tmp_path / "nothing", device=device)


@pytest.mark.parametrize("device", ["gpu", "mps", "meta", "cpu:x", ""])
def test_another_device_is_refused_and_named(device: str) -> None:
    with pytest.raises(ModelError, match=f"device must be auto, cpu or cuda, not '{device}'"):
        choose(device, "auto")


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        ("float32", torch.float32),
        ("bfloat16", torch.bfloat16),
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.bfloat16),
    ],
)
def test_a_type_is_chosen_by_name_or_by_torch_s(
    source: Path, dtype: str | torch.dtype, expected: torch.dtype
) -> None:
    assert choose("cpu", dtype) == (torch.device("cpu"), expected)
    lamed = load(source, device="cpu", dtype=dtype)
    assert (lamed.device, lamed.dtype) == (torch.device("cpu"), expected)
    assert lamed.network.lm_head.weight.dtype == expected


@pytest.mark.parametrize("dtype", ["float16", "fp32", "", torch.float16, torch.int8])
def test_another_type_is_refused_and_named(dtype: str | torch.dtype) -> None:
    with pytest.raises(ModelError, match=f"auto, float32 or bfloat16, not '{dtype}'"):
        choose("cpu", dtype)
