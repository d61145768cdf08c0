"""The plugin in a real Orthanc, against the real parts of the node."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path
from typing import Any

import drafts
import pytest
from node import TOKEN, Answering
from orthanc_server import OUR_PLUGIN, PYTHON, Orthanc, eventually, with_our_plugin
from pydicom import Dataset

from dicom_node.demo import sample

pytestmark = [pytest.mark.orthanc, pytest.mark.slow]


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Answering]:
    with Answering(tmp_path_factory.mktemp("node")) as started:
        yield started


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory: pytest.TempPathFactory, node: Answering) -> Iterator[Orthanc]:
    with plugged(tmp_path_factory.mktemp("orthanc"), node) as started:
        yield started


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Answering]:
    """A node of the test's own, to be stopped and forgotten."""
    with Answering(tmp_path / "node") as started:
        yield started


def plugged(tmp_path: Path, node: Answering, **lamed: Any) -> Any:
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


def study(tmp_path: Path, seed: int = 0, **options: Any) -> tuple[list[Dataset], list[Path]]:
    instances = drafts.series(seed=seed, **options)
    folder = tmp_path / "sent" / str(instances[0].SeriesInstanceUID)
    return instances, sample.write(instances, folder)


def uid(instances: list[Dataset]) -> str:
    return str(instances[0].StudyInstanceUID)


def uids(instances: list[Dataset]) -> set[str]:
    return {str(each.SOPInstanceUID) for each in instances}


def told(orthanc: Orthanc, study_id: str) -> str:
    """What stands on the study, as Orthanc itself gives it."""
    return str(orthanc.get(f"/studies/{study_id}/metadata?expand").get("LamedState", ""))


def settled(orthanc: Orthanc) -> None:
    """Wait until every study is stable, and until the plugin has nothing of them in work."""
    eventually(lambda: all(each["IsStable"] for each in orthanc.get("/studies?expand")))
    eventually(lambda: orthanc.get("/lamed/status")["pending"] == 0)


def test_a_stable_study_reaches_the_node_and_its_results_end_it(
    orthanc: Orthanc, node: Answering, tmp_path: Path
) -> None:
    instances, paths = study(tmp_path, seed=1)
    study_uid = uid(instances)
    study_id = orthanc.upload(paths)
    eventually(lambda: node.received(study_uid) == uids(instances))
    eventually(lambda: node.kinds("study.completion_requested", study_uid) == 1)
    eventually(lambda: told(orthanc, study_id) == "receiving")

    made = node.answer(instances, orthanc.address)
    eventually(lambda: told(orthanc, study_id) == "done")
    settled(orthanc)
    # The results made the study stable once more, and nothing was sent again.
    assert node.kinds("instance.stored", study_uid) == len(instances)
    assert node.kinds("instance.duplicate", study_uid) == 0
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
    orthanc: Orthanc, node: Answering, tmp_path: Path
) -> None:
    instances, paths = study(tmp_path, seed=2)
    study_uid = uid(instances)
    study_id = orthanc.upload(paths)
    eventually(lambda: told(orthanc, study_id) == "receiving")
    node.answer(instances, orthanc.address)
    eventually(lambda: told(orthanc, study_id) == "done")

    late, paths = study(tmp_path, seed=3, study_uid=study_uid)
    orthanc.upload(paths)
    eventually(lambda: node.received(study_uid) == uids(instances + late))
    eventually(lambda: told(orthanc, study_id) == "receiving: late images")
    assert node.kinds("instance.duplicate", study_uid) == 0
    assert node.kinds("study.completion_requested", study_uid) == 2


def test_what_the_node_refuses_is_said_with_its_reason(
    orthanc: Orthanc, node: Answering, tmp_path: Path
) -> None:
    instances, paths = study(tmp_path, seed=4, description="KNEE", body_part="KNEE")
    study_id = orthanc.upload(paths)
    eventually(lambda: told(orthanc, study_id) == "receiving")
    node.intake.step()
    eventually(lambda: told(orthanc, study_id).startswith("rejected: "))
    assert "KNEE" in orthanc.get(f"/lamed/studies/{study_id}")["reason"]
    assert node.state(uid(instances))[0] == "rejected"


