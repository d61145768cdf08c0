"""`python -m tests.breaking soak`: a department at its peak, and what it costs the node over time.

The node is `lamed-node serve`, all of it: reception, worker, delivery, pages. So many scanners send
study after study without a pause, by a protocol each of their own: many images on an association,
one association for each image, and probes that only connect. One more sends, every few seconds, a
chest that a rule has the worker read; its results go to a PACS, a second node, which commits to
them. A reader looks at the page of studies. Told by samples of memory, file handles and threads of
each process, of how long an image and a page take, and of what waits, as JSON and as a picture.
"""

import argparse
import http.client
import json
import random
import socket
import sqlite3
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydicom import Dataset

from dicom_node import scu
from dicom_node.config import Destination
from dicom_node.demo import sample
from dicom_node.errors import NodeError
from dicom_node.ledger import Ledger
from dicom_node.qa import access
from model import tiny
from tests.commands import Served, served, short_protocols

from .picture import picture

EVERY_S = 10.0
REST_S = 30.0
SHAPES = ((20, 256, 256), (60, 128, 128), (3, 512, 512))
CHEST, CHEST_MM = (12, 64, 64), (5.0, 5.0, 5.0)
CHEST_S = 8.0  # between two studies that are read
ROLES = ("scp", "worker", "qa")
MOVING = ("p50_ms", "p95_ms", "p99_ms", "page_ms")
RULES = """
otherwise = "ignore"

[[rules]]
name = "chests of one scanner"
when = 'StationName == "READ"'
protocol = "ct_chest"
"""


@dataclass
class Seen:
    """What the scanners have measured since it was last asked."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    latencies_ms: list[float] = field(default_factory=list)
    images: int = 0
    failures: int = 0
    chests: int = 0

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
        _site(Path(folder)) as site,
    ):
        threads = [
            threading.Thread(target=_scan, args=(number, site, seen, stop))
            for number in range(arguments.scanners)
        ]
        threads += [
            threading.Thread(target=each, args=(site, seen, stop)) for each in (_chests, _probe)
        ]
        for each in threads:
            each.start()
        samples = list(_samples(site, seen, 60 * arguments.minutes))
        stop.set()
        for each in threads:
            each.join()
        time.sleep(REST_S)
        samples.append(_sample(site, seen, samples[-1]["s"] + REST_S))
        result = {"scanners": arguments.scanners, "minutes": arguments.minutes}
        result |= {"images": seen.images, "failures": seen.failures, "chests": seen.chests}
        result |= _told(site) | {"samples": samples}
    (arguments.folder / "soak.json").write_text(json.dumps(result, indent=1))
    (arguments.folder / "soak.svg").write_text(picture(samples))
    print(summary(result))  # noqa: T201
    return 0


@dataclass(frozen=True)
class Site:
    """The node in service, its PACS, and where they keep things."""

    folder: Path
    node: Served
    session: str  # of the reader

    @property
    def data(self) -> Path:
        return self.folder / "node"

    def pid(self, role: str) -> int:
        """Find a role's process: each says in the folder `run` that it is ready."""
        said = sorted((self.data / "run").glob(f"{role}-*.json"), key=lambda at: at.stat().st_mtime)
        return int(said[-1].stem.rpartition("-")[2])


@contextmanager
def _site(folder: Path) -> Iterator[Site]:
    tiny.init(folder / tiny.NAME)
    (folder / "rules.toml").write_text(RULES)
    common: dict[str, object] = {"http_port": 0, "dicom_port": 0, "minimum_free_mb": 100}
    with ExitStack() as stack:
        pacs = stack.enter_context(
            served(
                folder / "pacs.log",
                "--only", "scp",
                **common, data_dir=folder / "pacs", ae_title="PACS",
            )
        )  # fmt: skip
        to = folder / "node.toml"
        port = pacs.port("dicom")
        to.write_text(f'[[destinations]]\nae_title = "PACS"\nhost = "127.0.0.1"\nport = {port}\n')
        node = served(
            folder / "node.log",
            "--config", str(to),
            **common, data_dir=folder / "node", quiet_s=2, rules=folder / "rules.toml",
            checkpoint=folder / tiny.NAME, protocols=short_protocols(folder / "protocols"),
            retain_spool_gb=2,
            validate="off",
        )  # fmt: skip
        serving = stack.enter_context(node)
        with Ledger(folder / "node" / "ledger.sqlite") as ledger:
            session = ledger.issue_token(access.SESSION, lifetime_s=access.SESSION_S)
        yield Site(folder, serving, session)


def _told(site: Site) -> dict[str, Any]:
    """Ask the ledger, when all is over, what became of everything."""
    with Ledger(site.data / "ledger.sqlite") as ledger:
        events = ledger.verify()
        deaths = sum(each.kind == "role.died" for each in ledger.events())
    return {"events": events, "deaths": deaths} | _states(site)


