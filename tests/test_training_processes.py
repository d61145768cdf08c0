"""Several processes: the gradient of one, one writer, and as many steps as there is work."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import handful
import pytest
import torch
from torch import distributed

from model import checkpoint, clip
from model.clip import Words
from model.network import M3DCLIP
from model.training import running, stages
from model.training.batches import Pairs
from model.training.examples import Example
from model.training.objectives import Matching, everywhere

ROOT = Path(__file__).parent.parent
PROCESSES = 2
REPORTS = ("Chest CT. No nodule.", "Head CT.", "Abdominal CT. A cyst.", "Head CT.")


def matching(start: Path) -> tuple[Matching, list[Example]]:
    """Four pairs, two of them with one report."""
    config = checkpoint.read_config(start)
    network = checkpoint.network_from(start, config, torch.device("cpu"), torch.float32)
    assert isinstance(network, M3DCLIP)
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(len(REPORTS), 1, *handful.GRID, generator=generator).numpy()
    pairs = zip(images, REPORTS, strict=True)
    return Matching(network.eval()), [Example(image, report=text) for image, text in pairs]


def gradients(start: Path, own: slice) -> dict[str, torch.Tensor]:
    objective, examples = matching(start)
    objective(**Pairs(Words.read(start))(examples[own]))["loss"].backward()
    return {name: each.grad for name, each in objective.named_parameters() if each.grad is not None}


def rank(start: Path, out: Path) -> None:
    """Be one of the processes: the mean of gradients is what they exchange."""
    distributed.init_process_group("gloo")
    number = distributed.get_rank()
    each = len(REPORTS) // PROCESSES
    found = gradients(start, slice(number * each, (number + 1) * each))
    for gradient in found.values():
        distributed.all_reduce(gradient)
        gradient.div_(PROCESSES)
    rows = everywhere(torch.tensor([[10 * number], [10 * number + 1]]))
    torch.save({"rows": rows, "gradients": found}, out / f"{number}.pt")
    distributed.destroy_process_group()


def stage(start: Path, out: Path) -> None:
    """Be one of the processes of a whole stage: two passes over three pairs."""
    recipe = handful.recipe("contrastive", steps=0, epochs=2, batch=1, save_every=1)
    places = stages.Places(start, out / "run", data=out / "data")
    told = stages.run(recipe, places, device="cpu")
    (out / f"told-{os.environ['RANK']}.json").write_text(json.dumps(told))


def launch(what: str, start: Path, out: Path) -> None:
    """Start processes as a launcher does: on loopback, told by the environment."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(PROCESSES),
        "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1",
    }  # fmt: skip
    command = [sys.executable, __file__, what, str(start), str(out)]
    running = [
        subprocess.Popen(
            command,
            env=environment | {"RANK": str(number), "LOCAL_RANK": str(number)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(PROCESSES)
    ]
    try:
        errors = [each.communicate()[1] for each in running]
    finally:
        for each in running:
            each.kill()
    assert [each.returncode for each in running] == [0] * PROCESSES, "\n".join(errors)


@pytest.mark.slow
def test_the_gradient_of_two_processes_is_that_of_one_with_the_whole_batch(tmp_path: Path) -> None:
    start = handful.clip(tmp_path / "clip")
    whole = gradients(start, slice(None))
    assert any(float(each.abs().max()) > 1e-4 for each in whole.values())
    launch("rank", start, tmp_path)
    for number in range(PROCESSES):
        found: dict[str, Any] = torch.load(tmp_path / f"{number}.pt")
        assert found["rows"].flatten().tolist() == [0, 1, 10, 11]
        assert found["gradients"].keys() == whole.keys()
        for name, gradient in found["gradients"].items():
            torch.testing.assert_close(gradient, whole[name], atol=1e-6, rtol=1e-4, msg=name)


@pytest.mark.slow
def test_a_stage_in_two_processes_writes_one_checkpoint_after_as_many_steps_as_needed(
    tmp_path: Path,
) -> None:
    """Two passes over three pairs are six; two processes of one each need three steps."""
    start = handful.clip(tmp_path / "clip")
    handful.data(tmp_path / "data", handful.scenes())
    launch("stage", start, tmp_path)
    first, second = (json.loads((tmp_path / f"told-{each}.json").read_text()) for each in (0, 1))
    assert first["steps"] == second["steps"] == 3
    assert first["sha256"] == clip.load(tmp_path / "run/checkpoint").card.sha256
    assert "sha256" not in second
    assert len(list((tmp_path / "run/tensorboard").iterdir())) == 1


def test_alone_a_process_has_its_own_rows() -> None:
    own = torch.rand(2, 3)
    assert everywhere(own) is own


if __name__ == "__main__":
    torch.set_num_threads(1)
    {"rank": rank, "stage": stage}[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]))
    running.leave()
