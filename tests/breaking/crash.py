"""`python -m tests.breaking crash`: whole nodes break, start again, and are asked what is left.

Each run is a node of three processes (reception with delivery, a worker, and the pages, at which
somebody looks all the time), a PACS, which in every other run commits to what it stored, and a
sender that does what scanners do: it sends again what was not acknowledged. Somewhere one fault
happens. Who dies is started again. In the end every acknowledged image must be there and readable,
every result at the PACS once, and nothing stuck.
"""

import argparse
import http.client
import json
import logging
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from operator import attrgetter
from pathlib import Path
from random import Random
from typing import Any

import pydicom

from dicom_node import scu
from dicom_node.config import Config, Destination
from dicom_node.demo import sample
from dicom_node.errors import NodeError
from dicom_node.ledger import Ledger
from dicom_node.qa import access

from .faults import Fault, choose, plant

PATIENCE_S = 60.0
SHAPE, SPACING_MM = (5, 16, 16), (8.0, 10.0, 10.0)
ENDED = {"done", "failed", "rejected"}
WORDS = ("fired", "lost", "duplicated", "stuck", "wrong")


@dataclass
class Run:
    """What came of one run."""

    seed: int
    fault: str
    fired: bool = False
    lost: list[str] = field(default_factory=list)
    duplicated: list[str] = field(default_factory=list)
    stuck: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    recovery_s: float = 0.0
    seconds: float = 0.0

    @property
    def is_good(self) -> bool:
        return not (self.lost or self.duplicated or self.stuck or self.wrong)


class Site:
    """A node and a PACS in one folder, each role a forked process."""

    def __init__(
        self, folder: Path, fault: Fault, lamed: Any, protocols: Path, *, commits: bool
    ) -> None:
        self.folder, self.fault, self.lamed, self.commits = folder, fault, lamed, commits
        self.fired = folder / "fired"
        self.children: dict[str, int] = {}
        self.died_at: float = 0.0
        self.pacs = Config(
            ae_title="PACS", dicom_port=free_port(), data_dir=folder / "pacs", minimum_free_mb=1
        )
        self.node = Config(
            dicom_port=free_port(),
            http_port=free_port(),
            data_dir=folder / "node",
            minimum_free_mb=1,
            protocols=str(protocols),
            checkpoint=str(lamed.folder),
            quiet_s=1.2,
            lease_s=1.5,
            delivery_backoff_s=0.1,
            delivery_attempts=5,
            network_timeout_s=1.5,
            proof_s=3.0,
            validate="off",
            destinations=(Destination("PACS", "127.0.0.1", self.pacs.dicom_port),),
        )

    def start(self, role: str, *, faulty: bool = True) -> None:
        """Start a role; the fault is in it only the first time."""
        child = os.fork()
        if child:
            self.children[role] = child
            return
        try:
            os.setsid()
            _quiet(self.folder / f"{role}.log")
            if faulty and self.fault.role == role:
                plant(self.fault, self.fired)
            (self._archive if role == "pacs" else self._serve)(role)
        except BaseException:  # a child must never go on as its parent
            logging.getLogger(__name__).exception("role ended")
        finally:
            os._exit(0)

    def _serve(self, role: str) -> None:
        from dicom_node import serve
        from model import checkpoint

        checkpoint.load = lambda *_: self.lamed.model  # it lies in the memory that was forked
        config = replace(self.node)
        serve.role(role, config, lambda _: (self.folder / f"{role}.ready").touch())

    def _archive(self, _: str) -> None:
        from dicom_node.network.dimse import N_ACTION_RQ
        from dicom_node.network.negotiation import COMMITMENT
        from dicom_node.scp import Scp
        from dicom_node.scp.commitment import Provider
        from dicom_node.spool import Spool

        with Ledger(self.pacs.ledger_path) as ledger:
            spool = Spool(self.pacs.spool_dir, ledger, minimum_free_mb=1)
            spool.recover()
            asked = Provider(ledger, self.pacs).asked
            served = {(N_ACTION_RQ, COMMITMENT): asked} if self.commits else {}
            with Scp(self.pacs, spool, ledger, served):
                signal.pause()

    def mind(self) -> None:
        """Start again whoever has died."""
        for role, child in list(self.children.items()):
            ended, _ = os.waitpid(child, os.WNOHANG)
            if ended:
                self.died_at = self.died_at or time.monotonic()
                self.start(role, faulty=False)

    def look(self) -> None:
        """Look at the list of studies in a session of its own, which the ledger remembers."""
        with suppress(NodeError, OSError, http.client.HTTPException):
            with Ledger(self.node.ledger_path) as ledger:
                session = ledger.issue_token(access.SESSION, lifetime_s=60.0)
            asked = http.client.HTTPConnection("127.0.0.1", self.node.http_port, timeout=2)
            with closing(asked):
                asked.request("GET", "/", headers={"Cookie": f"{access.COOKIE}={session}"})
                asked.getresponse().read()

    def end(self) -> None:
        for child in self.children.values():
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def one(seed: int, lamed: Any, protocols: Path) -> Run:
    """Do one run."""
    random = Random(f"crash:{seed}")
    fault = choose(random)
    run, begin = Run(seed, str(fault)), time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="lamed-crash-", dir=_fast()))
    commits = fault.place == "commitment" or random.random() < 0.5
    site = Site(folder, fault, lamed, protocols, commits=commits)
    images = sample.series(shape=SHAPE, spacing_mm=SPACING_MM, seed=seed)
    paths = sample.write(images, folder / "sent")
    try:
        for role in ("pacs", "scp", "worker", "qa"):
            site.start(role)
        acknowledged = _send(site, paths)
        _settle(site, str(images[0].StudyInstanceUID), run)
        run.fired = site.fired.exists()
        _check(site, images, acknowledged, run)
    finally:
        site.end()
    run.seconds = round(time.monotonic() - begin, 2)
    if run.is_good:
        shutil.rmtree(folder, ignore_errors=True)
    else:
        run.wrong.append(f"left in {folder}")
    return run


