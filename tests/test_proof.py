"""Delivered only on proof: a PACS that commits, finds, refuses, forgets, or says nothing."""

# ruff: noqa: F811 - fixtures of another file

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from desk import until
from pydicom import Dataset, dcmread
from pynetdicom import AE, AllStoragePresentationContexts, build_role, evt
from pynetdicom.sop_class import (
    StorageCommitmentPushModel,
    StudyRootQueryRetrieveInformationModelFind,
)
from test_delivery import events, finish, made, only, running, study_of  # noqa: F401 - fixtures

from dicom_node import delivery
from dicom_node.config import Config, Destination
from dicom_node.delivery import proof
from dicom_node.errors import BadInput
from dicom_node.ledger import Ledger, deliveries
from dicom_node.network import dimse, negotiation
from dicom_node.scp import Scp
from dicom_node.spool import Spool

Finish = Callable[..., str]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Listen only shortly on our own association: no report comes on it."""
    monkeypatch.setattr(proof, "LISTEN_S", 0.1)


@dataclass
class Pacs:
    """A PACS of pynetdicom's that stores in memory, and reports as it is told."""

    report: str = "same"  # same | new | never | later | kept: for our next association
    loses: bool = False  # accepts, and then has nothing
    hides: str = ""  # an instance that it does not find
    forgets: bool = False  # says that it commits to all, and names all but one
    finds: bool = False
    status: int = 0x0000
    answer: int = 0x0000  # to being asked to commit
    us: int = 0  # our port, for a report on a new association
    stored: dict[str, Any] = field(default_factory=dict)
    asked: list[Dataset] = field(default_factory=list)
    threads: list[threading.Thread] = field(default_factory=list)
    taken: bool = True

    @contextmanager
    def up(self) -> Iterator[Destination]:
        ae = AE("PACS")
        ae.supported_contexts = AllStoragePresentationContexts
        if self.report != "never" or self.loses:
            ae.add_supported_context(StorageCommitmentPushModel)
        if self.finds:
            ae.add_supported_context(StudyRootQueryRetrieveInformationModelFind)
        handlers = [
            (evt.EVT_C_STORE, self._store),
            (evt.EVT_N_ACTION, self._action),
            (evt.EVT_C_FIND, self._find),
            (evt.EVT_ESTABLISHED, self._established),
        ]
        server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
        try:
            yield Destination("PACS", "127.0.0.1", int(server.server_address[1]))
        finally:
            for each in self.threads:
                each.join(10)
            server.shutdown()

    def _store(self, event: Any) -> int:
        if self.status == 0:
            self.stored[str(event.request.AffectedSOPInstanceUID)] = event.dataset
        return self.status

    def _action(self, event: Any) -> tuple[int, None]:
        self.asked.append(event.action_information)
        if self.report in {"same", "new"}:
            target = self._same if self.report == "same" else self._anew
            thread = threading.Thread(target=target, args=(event.assoc, event.action_information))
            self.threads.append(thread)
            thread.start()
        return self.answer, None

    def _established(self, event: Any) -> None:
        if self.report == "kept" and self.asked:
            where = (event.assoc, self.asked[0])
            thread = threading.Thread(target=self._same, args=where)
            self.threads.append(thread)
            thread.start()

    def _said(self, asked: Dataset) -> tuple[int, Dataset]:
        said = Dataset()
        said.TransactionUID = asked.TransactionUID
        kept, gone = [], []
        for each in asked.ReferencedSOPSequence:
            there = not self.loses and each.ReferencedSOPInstanceUID in self.stored
            (kept if there else gone).append(each)
        for each in gone:
            each.FailureReason = 0x0112
        if kept:
            said.ReferencedSOPSequence = kept[1:] if self.forgets else kept
        if gone:
            said.FailedSOPSequence = gone
        return (2 if gone else 1), said

    def _same(self, assoc: Any, asked: Dataset) -> None:
        kind, said = self._said(asked)
        uid = "1.2.840.10008.1.20.1.1"
        assoc.send_n_event_report(said, kind, StorageCommitmentPushModel, uid)

    def _anew(self, _: Any, asked: Dataset) -> None:
        self.say(asked)

    def say(self, asked: Dataset) -> int:
        """Report on an association of our own, as the SCP."""
        ae = AE("PACS")
        ae.add_requested_context(StorageCommitmentPushModel)
        role = build_role(StorageCommitmentPushModel, scp_role=True)
        assoc = ae.associate("127.0.0.1", self.us, ae_title="LAMED", ext_neg=[role])
        assert assoc.is_established
        kind, said = self._said(asked)
        uid = "1.2.840.10008.1.20.1.1"
        status, _ = assoc.send_n_event_report(said, kind, StorageCommitmentPushModel, uid)
        assoc.release()
        return int(status.Status)

    def _find(self, event: Any) -> Iterator[tuple[int, Dataset | None]]:
        for each in {} if self.loses else self.stored.values():
            if (
                each.SeriesInstanceUID == event.identifier.SeriesInstanceUID
                and each.SOPInstanceUID != self.hides
            ):
                found = Dataset()
                found.SOPInstanceUID = each.SOPInstanceUID
                yield 0xFF00, found


