"""One study on its way from reception to the worker, each step taken when the test says so.

Knows spool, ledger, intake, queue and worker, all of them real; nothing of a network.
"""

import hashlib
import sqlite3
import struct
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

from node import protocols
from pydicom import Dataset

import model
from dicom_node import serve
from dicom_node.config import Config, Destination
from dicom_node.demo import sample
from dicom_node.intake import Intake
from dicom_node.jobs import Job, Jobs
from dicom_node.ledger import Ledger, Result
from dicom_node.spool import Announced, Spool
from dicom_node.worker import Worker
from sr_templates import Protocol

SHAPE = (18, 36, 32)
PACS = Destination("PACS", "127.0.0.1", 104)
PROTOCOLS = protocols()
CHEST = PROTOCOLS["ct_chest"]
WORDS = replace(CHEST, questions=(replace(CHEST.questions[0], max_new_tokens=2),))
FAST = {"ct_chest": WORDS}  # no mask to draw, little to write
HOUR_S = 3600.0


class Meanwhile(dict[str, Protocol]):
    """Protocols that let something happen while a job is under way."""

    def __init__(self, happens: Callable[[], object], known: Mapping[str, Protocol] = FAST) -> None:
        super().__init__(known)
        self.happens = happens

    def get(self, name: str, default: Any = None) -> Any:
        self.happens()
        return super().get(name, default)


def trip() -> None:
    raise RuntimeError("over its own feet")


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@dataclass
class Desk:
    """One study that waits in the queue, and what a worker needs to read it."""

    config: Config
    ledger: Ledger
    spool: Spool
    lamed: model.LaMed
    study_uid: str = ""

    def __post_init__(self) -> None:
        self.jobs = Jobs(self.ledger, maximum_attempts=self.config.maximum_attempts)

    def receive(self, instances: Sequence[Dataset]) -> Job:
        self.study_uid = receive(self.spool, instances)
        assert self.ledger.request_completion(self.study_uid)
        rules = serve.rules(PROTOCOLS)
        digest = self.lamed.card.sha256
        Intake(self.ledger, self.jobs, rules, digest, "", HOUR_S, HOUR_S).step()
        return self.job

    def worker(self, name: str = "a", known: Mapping[str, Protocol] = FAST) -> Worker:
        return Worker(self.ledger, self.jobs, self.lamed, known, self.config, name=name)

    @property
    def job(self) -> Job:
        return self.ledger.jobs(self.study_uid)[-1]

    @property
    def study(self) -> tuple[str, str]:
        found = self.ledger.study(self.study_uid)
        assert found is not None
        return found.state, found.reason

    def results(self) -> dict[str, Result]:
        return {each.label: each for each in self.ledger.results(self.job.id)}

    def kinds(self, kind: str) -> int:
        return [each.kind for each in self.ledger.events()].count(kind)

    def expire(self) -> None:
        """Let the lease run out, as if its worker had slept."""
        with self.ledger.transaction() as transaction:
            past = "2026-01-05T00:00:00.000000+00:00"
            transaction.connection.exec_driver_sql("UPDATE jobs SET lease_until = ?", (past,))


def ct(**options: Any) -> list[Dataset]:
    return [sample.enhanced(shape=SHAPE, **options)]


def slices(**options: Any) -> list[Dataset]:
    return sample.series(shape=SHAPE, **options)


def receive(spool: Spool, instances: Sequence[Dataset]) -> str:
    """Store instances as the SCP does; return the UID of their study."""
    for each in instances:
        file = BytesIO()
        each.save_as(file, enforce_file_format=True)
        (meta,) = struct.unpack_from("<I", file.getvalue(), 140)
        said = Announced(
            str(each.SOPClassUID),
            str(each.SOPInstanceUID),
            str(each.file_meta.TransferSyntaxUID),
            "SCANNER",
        )
        spool.store(file.getvalue()[144 + meta :], said)
    return str(instances[0].StudyInstanceUID)


@contextmanager
def held(path: Path) -> Iterator[None]:
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        holder.close()


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)
