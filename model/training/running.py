"""transformers' Trainer with guards: seeded, resumable, logged, and never trained on a NaN.

Knows an objective, a stream and how to run. Several processes, DeepSpeed and FSDP are the business
of their launchers (`accelerate launch`, `torchrun`), which the Trainer obeys.
"""

import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.utils.data import SequentialSampler
from torch.utils.tensorboard import SummaryWriter
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.integrations.integration_utils import TensorBoardCallback
from transformers.trainer_utils import get_last_checkpoint

from model.errors import ModelError

from .examples import Example, Stream

SKIPPED_AT_MOST: Final = 3  # steps in a row whose gradients were not finite


class TrainingError(ModelError):
    """A run cannot go on; says at which step, what was expected and what came."""


@dataclass(frozen=True)
class Run:
    """How a stage runs.

    Parameters
    ----------
    steps
        Of the optimiser. Each takes `batch` x `accumulate` examples in every process.
    precision
        ``fp32`` or ``bf16`` (autocast; weights and optimiser stay float32).
    workers
        Processes that make examples.
    save_every
        Steps between checkpoints that a killed run goes on from.
    """

    steps: int
    batch: int
    learning_rate: float
    weight_decay: float = 0.0
    warmup: float = 0.03
    schedule: str = "cosine"
    accumulate: int = 1
    clip: float = 1.0
    precision: str = "fp32"
    seed: int = 0
    workers: int = 0
    log_every: int = 10
    save_every: int = 200
    device: str = "auto"

    @property
    def examples(self) -> int:
        """Examples one process takes in the whole run."""
        return self.steps * self.batch * self.accumulate


def train(
    objective: nn.Module,
    stream: Stream,
    collate: Callable[[Sequence[Example]], dict[str, Tensor]],
    run: Run,
    out: Path,
) -> list[dict[str, float]]:
    """Train in place; a run that was begun in `out` goes on from its last checkpoint.

    Returns
    -------
    The log: step, loss and its parts, gradient norm, learning rate.

    Raises
    ------
    TrainingError
        The loss, or the gradients again and again, are not finite.
    """
    if run.precision not in ("fp32", "bf16"):
        raise ModelError(f"precision must be fp32 or bf16, not {run.precision!r}")
    last = last_state(out)
    step = int(last.name.rpartition("-")[2]) if last else None
    writer = SummaryWriter(str(out / "tensorboard"), purge_step=step)
    trainer = _Trainer(
        model=objective,
        args=_arguments(run, out),
        train_dataset=stream,
        data_collator=collate,
        callbacks=[TensorBoardCallback(writer), _Guard()],  # type: ignore[no-untyped-call]
    )
    trainer.train(resume_from_checkpoint=str(last) if last else None)
    writer.close()
    return [each for each in trainer.state.log_history if "loss" in each]


def _arguments(run: Run, out: Path) -> TrainingArguments:
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    return TrainingArguments(
        output_dir=str(out),
        max_steps=run.steps,
        per_device_train_batch_size=run.batch,
        gradient_accumulation_steps=run.accumulate,
        learning_rate=run.learning_rate,
        weight_decay=run.weight_decay,
        warmup_steps=round(run.warmup * run.steps),
        lr_scheduler_type=run.schedule,
        max_grad_norm=run.clip,
        bf16=run.precision == "bf16",
        use_cpu=run.device == "cpu" or not torch.cuda.is_available(),
        seed=run.seed,
        data_seed=run.seed,
        dataloader_num_workers=run.workers,
        dataloader_persistent_workers=run.workers > 0,
        dataloader_pin_memory=torch.cuda.is_available(),
        remove_unused_columns=False,
        label_names=[],
        logging_steps=run.log_every,
        logging_first_step=True,
        logging_nan_inf_filter=False,
        save_steps=run.save_every,
        save_total_limit=2,
        report_to=[],
        ddp_backend="gloo" if several and not torch.cuda.is_available() else None,
        ddp_find_unused_parameters=True,  # a batch without masks leaves SegVol out
    )


class _Trainer(Trainer):
    """Takes the objective's own loss, in the stream's own order, and logs its parts."""

    def __init__(self, **given: Any) -> None:  # noqa: ANN401 - what Trainer takes
        super().__init__(**given)
        self.model_accepts_loss_kwargs = False
        self._parts: dict[str, list[Tensor]] = defaultdict(list)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        *_: object,
        **__: object,
    ) -> Tensor:
        parts = model(**inputs)
        loss: Tensor = parts["loss"]
        if not bool(torch.isfinite(loss)):
            told = ", ".join(f"{name} {float(value.detach()):g}" for name, value in parts.items())
            raise TrainingError(
                f"step {self.state.global_step + 1}: expected a finite loss, got {told}"
            )
        for name, value in parts.items():
            if name != "loss":
                self._parts[name].append(value.detach().float().cpu())
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs |= {
                name: round(float(torch.stack(each).mean()), 5)
                for name, each in self._parts.items()
            }
            self._parts.clear()
        super().log(logs, start_time)

    def _get_train_sampler(self, train_dataset: object = None) -> SequentialSampler:  # noqa: ARG002 - there is one
        stream: Any = self.train_dataset
        return SequentialSampler(stream)


class _Guard(TrainerCallback):
    """Leaves out a step whose gradients are not finite; too many in a row end the run."""

    def __init__(self) -> None:
        self.skipped = 0

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **given: Any) -> None:  # noqa: ANN401, ARG002 - Trainer's
        model: nn.Module = given["model"]
        broken = [
            name
            for name, each in model.named_parameters()
            if each.grad is not None and not bool(torch.isfinite(each.grad).all())
        ]
        self.skipped = self.skipped + 1 if broken else 0
        if self.skipped > SKIPPED_AT_MOST:
            raise TrainingError(
                f"step {state.global_step + 1}: expected finite gradients, got others "
                f"{self.skipped} times in a row, such as that of {broken[0]}"
            )
        if broken:
            model.zero_grad(set_to_none=True)


def last_state(out: Path) -> Path | None:
    """Find the state that a run in `out` goes on from."""
    last = get_last_checkpoint(str(out)) if out.is_dir() else None  # type: ignore[no-untyped-call]
    return Path(last) if last else None