def test_only_the_ct_and_mr_series_of_a_study_are_sent(
    orthanc: Orthanc, node: Answering, tmp_path: Path
) -> None:
    instances, _ = study(tmp_path, seed=5, name="mr_brain")
    foreign = list(drafts.encoded("mr_brain", instances=instances).values())
    for each in foreign:
        each.SeriesDescription = "Measurements of another vendor"
    # An image that calls itself MR and our draft is ours, whatever made it.
    ours = sample.series(modality="MR", shape=(1, 20, 24), study_uid=uid(instances), seed=6)
    ours[0].SeriesDescription = "AI DRAFT: picture"
    study_id = orthanc.upload(sample.write([*instances, *foreign, *ours], tmp_path / "all"))
    eventually(lambda: told(orthanc, study_id) == "receiving")
    assert node.received(uid(instances)) == uids(instances)


def test_a_study_without_ct_or_mr_is_left_alone(
    orthanc: Orthanc, node: Answering, tmp_path: Path
) -> None:
    instances, _ = study(tmp_path, seed=7)
    for each in instances:
        each.Modality = "US"
    study_id = orthanc.upload(sample.write(instances, tmp_path / "us"))
    eventually(lambda: orthanc.get(f"/studies/{study_id}")["IsStable"])
    answer = orthanc.http.post(f"/lamed/studies/{study_id}/send")
    assert answer.status_code == 409
    assert answer.json() == {"error": "the study has no CT or MR images"}
    assert told(orthanc, study_id) == ""
    assert node.received(uid(instances)) == set()


def test_a_study_that_is_deleted_is_forgotten(
    orthanc: Orthanc, node: Answering, tmp_path: Path
) -> None:
    instances, paths = study(tmp_path, seed=8)
    study_id = orthanc.upload(paths)
    eventually(lambda: told(orthanc, study_id) == "receiving")
    pending = orthanc.get("/lamed/status")["pending"]
    orthanc.http.delete(f"/studies/{study_id}").raise_for_status()
    eventually(lambda: orthanc.get("/lamed/status")["pending"] == pending - 1)
    # The node keeps what it has.
    assert node.received(uid(instances)) == uids(instances)


def test_requests_that_make_no_sense_get_an_error_and_a_sentence(orthanc: Orthanc) -> None:
    unknown = "01234567-89abcdef-01234567-89abcdef-01234567"
    for answer in (
        orthanc.http.get(f"/lamed/studies/{unknown}"),
        orthanc.http.post(f"/lamed/studies/{unknown}/send"),
    ):
        assert (answer.status_code, answer.json()) == (404, {"error": "no such study"})
    assert orthanc.http.get(f"/lamed/studies/{unknown}/send").status_code == 405
    assert orthanc.http.post("/lamed/status").status_code == 405


def test_a_node_that_is_down_is_waited_for(tmp_path: Path, fresh: Answering) -> None:
    instances, paths = study(tmp_path)
    fresh.stop()
    with plugged(tmp_path, fresh) as orthanc:
        study_id = orthanc.upload(paths)
        eventually(lambda: told(orthanc, study_id).startswith("waiting: node unreachable"))
        answer = orthanc.get("/lamed/status")
        assert not answer["reachable"]
        assert answer["problem"].startswith("node unreachable")
        fresh.start()
        eventually(lambda: told(orthanc, study_id) == "receiving")
        assert fresh.received(uid(instances)) == uids(instances)
        # It goes away again while the plugin asks it for the state.
        fresh.stop()
        eventually(lambda: told(orthanc, study_id).startswith("waiting: node unreachable"))
        fresh.start()
        eventually(lambda: told(orthanc, study_id) == "receiving")
        assert fresh.kinds("instance.stored") == len(instances)


