"""A node that has read something: a study that is done, one refused, one still arriving.

Everything is the node's own: spool, routing, queue, the untrained model, delivery to a real SCP.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from pydicom import Dataset

from dicom_node import delivery, scu, serve
from dicom_node.config import Config, Destination
from dicom_node.demo import sample
from dicom_node.intake import Intake
from dicom_node.jobs import Jobs
from dicom_node.ledger import Ledger
from dicom_node.scp import Scp
from dicom_node.spool import Spool
from dicom_node.worker import Worker
from model.checkpoint import load

MARKUP = "<script>alert(1)</script>"


@dataclass(frozen=True)
class Read:
    """The node's folder and ledger, and the Study Instance UIDs by what became of them."""

    config: Config
    ledger: Ledger
    done: str
    rejected: str
    receiving: str

    @property
    def job_id(self) -> str:
        return self.ledger.jobs(self.done)[-1].id


@contextmanager
def read_studies(folder: Path, checkpoint: Path) -> Iterator[Read]:
    config = Config(
        data_dir=folder / "node",
        dicom_port=0,
        checkpoint=str(checkpoint),
        minimum_free_mb=1,
        network_timeout_s=5,
    )
    chest = sample.series(shape=(24, 64, 64), spacing_mm=(8.0, 5.0, 5.0))
    knee = sample.series(shape=(5, 16, 16), seed=2, description="KNEE", body_part="KNEE")
    for each in knee:
        each.PatientName, each.StudyDescription = f"{MARKUP}^SYNTHETIC", MARKUP
    late = sample.series(shape=(4, 16, 16), seed=3)
    with Ledger(config.ledger_path) as ledger, storage("PACS", folder / "pacs") as destination:
        config = replace(config, destinations=(destination,))
        spool = Spool(config.spool_dir, ledger, minimum_free_mb=1)
        with Scp(config, spool, ledger) as scp:
            to = Destination(config.ae_title, "127.0.0.1", scp.port)
            for each in (chest, knee):
                send(each, folder / "sent", to)
            intake(config, ledger).step()
            read(config, ledger)
            send(late, folder / "sent", to)
        yield Read(config, ledger, *(str(each[0].StudyInstanceUID) for each in (chest, knee, late)))


@contextmanager
def storage(ae_title: str, folder: Path) -> Iterator[Destination]:
    config = Config(ae_title=ae_title, dicom_port=0, data_dir=folder)
    with Ledger(config.ledger_path) as ledger:
        spool = Spool(config.spool_dir, ledger, minimum_free_mb=1)
        with Scp(config, spool, ledger) as scp:
            yield Destination(ae_title, "127.0.0.1", scp.port)


def send(instances: Sequence[Dataset], folder: Path, to: Destination) -> None:
    scu.send(sample.write(list(instances), folder), to, calling_ae="CT1", timeout_s=5)


def intake(config: Config, ledger: Ledger) -> Intake:
    rules, digest = serve.rules(serve.protocols(config)), serve.checkpoint_digest(config)
    return Intake(ledger, Jobs(ledger), rules, digest, "", 0.0, 3600.0)


def read(config: Config, ledger: Ledger) -> None:
    lamed = load(serve.checkpoint_folder(config))
    worker = Worker(ledger, Jobs(ledger), lamed, serve.protocols(config), config, name="test")
    while worker.step():
        pass
    for due in ledger.due_deliveries():
        delivery.deliver(ledger, config, due)
