"""The receivers: each a process with an empty folder, started and ended by its id."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from . import ROOT
from .lab import OURS, Missing

START_S = 30.0
STORESCP = "/usr/bin/storescp"  # pynetdicom brings a program of the same name
ORTHANC = "/usr/sbin/Orthanc"
# DCMTK leaves Nagle's algorithm on unless it is told not to; as a receiver it is at its best.
TUNED = {"TCP_NODELAY": "1"}


@dataclass(frozen=True)
class Receiver:
    ae_title: str
    port: int
    process: int = 0


@contextmanager
def ours(folder: Path) -> Iterator[Receiver]:
    """Run the role `scp` as it is: spool with fsync, ledger with synchronous=FULL."""
    (folder / "checkpoint").mkdir(parents=True)
    # Jobs are named after the model; none is run here.
    (folder / "checkpoint" / "manifest.json").write_text(json.dumps({"sha256": "0" * 64}))
    port = _free_port()
    settings = {
        "LAMED_DATA_DIR": str(folder / "data"),
        "LAMED_CHECKPOINT": str(folder / "checkpoint"),
        "LAMED_DICOM_PORT": str(port),
        "LAMED_QUIET_S": "3600",
        "LAMED_MINIMUM_FREE_MB": "0",
    }
    command = [sys.executable, "-m", "dicom_node", "serve", "--only", "scp"]
    with _running(command, settings) as process:
        _until_listening(port, process)
        yield Receiver("LAMED", port, process.pid)


@contextmanager
def dcmtk(folder: Path) -> Iterator[Receiver]:
    """Run DCMTK's storescp; it forks for each association and syncs nothing."""
    if not Path(STORESCP).exists():
        raise Missing("storescp (apt: dcmtk)")
    folder.mkdir(parents=True)
    port = _free_port()
    with _running([STORESCP, "--fork", "-od", str(folder), str(port)], TUNED) as process:
        _until_listening(port, process)
        yield Receiver("STORESCP", port)


@contextmanager
def plain_pynetdicom(folder: Path) -> Iterator[Receiver]:
    """Run what pynetdicom's documentation shows: `event.dataset`, `ds.save_as`."""
    folder.mkdir(parents=True)
    port = _free_port()
    command = [sys.executable, "-m", "tests.bench.plain_scp", str(folder), str(port)]
    with _running(command, {}) as process:
        _until_listening(port, process)
        yield Receiver("PLAIN", port)


@contextmanager
def orthanc(folder: Path) -> Iterator[Receiver]:
    """Run Orthanc with its own default of syncing each file."""
    if not Path(ORTHANC).exists():
        raise Missing("Orthanc (apt: orthanc)")
    folder.mkdir(parents=True)
    port = _free_port()
    settings = {
        "StorageDirectory": str(folder),
        "IndexDirectory": str(folder),
        "SyncStorageArea": True,
        "HttpServerEnabled": False,
        "DicomAet": "ORTHANC",
        "DicomPort": port,
    }
    (folder / "orthanc.json").write_text(json.dumps(settings))
    with _running([ORTHANC, str(folder / "orthanc.json")], TUNED) as process:
        _until_listening(port, process)
        yield Receiver("ORTHANC", port)


RECEIVERS: dict[str, Callable[[Path], AbstractContextManager[Receiver]]] = {
    OURS: ours,
    "Orthanc": orthanc,
    "DCMTK storescp": dcmtk,
    "pynetdicom save_as": plain_pynetdicom,
}


def resident_mb(process: int) -> float:
    """Say how much memory a process holds."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


@contextmanager
def _running(
    command: list[str], environment: dict[str, str]
) -> Iterator["subprocess.Popen[bytes]"]:
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


def _until_listening(port: int, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + START_S
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"{process.args} does not listen")
        time.sleep(0.02)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])