@contextmanager
def listening(config: Config, spool: Spool, ledger: Ledger) -> Iterator[int]:
    """Our own SCP, where a report may come in."""
    key = (dimse.N_EVENT_REPORT_RQ, negotiation.COMMITMENT)
    added = {key: lambda asked: proof.reported(ledger, config, asked)}
    with Scp(config, spool, ledger, added) as scp:
        yield scp.port


def test_a_commitment_on_the_same_association_is_proof(
    ledger: Ledger,
    config: Config,
    finish: Finish,
    made: list[Path],
) -> None:
    peer = Pacs(report="same")
    with peer.up() as address:
        job_id = finish(address)
        assert delivery.deliver(ledger, config, only(ledger, job_id))
    done = only(ledger, job_id)
    assert (done.state, done.detail) == ("delivered", "committed to 3 instances")
    asked = {str(each.ReferencedSOPInstanceUID) for each in peer.asked[0].ReferencedSOPSequence}
    assert asked == {str(dcmread(path).SOPInstanceUID) for path in made}
    assert deliveries.proven(ledger, job_id)
    assert study_of(ledger, job_id) == ("done", "")
    assert [each["destination"] for each in events(ledger, "delivery.delivered")] == [str(address)]


def test_what_is_held_here_is_not_proven_to_be_there(
    ledger: Ledger,
    config: Config,
    finish: Finish,
) -> None:
    with Pacs(report="same").up() as address:
        job_id = finish(address, held={"draft": "not as wanted"})
        assert delivery.deliver(ledger, config, only(ledger, job_id))
    assert only(ledger, job_id).state == "delivered"
    assert not deliveries.proven(ledger, job_id)


@pytest.mark.usefixtures("impatient")
def test_a_peer_that_refuses_to_be_asked_is_told_and_asked_again(
    ledger: Ledger, config: Config, finish: Finish
) -> None:
    peer = Pacs(report="kept", answer=0x0110)
    with peer.up() as address:
        job_id = finish(address)
        assert delivery.deliver(ledger, config, only(ledger, job_id))
    assert only(ledger, job_id).state == "sent"
    (told,) = [each for each in ledger.events() if each.kind == "delivery.proof_failed"]
    assert told.data["destination"] == str(address)
    assert "0x0110" in told.data["reason"]


@pytest.mark.usefixtures("impatient")
def test_a_commitment_on_an_association_of_the_peer_is_proof(
    ledger: Ledger,
    config: Config,
    spool: Spool,
    finish: Finish,
) -> None:
    with listening(config, spool, ledger) as port, Pacs(report="new", us=port).up() as address:
        job_id = finish(address)
        assert delivery.deliver(ledger, config, only(ledger, job_id))
        until(lambda: only(ledger, job_id).state == "delivered")


@pytest.mark.usefixtures("impatient")
def test_a_commitment_that_comes_after_a_restart_is_proof(
    config: Config,
    finish: Finish,
    ledger: Ledger,
) -> None:
    peer = Pacs(report="later")
    with peer.up() as address:
        job_id = finish(address)
        assert delivery.deliver(ledger, config, only(ledger, job_id))
        assert only(ledger, job_id).state == "sent"
        assert not deliveries.proven(ledger, job_id)
    ledger.close()
    with Ledger(config.ledger_path) as anew:
        spool = Spool(config.spool_dir, anew, minimum_free_mb=1)
        with listening(config, spool, anew) as peer.us:
            assert peer.say(peer.asked[0]) == 0x0000
            assert only(anew, job_id).state == "delivered"
            unknown = Dataset()
            unknown.TransactionUID, unknown.ReferencedSOPSequence = "1.2.3", []
            assert peer.say(unknown) == proof.UNKNOWN_TRANSACTION


def test_a_node_that_ends_between_the_store_and_the_question_asks_when_it_is_up(
    ledger: Ledger,
    config: Config,
    finish: Finish,
    made: list[Path],
) -> None:
    peer = Pacs(report="same")
    with peer.up() as address:
        job_id = finish(address)
        peer.stored = {str(dcmread(path).SOPInstanceUID): True for path in made}
        proof.sent(ledger, only(ledger, job_id), detail="3 instances stored", commits=True)
        with running(ledger, config):
            until(lambda: only(ledger, job_id).state == "delivered")
    assert len(peer.asked) == 1