def test_a_node_that_lost_the_study_gets_it_again(tmp_path: Path, fresh: Answering) -> None:
    instances, paths = study(tmp_path)
    with plugged(tmp_path, fresh) as orthanc, Answering(tmp_path / "other") as other:
        study_id = orthanc.upload(paths)
        eventually(lambda: told(orthanc, study_id) == "receiving")
        fresh.stop()
        other.stop()
        other.config = replace(other.config, dicom_port=fresh.config.dicom_port)
        other.http_port = fresh.http_port
        other.start()
        eventually(lambda: other.received(uid(instances)) == uids(instances), 60)
        eventually(lambda: told(orthanc, study_id) == "receiving")
        assert other.kinds("instance.stored") == len(instances)


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_a_restart_of_orthanc_in_the_middle_loses_nothing(
    tmp_path: Path, node: Answering, end: signal.Signals
) -> None:
    instances, paths = study(tmp_path, seed=20 + end)
    with plugged(tmp_path, node) as orthanc:
        # Not stable yet: Orthanc itself will not tell of this study after the restart.
        study_id = orthanc.upload(paths)
        assert not orthanc.get(f"/studies/{study_id}")["IsStable"]
        orthanc.stop(end)
        orthanc.start()
        eventually(lambda: told(orthanc, study_id) == "receiving")
        assert node.received(uid(instances)) == uids(instances)
        # While the node works.
        orthanc.stop(end)
        orthanc.start()
        node.answer(instances, orthanc.address)
        eventually(lambda: told(orthanc, study_id) == "done")
        settled(orthanc)
        assert node.kinds("instance.stored", uid(instances)) == len(instances)


def test_a_study_is_sent_by_hand(tmp_path: Path, node: Answering) -> None:
    instances, paths = study(tmp_path, seed=10)
    with plugged(tmp_path, node, AutoForward=False) as orthanc:
        study_id = orthanc.upload(paths)
        settled(orthanc)
        assert orthanc.get(f"/lamed/studies/{study_id}")["state"] == ""
        assert node.received(uid(instances)) == set()
        for known in (0, len(instances)):  # asked again, all of it goes again
            assert orthanc.post(f"/lamed/studies/{study_id}/send")["asked"]
            eventually(lambda: told(orthanc, study_id) == "receiving")
            eventually(lambda n=known: node.kinds("instance.duplicate", uid(instances)) == n)
            assert node.received(uid(instances)) == uids(instances)


def test_a_wrong_token_is_said_until_it_is_right(tmp_path: Path, node: Answering) -> None:
    instances, paths = study(tmp_path, seed=11)
    wrong = {
        "two lines\r\nX-Injected: 1": "is not one printable word",
        "": "is not one printable word",
        "\N{SNOWMAN}": "no token can be read",
        "not-the-token": "the node refuses our token",
    }
    with plugged(tmp_path, node) as orthanc:
        for token, said in wrong.items():
            (tmp_path / "api-token").write_text(token)
            assert said in orthanc.get("/lamed/status")["problem"]
        study_id = orthanc.upload(paths)
        eventually(
            lambda: told(orthanc, study_id).startswith("waiting: the node refuses our token")
        )
        (tmp_path / "api-token").write_text(TOKEN)
        eventually(lambda: told(orthanc, study_id) == "receiving")
        assert node.received(uid(instances)) == uids(instances)
        assert TOKEN not in orthanc.log


def test_another_web_server_is_not_taken_for_the_node(tmp_path: Path, node: Answering) -> None:
    instances, paths = study(tmp_path, seed=12)
    with web_server(tmp_path) as url, plugged(tmp_path, node, Url=url) as orthanc:
        said = f"{url} does not answer as a LaMed Node: HTTP status"
        assert orthanc.get("/lamed/status")["problem"] == f"{said} 404"
        study_id = orthanc.upload(paths)
        eventually(lambda: told(orthanc, study_id) == f"waiting: {said} 501")
        # What the node has is not sent again and again.
        assert node.kinds("instance.stored", uid(instances)) == len(instances)
        assert node.kinds("instance.duplicate", uid(instances)) == 0


@contextmanager
def web_server(folder: Path) -> Iterator[str]:
    """Serve a folder, as any web server does: 404 for what is not there, 501 for a POST."""
    handler = partial(SimpleHTTPRequestHandler, directory=str(folder))
    with HTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def test_a_node_that_orthanc_has_no_address_of_is_named(tmp_path: Path, node: Answering) -> None:
    _, paths = study(tmp_path, seed=13)
    with plugged(tmp_path, node, Node="elsewhere") as orthanc:
        study_id = orthanc.upload(paths)
        said = "waiting: Orthanc's DicomModalities has no 'elsewhere'"
        assert eventually(lambda: told(orthanc, study_id) == said)


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
