"""What the tests of keeping and erasing share: a node's data folder with studies in every state."""

import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from io import BytesIO
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pydicom import Dataset
from pydicom.filebase import DicomIO
from pydicom.filewriter import write_dataset
from pydicom.uid import ExplicitVRLittleEndian

from dicom_node import retention
from dicom_node.config import Config
from dicom_node.jobs import Jobs
from dicom_node.ledger import Ledger, Result, removals
from dicom_node.ledger.records import to_text
from dicom_node.spool import Announced, Spool

DAY = timedelta(days=1)
CT = "1.2.840.10008.5.1.4.1.1.2"
PEER = "PACS@127.0.0.1:104"
MODEL = {"name": "tiny", "version": "1", "sha256": "0" * 64, "untrained": True}


class Stopped(BaseException):
    """The process ends here, as a killed one does: nothing may catch it."""


class Node:
    """The data folder of a node, with what its roles would do."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.ledger = Ledger(config.ledger_path)
        self.spool = Spool(config.spool_dir, self.ledger, minimum_free_mb=0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.ledger.close()

    def restart(self) -> None:
        """Start as the node does after a crash."""
        self.ledger.close()
        self.ledger = Ledger(self.config.ledger_path)
        retention.resume(self.ledger, self.config)
        self.spool = Spool(self.config.spool_dir, self.ledger, minimum_free_mb=0)
        self.spool.recover()

    def receive(self, study: str, *, numbers: Sequence[int] = (1, 2), **header: str) -> None:
        for number in numbers:
            instance = dataset(study, number, **header)
            said = Announced(CT, str(instance.SOPInstanceUID), ExplicitVRLittleEndian, "CT_1")
            self.spool.store(encoded(instance), said)

    def enqueue(self, study: str) -> str:
        wanted = sorted(each.sop_uid for each in self.ledger.instances(study))
        series = [
            {"series_uid": f"{study}.1", "description": "Thorax", "chosen": True, "reason": ""}
        ]
        return (
            Jobs(self.ledger).enqueue(study, "ct_chest", wanted, model_digest="m", series=series).id
        )

    def read(self, study: str, job: str, destination: str = PEER) -> str:
        """Do what the worker does with a job."""
        jobs = Jobs(self.ledger)
        claimed = jobs.claim("w", 60)
        assert claimed
        assert claimed.id == job
        folder = self.config.results_dir / job
        folder.mkdir(parents=True)
        path = folder / "draft.dcm"
        path.write_bytes(f"draft of {study}".encode())
        (folder / "summary.json").write_text(f'{{"study_instance_uid": "{study}"}}')
        result = Result(job, "draft", "1.2", f"2.25.{job[:6]}1", f"2.25.{job[:6]}2", path, "0" * 64)
        result = Result(**vars(result) | {"sop_uid": f"{study}.9.1", "series_uid": f"{study}.9"})
        plan = {destination: ("draft",)} if destination else {}
        summary = {"model": MODEL, "series": {"study_instance_uid": study}}
        jobs.complete(job, "w", [result], plan, summary, record={"inputs": [f"{study}.1.1"]})
        return job

    def delivered(
        self,
        study: str,
        *,
        at: datetime | None = None,
        state: str = "delivered",
        destination: str = PEER,
        **header: str,
    ) -> str:
        """Bring a study through; give its job."""
        self.receive(study, **header)
        job = self.read(study, self.enqueue(study), destination)
        for each in self.ledger.deliveries(job):
            if state != "pending":
                self.ledger.record_delivery(each.id, state, detail="1 instances stored")
        self._came(study, at)
        return job

    def failed(self, study: str, *, at: datetime | None = None) -> None:
        self.receive(study)
        self.ledger.set_study_state(study, "failed", "cannot be read")
        self._came(study, at)

    def deliveries_become(self, state: str) -> None:
        with self.ledger.transaction() as transaction:
            transaction.connection.exec_driver_sql(f"UPDATE deliveries SET state = '{state}'")

    def _came(self, study: str, at: datetime | None) -> None:
        with self.ledger.transaction() as transaction:
            transaction.connection.exec_driver_sql(
                "UPDATE studies SET last_at = ? WHERE study_uid = ?",
                (to_text(at or datetime.now(UTC)), study),
            )

    def sweep(
        self, now: datetime | None = None, config: Config | None = None
    ) -> list[retention.Going]:
        config = config or self.config
        with retention.alone(config):
            return retention.sweep(self.ledger, config, now)

    def hold(self, study: str, reason: str = "a lawsuit") -> None:
        with self.ledger.transaction() as transaction:
            removals.hold(transaction, study, reason, "test")

    def unhold(self, study: str) -> None:
        with self.ledger.transaction() as transaction:
            removals.unhold(transaction, study, "", "test")

    @contextmanager
    def storing(self) -> Iterator[None]:
        """Hold the spool as a store that does not end."""
        handle = os.open(self.config.spool_dir / "lock", os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(handle, fcntl.LOCK_SH)
            yield
        finally:
            os.close(handle)


def killed_at(place: str, node: Node, what: str) -> None:
    """Do something in a process of its own, which SIGKILL ends when it comes to a place."""
    module, _, name = place.rpartition(".")
    program = f"""
import os, pathlib, signal, sys
from datetime import UTC, datetime, timedelta
from unittest import mock
from dicom_node import retention
from dicom_node.retention import erasure
from dicom_node.config import Config
from keeping import Node
OLDER = datetime.now(UTC) + timedelta(days=400)
config = Config(data_dir=pathlib.Path(sys.argv[1]), minimum_free_mb=1)
die = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
with Node(config) as node, mock.patch("{module}.{name}", die):
    {what}
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(node.config.data_dir)],
        cwd=Path(__file__).parent,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)},
        timeout=60,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL


def dataset(study: str, number: int, **header: str) -> Dataset:
    made = Dataset()
    values: dict[str, Any] = {
        "SOPClassUID": CT,
        "SOPInstanceUID": f"{study}.1.{number}",
        "StudyDate": "20260301",
        "AccessionNumber": "ACC-4711",
        "Modality": "CT",
        "StudyDescription": "Thorax",
        "PatientName": "SYNTHETIC^ERASE",
        "PatientID": "PID-0815",
        "StudyInstanceUID": study,
        "SeriesInstanceUID": f"{study}.1",
        "PixelData": bytes(1000),
    }
    for keyword, value in (values | header).items():
        setattr(made, keyword, value)
    made["PixelData"].VR = "OW"
    return made


def encoded(instance: Dataset) -> bytes:
    buffer = DicomIO(BytesIO())
    buffer.is_little_endian, buffer.is_implicit_VR = True, False
    write_dataset(buffer, instance)
    return bytes(buffer.parent.getvalue())
