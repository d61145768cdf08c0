"""`python -m tests.breaking soak`: a department at its peak, and what it costs the node over time.

So many scanners send study after study without a pause, by a protocol each of their own: many
images on an association, one association for each image, and probes that only connect. Meant for
an hour of a department in minutes: what grows, grows with what is received. Told by samples of
memory, file handles, threads and of how long an image takes, as JSON and as a picture.
"""

import argparse
import json
import random
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import PIPE, Popen
from typing import Any

from dicom_node import sample, scu
from dicom_node.config import Destination
from dicom_node.errors import NodeError

EVERY_S = 5.0
SHAPES = ((20, 256, 256), (60, 128, 128), (3, 512, 512))
SERVER = """
import sys, pathlib, threading, time
from dicom_node.config import Config
from dicom_node.intake import Intake
from dicom_node.jobs import Jobs
from dicom_node.ledger import Ledger
from dicom_node.routing import Rule
from dicom_node.scp import Scp
from dicom_node.spool import Spool
config = Config(dicom_port=0, data_dir=pathlib.Path(sys.argv[1]), minimum_free_mb=1, quiet_s=2)
ledger = Ledger(config.ledger_path)
rules = [Rule("ct_chest", "CT", ("CHEST",), ("CHEST",), 5)]
intake = Intake(ledger, Jobs(ledger), rules, model_digest="0f", fallback="", quiet_s=2,
                open_limit_s=600)
stop = threading.Event()
with Scp(config, Spool(config.spool_dir, ledger, minimum_free_mb=1), ledger) as scp:
    threading.Thread(target=intake.run, args=(stop,), daemon=True).start()
    print(scp.port, flush=True)
    sys.stdin.read()
    stop.set()
print(ledger.verify(), len(ledger.studies(limit=1_000_000)), flush=True)
"""


