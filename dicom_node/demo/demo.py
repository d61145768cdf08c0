"""The main job once, for somebody who has just cloned: a study goes in, drafts come back.

A node on its embedded defaults is started, a second AE plays the PACS that gets the results, and
a real chest CT (a synthetic one without a network) is sent over a real association.
"""

import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pydicom
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn

from dicom_node import config as settings
from dicom_node import scu, serve
from dicom_node.config import Config, Destination
from dicom_node.errors import BadInput, NodeError, Unavailable
from dicom_node.ledger import Event, Ledger
from dicom_node.ledger.records import Study
from dicom_node.scp import Scp
from dicom_node.spool import Spool
from dicom_node.supervisor import Supervisor, is_served, stop_signal

from . import sample
from .real_scan import chest_ct

MARKER = ".lamed-demo"
PACS = "DEMO_PACS"
QUIET_S = 3.0
WAIT_S = 900.0
POLL_S = 0.2
ENDS = {"done", "failed", "rejected"}
EXTRAS = ("draft.txt", "overlay.png", "summary.json")
MEANINGS = {
    "study.opened": "the first image has come",
    "study.complete": "nothing new has come: the study is complete",
    "study.routed": "a protocol and a series are chosen",
    "job.queued": "waiting for the worker",
    "job.claimed": "the worker reads: volume, answers, masks",
    "job.results": "the drafts are written",
    "job.done": "read",
    "delivery.sent": "the drafts are at the PACS",
    "delivery.retry": "the PACS did not take them; tried again",
}

Report = Callable[[dict[str, Any]], None]


def run(out: Path, *, cache: Path, stay: bool, quiet: bool, report: Report) -> None:
    """Send a sample study through a fresh node and show what comes back.

    Parameters
    ----------
    out
        Folder of this demonstration; what an earlier one left there is removed.
    cache
        Folder for downloads.
    stay
        Keep the node and its QA pages up until Ctrl-C.
    quiet
        Keep standard output free: what is shown goes to standard error.
    report
        Called once with what came of it, for programs.

    Raises
    ------
    NodeError
        The study did not come back as drafts.
    """
    show = _Show(Console(highlight=False, soft_wrap=True, stderr=quiet))
    _fresh(out)
    sent = _study(out, cache, show)
    with _pacs(out / "received") as pacs:
        config = _config(out, pacs, show)
        show.step("starting a node on its defaults")
        with serve.running(config, threading.Event(), lambda text: show.line("", text)) as node:
            show.line("AE title", f"{config.ae_title} at {config.dicom_host}:{node.ports['scp']}")
            show.line("data", config.data_dir)
            to = Destination(config.ae_title, config.dicom_host, node.ports["scp"])
            show.sending(scu.find_dicom(sent), to)
            told = _collect(show.waiting(config), config, out) | {"sent": str(sent)}
            show.drafts(told)
            report(told)
            _stay(node, config, show, stay=stay)


@dataclass(frozen=True)
class _Show:
    """What a person sees of it."""

    console: Console

    def step(self, text: str) -> None:
        self.console.print(f"\n[bold]{text}[/]")

    def line(self, what: str, text: object) -> None:
        self.console.print(f"  {what:<12} {text}", markup=False)

    def sending(self, paths: list[Path], to: Destination) -> None:
        self.step(f"sending {len(paths)} images to {to}, as {PACS}")
        columns = (TextColumn("  stored"), BarColumn(), MofNCompleteColumn())
        with Progress(*columns, console=self.console) as bar:
            task = bar.add_task("", total=len(paths))
            scu.send(
                paths,
                to,
                calling_ae=PACS,
                timeout_s=30,
                on_progress=lambda done: bar.update(task, completed=done),
            )

    def waiting(self, config: Config) -> Study:
        """Show every step of the study until it has ended."""
        self.step("what the node does with it")
        deadline, seen = time.monotonic() + WAIT_S, 0
        columns = (SpinnerColumn(), TextColumn("{task.description}"))
        with (
            Ledger(config.ledger_path) as ledger,
            Progress(*columns, console=self.console, transient=True) as spinner,
        ):
            task = spinner.add_task("waiting", total=None)
            while time.monotonic() < deadline:
                for event in ledger.events(after=seen):
                    seen = event.seq
                    self._event(event)
                study = next(iter(ledger.studies(limit=1)), None)
                if study is not None and study.state in ENDS and seen == ledger.head()[0]:
                    return study
                spinner.update(task, description=study.state if study else "waiting")
                time.sleep(POLL_S)
        raise NodeError(f"the study has not come back within {WAIT_S:g} s")

    def _event(self, event: Event) -> None:
        meaning = MEANINGS.get(event.kind)
        if meaning is not None:
            about = str(event.data.get("reason") or event.data.get("destination") or "")
            line = f"{event.kind:<15} {meaning}{f': {about}' if about else ''}"
            self.line(f"{event.at.astimezone():%H:%M:%S}", line)

    def drafts(self, told: Mapping[str, Any]) -> None:
        folder = Path(told["drafts"])
        self.step("the draft, as text")
        self.console.print(
            (folder / "draft.txt").read_text(encoding="utf-8").rstrip(), markup=False
        )
        self.step("what came back to the PACS over DICOM")
        for each in told["objects"]:
            self.line(each["modality"], f"{each['path']}  {each['description']}")
        self.step("the same for people and programs")
        self.line("picture", folder / "overlay.png")
        self.line("text", folder / "draft.txt")
        self.line("summary", folder / "summary.json")
        self.line("ledger", f"{told['events']} events, the hash chain is whole: {told['ledger']}")


