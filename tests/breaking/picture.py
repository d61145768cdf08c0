"""Samples over time as a picture: one panel below the other, as SVG."""

from collections.abc import Sequence

WIDTH, HEIGHT, LEFT, TOP = 760, 150, 70, 30
PANELS = (
    ("memory, MB", ("scp_mb", "worker_mb", "qa_mb")),
    ("file handles", ("scp_handles", "worker_handles", "qa_handles")),
    ("threads", ("scp_threads", "worker_threads", "qa_threads")),
    ("time for an image, ms: median, 95 %, 99 %", ("p50_ms", "p95_ms", "p99_ms")),
    ("time for the page of studies, ms", ("page_ms",)),
    ("jobs that wait, deliveries without proof yet", ("waiting", "unproven")),
)
COLOURS = ("#0b6e99", "#c25700", "#8e44ad")


def picture(samples: Sequence[dict[str, float]]) -> str:
    """Draw what was sampled, one panel below the other, as SVG."""
    height = (HEIGHT + 2 * TOP) * len(PANELS)
    panels = (
        _panel(samples, title, names, (HEIGHT + 2 * TOP) * at + TOP)
        for at, (title, names) in enumerate(PANELS)
    )
    style = "text{font:12px sans-serif;fill:#333}polyline{fill:none;stroke-width:1.5}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH + LEFT + 20}" height="{height}">'
        f'<style>{style}</style><rect width="100%" height="100%" fill="white"/>'
        f"{''.join(panels)}</svg>\n"
    )


def _panel(
    samples: Sequence[dict[str, float]], title: str, names: Sequence[str], top: float
) -> str:
    last = max(each["s"] for each in samples) or 1.0
    most = max(each[name] for each in samples for name in names) * 1.05 or 1.0
    drawn = [f'<text x="{LEFT}" y="{top - 8}" font-weight="600">{title}</text>']
    key = "".join(
        f'<tspan fill="{colour}" dx="12">{name}</tspan>'
        for name, colour in zip(names, COLOURS, strict=False)
    )
    drawn.append(f'<text x="{LEFT + WIDTH}" y="{top - 8}" text-anchor="end">{key}</text>')
    for part, anchor in ((0.0, "start"), (0.5, "middle"), (1.0, "end")):
        y = top + HEIGHT * (1 - part)
        drawn.append(f'<line x1="{LEFT}" x2="{LEFT + WIDTH}" y1="{y}" y2="{y}" stroke="#ddd"/>')
        drawn.append(f'<text x="{LEFT - 6}" y="{y + 4}" text-anchor="end">{most * part:.0f}</text>')
        minutes = f"{last * part / 60:.1f} min"
        x = LEFT + WIDTH * part
        drawn.append(
            f'<text x="{x}" y="{top + HEIGHT + 16}" text-anchor="{anchor}">{minutes}</text>'
        )
    for name, colour in zip(names, COLOURS, strict=False):
        points = " ".join(
            f"{LEFT + WIDTH * each['s'] / last:.1f},{top + HEIGHT * (1 - each[name] / most):.1f}"
            for each in samples
        )
        drawn.append(f'<polyline points="{points}" stroke="{colour}"/>')
    return "".join(drawn)
