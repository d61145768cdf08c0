"""The node's real parts in the test's own process, each step taken when the test says so.

Knows reception, routing, queue and ledger (`Node`); with the HTTP interface, as the plugin needs it
(`Answering`), or with a worker that reads what a PACS sends (`Reading`).
"""

import struct
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import drafts
from orthanc_server import Orthanc, free_ports
from pydicom import Dataset

import model
import sr_templates
from dicom_node import delivery, qa, serve
from dicom_node.config import Config, Destination
from dicom_node.demo import sample
from dicom_node.intake import Intake
from dicom_node.jobs import Job, Jobs
from dicom_node.ledger import Ledger
from dicom_node.ledger.records import Result
from dicom_node.routing import Rule
from dicom_node.scp import Scp
from dicom_node.spool import Spool
from dicom_node.worker import Worker
from sr_templates import Protocol

RULES = [Rule("ct_chest", "CT", ("CHEST",), ("CHEST",), 5), Rule("mr_brain", "MR", (), ("T1",), 5)]
TOKEN = "a-token-that-is-not-guessed"
WORKER = "test"


class Node:
    """Receives, routes and queues, in a folder and on ports of its own; stops and starts again."""

    def __init__(
        self,
        folder: Path,
        *,
        rules: Sequence[Rule] = RULES,
        model_digest: str = "0f",
        quiet_s: float = 3600.0,  # an hour: only a word of the test's makes a study complete
        **options: Any,
    ) -> None:
        self.config = Config(
            dicom_port=free_ports(1)[0],
            data_dir=folder,
            minimum_free_mb=1,
            network_timeout_s=5,
            delivery_backoff_s=0.1,
            quiet_s=quiet_s,
            **options,
        )
        self.ledger = Ledger(self.config.ledger_path)
        self.jobs = Jobs(self.ledger)
        known = {"rules": rules, "model_digest": model_digest, "fallback": ""}
        self.intake = Intake(self.ledger, self.jobs, **known, quiet_s=quiet_s, open_limit_s=3600)
        self._up = ExitStack()

    def start(self) -> None:
        spool = Spool(self.config.spool_dir, self.ledger, minimum_free_mb=1)
        self._up.enter_context(Scp(self.config, spool, self.ledger))

    def stop(self) -> None:
        self._up.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self.ledger.close()

    def received(self, study_uid: str) -> set[str]:
        return {each.sop_uid for each in self.ledger.instances(study_uid)}

    def state(self, study_uid: str) -> tuple[str, str]:
        study = self.ledger.study(study_uid)
        return (study.state, study.reason) if study else ("", "")

    def kinds(self, kind: str, study_uid: str | None = None) -> int:
        """Count the events of a kind, of one study or of all."""
        return sum(each.kind == kind for each in self.ledger.events(study_uid=study_uid))

    def job(self, study_uid: str) -> Job:
        return self.jobs.for_study(study_uid)[-1]

    def deliver(self) -> bool:
        (due,) = self.ledger.due_deliveries()
        return delivery.deliver(self.ledger, self.config, due)


class Answering(Node):
    """Has the HTTP interface too; `answer` does without a model, and delivers a real draft."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        (self.http_port,) = free_ports(1)

    def start(self) -> None:
        super().start()
        app = qa.create_app(self.ledger, results_dir=self.config.results_dir, api_token=TOKEN)
        self._up.enter_context(qa.Server(app, "127.0.0.1", self.http_port))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http_port}"

    def answer(self, instances: list[Dataset], to: str) -> dict[str, Dataset]:
        """Read a study that is complete, and deliver a real SEG and two real SR."""
        self.intake.step()
        study_uid = str(instances[0].StudyInstanceUID)
        claimed = iter(lambda: self.jobs.claim(WORKER, 60), None)
        job = next(each for each in claimed if each.study_uid == study_uid)
        made = drafts.encoded(job.protocol, instances=instances, job_id=job.id)
        paths = sample.write(list(made.values()), self.config.results_dir / job.id)
        results = [
            Result(job.id, label, ds.SOPClassUID, ds.SOPInstanceUID, ds.SeriesInstanceUID, path, "")
            for (label, ds), path in zip(made.items(), paths, strict=True)
        ]
        self.jobs.complete(job.id, WORKER, results, {to: list(made)}, {})
        assert self.deliver(), "the results were not taken"
        return made


class Reading(Node):
    """Has a worker too: the real protocols, in short, are asked of a real network."""

    def __init__(
        self,
        folder: Path,
        lamed: model.LaMed,
        orthanc: Orthanc,
        *,
        to: str = "",
        **options: Any,
    ) -> None:
        known = {"rules": serve.rules(protocols()), "model_digest": lamed.card.sha256}
        destinations = (Destination.parse(to or orthanc.address),)
        super().__init__(folder, **known, destinations=destinations, **options)
        self.worker = Worker(self.ledger, self.jobs, lamed, protocols(), self.config, name=WORKER)

    def take(self, orthanc: Orthanc, study_uid: str) -> Job:
        """Let the PACS send a study to us, and take it as complete."""
        orthanc.send(study_uid, self.config.dicom_port)
        assert self.ledger.request_completion(study_uid)
        assert self.intake.step() == 1
        return self.job(study_uid)

    def read(self, orthanc: Orthanc, study_uid: str) -> list[Result]:
        """Take a study, read it, and bring the results back."""
        job = self.take(orthanc, study_uid)
        assert self.worker.step()
        assert self.deliver()
        assert self.state(study_uid) == ("done", "")
        return self.ledger.results(job.id)

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Run the loops of the node in service, each in its thread."""
        stop = threading.Event()
        threads = [
            threading.Thread(target=self.intake.run, args=(stop,)),
            threading.Thread(target=self.worker.run, args=(stop,)),
            threading.Thread(target=delivery.run, args=(self.ledger, self.config, stop)),
        ]
        for each in threads:
            each.start()
        try:
            yield
        finally:
            stop.set()
            for each in threads:
                each.join()


def data_set(file: bytes) -> bytes:
    """Cut the file meta information off, which is each archive's own (PS3.10 7.1)."""
    (length,) = struct.unpack_from("<I", file, 128 + 4 + 8)
    return file[128 + 4 + 12 + length :]


def protocols() -> dict[str, Protocol]:
    """Shorten each protocol: an untrained model does not know when to end."""
    return {name: _short(each) for name, each in sr_templates.load_protocols().items()}


def _short(protocol: Protocol) -> Protocol:
    words = [each for each in protocol.questions if each.target is None]
    asked = (*words[:1], *protocol.targets[:2])
    return replace(protocol, questions=tuple(replace(each, max_new_tokens=6) for each in asked))
