"""What stages left in their TensorBoard logs: how long each took, and a picture of its curves.

Knows logs and SVG; neither networks nor recipes.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

RUNS: Final = ("segment", "contrastive", "look", "align", "tune")  # folders of `demo.run`
PREFIX: Final = "train/"
HIDDEN: Final = frozenset({"epoch", "learning_rate", "grad_norm", "scale"})
WIDTH, HEIGHT = 420, 246  # of a panel, in pixels
LEFT, RIGHT, TOP, BOTTOM = 48, 12, 46, 28
COLOURS: Final = ("#222222", "#0b6e99", "#c25700", "#5a8f29", "#8e44ad")
STYLE: Final = (
    "text{font:12px sans-serif;fill:#333}.title{font-weight:600}path{fill:none;stroke-width:1.6}"
    ".grid{stroke:#ddd;stroke-width:1}"
)

Curve = Sequence[tuple[int, float]]


@dataclass(frozen=True)
class Course:
    """How a stage went: its logged means by step, and the minutes it was at work."""

    stage: str
    steps: int
    minutes: float
    curves: Mapping[str, Curve]


def courses(run: Path) -> list[Course]:
    """Read the logs of the stages in `run`, in their order; those without any are left out."""
    found = ((stage, run / stage / "tensorboard") for stage in RUNS)
    return [_course(stage, logs) for stage, logs in found if logs.is_dir()]


def table(told: Sequence[Course]) -> Iterator[str]:
    """Tell steps, minutes, and the first and the last mean of every curve, in Markdown."""
    yield "| stage | steps | minutes | from first to last step |"
    yield "|---|---|---|---|"
    for each in told:
        ends = ", ".join(
            f"{name} {curve[0][1]:.2f} to {curve[-1][1]:.2f}" for name, curve in each.curves.items()
        )
        yield f"| {each.stage} | {each.steps} | {each.minutes:.0f} | {ends} |"
    yield f"| all | | {sum(each.minutes for each in told):.0f} | |"


def picture(told: Sequence[Course]) -> bytes:
    """Draw the curves of each stage in a panel of its own, on a logarithmic scale: an SVG."""
    rows = -(-len(told) // 2)
    panels = "".join(
        f'<g transform="translate({WIDTH * (i % 2)} {HEIGHT * (i // 2)})">{_panel(each)}</g>'
        for i, each in enumerate(told)
    )
    size = f'width="{2 * WIDTH}" height="{HEIGHT * rows}"'
    view = f'viewBox="0 0 {2 * WIDTH} {HEIGHT * rows}"'
    back = '<rect width="100%" height="100%" fill="#fff"/>'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} {view}>'
    return f"{head}<style>{STYLE}</style>{back}{panels}</svg>\n".encode()


def _course(stage: str, logs: Path) -> Course:
    curves: dict[str, dict[int, float]] = {}
    seconds = 0.0
    # A file for each process that was at work; between them nobody was.
    for path in sorted(logs.iterdir(), key=lambda each: each.stat().st_mtime):
        events = _events(path)
        times = [event.wall_time for each in events.values() for event in each]
        seconds += max(times, default=0.0) - min(times, default=0.0)
        for name, each in events.items():
            curves.setdefault(name, {}).update({event.step: event.value for event in each})
    kept = {name: sorted(each.items()) for name, each in curves.items()}
    steps = max((each[-1][0] for each in kept.values()), default=0)
    return Course(stage, steps, seconds / 60, kept)


def _events(path: Path) -> dict[str, list[Any]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(path), size_guidance={"scalars": 0})
    events.Reload()
    names = [each for each in events.Tags()["scalars"] if each.startswith(PREFIX)]
    every = {name.removeprefix(PREFIX): events.Scalars(name) for name in names}
    # What the Trainer sums up at its end is said once, and is no curve.
    return {name: each for name, each in every.items() if name not in HIDDEN and len(each) > 1}


def _panel(course: Course) -> str:
    values = [value for curve in course.curves.values() for _, value in curve if value > 0]
    low, high = math.log10(min(values, default=0.1)), math.log10(max(values, default=1.0))
    span = max(high - low, 0.1)

    def at(step: int, value: float) -> tuple[float, float]:
        x = LEFT + (WIDTH - LEFT - RIGHT) * step / max(course.steps, 1)
        up = (math.log10(max(value, 10**low)) - low) / span
        return x, HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * up

    title = f"{course.stage}: {course.steps} steps, {course.minutes:.0f} minutes"
    parts = [f'<text class="title" x="{LEFT}" y="18">{title}</text>']
    for share in (0.0, 0.5, 1.0):
        value = 10 ** (low + share * span)
        _, y = at(0, value)
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:.2g}</text>')
    for share in (0.0, 0.5, 1.0):
        x, _ = at(round(share * course.steps), 1)
        anchor = "end" if share == 1 else "middle"
        step = f"{share * course.steps:.0f}"
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - 10}" text-anchor="{anchor}">{step}</text>')
    key = []
    for colour, (name, curve) in zip(COLOURS, course.curves.items(), strict=False):
        line = "L".join("{:.1f} {:.1f}".format(*at(*each)) for each in curve)
        parts.append(f'<path stroke="{colour}" d="M{line}"/>')
        key.append(f'<tspan dx="8" style="fill:{colour}">{name}</tspan>')
    parts.append(f'<text x="{WIDTH - RIGHT}" y="36" text-anchor="end">{"".join(key)}</text>')
    return "".join(parts)