def _states(site: Site) -> dict[str, dict[str, int]]:
    """Count studies, jobs and deliveries by state; read past the ledger, which is busy enough."""
    found = {}
    with closing(sqlite3.connect(f"file:{site.data / 'ledger.sqlite'}?mode=ro", uri=True)) as asked:
        for table in ("studies", "jobs", "deliveries"):
            rows = asked.execute(f"SELECT state, count(*) FROM {table} GROUP BY state")
            found[table] = dict(rows.fetchall())
    return found


def _scan(number: int, site: Site, seen: Seen, stop: threading.Event) -> None:
    """Send one study after the other; each scanner in its own way."""
    to, chance = _to(site), random.Random(number)
    made = sample.series(shape=SHAPES[number % len(SHAPES)], seed=number)
    study = 0
    while not stop.is_set():
        study += 1
        paths = sample.write(_named(made, f"1.2.3.{number}.{study}"), site.folder / str(number))
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


def _chests(site: Site, seen: Seen, stop: threading.Event) -> None:
    """Send what is read, from time to time."""
    to, made = _to(site), sample.series(shape=CHEST, spacing_mm=CHEST_MM, seed=99)
    for each in made:
        each.StationName = "READ"
    while not stop.wait(CHEST_S):
        seen.chests += 1
        paths = sample.write(_named(made, f"1.2.3.99.{seen.chests}"), site.folder / "chest")
        _send(paths, to, seen)
        for each in paths:
            each.unlink()


def _named(made: Sequence[Dataset], study_uid: str) -> Sequence[Dataset]:
    for each in made:
        each.StudyInstanceUID = study_uid
        each.SeriesInstanceUID = f"{study_uid}.1"
        each.SOPInstanceUID = f"{study_uid}.1.{each.InstanceNumber}"
        each.file_meta.MediaStorageSOPInstanceUID = each.SOPInstanceUID
    return made


def _to(site: Site) -> Destination:
    return Destination("LAMED", "127.0.0.1", site.node.port("dicom"))


def _probe(site: Site, _: Seen, stop: threading.Event) -> None:
    """Do what a load balancer does."""
    while not stop.wait(0.2):
        with suppress(OSError):
            socket.create_connection(("127.0.0.1", site.node.port("dicom")), 5).close()


def _samples(site: Site, seen: Seen, seconds: float) -> Iterator[dict[str, float]]:
    begin = time.monotonic()
    while (since := time.monotonic() - begin) < seconds:
        time.sleep(EVERY_S)
        yield _sample(site, seen, round(since, 1))


def _sample(site: Site, seen: Seen, since: float) -> dict[str, float]:
    latencies = seen.taken() or [0.0]
    cuts = statistics.quantiles(latencies, n=100) if len(latencies) > 1 else latencies * 99
    found = {"s": since, "images": seen.images, "page_ms": _page_ms(site)}
    found |= {"p50_ms": cuts[49], "p95_ms": cuts[94], "p99_ms": cuts[98]}
    for role in ROLES:
        process = Path(f"/proc/{site.pid(role)}")
        lines = (process / "status").read_text().splitlines()
        status = dict(line.split(":", 1) for line in lines if ":" in line)
        found[f"{role}_mb"] = int(status["VmRSS"].split()[0]) / 1024
        found[f"{role}_threads"] = int(status["Threads"])
        found[f"{role}_handles"] = len(list((process / "fd").iterdir()))
    states = _states(site)
    found["waiting"] = sum(states["jobs"].get(each, 0) for each in ("queued", "running"))
    found["unproven"] = sum(states["deliveries"].get(each, 0) for each in ("pending", "sent"))
    return found


def _page_ms(site: Site) -> float:
    """Ask for the list of studies, as a reader does."""
    asked = http.client.HTTPConnection("127.0.0.1", site.node.port("http"), timeout=30)
    begin = time.monotonic()
    with closing(asked):
        asked.request("GET", "/", headers={"Cookie": f"{access.COOKIE}={site.session}"})
        answer = asked.getresponse()
        answer.read()
    if answer.status != http.client.OK:
        raise RuntimeError(f"the page answers {answer.status}")
    return 1000 * (time.monotonic() - begin)


def summary(result: dict[str, Any]) -> str:
    """Tell of it in Markdown."""
    samples = result["samples"]
    third = max(len(samples) // 3, 1)
    told = (
        f"{result['images']} images of {sum(result['studies'].values())} studies in"
        f" {result['minutes']:g} minutes from {result['scanners']} scanners,"
        f" {result['failures']} failures, {result['deaths']} processes died;"
        f" {result['events']} events verify. Of {result['chests']} chests to be read: jobs"
        f" {result['jobs']}, deliveries {result['deliveries']}."
    )
    lines = [told, "", "| | first third | last third | at rest |", "|---|--:|--:|--:|"]
    for name in (each for each in samples[0] if each not in {"s", "images"}):
        first = statistics.median(each[name] for each in samples[1 : third + 1])
        last = statistics.median(each[name] for each in samples[-third - 1 : -1])
        rest = "-" if name in MOVING else f"{samples[-1][name]:.0f}"
        lines.append(f"| {name} | {first:.1f} | {last:.1f} | {rest} |")
    return "\n".join(lines)
