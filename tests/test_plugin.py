"""The plugin in a real Orthanc, against the real parts of the node."""

import signal
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import drafts
import pytest
from orthanc_server import OUR_PLUGIN, PYTHON, Orthanc, eventually, free_ports, with_our_plugin
from pydicom import Dataset

from dicom_node import delivery, qa, sample
from dicom_node.config import Config
from dicom_node.intake import Intake
from dicom_node.jobs import Jobs, State
from dicom_node.ledger import Ledger
from dicom_node.records import Result
from dicom_node.routing import Rule
from dicom_node.scp import Scp
from dicom_node.spool import Spool

pytestmark = pytest.mark.orthanc

RULES = [Rule("ct_chest", "CT", ("CHEST",), ("CHEST",), 5), Rule("mr_brain", "MR", (), ("T1",), 5)]
TOKEN = "a-token-that-is-not-guessed"
WORKER = "test"


class Node:
    """The node's reception, routing, queue, ledger, HTTP interface and delivery, all real.

    Only the reading is left to the test: `answer` encodes and delivers a real draft.
    """

    def __init__(self, folder: Path) -> None:
        dicom_port, self.http_port = free_ports(2)
        self.config = Config(
            dicom_port=dicom_port, data_dir=folder, minimum_free_mb=1, network_timeout_s=5
        )
        self.ledger = Ledger(self.config.ledger_path)
        self.jobs = Jobs(self.ledger)
        rules = {"rules": RULES, "model_digest": "0f", "fallback": ""}
        # An hour: only the plugin's word makes a study complete.
        self.intake = Intake(self.ledger, self.jobs, **rules, quiet_s=3600, open_limit_s=3600)
        self._up = ExitStack()

    def start(self) -> None:
        config, ledger = self.config, self.ledger
        spool = Spool(config.spool_dir, ledger, minimum_free_mb=1)
        self._up.enter_context(Scp(config, spool, ledger))
        app = qa.create_app(ledger, results_dir=config.results_dir, api_token=TOKEN)
        self._up.enter_context(qa.Server(app, "127.0.0.1", self.http_port))

    def stop(self) -> None:
        self._up.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self.ledger.close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http_port}"

    def received(self, study_uid: str) -> set[str]:
        return {each.sop_uid for each in self.ledger.instances(study_uid)}

    def state(self, study_uid: str) -> str:
        study = self.ledger.study(study_uid)
        return study.state if study else ""

    def kinds(self, kind: str) -> int:
        return sum(each.kind == kind for each in self.ledger.events())

    def answer(self, instances: list[Dataset], orthanc: Orthanc) -> dict[str, Dataset]:
        """Read a study that is complete, and deliver a real SEG and two real SR to Orthanc."""
        self.intake.step()
        job = self.jobs.claim(WORKER, 60)
        assert job is not None
        made = drafts.encoded(job.protocol, instances=instances, job_id=job.id)
        paths = sample.write(list(made.values()), self.config.results_dir / job.id)
        results = [
            Result(job.id, label, ds.SOPClassUID, ds.SOPInstanceUID, ds.SeriesInstanceUID, path, "")
            for (label, ds), path in zip(made.items(), paths, strict=True)
        ]
        to = f"{orthanc.ae_title}@127.0.0.1:{orthanc.dicom_port}"
        self.ledger.record_results(job.id, results, [to], {})
        self.jobs.finish(job.id, WORKER, State.DONE)
        (due,) = self.ledger.due_deliveries()
        assert delivery.deliver(self.ledger, self.config, due), "Orthanc did not take the results"
        return made


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    with Node(tmp_path / "node") as started:
        yield started


@pytest.fixture
def orthanc(tmp_path: Path, node: Node) -> Iterator[Orthanc]:
    with plugged(tmp_path, node) as started:
        yield started


