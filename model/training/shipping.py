"""The trained small checkpoint made ready to ship: half the bytes, and a card with every number.

Knows a checkpoint's folder and the results of the benchmark and of `ablate`; trains and measures
nothing.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from model import checkpoint
from model.card import Card
from model.errors import ModelError

from . import ablation as ablations
from . import curves

PRECISE: Final = "positional_encoding_gaussian_matrix"  # half of it would move places
LARGEST_MB: Final = 25
CURVES, PAGE = "training.svg", "report.html"
CPU: Final = torch.device("cpu")


def ship(
    source: Path,
    out: Path,
    *,
    text: str,
    results: Path | None = None,
    run: Path | None = None,
    ablation: Path | None = None,
) -> Card:
    """Write `source` to `out` in float16, with a card made of `text` and the benchmark's numbers.

    What is in float16 stays as it is to the last bit, so what was measured is what ships. The
    benchmark's page beside `results` goes with it. Of `run`, the folder of the stages it came from,
    the card tells how long each took, beside their curves; and of `ablation`, a result of
    `ablate` on that run, what each part of it gives.

    Raises
    ------
    ModelError
        `results` are of another checkpoint, `ablation` is of another run, or the weights are too
        large to ship.
    """
    config = checkpoint.read_config(source)
    card = checkpoint.read_card(source, config)
    numbers = [] if results is None else list(_numbers(_results(results, card)))
    network = checkpoint.network_from(source, config, CPU, torch.float32)
    state = {key: _half(key, value) for key, value in network.state_dict().items()}
    size = sum(each.numel() * each.element_size() for each in state.values()) / 1e6
    if size > LARGEST_MB:
        raise ModelError(f"the weights must be at most {LARGEST_MB} MB, not {size:.1f}")
    files = {each: (source / each).read_bytes() for each in checkpoint.WORDS}
    if results is not None:
        files[PAGE] = _page(results)
    went: list[str] = []
    if run is not None:
        told = curves.courses(run)
        files[CURVES] = curves.picture(told)
        went = ["## Training", "", *curves.table(told), "", f"![curves]({CURVES})", ""]
    if ablation is not None:
        if run is None:
            raise ModelError(f"{ablation} is of a run, which --run must name")
        went += ablations.section(ablation, run)
    note = "\n".join([text.strip(), "", *went, *numbers])
    return checkpoint.write(
        out, config, state, files, name=card.name, untrained=card.untrained, note=note
    )


def _half(key: str, value: Tensor) -> Tensor:
    if key.endswith(PRECISE) or not value.is_floating_point():
        return value
    return value.to(torch.float16)


def _results(path: Path, card: Card) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} is no result of the benchmark: {error}") from error
    measured = found["checkpoint"]["sha256"]
    if measured != card.sha256:
        raise ModelError(
            f"{path} is of the checkpoint {measured[:12]}, expected {card.sha256[:12]}, {card.name}"
        )
    return found


def _page(results: Path) -> bytes:
    try:
        return results.with_name(PAGE).read_bytes()
    except OSError as error:
        raise ModelError(f"beside {results} there should be its page: {error}") from error


def _numbers(results: Mapping[str, Any]) -> Iterator[str]:
    """Tell every score with its interval, and blind beside it, as a table."""
    yield "## Measured"
    yield ""
    counts = results["counts"]
    yield (
        f"`lamed-model bench` on {counts['images']} images of patients whose seeds training never "
        "saw, greedy. Those bent out of the real scan are of the one person that training saw too, "
        "bent in other ways. In brackets the 95 % interval by patient; blind: the same questions "
        f"with the image withheld. Slices, pictures and what went wrong are in `{PAGE}`."
    )
    yield ""
    yield "| task | measure | score | blind | items |"
    yield "|---|---|---|---|---|"
    told = {**results["tasks"], "declining": results["declining"] | {"measured": True}}
    for task, each in told.items():
        if not each.get("measured", True):
            yield f"| {task} | not measured | | | |"
            continue
        for name, score in each["scores"].items():
            blind = _number(score.get("blind"))
            yield f"| {task} | {name} | {_score(score)} | {blind} | {score['items']} |"


def _score(score: Mapping[str, Any]) -> str:
    value = _number(score["value"])
    if score.get("low") is None:
        return value
    return f"{value} [{_number(score['low'])}, {_number(score['high'])}]"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
