"""The Trainer with its guards: seeded, logged, resumed after a kill, and never on a NaN."""

import json
import logging
import math
import os
import subprocess
import sys
from pathlib import Path

import curve
import pytest
import torch
from safetensors.torch import load_file, save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from model.errors import ModelError
from model.training.progress import duration
from model.training.running import Run, TrainingError, forget_states, last_state

ROOT = Path(__file__).parent.parent


def process(out: Path, *kills: int) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    return subprocess.run(
        [sys.executable, curve.__file__, str(out), *map(str, kills)],
        env=os.environ | {"PYTHONPATH": paths, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_after_a_kill_the_curve_goes_on_as_if_there_had_been_none(tmp_path: Path) -> None:
    """SIGKILL in the middle of step 8, two steps after the last state; then once more."""
    whole = process(tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    killed = process(tmp_path / "killed", 8)
    assert (killed.returncode, killed.stdout) == (-9, "")
    last = last_state(tmp_path / "killed")
    assert last is not None
    assert last[0] == 6
    resumed = process(tmp_path / "killed")
    assert resumed.returncode == 0, resumed.stderr
    assert json.loads(resumed.stdout) == json.loads(whole.stdout)
    assert len(json.loads(whole.stdout)) == 12
    ends = [load_file(tmp_path / name / "checkpoint-12/model.safetensors")["weight"]
            for name in ("whole", "killed")]  # fmt: skip
    assert torch.equal(*ends)
    assert curve_of(tmp_path / "killed") == curve_of(tmp_path / "whole")


def curve_of(out: Path) -> list[tuple[int, float]]:
    events = EventAccumulator(str(out / "tensorboard"))
    events.Reload()
    return [(each.step, each.value) for each in events.Scalars("train/loss")]


def test_two_runs_of_one_seed_are_equal_and_of_another_are_not(tmp_path: Path) -> None:
    first, second = (curve.run(tmp_path / name) for name in "ab")
    other = curve.run(tmp_path / "c", seed=1)
    assert curve.losses(first) == curve.losses(second)
    assert curve.losses(first) != curve.losses(other)
    assert first[-1]["loss"] < first[0]["loss"]


def test_a_loss_that_is_no_number_ends_the_run_and_names_step_and_parts(tmp_path: Path) -> None:
    with pytest.raises(
        TrainingError, match=r"step 5: expected a finite loss, got loss nan, away \d"
    ):
        curve.run(tmp_path, curve.Line({5: "nan"}))
    last = last_state(tmp_path)
    assert last is not None
    assert last[0] == 3


def test_a_step_whose_gradients_are_not_finite_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    line, seen = curve.Line({3: "gradient"}), []
    line.register_forward_pre_hook(lambda *_: seen.append(line.weight.detach().clone()))
    with caplog.at_level(logging.WARNING, "model.training.running"):
        log = curve.run(tmp_path, line, steps=5, save_every=5)
    # The weights that step 4 begins with are those that step 3 began with.
    assert torch.equal(seen[3], seen[2])
    assert not torch.equal(seen[4], seen[3])
    assert torch.isfinite(line.weight).all()
    assert [record.step for record in caplog.records if record.msg == "training.skipped"] == [3]
    assert len(log) == 5


def test_three_such_steps_in_a_row_are_borne_and_a_fourth_ends_the_run(tmp_path: Path) -> None:
    curve.run(tmp_path / "borne", curve.Line(dict.fromkeys((2, 3, 4, 6, 7, 8), "gradient")))
    with pytest.raises(
        TrainingError, match=r"step 5: expected finite gradients, got others 4 times .* weight"
    ):
        curve.run(tmp_path / "ended", curve.Line(dict.fromkeys((2, 3, 4, 5), "gradient")))


def test_bfloat16_computes_in_it_and_keeps_weights_in_float32(tmp_path: Path) -> None:
    line, kinds = curve.Line(), []
    line.dropout.register_forward_hook(lambda *told: kinds.append((told[-1] @ line.weight).dtype))
    log = curve.run(tmp_path, line, precision="bf16", steps=3)
    assert set(kinds) == {torch.bfloat16}
    assert line.weight.dtype == torch.float32
    assert all(math.isfinite(each["loss"]) for each in log)
    with pytest.raises(ModelError, match="precision must be fp32 or bf16, not 'fp16'"):
        Run(steps=1, batch=1, learning_rate=1, precision="fp16")


def test_gradients_are_clipped_and_several_batches_make_one_step(tmp_path: Path) -> None:
    line, steps = curve.Line(), []
    line.weight.register_hook(lambda each: steps.append(float(each.norm())) or None)
    log = curve.run(tmp_path, line, accumulate=3, steps=4, clip=0.01)
    assert line.calls == len(steps) == 12
    assert [each["step"] for each in log] == [1, 2, 3, 4]
    assert log[0]["grad_norm"] > 0.01


def test_a_part_may_learn_at_a_rate_of_its_own(tmp_path: Path) -> None:
    class Two(curve.Line):
        def __init__(self) -> None:
            super().__init__()
            self.slow = curve.Line()

        def forward(self, values: torch.Tensor) -> dict[str, torch.Tensor]:
            own, other = super().forward(values), self.slow(values)
            return {"loss": own["loss"] + other["loss"], "away": own["away"]}

    two = Two()
    log = curve.run(tmp_path, two, steps=1, save_every=1, rates={"slow": 0.1})
    # Whatever the gradient, Adam's first step is as long as the rate.
    assert float(two.weight.detach().abs().max()) == pytest.approx(0.05, rel=1e-3)
    assert float(two.slow.weight.detach().abs().max()) == pytest.approx(0.005, rel=1e-3)
    assert log[0]["learning_rate"] == 0.05


def test_the_rate_warms_up_and_falls_as_a_cosine(tmp_path: Path) -> None:
    log = curve.run(tmp_path, steps=20, warmup=0.2, save_every=20)
    rates = [each["learning_rate"] for each in log]
    wanted = [0.05 * step / 4 for step in range(4)]
    wanted += [0.05 * 0.5 * (1 + math.cos(math.pi * step / 16)) for step in range(16)]
    assert rates == pytest.approx(wanted)


def test_a_state_holds_what_learns_and_two_of_them_are_kept(tmp_path: Path) -> None:
    curve.run(tmp_path)
    assert sorted(each.name for each in tmp_path.glob("checkpoint-*")) == [
        "checkpoint-12",
        "checkpoint-9",
    ]
    assert set(load_file(tmp_path / "checkpoint-12/model.safetensors")) == {"weight"}
    forget_states(tmp_path)
    assert [each.name for each in tmp_path.glob("checkpoint-*")] == ["checkpoint-12"]


def test_a_state_that_a_kill_left_half_written_is_not_gone_on_from(tmp_path: Path) -> None:
    whole = curve.run(tmp_path / "whole")
    with pytest.raises(TrainingError):
        curve.run(tmp_path / "half", curve.Line({11: "nan"}))
    (tmp_path / "half/checkpoint-9/trainer_state.json").write_text('{"global_st')
    last = last_state(tmp_path / "half")
    assert last is not None
    assert last[0] == 6
    assert curve.losses(curve.run(tmp_path / "half")) == curve.losses(whole)


def test_a_state_that_holds_what_rests_too_is_gone_on_from(tmp_path: Path) -> None:
    whole = curve.run(tmp_path / "whole")
    with pytest.raises(TrainingError):
        curve.run(tmp_path / "older", curve.Line({11: "nan"}))
    path = tmp_path / "older/checkpoint-9/model.safetensors"
    save_file(load_file(path) | {"rest": torch.ones(4)}, path)
    assert curve.losses(curve.run(tmp_path / "older")) == curve.losses(whole)


def test_a_state_of_another_network_is_refused(tmp_path: Path) -> None:
    class Other(curve.Line):
        def __init__(self) -> None:
            super().__init__()
            self.more = torch.nn.Parameter(torch.zeros(1))

    curve.run(tmp_path, steps=3)
    with pytest.raises(TrainingError, match=r"expected the weights that learn.*'more'"):
        curve.run(tmp_path, Other(), steps=6)


def test_piped_a_run_is_told_in_one_plain_line_for_each_step_that_is_logged(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    curve.run(tmp_path, steps=6, log_every=3, save_every=3)
    told = capfd.readouterr()
    assert told.out == ""
    lines = told.err.splitlines()
    assert [each.split()[1] for each in lines] == ["1/6", "3/6", "6/6"]
    assert all("loss " in each and "away " in each for each in lines)
    assert all(each.endswith("left") and "elapsed" in each for each in lines)
    assert "\r" not in told.err
    assert "\x1b" not in told.err


def test_durations_are_written_for_people() -> None:
    assert [duration(each) for each in (0.4, 59.6, 184, 3720)] == ["0s", "1m00s", "3m04s", "1h02m"]