def plugged(tmp_path: Path, node: Node, **lamed: Any) -> Any:
    token = tmp_path / "api-token"
    if not token.exists():
        token.write_text(TOKEN + "\n")
    settings = {
        "DicomModalities": {"lamed": ["LAMED", "127.0.0.1", node.config.dicom_port]},
        "DicomScuTimeout": 2,
    }
    return with_our_plugin(
        tmp_path / "orthanc", {"Url": node.url, "TokenFile": str(token)} | lamed, settings
    )


def study(tmp_path: Path, **options: Any) -> tuple[list[Dataset], list[Path]]:
    instances = drafts.series(**options)
    folder = tmp_path / "sent" / str(instances[0].SeriesInstanceUID)
    return instances, sample.write(instances, folder)


def uids(instances: list[Dataset]) -> set[str]:
    return {str(each.SOPInstanceUID) for each in instances}


def told(orthanc: Orthanc, study_id: str) -> str:
    """What stands on the study, as Orthanc itself gives it."""
    return str(orthanc.get(f"/studies/{study_id}/metadata?expand").get("LamedState", ""))


def settled(orthanc: Orthanc) -> None:
    """Wait until every study is stable and the plugin has nothing in work."""
    eventually(lambda: all(each["IsStable"] for each in orthanc.get("/studies?expand")))
    eventually(lambda: orthanc.get("/lamed/status")["pending"] == 0)


def test_a_stable_study_reaches_the_node_and_its_results_end_it(
    orthanc: Orthanc, node: Node, tmp_path: Path
) -> None:
    instances, paths = study(tmp_path)
    study_uid = str(instances[0].StudyInstanceUID)
    study_id = orthanc.upload(paths)
    eventually(lambda: node.received(study_uid) == uids(instances))
    eventually(lambda: node.kinds("study.completion_requested") == 1)
    eventually(lambda: told(orthanc, study_id) == "receiving")

    made = node.answer(instances, orthanc)
    eventually(lambda: told(orthanc, study_id) == "done")
    settled(orthanc)
    # The results made the study stable once more, and nothing was sent again.
    assert node.kinds("instance.stored") == len(instances)
    assert node.kinds("instance.duplicate") == 0
    assert told(orthanc, study_id) == "done"
    assert orthanc.get(f"/lamed/studies/{study_id}") == {
        "study_uid": study_uid,
        "state": "done",
        "reason": "",
        "ended": True,
        "series": 1,
        "drafts": len(made),
    }


def test_images_that_come_later_are_sent_and_only_they(
    orthanc: Orthanc, node: Node, tmp_path: Path
) -> None:
    instances, paths = study(tmp_path)
    study_uid = str(instances[0].StudyInstanceUID)
    study_id = orthanc.upload(paths)
    eventually(lambda: told(orthanc, study_id) == "receiving")
    node.answer(instances, orthanc)
    eventually(lambda: told(orthanc, study_id) == "done")

    late, paths = study(tmp_path, study_uid=study_uid, seed=2)
    orthanc.upload(paths)
    eventually(lambda: node.received(study_uid) == uids(instances + late))
    eventually(lambda: told(orthanc, study_id) == "receiving")
    assert node.kinds("instance.duplicate") == 0
    assert node.kinds("study.completion_requested") == 2


def test_what_the_node_refuses_is_said_with_its_reason(
    orthanc: Orthanc, node: Node, tmp_path: Path
) -> None:
    _, paths = study(tmp_path, description="KNEE", body_part="KNEE")
    study_id = orthanc.upload(paths)
    eventually(lambda: told(orthanc, study_id) == "receiving")
    assert node.intake.step() == 1
    eventually(lambda: told(orthanc, study_id).startswith("rejected: "))
    assert "KNEE" in orthanc.get(f"/lamed/studies/{study_id}")["reason"]


