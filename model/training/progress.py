"""How far a run is: a bar on a terminal, a line for each logged step anywhere else.

Knows steps and numbers; writes to the standard error, which nothing parses.
"""

import sys
import time
from collections.abc import Callable
from typing import Any, Final

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bar
from transformers import TrainerCallback

HIDDEN: Final = frozenset({"epoch", "learning_rate", "step"})
SMALL: Final = 1e-3


class Progress(TrainerCallback):
    """Tells step, loss and its parts, the time that went by and the time that is left."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._bar: Bar | None = None
        self._began, self._first = 0.0, 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ANN401, ARG002 - as the Trainer gives it
        """Take the time, and begin a bar where there is a terminal."""
        self._began, self._first = time.monotonic(), state.global_step
        if self._console.is_terminal:
            columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
                       TimeRemainingColumn(), TextColumn("{task.description}"))  # fmt: skip
            self._bar = Bar(*columns, console=self._console)
            self._task = self._bar.add_task("", total=state.max_steps, completed=state.global_step)
            self._bar.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ANN401, ARG002
        """Move the bar."""
        if self._bar is not None:
            self._bar.update(self._task, completed=state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:  # noqa: ANN401, ARG002
        """Tell what was logged."""
        if not logs or "loss" not in logs:
            return
        told = "  ".join(
            f"{name} {_number(value)}" for name, value in logs.items() if name not in HIDDEN
        )
        if self._bar is not None:
            self._bar.update(self._task, description=told)
            return
        went = time.monotonic() - self._began
        done = max(state.global_step - self._first, 1)
        left = went / done * (state.max_steps - state.global_step)
        tell(
            f"step {state.global_step}/{state.max_steps}  {told}  "
            f"{duration(went)} elapsed, {duration(left)} left"
        )

    def close(self) -> None:
        """Leave the terminal as it was, however the run ended."""
        if self._bar is not None:
            self._bar.stop()


def counted(what: str) -> Callable[[int, int], None]:
    """Give what tells how many of all are done: a line for each tenth of them."""

    def count(done: int, total: int) -> None:
        if done * 10 // total > (done - 1) * 10 // total:
            tell(f"{what} {done}/{total}")

    return count


def tell(line: str) -> None:
    """Say what is being done."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def duration(seconds: float) -> str:
    """Write a time as 1h02m, 3m04s or 5s."""
    whole = round(seconds)
    if whole >= 3600:  # noqa: PLR2004 - an hour
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 60}m{whole % 60:02d}s" if whole >= 60 else f"{whole}s"  # noqa: PLR2004 - a minute


def _number(value: float) -> str:
    return f"{value:.2e}" if 0 < abs(value) < SMALL else f"{value:.4f}"