@dataclass
class Seen:
    """What the scanners have measured since it was last asked."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    latencies_ms: list[float] = field(default_factory=list)
    images: int = 0
    failures: int = 0

    def took(self, seconds: float) -> None:
        with self.lock:
            self.images += 1
            self.latencies_ms.append(1000 * seconds)

    def failed(self) -> None:
        with self.lock:
            self.failures += 1

    def taken(self) -> list[float]:
        with self.lock:
            found, self.latencies_ms = self.latencies_ms, []
        return found


def run(arguments: argparse.Namespace) -> int:
    arguments.folder.mkdir(parents=True, exist_ok=True)
    seen, stop = Seen(), threading.Event()
    with (
        tempfile.TemporaryDirectory(prefix="lamed-soak-", dir=arguments.disk) as folder,
        _node(Path(folder) / "node") as (node, port),
    ):
        threads = [
            threading.Thread(
                target=_scan, args=(number, port, Path(folder) / str(number), seen, stop)
            )
            for number in range(arguments.scanners)
        ]
        threads.append(threading.Thread(target=_probe, args=(port, stop)))
        for each in threads:
            each.start()
        samples = list(_samples(node, seen, 60 * arguments.minutes))
        stop.set()
        for each in threads:
            each.join()
        time.sleep(3.0)
        samples.append(_sample(node, seen, samples[-1]["s"] + 3.0))
        told = node.communicate("")[0].split()
    result = {
        "scanners": arguments.scanners, "minutes": arguments.minutes, "images": seen.images,
        "failures": seen.failures, "events": int(told[0]), "studies": int(told[1]),
        "samples": samples,
    }  # fmt: skip
    (arguments.folder / "soak.json").write_text(json.dumps(result, indent=1))
    (arguments.folder / "soak.svg").write_text(picture(samples))
    print(summary(result))  # noqa: T201
    return 0


@contextmanager
def _node(folder: Path) -> Iterator[tuple[Popen[str], int]]:
    node = Popen([sys.executable, "-c", SERVER, str(folder)], stdin=PIPE, stdout=PIPE, text=True)
    assert node.stdout is not None
    try:
        yield node, int(node.stdout.readline())
    finally:
        if node.poll() is None:
            node.kill()
            node.wait()


def _scan(number: int, port: int, folder: Path, seen: Seen, stop: threading.Event) -> None:
    """Send one study after the other; each scanner in its own way."""
    to, chance = Destination("LAMED", "127.0.0.1", port), random.Random(number)
    made = sample.series(shape=SHAPES[number % len(SHAPES)], seed=number)
    study = 0
    while not stop.is_set():
        study += 1
        for each in made:
            each.StudyInstanceUID = f"1.2.3.{number}.{study}"
            each.SeriesInstanceUID = f"{each.StudyInstanceUID}.1"
            each.SOPInstanceUID = f"{each.SeriesInstanceUID}.{each.InstanceNumber}"
            each.file_meta.MediaStorageSOPInstanceUID = each.SOPInstanceUID
        paths = sample.write(made, folder)
        together = paths if number % 4 else [[each] for each in paths]
        for batch in [together] if number % 4 else together:
            _send(batch, to, seen)
            if stop.is_set():
                break
        for each in paths:
            each.unlink()
        stop.wait(chance.uniform(0.0, 0.5))


def _send(paths: Sequence[Any], to: Destination, seen: Seen) -> None:
    last = [time.monotonic()]

    def stored(_: int) -> None:
        now = time.monotonic()
        seen.took(now - last[0])
        last[0] = now

    try:
        scu.send(list(paths), to, calling_ae="CT", timeout_s=30, on_progress=stored)
    except NodeError:
        seen.failed()


def _probe(port: int, stop: threading.Event) -> None:
    """Do what a load balancer does."""
    while not stop.wait(0.2):
        with suppress(OSError):
            socket.create_connection(("127.0.0.1", port), 5).close()


def _samples(node: Popen[str], seen: Seen, seconds: float) -> Iterator[dict[str, float]]:
    begin = time.monotonic()
    while (since := time.monotonic() - begin) < seconds:
        time.sleep(EVERY_S)
        yield _sample(node, seen, round(since, 1))


def _sample(node: Popen[str], seen: Seen, since: float) -> dict[str, float]:
    process = Path(f"/proc/{node.pid}")
    status = dict(
        line.split(":", 1) for line in (process / "status").read_text().splitlines() if ":" in line
    )
    latencies = seen.taken() or [0.0]
    cuts = statistics.quantiles(latencies, n=100) if len(latencies) > 1 else latencies * 99
    return {
        "s": since,
        "rss_mb": int(status["VmRSS"].split()[0]) / 1024,
        "threads": int(status["Threads"]),
        "handles": len(list((process / "fd").iterdir())),
        "images": seen.images,
        "p50_ms": cuts[49],
        "p95_ms": cuts[94],
        "p99_ms": cuts[98],
    }


def summary(result: dict[str, Any]) -> str:
    """Tell of it in Markdown."""
    samples = result["samples"]
    third = max(len(samples) // 3, 1)
    told = (
        f"{result['images']} images of {result['studies']} studies in {result['minutes']:g} minutes"
        f" from {result['scanners']} scanners, {result['failures']} failures;"
        f" {result['events']} events verify"
    )
    lines = [
        told,
        "",
        "| | first third | last third | at rest |",
        "|---|--:|--:|--:|",
    ]
    for name in ("rss_mb", "handles", "threads", "p50_ms", "p95_ms", "p99_ms"):
        first = statistics.median(each[name] for each in samples[1 : third + 1])
        last = statistics.median(each[name] for each in samples[-third - 1 : -1])
        rest = "-" if name.endswith("ms") else f"{samples[-1][name]:.0f}"
        lines.append(f"| {name} | {first:.1f} | {last:.1f} | {rest} |")
    return "\n".join(lines)


WIDTH, HEIGHT, LEFT, TOP = 760, 150, 70, 30
PANELS = (
    ("memory, MB", ("rss_mb",)),
    ("file handles and threads", ("handles", "threads")),
    ("time for an image, ms: median, 95 %, 99 %", ("p50_ms", "p95_ms", "p99_ms")),
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