def test_a_node_that_is_down_is_waited_for(tmp_path: Path) -> None:
    instances, paths = study(tmp_path)
    with Node(tmp_path / "node") as node:
        node.stop()
        with plugged(tmp_path, node) as orthanc:
            study_id = orthanc.upload(paths)
            eventually(lambda: told(orthanc, study_id).startswith("waiting: node unreachable"))
            answer = orthanc.get("/lamed/status")
            assert not answer["reachable"]
            assert answer["problem"].startswith("node unreachable")
            node.start()
            eventually(lambda: told(orthanc, study_id) == "receiving")
            assert node.received(str(instances[0].StudyInstanceUID)) == uids(instances)
            # It goes away again while the plugin asks it for the state.
            node.stop()
            eventually(lambda: told(orthanc, study_id).startswith("waiting: node unreachable"))
            node.start()
            eventually(lambda: told(orthanc, study_id) == "receiving")
            assert node.kinds("instance.stored") == len(instances)


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_a_restart_of_orthanc_in_the_middle_loses_nothing(
    tmp_path: Path, node: Node, end: signal.Signals
) -> None:
    instances, paths = study(tmp_path)
    study_uid = str(instances[0].StudyInstanceUID)
    with plugged(tmp_path, node) as orthanc:
        # Not stable yet: Orthanc itself will not tell of this study after the restart.
        study_id = orthanc.upload(paths)
        assert not orthanc.get(f"/studies/{study_id}")["IsStable"]
        orthanc.stop(end)
        orthanc.start()
        eventually(lambda: told(orthanc, study_id) == "receiving")
        assert node.received(study_uid) == uids(instances)
        # While the node works.
        orthanc.stop(end)
        orthanc.start()
        node.answer(instances, orthanc)
        eventually(lambda: told(orthanc, study_id) == "done")
        settled(orthanc)
        assert node.kinds("instance.stored") == len(instances)


def test_only_the_ct_and_mr_series_of_a_study_are_sent(
    orthanc: Orthanc, node: Node, tmp_path: Path
) -> None:
    instances, paths = study(tmp_path, name="mr_brain")
    study_uid = str(instances[0].StudyInstanceUID)
    foreign = list(drafts.encoded("mr_brain", instances=instances).values())
    for each in foreign:
        each.SeriesDescription = "Measurements of another vendor"
    # An image that calls itself MR and our draft is ours, whatever made it.
    ours = sample.series(modality="MR", shape=(1, 20, 24), study_uid=study_uid, seed=3)
    ours[0].SeriesDescription = "AI DRAFT: picture"
    more = sample.write(foreign + ours, tmp_path / "more")
    study_id = orthanc.upload(paths + more)
    eventually(lambda: told(orthanc, study_id) == "receiving")
    assert node.received(study_uid) == uids(instances)


def test_a_study_without_ct_or_mr_is_left_alone(
    orthanc: Orthanc, node: Node, tmp_path: Path
) -> None:
    instances, _ = study(tmp_path)
    for each in instances:
        each.Modality = "US"
    study_id = orthanc.upload(sample.write(instances, tmp_path / "us"))
    settled(orthanc)
    assert told(orthanc, study_id) == ""
    assert node.ledger.studies() == []
    answer = orthanc.http.post(f"/lamed/studies/{study_id}/send")
    assert answer.status_code == 409
    assert answer.json() == {"error": "the study has no CT or MR images"}


def test_a_study_is_sent_by_hand(tmp_path: Path, node: Node) -> None:
    instances, paths = study(tmp_path)
    study_uid = str(instances[0].StudyInstanceUID)
    with plugged(tmp_path, node, AutoForward=False) as orthanc:
        study_id = orthanc.upload(paths)
        settled(orthanc)
        assert orthanc.get(f"/lamed/studies/{study_id}")["state"] == ""
        assert node.ledger.studies() == []
        for number in (1, 2):  # asked again, all of it goes again
            answer = orthanc.post(f"/lamed/studies/{study_id}/send")
            assert answer["asked"]
            eventually(lambda: node.received(study_uid) == uids(instances))
            sent = number * len(instances)
            eventually(lambda sent=sent: node.kinds("instance.stored") == sent or sent)
            eventually(lambda: told(orthanc, study_id) == "receiving")
        eventually(lambda: node.kinds("instance.duplicate") == len(instances))


