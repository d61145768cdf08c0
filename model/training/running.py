"""transformers' Trainer with guards: seeded, resumable, logged, and never trained on a NaN.

Knows an objective, a stream and how to run. Several processes, DeepSpeed and FSDP are the business
of their launchers (`accelerate launch`, `torchrun`), which the Trainer obeys; one process uses one
device.
"""

import json
import logging
import os
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import SequentialSampler
from torch.utils.tensorboard import SummaryWriter
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.integrations.integration_utils import TensorBoardCallback

from model.errors import ModelError

from .examples import Example, Stream
from .progress import Progress

SKIPPED_AT_MOST: Final = 3  # steps in a row whose gradients were not finite
KEPT: Final = 2  # states of a run: if a kill spoils the one that is written, there is another
STATE, WEIGHTS = "trainer_state.json", "model.safetensors"  # as transformers names them

log = logging.getLogger(__name__)


def leave() -> None:
    """Leave the group of processes, if there is one: its threads must end before the process."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


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
    rates
        Factors of the learning rate for what lies below a module, by its name.
    save_every
        Steps between checkpoints that a killed run goes on from; a multiple of `log_every`, or the
        first line after a kill is the mean of other steps.
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
    rates: Mapping[str, float] = field(default_factory=dict)
    device: str = "auto"

    def __post_init__(self) -> None:
        if self.precision not in ("fp32", "bf16"):
            raise ModelError(f"precision must be fp32 or bf16, not {self.precision!r}")

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
    whole: Callable[[dict[str, Tensor]], None] = lambda _: None,
) -> list[dict[str, float]]:
    """Train in place; a run that was begun in `out` goes on from its last whole state.

    Where weights are spread over processes, the objective is no longer whole at the end: then
    `whole` is given all of them, in the first process.

    Returns
    -------
    The log: step, loss and its parts, gradient norm, learning rate.

    Raises
    ------
    TrainingError
        The loss, or the gradients again and again, are not finite.
    """
    arguments = _arguments(run, out)
    last = last_state(out)
    trainer = _Trainer(
        model=objective, args=arguments, train_dataset=stream, data_collator=collate,
        callbacks=[_Guard()], rates=run.rates,
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)
    main = trainer.is_world_process_zero()
    with _told(trainer, out, last[0] if last else None) if main else nullcontext():
        trainer.train(resume_from_checkpoint=str(last[1]) if last else None)
    state = trainer.whole()
    if state is not None and main:
        whole(state)
    return [each for each in trainer.state.log_history if "loss" in each]


@contextmanager
def _told(trainer: Trainer, out: Path, last: int | None) -> Iterator[None]:
    """Tell of a run on the standard error and to TensorBoard."""
    # What was logged after the step that the run goes on from is logged again.
    step = None if last is None else last + 1
    writer = SummaryWriter(str(out / "tensorboard"), purge_step=step)
    progress = Progress()
    trainer.add_callback(TensorBoardCallback(writer))  # type: ignore[no-untyped-call]
    trainer.add_callback(progress)
    try:
        yield
    finally:
        progress.close()
        writer.close()


def last_state(out: Path) -> tuple[int, Path] | None:
    """Find the last state that was written whole, with its step; the last file of one is STATE."""
    found: list[tuple[int, Path]] = []
    for each in out.glob("checkpoint-*"):
        with suppress(OSError, ValueError, KeyError, TypeError):
            told = json.loads((each / STATE).read_text("utf-8"))
            found.append((int(told["global_step"]), each))
    return max(found, default=None)


def forget_states(out: Path) -> None:
    """Leave only the last state of a run that is done."""
    last = last_state(out)
    for each in out.glob("checkpoint-*"):
        if last is not None and each != last[1]:
            shutil.rmtree(each, ignore_errors=True)


def _arguments(run: Run, out: Path) -> TrainingArguments:
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    arguments = TrainingArguments(
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
        save_total_limit=KEPT,
        disable_tqdm=True,
        report_to=[],
        ddp_backend="gloo" if several and not torch.cuda.is_available() else None,
        ddp_find_unused_parameters=True,  # released weights that nothing calls stand in SegVol
    )
    # Left alone it would split a batch over all devices it sees, and packs cannot be split.
    arguments._n_gpu = min(arguments.n_gpu, 1)  # noqa: SLF001 - there is no other way to say so
    return arguments


class _Trainer(Trainer):
    """Takes the objective's own loss, in the stream's own order, and logs its parts.

    Only what learns is kept in a state: the rest is the start's.
    """

    def __init__(self, *, rates: Mapping[str, float], **given: Any) -> None:  # noqa: ANN401 - as the Trainer's
        super().__init__(**given)
        self.model_accepts_loss_kwargs = False
        self._rates = rates
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
                self._parts[name].append(value.detach().float())
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            means = {
                name: round(float(torch.stack(each).mean()), 5)
                for name, each in self._parts.items()
            }
            logs = logs | means
            self._parts.clear()
        super().log(logs, start_time)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Make the Trainer's own optimiser, with groups for the parts that have another rate."""
        if not self._rates:
            return super().create_optimizer(model)  # type: ignore[no-any-return, unused-ignore]
        model = model or self._objective
        decayed = set(self.get_decay_parameter_names(model))
        groups: dict[tuple[float, bool], list[Tensor]] = {(1.0, True): []}  # the rate that is told
        for name, each in model.named_parameters():
            if each.requires_grad:
                groups.setdefault((self._rate(name), name in decayed), []).append(each)
        kind, given = self.get_optimizer_cls_and_kwargs(self.args)
        self.optimizer = kind(
            [
                {
                    "params": each,
                    "lr": rate * self.args.learning_rate,
                    "weight_decay": self.args.weight_decay if decays else 0.0,
                }
                for (rate, decays), each in groups.items()
            ],
            **given,
        )
        return self.optimizer

    def _rate(self, name: str) -> float:
        below = [factor for module, factor in self._rates.items() if name.startswith(f"{module}.")]
        return below[0] if below else 1.0

    def whole(self) -> dict[str, Tensor] | None:
        """Collect a state that is spread over processes, to write no parts of size 0."""
        if not self._sharded:
            return None
        state: dict[str, Tensor] = self.accelerator.get_state_dict(self.model_wrapped)
        return state

    def _get_train_sampler(self, train_dataset: object = None) -> SequentialSampler:  # noqa: ARG002 - there is one
        stream: Any = self.train_dataset
        return SequentialSampler(stream)

    def _save(
        self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None
    ) -> None:
        if self._sharded:
            super()._save(output_dir, state_dict)
        elif self.args.should_save:
            self._save_learnt(output_dir, state_dict)

    def _save_learnt(self, output_dir: str | None, state_dict: dict[str, Any] | None) -> None:
        folder = Path(str(output_dir or self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        whole, learnt = state_dict or self._objective.state_dict(), self._learnt()
        state = {name: whole[name].contiguous() for name in sorted(learnt)}
        save_file(state, folder / WEIGHTS, metadata={"format": "pt"})

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        if self._sharded:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        path = Path(resume_from_checkpoint) / WEIGHTS
        with safe_open(path, framework="pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        missing = self._learnt() - set(state)
        foreign = set(state) - set(self._objective.state_dict())
        if missing or foreign:
            raise TrainingError(
                f"{path}: expected the weights that learn, "
                f"got it without {sorted(missing)[:1]} and with {sorted(foreign)[:1]}"
            )
        self._objective.load_state_dict(state, strict=False)

    @property
    def _sharded(self) -> bool:
        return bool(self.is_fsdp_enabled or self.is_deepspeed_enabled)

    @property
    def _objective(self) -> nn.Module:
        model: Any = self.model
        objective: nn.Module = model
        return objective

    def _learnt(self) -> set[str]:
        """Name what a state must hold: all but the parameters that rest."""
        rest = {name for name, each in self._objective.named_parameters() if not each.requires_grad}
        return set(self._objective.state_dict()) - rest


class _Guard(TrainerCallback):
    """Leaves out a step whose gradients are not finite; too many in a row end the run."""

    def __init__(self) -> None:
        self.skipped = 0

    def on_pre_optimizer_step(
        self,
        args: Any,  # noqa: ANN401, ARG002 - as the Trainer gives it
        state: Any,  # noqa: ANN401
        control: Any,  # noqa: ANN401, ARG002
        **given: Any,  # noqa: ANN401
    ) -> None:
        model: nn.Module = given["model"]
        gradients = {
            name: each.grad for name, each in model.named_parameters() if each.grad is not None
        }
        if not gradients or bool(torch.isfinite(nn.utils.get_total_norm(gradients.values()))):
            self.skipped = 0
            return
        broken = next(
            (name for name, each in gradients.items() if not bool(torch.isfinite(each).all())),
            "their norm",
        )
        step, self.skipped = state.global_step + 1, self.skipped + 1
        if self.skipped > SKIPPED_AT_MOST:
            raise TrainingError(
                f"step {step}: expected finite gradients, got others {self.skipped} times in a "
                f"row, such as that of {broken}"
            )
        log.warning("training.skipped", extra={"step": step, "parameter": broken})
        model.zero_grad(set_to_none=True)
