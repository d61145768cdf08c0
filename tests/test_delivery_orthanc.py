"""Delivered to a real Orthanc: it commits over DIMSE, and stores over STOW-RS."""

# ruff: noqa: F811 - fixtures of another file

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from orthanc_server import DICOMWEB, Orthanc, eventually
from pydicom import dcmread
from test_delivery import events, finish, made, only, running, study_of  # noqa: F401 - fixtures

from dicom_node import delivery, scu
from dicom_node.commands import peer_check
from dicom_node.config import Config, Destination
from dicom_node.delivery import proof
from dicom_node.errors import PeerError
from dicom_node.ledger import Ledger
from dicom_node.network import dimse, negotiation, outgoing
from dicom_node.network.part10 import Part10
from dicom_node.network.requestor import Offer
from dicom_node.scp import Scp
from dicom_node.scu import commitment
from dicom_node.spool import Spool

pytestmark = pytest.mark.orthanc

Finish = Callable[..., str]
SETTINGS = {
    "UnknownSopClassAccepted": True,
    "AuthenticationEnabled": True,
    "RegisteredUsers": {"lamed": "secret"},
    "OverwriteInstances": False,
}


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    folder = tmp_path_factory.mktemp("orthanc")
    server = Orthanc(folder, plugins=[DICOMWEB], settings=SETTINGS)
    server.http.auth = ("lamed", "secret")
    with server:
        yield server


@pytest.fixture
def empty(orthanc: Orthanc) -> Orthanc:
    for each in orthanc.get("/studies"):
        orthanc.http.delete(f"/studies/{each}").raise_for_status()
    return orthanc


@pytest.fixture
def scp(config: Config, spool: Spool, ledger: Ledger) -> Iterator[Scp]:
    key = (dimse.N_EVENT_REPORT_RQ, negotiation.COMMITMENT)
    with Scp(config, spool, ledger, {key: partial(proof.reported, ledger, config)}) as started:
        yield started


def stored(orthanc: Orthanc) -> set[str]:
    found = orthanc.get("/instances?expand")
    return {each["MainDicomTags"]["SOPInstanceUID"] for each in found}


def uids(paths: list[Path]) -> set[str]:
    return {str(dcmread(each).SOPInstanceUID) for each in paths}


def web(orthanc: Orthanc, folder: Path) -> Destination:
    secret = folder / "user"
    secret.write_text("lamed:secret\n")
    return Destination(url=f"{orthanc.url}/dicom-web", user_file=str(secret))


def test_it_commits_on_an_association_of_its_own(
    ledger: Ledger, config: Config, scp: Scp, finish: Finish, made: list[Path], empty: Orthanc
) -> None:
    empty.know(scp.port)
    to = replace(Destination.parse(empty.address), proof="commitment")
    config = replace(config, destinations=(to,))
    job_id = finish(to)
    assert delivery.deliver(ledger, config, only(ledger, job_id))
    eventually(lambda: only(ledger, job_id).state == "delivered")
    assert only(ledger, job_id).detail == "committed to 3 instances"
    assert stored(empty) == uids(made)
    assert study_of(ledger, job_id) == ("done", "")


def test_what_it_has_lost_it_does_not_commit_to_and_gets_again(
    ledger: Ledger, config: Config, scp: Scp, finish: Finish, made: list[Path], empty: Orthanc
) -> None:
    to = replace(Destination.parse(empty.address), proof="commitment")
    config = replace(config, destinations=(to,), delivery_backoff_s=0.05)
    job_id = finish(to)
    # It does not know where we are: nothing can be reported yet.
    empty.http.delete("/modalities/lamed")
    assert delivery.deliver(ledger, config, only(ledger, job_id))
    assert only(ledger, job_id).state == "sent"
    (lost,) = empty.post("/tools/lookup", content=str(dcmread(made[0]).SOPInstanceUID))
    empty.http.delete(lost["Path"]).raise_for_status()
    empty.know(scp.port)
    asked = only(ledger, job_id)
    assert asked.transaction_uid
    files = [Part10.read(path) for path in made]
    references = [(each.sop_class_uid, each.sop_uid) for each in files]
    offers = [Offer(scu.COMMITMENT, outgoing.SYNTAXES)]
    with scu.session(to, offers, scu.Caller.of(config, to)) as opened:
        opened.ask_commitment(commitment.information(asked.transaction_uid, references))
    eventually(lambda: events(ledger, "delivery.lost"))
    assert "no such object instance" in str(events(ledger, "delivery.lost")[0]["detail"])
    with running(ledger, config):
        eventually(lambda: only(ledger, job_id).state == "delivered")
    assert stored(empty) == uids(made)


def test_it_finds_what_it_has_stored_and_storing_it_twice_is_no_failure(
    ledger: Ledger, config: Config, finish: Finish, made: list[Path], empty: Orthanc
) -> None:
    to = replace(Destination.parse(empty.address), proof="query")
    config = replace(config, destinations=(to,))
    for _ in range(2):
        job_id = finish(to)
        assert delivery.deliver(ledger, config, only(ledger, job_id))
        assert only(ledger, job_id).state == "delivered"
    assert stored(empty) == uids(made)


def test_it_stores_over_the_web_byte_for_byte_and_again_without_complaint(
    ledger: Ledger,
    config: Config,
    finish: Finish,
    made: list[Path],
    empty: Orthanc,
    tmp_path: Path,
) -> None:
    to = web(empty, tmp_path)
    config = replace(config, destinations=(to,))
    for _ in range(2):
        job_id = finish(to)
        assert delivery.deliver(ledger, config, only(ledger, job_id))
        done = only(ledger, job_id)
        assert (done.state, done.detail) == (
            "delivered",
            "3 instances stored, and found by a query",
        )
    files = empty.files(str(dcmread(made[0]).StudyInstanceUID))
    assert sorted(files.values()) == sorted(path.read_bytes() for path in made)


def test_without_the_password_it_is_given_up_at_once_and_the_doctor_says_why(
    ledger: Ledger, config: Config, finish: Finish, empty: Orthanc, tmp_path: Path
) -> None:
    known = web(empty, tmp_path)
    stranger, elsewhere = replace(known, user_file=""), replace(known, url=f"{empty.url}/web")
    config = replace(config, destinations=(stranger,))
    job_id = finish(stranger)
    assert not delivery.deliver(ledger, config, only(ledger, job_id))
    assert only(ledger, job_id).state == "failed"
    assert "401" in only(ledger, job_id).detail
    assert "answers QIDO-RS" in "; ".join(peer_check.look(config, known))
    for wrong, told in ((stranger, "401 .*user_file"), (elsewhere, "404 .*is the url right")):
        with pytest.raises(PeerError, match=told):
            list(peer_check.look(config, wrong))
