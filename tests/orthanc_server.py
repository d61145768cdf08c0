"""A real Orthanc in a folder of the test's, on ports of this machine that were free.

Knows how Debian's Orthanc is started, waited for and ended. Nothing of the node.
"""

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import httpx
from conftest import missing

PROGRAM = Path("/usr/sbin/Orthanc")
PLUGINS = Path("/usr/share/orthanc/plugins")
PYTHON, DICOMWEB = PLUGINS / "libOrthancPython.so", PLUGINS / "libOrthancDicomWeb.so"
OUR_PLUGIN = Path(__file__).parent.parent / "plugin" / "lamed_orthanc.py"

START_S, STOP_S = 60.0, 60.0


class Orthanc:
    """One Orthanc; it keeps its folder and its ports when stopped and started again.

    Parameters
    ----------
    settings
        Merged over ours: what the test needs, e.g. DicomModalities or LaMed.
    """

    def __init__(
        self,
        folder: Path,
        *,
        plugins: Sequence[Path] = (),
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        absent = [path for path in (PROGRAM, *plugins) if not path.exists()]
        if absent:
            missing(f"{absent[0]} (apt: orthanc orthanc-dicomweb orthanc-python)")
        self.folder, self.ae_title = folder, "ORTHANC"
        self.settings = {
            "Name": "test",
            "StorageDirectory": str(folder / "storage"),
            "IndexDirectory": str(folder / "storage"),
            "Plugins": [str(path) for path in plugins],
            "DicomAet": self.ae_title,
            "DicomCheckCalledAet": True,
            "RemoteAccessAllowed": False,
            "SyncStorageArea": False,
            "StableAge": 1,
            **(settings or {}),
        }
        self.settings["HttpPort"], self.settings["DicomPort"] = free_ports(2)
        # A connection for each request: Orthanc may close one that is kept at any moment.
        limits = httpx.Limits(max_keepalive_connections=0)
        self.http = httpx.Client(base_url=self.url, timeout=30.0, trust_env=False, limits=limits)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.settings['HttpPort']}"

    @property
    def dicom_port(self) -> int:
        return int(self.settings["DicomPort"])

    @property
    def address(self) -> str:
        """AET@HOST:PORT, as a destination of results is written."""
        return f"{self.ae_title}@127.0.0.1:{self.dicom_port}"

    @property
    def log(self) -> str:
        path = self.folder / "orthanc.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop(signal.SIGKILL)  # nothing in its folder is needed any more, and it is quicker
        self.http.close()

    def start(self) -> None:
        """Start and wait until it answers; a port that was taken meanwhile is chosen anew."""
        (self.folder / "storage").mkdir(parents=True, exist_ok=True)
        for _ in range(3):
            self._launch()
            if self._answers():
                return
            if "port" not in self.log.rsplit("Reading the configuration", 1)[-1]:
                break
            self.settings["HttpPort"], self.settings["DicomPort"] = free_ports(2)
            self.http.base_url = httpx.URL(self.url)
        raise RuntimeError(f"Orthanc did not start:\n{self.log[-2000:]}")

    def stop(self, number: int = signal.SIGTERM) -> None:
        """End the process that we started, by its id: SIGTERM asks it to, SIGKILL is a crash.

        Raises
        ------
        subprocess.TimeoutExpired
            It did not end by itself.
        """
        process, self._process = self._process, None
        if process is None or process.poll() is not None:
            return
        os.kill(process.pid, number)
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise

    def upload(self, paths: Sequence[Path]) -> str:
        """Store files over REST and return Orthanc's id of the study of the last one."""
        answers = [self.post("/instances", content=path.read_bytes()) for path in paths]
        return str(answers[-1]["ParentStudy"])

    def know(self, port: int, **options: bool) -> None:
        """Let it know our AE, as the modality "lamed"."""
        peer = {"AET": "LAMED", "Host": "127.0.0.1", "Port": port, **options}
        self.http.put("/modalities/lamed", json=peer).raise_for_status()

    def send(self, study_uid: str, port: int) -> None:
        """Let it send all of a study to our AE, and wait until it has."""
        self.know(port)
        wanted = {"Resources": [self.find(study_uid)], "Synchronous": True}
        told = self.post("/modalities/lamed/store", json=wanted)
        assert told["FailedInstancesCount"] == 0, told

    def find(self, uid: str) -> str:
        """Look up Orthanc's own id of what has a DICOM UID."""
        (known,) = self.post("/tools/lookup", content=uid)
        return str(known["ID"])

    def files(self, study_uid: str) -> dict[str, bytes]:
        """Give every file of a study, by SOP Instance UID."""
        return {
            each["MainDicomTags"]["SOPInstanceUID"]: self.http.get(
                f"/instances/{each['ID']}/file"
            ).content
            for each in self.get(f"/studies/{self.find(study_uid)}/instances")
        }

    def retrieve(self, path: str) -> list[bytes]:
        """Retrieve instances over WADO-RS as they are stored (PS3.18 10.4)."""
        wanted = 'multipart/related; type="application/dicom"; transfer-syntax=*'
        answer = self.http.get(path, headers={"Accept": wanted}).raise_for_status()
        boundary = answer.headers["Content-Type"].split("boundary=")[1].encode()
        pieces = answer.content.split(b"--" + boundary)[1:-1]
        return [each.partition(b"\r\n\r\n")[2].removesuffix(b"\r\n") for each in pieces]

    def get(self, path: str) -> Any:
        return self.http.get(path).raise_for_status().json()

    def post(self, path: str, **body: Any) -> Any:
        return self.http.post(path, **body).raise_for_status().json()

    def _launch(self) -> None:
        path = self.folder / "orthanc.json"
        path.write_text(json.dumps(self.settings, indent=1))
        with (self.folder / "orthanc.log").open("ab") as log:
            self._process = subprocess.Popen(
                [PROGRAM, path], stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.folder
            )

    def _answers(self) -> bool:
        process = self._process
        deadline = time.monotonic() + START_S
        while process is not None and process.poll() is None and time.monotonic() < deadline:
            try:
                if self.http.get("/system").is_success:
                    return True
            except httpx.TransportError:
                time.sleep(0.05)
        self.stop(signal.SIGKILL)
        return False


@contextmanager
def with_our_plugin(
    folder: Path, lamed: Mapping[str, Any], settings: Mapping[str, Any]
) -> Iterator[Orthanc]:
    """Start an Orthanc with DICOMweb and our plugin, the section "LaMed" being `lamed`."""
    ours = {"PythonScript": str(OUR_PLUGIN), "LaMed": dict(lamed)}
    names = {"UserMetadata": {"LamedState": 4242, "LamedForwarded": 4243}}
    with Orthanc(folder, plugins=[PYTHON, DICOMWEB], settings=names | ours | settings) as started:
        yield started


def free_ports(count: int) -> list[int]:
    """Choose different ports that are free just now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]
    finally:
        for each in sockets:
            each.close()


def eventually(condition: Callable[[], Any], timeout_s: float = 60.0) -> Any:
    """Wait until a condition is true, and return what it gave."""
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.05)
    return found