def _fresh(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise BadInput(f"{out} is a file; give an empty folder with --out")
    if out.exists() and any(out.iterdir()) and not (out / MARKER).exists():
        raise BadInput(f"{out} holds something else; give an empty folder with --out")
    if is_served(Config(data_dir=out / "node")):
        raise Unavailable(f"an earlier demonstration in {out} is still up; stop it first")
    for name in ("node/spool", "node/results", "received", "synthetic", "drafts"):
        shutil.rmtree(out / name, ignore_errors=True)
    for path in (out / "node").glob("ledger.*"):
        path.unlink()
    out.mkdir(parents=True, exist_ok=True)
    (out / MARKER).touch()


def _study(out: Path, cache: Path, show: _Show) -> Path:
    show.step("a study to send")
    try:
        folder = chest_ct(cache, lambda text: show.line("", text))
        show.line("real", f"a chest CT of a lung cancer patient, de-identified: {folder}")
    except (Unavailable, OSError) as error:
        show.line("", f"no real scan, is there a network? {error}")
        folder = out / "synthetic"
        sample.write(sample.series(shape=(60, 256, 256), spacing_mm=(5.0, 1.4, 1.4)), folder)
        show.line("SYNTHETIC", f"a drawn patient instead of a real one: {folder}")
    return folder


def _config(out: Path, pacs: Destination, show: _Show) -> Config:
    """Take the defaults (and LAMED_*), a folder of our own, and other ports if ours are taken."""
    config = settings.load()
    return replace(
        config,
        data_dir=out.absolute() / "node",
        quiet_s=min(config.quiet_s, QUIET_S),
        calling_ae_titles=(),
        destinations=(pacs,),
        dicom_port=_free(config.dicom_host, config.dicom_port, show),
        http_port=_free(config.http_host, config.http_port, show),
    )


def _free(host: str, port: int, show: _Show) -> int:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            show.line("", f"port {port} is taken, the system chooses another")
            return 0
    return port


@contextmanager
def _pacs(folder: Path) -> Iterator[Destination]:
    """Play the PACS that the results go to: a storage SCP with a folder."""
    config = Config(ae_title=PACS, dicom_port=0, data_dir=folder, minimum_free_mb=0)
    with Ledger(folder / "ledger.sqlite") as ledger:
        spool = Spool(folder, ledger, minimum_free_mb=0)
        with Scp(config, spool, ledger) as scp:
            yield Destination(PACS, "127.0.0.1", scp.port)


def _collect(study: Study, config: Config, out: Path) -> dict[str, Any]:
    """Put what the PACS received, and what lies beside it at the node, into one short folder."""
    if study.state != "done":
        raise NodeError(f"the study ended as {study.state}: {study.reason}")
    with Ledger(config.ledger_path) as ledger:
        results = ledger.results(ledger.jobs(study.study_uid)[-1].id)
        events = ledger.verify()
    drafts = out / "drafts"
    drafts.mkdir()
    received = {path.stem: path for path in out.joinpath("received").rglob("*.dcm")}
    objects = []
    for result in results:
        if result.sop_uid not in received:
            raise NodeError(f"the PACS has not received {result.label} ({result.sop_uid})")
        path = shutil.copy(received[result.sop_uid], drafts / f"{result.label}.dcm")
        header = pydicom.dcmread(path, stop_before_pixels=True)
        objects.append(
            {
                "label": result.label,
                "modality": str(header.Modality),
                "description": str(header.SeriesDescription),
                "path": str(path),
            }
        )
    for name in EXTRAS:
        shutil.copy(results[0].path.with_name(name), drafts / name)
    return {
        "study_instance_uid": study.study_uid,
        "drafts": str(drafts),
        "objects": objects,
        "events": events,
        "ledger": str(config.ledger_path),
    }


def _stay(node: Supervisor, config: Config, show: _Show, *, stay: bool) -> None:
    if not stay:
        show.console.print(
            "\nwith --stay (the default in a terminal) the node and its QA page stay up"
        )
        return
    show.step(f"the QA page, by a link that opens it once: {serve.login_link(config)}")
    show.console.print("Ctrl-C stops the node")
    node.mind(stop_signal())
