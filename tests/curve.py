"""A run of training small enough to be killed and begun again within seconds: `python curve.py`.

The objective is a line through points, with dropout, so that the random state counts.
"""

import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from model.training.examples import Example, Stream
from model.training.running import Run, train


class Line(nn.Module):
    """Learns to double; `poison` says what becomes of the loss or the gradients at which call.

    `rest` never learns, and is no part of a state.
    """

    def __init__(self, poison: dict[int, str] | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(4, 4))
        self.rest = nn.Parameter(torch.ones(4), requires_grad=False)
        self.dropout = nn.Dropout(0.3)
        self.poison, self.calls = poison or {}, 0

    def forward(self, values: Tensor) -> dict[str, Tensor]:
        self.calls += 1
        away = self.dropout(values) @ self.weight - 2 * values * self.rest
        loss = away.square().mean()
        match self.poison.get(self.calls):
            case "nan":
                loss = loss * torch.nan
            case "gradient":
                loss = loss + (self.weight - self.weight.detach()).abs().sqrt().sum()
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
        return {"loss": loss, "away": away.abs().mean()}


class Numbers:
    """Seven examples; each time with some noise."""

    def __len__(self) -> int:
        return 7

    def example(self, number: int, random: np.random.Generator) -> Example:
        return Example((number + random.random(4)).astype(np.float32))


def collate(examples: Sequence[Example]) -> dict[str, Tensor]:
    return {"values": torch.from_numpy(np.stack([each.image for each in examples]))}


def run(out: Path, line: Line | None = None, **changed: Any) -> list[dict[str, float]]:
    given: dict[str, Any] = {
        "steps": 12, "batch": 2, "learning_rate": 0.05, "log_every": 1, "save_every": 3,
        "device": "cpu",
    }  # fmt: skip
    how = Run(**(given | changed))
    torch.manual_seed(how.seed)
    stream = Stream(Numbers(), how.examples, how.seed)
    return train(line or Line(), stream, collate, how, out)


def losses(log: list[dict[str, float]]) -> list[tuple[float, ...]]:
    return [(each["step"], each["loss"], each["away"], each["grad_norm"]) for each in log]


if __name__ == "__main__":
    torch.set_num_threads(1)
    calls = {int(each): "kill" for each in sys.argv[2:]}
    print(json.dumps(losses(run(Path(sys.argv[1]), Line(calls), workers=1))))  # noqa: T201