@pytest.mark.usefixtures("impatient")
def test_a_commitment_comes_even_after_we_gave_up_waiting(
    ledger: Ledger,
    config: Config,
    spool: Spool,
    finish: Finish,
) -> None:
    peer = Pacs(report="later")
    config = replace(config, proof_s=0.05)
    with peer.up() as address, running(ledger, config):
        job_id = finish(address)
        until(lambda: only(ledger, job_id).state == "sent-unproven")
        assert "not proven" in only(ledger, job_id).detail
        with listening(config, spool, ledger) as peer.us:
            assert peer.say(peer.asked[0]) == 0x0000
    assert only(ledger, job_id).state == "delivered"


def test_what_a_peer_accepts_and_then_loses_is_sent_again_and_given_up_in_the_end(
    ledger: Ledger,
    config: Config,
    finish: Finish,
) -> None:
    config = replace(config, delivery_attempts=3, delivery_backoff_s=0.05)
    peer = Pacs(report="same", loses=True)
    with peer.up() as address, running(ledger, config):
        job_id = finish(address)
        until(lambda: only(ledger, job_id).state == "failed")
        assert len(peer.asked) == 3
        uids = {str(each.TransactionUID) for each in peer.asked}
        assert len(uids) == 3
    ended = only(ledger, job_id)
    assert ended.detail == "not committed to 3 instances: no such object instance"
    assert study_of(ledger, job_id)[0] == "failed"
    assert len(events(ledger, "delivery.lost")) == 2
    peer.loses = False
    config = replace(config, delivery_attempts=100)
    with peer.up() as again:
        # The PACS is repaired, under another port here: the old number is given up for good.
        assert deliveries.acknowledge(ledger, [ended.id], by="me")
        assert study_of(ledger, job_id)[0] == "done"
        other = finish(again)
        assert delivery.deliver(ledger, config, only(ledger, other))
        assert only(ledger, other).state == "delivered"


