"""The main job once, for somebody who has just cloned: a study goes in, drafts come back.

A node on its embedded defaults is started, a second AE plays the PACS that gets the results, and
a real chest CT (a synthetic one without a network) is sent over a real association.
"""

import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import pydicom
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn

from . import config as settings
from . import sample, scu, serve
from .config import Config, Destination
from .errors import BadInput, NodeError, Unavailable
from .ledger import Ledger
from .real_scan import chest_ct
from .records import Study
from .scp import Scp
from .spool import Spool

MARKER = ".lamed-demo"
PACS = "DEMO_PACS"
QUIET_S = 3.0
WAIT_S = 900.0
ENDS = {"done", "failed", "rejected"}
console = Console(highlight=False, soft_wrap=True)


def run(out: Path, *, cache: Path, stay: bool) -> None:
    """Send a sample study through a fresh node and show what comes back.

    Parameters
    ----------
    out
        Folder of this demonstration; what an earlier one left there is removed.
    cache
        Folder for downloads.
    stay
        Keep the node and its QA pages up until Ctrl-C.

    Raises
    ------
    NodeError
        The study did not come back as drafts.
    """
    out = _fresh(out)
    study = _study(out, cache)
    with ExitStack() as stack:
        pacs = stack.enter_context(_pacs(out / "received"))
        config = _config(out, pacs)
        console.print("[bold]starting the node[/] on its defaults")
        supervisor = serve.Supervisor(config)
        ports = stack.enter_context(supervisor.running())
        _say("AE title", f"{config.ae_title} at {config.dicom_host}:{ports['scp']}")
        _say("data", config.data_dir)
        _send(study, Destination(config.ae_title, config.dicom_host, ports["scp"]))
        ended = _wait(config)
        _show(ended, config, out)
        _stay(supervisor, config, ports["qa"], stay=stay)


def _fresh(out: Path) -> Path:
    if out.exists() and any(out.iterdir()) and not (out / MARKER).exists():
        raise BadInput(f"{out} holds something else; give an empty folder with --out")
    for name in ("node/spool", "node/results", "node/run", "received", "synthetic"):
        shutil.rmtree(out / name, ignore_errors=True)
    for path in (out / "node").glob("ledger.*"):
        path.unlink()
    out.mkdir(parents=True, exist_ok=True)
    (out / MARKER).touch()
    return out


def _study(out: Path, cache: Path) -> list[Path]:
    console.print("[bold]a study to send[/]")
    try:
        folder = chest_ct(cache, lambda text: _say("", text))
        _say("real", f"chest CT, {folder}")
    except Unavailable as error:
        _say("", f"no real scan: {error}")
        folder = out / "synthetic"
        sample.write(sample.series(shape=(60, 256, 256), spacing_mm=(5.0, 1.4, 1.4)), folder)
        _say("SYNTHETIC", f"a drawn patient instead of a real one, {folder}")
    return scu.find_dicom(folder)


def _config(out: Path, pacs: Destination) -> Config:
    """Take the defaults (and LAMED_*), a folder of our own, and other ports if ours are taken."""
    config = settings.load()
    return replace(
        config,
        data_dir=out.absolute() / "node",
        quiet_s=min(config.quiet_s, QUIET_S),
        destinations=(pacs,),
        dicom_port=_free(config.dicom_host, config.dicom_port),
        http_port=_free(config.http_host, config.http_port),
    )


def _free(host: str, port: int) -> int:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            _say("", f"port {port} is taken, the system chooses another")
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


def _send(paths: list[Path], to: Destination) -> None:
    console.print(f"[bold]sending[/] {len(paths)} instances to {to}")
    bar = Progress(TextColumn("  stored"), BarColumn(), MofNCompleteColumn(), console=console)
    with bar:
        task = bar.add_task("", total=len(paths))
        scu.send(
            paths,
            to,
            calling_ae=PACS,
            timeout_s=30,
            on_progress=lambda done: bar.update(task, completed=done),
        )


def _wait(config: Config) -> Study:
    """Show every step of the study until it has ended."""
    console.print("[bold]what the node does with it[/]")
    deadline, seen = time.monotonic() + WAIT_S, 0
    spinner = Progress(SpinnerColumn(), TextColumn("{task.description}"), console=console)
    with Ledger(config.ledger_path) as ledger, spinner:
        task = spinner.add_task("waiting", total=None)
        while time.monotonic() < deadline:
            for event in ledger.events(after=seen):
                seen = event.seq
                if event.study_uid is not None and not event.kind.startswith("instance."):
                    about = _about(event.data)
                    spinner.console.print(f"  {event.at:%H:%M:%S}  {event.kind:<18} {about}")
            study = next(iter(ledger.studies(limit=1)), None)
            if study is not None:
                spinner.update(task, description=study.state)
                if study.state in ENDS:
                    return study
            time.sleep(0.2)
    raise NodeError(f"the study has not come back within {WAIT_S:g} s")


def _about(data: dict[str, object]) -> str:
    for key in ("reason", "why", "destination", "state", "protocol", "worker"):
        if data.get(key):
            return str(data[key])
    return ""


def _show(study: Study, config: Config, out: Path) -> None:
    if study.state != "done":
        raise NodeError(f"the study ended as {study.state}: {study.reason}")
    with Ledger(config.ledger_path) as ledger:
        job = ledger.jobs(study.study_uid)[-1]
        folder = config.results_dir / job.id
        events = ledger.verify()
    console.print("\n[bold]the draft, as text[/]")
    console.print((folder / "draft.txt").read_text(), markup=False)
    console.print("[bold]what came back[/] to the PACS, over DICOM")
    for path in sorted(out.joinpath("received").rglob("*.dcm")):
        header = pydicom.dcmread(path, stop_before_pixels=True)
        _say(str(header.Modality), f"{header.SeriesDescription}\n             {path}")
    _say("picture", folder / "overlay.png")
    _say("summary", folder / "summary.json")
    _say("ledger", f"{events} events, the hash chain is whole: {config.ledger_path}")


def _stay(supervisor: serve.Supervisor, config: Config, port: int, *, stay: bool) -> None:
    if not stay:
        console.print("\nwith --stay (the default in a terminal) the node stays up for its QA page")
        return
    console.print(f"\n[bold]the QA page[/], one-time link: {serve.login_link(config, port)}")
    console.print("Ctrl-C stops the node")
    supervisor.mind(serve.stop_signal())


def _say(what: str, text: object) -> None:
    console.print(f"  {what:<10} {text}", markup=False)