def _send(site: Site, paths: Sequence[Path]) -> set[str]:
    """Send until all is acknowledged; only what was acknowledged counts."""
    acknowledged: set[str] = set()
    to = Destination("LAMED", "127.0.0.1", site.node.dicom_port)
    deadline = time.monotonic() + PATIENCE_S
    while len(acknowledged) < len(paths) and time.monotonic() < deadline:
        site.mind()
        site.look()
        left = [each for each in paths if str(each) not in acknowledged]
        counted: list[int] = []
        with suppress(NodeError):
            scu.send(left, to, calling_ae="CT", timeout_s=3, on_progress=counted.append)
        acknowledged |= {str(each) for each in left[: max(counted, default=0)]}
        time.sleep(0.05)
    return acknowledged


def _settle(site: Site, study_uid: str, run: Run) -> None:
    """Wait until nothing is left to do; measure from the death of a process on."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        site.mind()
        site.look()
        with suppress(NodeError), Ledger(site.node.ledger_path) as ledger:
            study = ledger.study(study_uid)
            if study is not None and study.state in ENDED and _is_over(ledger, study_uid):
                since = site.died_at or time.monotonic()
                run.recovery_s = round(time.monotonic() - since, 2)
                return
        time.sleep(0.1)
    with Ledger(site.node.ledger_path) as ledger:
        study = ledger.study(study_uid)
        jobs = [(each.id[:8], each.state, each.reason) for each in ledger.jobs(study_uid)]
    run.stuck.append(f"study {study and study.state}, jobs {jobs}")


def _is_over(ledger: Ledger, study_uid: str) -> bool:
    jobs = ledger.jobs(study_uid)
    waiting = [
        each
        for job in jobs
        for each in ledger.deliveries(job.id)
        if each.state in {"pending", "sent"}
    ]
    return not waiting and all(str(each.state) in ENDED for each in jobs)


def _check(site: Site, images: Sequence[Any], acknowledged: set[str], run: Run) -> None:
    study_uid = str(images[0].StudyInstanceUID)
    with Ledger(site.node.ledger_path) as ledger:
        ledger.verify()
        stored = {each.sop_uid: each for each in ledger.instances(study_uid)}
        if len(acknowledged) < len(images):
            run.stuck.append(f"{len(acknowledged)} of {len(images)} images were acknowledged")
        for each in images:
            _check_image(each, stored.get(str(each.SOPInstanceUID)), run)
        study, jobs = ledger.study(study_uid), ledger.jobs(study_uid)
        # What a PACS says it has not, is sent again and in the end a dead letter.
        ended = "failed" if run.fired and site.fault.kind == "lose" and site.commits else "done"
        if study is None or study.state != ended:
            run.lost.append(f"the study is {study and (study.state, study.reason)}")
        done = [each for each in jobs if each.state == "done"]
        if len(done) != 1 or len(jobs) != 1:
            run.duplicated.append(f"jobs {[(each.state, each.reason) for each in jobs]}")
        made = {each.sop_uid for job in done for each in ledger.results(job.id)}
        states = {each.state for job in done for each in ledger.deliveries(job.id)}
    _check_pacs(site, made, states, run)


def _check_image(image: Any, stored: Any, run: Run) -> None:
    if stored is None or not stored.path.is_file():
        run.lost.append(f"image {image.InstanceNumber}")
    elif pydicom.dcmread(stored.path) != image:
        run.lost.append(f"image {image.InstanceNumber} is another")


def _check_pacs(site: Site, made: set[str], states: set[str], run: Run) -> None:
    with Ledger(site.pacs.ledger_path) as ledger:
        there = [
            each.sop_uid for study in ledger.studies() for each in ledger.instances(study.study_uid)
        ]
        again = [each for each in ledger.events() if each.kind == "instance.superseded"]
    if site.fault.kind == "lose" and run.fired:
        if "delivered" in states:
            run.wrong.append("what the PACS has lost counts as delivered")
        return
    if len(there) != len(set(there)) or set(there) - made or again:
        run.duplicated.append(
            f"{len(there)} objects at the PACS, {len(made)} made, {len(again)} anew"
        )
    if made - set(there):
        run.lost.append(f"{len(made - set(there))} of {len(made)} results are not at the PACS")
    if not made:
        run.lost.append("there is no result")


# --- the matrix -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Loaded:
    """The network, once for all workers."""

    folder: Path
    model: Any


def prepare(folder: Path) -> tuple[Loaded, Path]:
    """Make the tiny checkpoint and the short protocols, and load what all roles need."""
    import torch

    from dicom_node import audit, profiles, qa, serve, worker
    from dicom_node.delivery import proof
    from dicom_node.scp import commitment as commitment_scp
    from model import tiny
    from model.checkpoint import load
    from tests.commands import SHORT

    del audit, commitment_scp, profiles, proof, qa, serve, worker
    torch.set_num_threads(1)
    checkpoint, protocols = folder / tiny.NAME, folder / "protocols"
    tiny.init(checkpoint)
    protocols.mkdir()
    (protocols / "ct_chest.toml").write_text(SHORT)
    return Loaded(checkpoint, load(checkpoint)), protocols


def matrix(seeds: Sequence[int], tell: Callable[[Run], None]) -> list[Run]:
    """Do runs, one after the other."""
    found = []
    with tempfile.TemporaryDirectory(prefix="lamed-crash-", dir=_fast()) as folder:
        lamed, protocols = prepare(Path(folder))
        for seed in seeds:
            found.append(one(seed, lamed, protocols))
            tell(found[-1])
    return found


def run(arguments: argparse.Namespace) -> int:
    arguments.folder.mkdir(parents=True, exist_ok=True)
    path = arguments.folder / f"crash-{arguments.seed}.jsonl"
    done = (
        {json.loads(each)["seed"] for each in path.read_text().splitlines()}
        if path.exists()
        else set()
    )
    first = arguments.seed * 1_000_000
    seeds = [each for each in range(first, first + arguments.runs) if each not in done]

    def tell(ended: Run) -> None:
        with path.open("a") as file:
            file.write(json.dumps(vars(ended)) + "\n")
        sign = "ok " if ended.is_good else "BAD"
        print(f"{sign} {ended.seed} {ended.fault} {ended.seconds} s", flush=True)  # noqa: T201

    matrix(seeds, tell)
    runs = [Run(**json.loads(each)) for each in path.read_text().splitlines()]
    print(table(runs))  # noqa: T201
    return 0 if all(each.is_good for each in runs) else 1


def table(runs: Sequence[Run]) -> str:
    """Tell of runs in Markdown, by what happened where."""
    kinds: dict[str, list[Run]] = defaultdict(list)
    for each in runs:
        kinds[each.fault.rpartition(" ")[0]].append(each)
    lines = ["| fault | runs | came about | lost | duplicated | stuck | wrong | recovery, s |",
             "|---|--:|--:|--:|--:|--:|--:|--:|"]  # fmt: skip
    for name, members in [*sorted(kinds.items()), ("all", list(runs))]:
        counted = [sum(map(bool, map(attrgetter(word), members))) for word in WORDS]
        times = [each.recovery_s for each in members if each.recovery_s]
        recovery = f"{sum(times) / len(times):.1f}, at most {max(times):.1f}" if times else "-"
        cells = (name, len(members), *counted, recovery)
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def free_port() -> int:
    """Find a port that nobody listens on."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


def _quiet(log: Path) -> None:
    """Let a child write into a file of its own, and inherit no thread's concerns."""
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    sys.stdout = sys.stderr = open(handle, "w", buffering=1)  # noqa: PTH123, SIM115
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, force=True)
    threading.excepthook = lambda told: logging.getLogger(__name__).error(
        "thread", exc_info=told.exc_value
    )


def _fast() -> str | None:
    return "/dev/shm" if Path("/dev/shm").is_dir() else None