def test_requests_that_make_no_sense_get_an_error_and_a_sentence(orthanc: Orthanc) -> None:
    unknown = "01234567-89abcdef-01234567-89abcdef-01234567"
    for answer in (
        orthanc.http.get(f"/lamed/studies/{unknown}"),
        orthanc.http.post(f"/lamed/studies/{unknown}/send"),
    ):
        assert (answer.status_code, answer.json()) == (404, {"error": "no such study"})
    assert orthanc.http.get(f"/lamed/studies/{unknown}/send").status_code == 405
    assert orthanc.http.post("/lamed/status").status_code == 405


@pytest.mark.parametrize(
    ("token", "said"),
    [
        ("not-the-token", "the node refuses our token"),
        ("two lines\r\nX-Injected: 1", "is not one printable word"),
        ("", "is not one printable word"),
        ("\N{SNOWMAN}", "no token can be read"),
    ],
)
def test_a_wrong_token_is_said_on_the_study_until_it_is_right(
    tmp_path: Path, node: Node, token: str, said: str
) -> None:
    instances, paths = study(tmp_path)
    (tmp_path / "api-token").write_text(token)
    with plugged(tmp_path, node) as orthanc:
        study_id = orthanc.upload(paths)
        eventually(lambda: told(orthanc, study_id).startswith("waiting: "))
        assert said in eventually(
            lambda: "token" in told(orthanc, study_id) and told(orthanc, study_id)
        )
        assert said in orthanc.get("/lamed/status")["problem"]
        (tmp_path / "api-token").write_text(TOKEN)
        eventually(lambda: told(orthanc, study_id) == "receiving")
        assert node.received(str(instances[0].StudyInstanceUID)) == uids(instances)
        assert TOKEN not in orthanc.log


def test_a_node_that_lost_the_study_gets_it_again(tmp_path: Path, node: Node) -> None:
    instances, paths = study(tmp_path)
    study_uid = str(instances[0].StudyInstanceUID)
    with plugged(tmp_path, node) as orthanc:
        study_id = orthanc.upload(paths)
        eventually(lambda: told(orthanc, study_id) == "receiving")
        node.stop()
        with Node(tmp_path / "fresh") as fresh:
            fresh.stop()
            fresh.config = replace(fresh.config, dicom_port=node.config.dicom_port)
            fresh.http_port = node.http_port
            fresh.start()
            eventually(lambda: fresh.received(study_uid) == uids(instances), 30)


def test_a_study_that_is_deleted_is_forgotten(tmp_path: Path) -> None:
    _, paths = study(tmp_path)
    with Node(tmp_path / "node") as node:
        node.stop()
        with plugged(tmp_path, node) as orthanc:
            study_id = orthanc.upload(paths)
            eventually(lambda: told(orthanc, study_id).startswith("waiting: "))
            orthanc.http.delete(f"/studies/{study_id}").raise_for_status()
            eventually(lambda: orthanc.get("/lamed/status")["pending"] == 0)


@pytest.mark.parametrize(
    ("lamed", "said"),
    [
        ({}, "either TokenFile or Token"),
        ({"Token": "t", "TokenFile": "f"}, "either TokenFile or Token"),
        ({"Token": "t", "Url": "ftp://127.0.0.1"}, "LaMed.Url must be http://HOST:PORT"),
        ({"Token": "t", "Url": "http://user:word@host/"}, "LaMed.Url must be http://HOST:PORT"),
        ({"Token": "t", "AutoForward": "no"}, "LaMed.AutoForward must be a bool, not 'no'"),
        ({"Token": "t", "Colour": 1}, "LaMed has no setting 'Colour'"),
        ({"Token": "t", "Modalities": []}, "must not be empty"),
    ],
)
def test_wrong_settings_stop_orthanc_at_its_start(
    tmp_path: Path, lamed: dict[str, Any], said: str
) -> None:
    settings = {"PythonScript": str(OUR_PLUGIN), "LaMed": lamed}
    server = Orthanc(tmp_path, plugins=[PYTHON], settings=settings)
    with pytest.raises(RuntimeError, match="did not start"):
        server.start()
    server.http.close()
    assert said in server.log