def test_a_report_that_the_peer_has_kept_is_taken_on_the_next_association_of_ours(
    ledger: Ledger,
    config: Config,
    finish: Finish,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(proof, "AGAIN_S", 0.05)
    monkeypatch.setattr(proof, "LISTEN_S", 0.5)
    peer = Pacs(report="kept")
    with peer.up() as address, running(ledger, config):
        job_id = finish(address)
        until(lambda: only(ledger, job_id).state == "delivered")
    assert only(ledger, job_id).detail == "committed to 3 instances"


@pytest.mark.usefixtures("impatient")
def test_what_a_query_found_and_the_peer_then_refuses_to_keep_is_sent_again(
    ledger: Ledger,
    config: Config,
    spool: Spool,
    finish: Finish,
) -> None:
    peer = Pacs(report="later", finds=True)
    with peer.up() as address:
        job_id = finish(address)
        assert delivery.deliver(ledger, config, only(ledger, job_id))
        assert (only(ledger, job_id).state, len(peer.asked)) == ("delivered", 1)
        assert study_of(ledger, job_id)[0] == "done"
        peer.loses = True
        with listening(config, spool, ledger) as peer.us:
            assert peer.say(peer.asked[0]) == 0x0000
        assert only(ledger, job_id).state == "pending"
        assert study_of(ledger, job_id)[0] == "delivering"
        peer.loses = False
        assert delivery.deliver(ledger, config, only(ledger, job_id))
        assert study_of(ledger, job_id)[0] == "done"


@pytest.mark.usefixtures("impatient")
def test_what_a_peer_finds_in_part_is_sent_again_as_often_as_its_table_says(
    ledger: Ledger,
    config: Config,
    finish: Finish,
    made: list[Path],
) -> None:
    peer = Pacs(report="never", finds=True, hides=str(dcmread(made[1]).SOPInstanceUID))
    with peer.up() as address:
        twice = replace(address, attempts=2)
        config = replace(config, destinations=(twice,), proof_s=0.05, delivery_backoff_s=0.05)
        job_id = finish(twice)
        with running(ledger, config):
            until(lambda: only(ledger, job_id).state == "failed")
    ended = only(ledger, job_id)
    assert (ended.detail, ended.attempts) == ("3 instances stored; the peer finds 2 of 3", 2)
    assert len(events(ledger, "delivery.lost")) == 1


@pytest.mark.usefixtures("impatient")
def test_a_peer_that_finds_nothing_at_all_is_believed_and_no_more(
    ledger: Ledger,
    config: Config,
    finish: Finish,
) -> None:
    config = replace(config, proof_s=0.05)
    with Pacs(report="never", finds=True, loses=True).up() as address, running(ledger, config):
        job_id = finish(replace(address, proof="query"))
        until(lambda: only(ledger, job_id).state == "sent-unproven")
    told = "3 instances stored; not proven: the peer finds 0 of 3"
    assert only(ledger, job_id).detail == told
    assert not deliveries.proven(ledger, job_id)


@pytest.mark.usefixtures("impatient")
def test_a_peer_that_is_gone_before_it_could_be_asked_is_named(
    ledger: Ledger,
    config: Config,
    finish: Finish,
) -> None:
    config = replace(config, proof_s=0.05)
    with Pacs(report="later").up() as address:
        job_id = finish(address)
        assert delivery.deliver(ledger, config, only(ledger, job_id))
    with running(ledger, config):
        until(lambda: only(ledger, job_id).state == "sent-unproven")
    assert "not proven: PACS@127.0.0.1" in only(ledger, job_id).detail
    assert "cannot be reached" in only(ledger, job_id).detail


def test_a_success_that_leaves_one_out_is_no_proof(
    ledger: Ledger, config: Config, finish: Finish
) -> None:
    with Pacs(report="same", forgets=True).up() as address:
        job_id = finish(address)
        assert delivery.deliver(ledger, config, only(ledger, job_id))
    lost = only(ledger, job_id)
    assert (lost.state, lost.detail) == (
        "pending",
        "committed to 2 instances; of 1 it says nothing",
    )


def test_a_query_is_proof_where_nobody_commits(
    ledger: Ledger,
    config: Config,
    finish: Finish,
) -> None:
    with Pacs(report="never", finds=True).up() as address:
        job_id = finish(address)
        assert delivery.deliver(ledger, config, only(ledger, job_id))
    done = only(ledger, job_id)
    assert (done.state, done.detail) == ("delivered", "3 instances stored, and found by a query")


@pytest.mark.usefixtures("impatient")
def test_a_peer_that_does_not_find_it_yet_is_asked_again(
    ledger: Ledger,
    config: Config,
    finish: Finish,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(proof, "AGAIN_S", 0.05)
    peer = Pacs(report="never", finds=True, loses=True)
    with peer.up() as address, running(ledger, config):
        job_id = finish(replace(address, proof="query"))
        until(lambda: only(ledger, job_id).state == "sent")
        peer.loses = False
        until(lambda: only(ledger, job_id).state == "delivered")


def test_who_is_not_to_be_asked_is_not_asked(
    ledger: Ledger,
    config: Config,
    finish: Finish,
) -> None:
    peer = Pacs(report="same", finds=True)
    with peer.up() as address:
        trusting = replace(address, proof="none")
        config = replace(config, destinations=(trusting,))
        job_id = finish(trusting)
        assert delivery.deliver(ledger, config, only(ledger, job_id))
        assert only(ledger, job_id).state == "sent-unproven"
        assert peer.asked == []


def test_what_a_peer_never_takes_is_given_up_at_once_and_what_it_may_take_later_is_not(
    ledger: Ledger,
    config: Config,
    finish: Finish,
) -> None:
    for status, state in ((0xA900, "failed"), (0xC001, "failed"), (0xA700, "pending")):
        with Pacs(report="never", status=status).up() as address:
            job_id = finish(address)
            assert not delivery.deliver(ledger, config, only(ledger, job_id))
            assert only(ledger, job_id).state == state
            assert f"0x{status:04X}" in only(ledger, job_id).detail


def test_a_dead_letter_is_sent_again_by_one_word(
    ledger: Ledger,
    config: Config,
    finish: Finish,
) -> None:
    peer = Pacs(report="never", status=0xC001)
    with peer.up() as address:
        job_id = finish(address)
        assert not delivery.deliver(ledger, config, only(ledger, job_id))
        (failed,) = deliveries.listed(ledger, state="failed", destination="PACS@")
        peer.status = 0
        (again,) = deliveries.resend(ledger, [failed.id], by="me")
        assert (again.state, again.attempts) == ("pending", 0)
        assert study_of(ledger, job_id)[0] == "delivering"
        assert delivery.deliver(ledger, config, only(ledger, job_id))
    assert study_of(ledger, job_id)[0] == "done"
    assert events(ledger, "delivery.restarted")[-1]["by"] == "me"
    with pytest.raises(BadInput, match="no delivery has the number 99"):
        deliveries.resend(ledger, [99], by="me")
    assert deliveries.listed(ledger, destination="_ACS") == []
