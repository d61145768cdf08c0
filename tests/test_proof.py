"""Delivered only on proof: a PACS that commits, finds, refuses, forgets, or says nothing."""

# ruff: noqa: F811 - fixtures of another file

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
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

from dicom_node import deliveries, delivery, dimse, negotiation, proof
from dicom_node.backoff import FAILURES, Breaker
from dicom_node.config import Config, Destination
from dicom_node.errors import BadInput
from dicom_node.ledger import Ledger
from dicom_node.scp import Scp
from dicom_node.spool import Spool

Finish = Callable[..., str]


@dataclass
class Pacs:
    """A PACS of pynetdicom's that stores in memory, and reports as it is told."""

    report: str = "same"  # same | new | never | later
    loses: bool = False  # accepts, and then has nothing
    finds: bool = False
    status: int = 0x0000
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
        return 0x0000, None

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
            said.ReferencedSOPSequence = kept
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
            if each.SeriesInstanceUID == event.identifier.SeriesInstanceUID:
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


# --- left alone ----------------------------------------------------------------------------------


def test_a_destination_that_fails_again_and_again_is_left_alone_for_a_while() -> None:
    now = [0.0]
    breaker = Breaker(lambda: now[0])
    assert [breaker.failed() for _ in range(FAILURES)] == [False] * (FAILURES - 1) + [True]
    assert breaker.is_open
    now[0] = 5.1
    assert not breaker.is_open
    assert breaker.is_tripped
    assert not breaker.failed()  # told once only
    now[0] = 15
    assert breaker.is_open
    for _ in range(50):
        breaker.failed()
    now[0] += 301
    assert not breaker.is_open
    assert breaker.worked()
    assert not breaker.is_tripped
    assert not breaker.worked()


def test_a_dead_destination_costs_three_attempts_not_one_for_each_study(
    ledger: Ledger,
    config: Config,
    finish: Finish,
) -> None:
    with Pacs().up() as address:
        pass
    jobs = [finish(address) for _ in range(8)]
    with running(ledger, config):
        until(lambda: bool(events(ledger, "destination.down")))
    tried = [only(ledger, each).attempts for each in jobs]
    assert sorted(tried) == [0] * 5 + [1] * 3


# --- STOW-RS -------------------------------------------------------------------------------------


@dataclass
class Web:
    """A DICOMweb server in small: it parses what comes by the boundary, as any does."""

    code: int = 200
    failing: int = 0  # a failure reason for the first instance
    loses: bool = False
    header: dict[str, str] = field(default_factory=dict)
    stored: dict[str, bytes] = field(default_factory=dict)
    seen: list[tuple[str, str | None]] = field(default_factory=list)

    @contextmanager
    def up(self, **options: Any) -> Iterator[Destination]:
        web = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                web.seen.append((self.path, self.headers["Authorization"]))
                kind, _, boundary = self.headers["Content-Type"].partition("boundary=")
                assert 'multipart/related; type="application/dicom"' in kind
                body = b""
                while (size := int(self.rfile.readline(), 16)) > 0:
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
                self._answer(*web.take(body, boundary))

            def do_GET(self) -> None:
                web.seen.append((self.path, self.headers["Authorization"]))
                there = [] if web.loses else list(web.stored)
                self._answer(200, [{"00080018": {"vr": "UI", "Value": [uid]}} for uid in there])

            def _answer(self, code: int, said: Any) -> None:
                content = json.dumps(said).encode()
                self.send_response(code)
                for key, value in web.header.items():
                    self.send_header(key, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                pass

        with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            thread = threading.Thread(target=server.serve_forever, args=(0.05,))
            thread.start()
            try:
                yield Destination(url=f"http://127.0.0.1:{server.server_port}/dicom-web", **options)
            finally:
                server.shutdown()
                thread.join()

    def take(self, body: bytes, boundary: str) -> tuple[int, Any]:
        if self.code >= 400 and self.code != 409:
            return self.code, {}
        failed = []
        for part in body.split(f"--{boundary}".encode())[1:-1]:
            content = part.partition(b"\r\n\r\n")[2].removesuffix(b"\r\n")
            uid = str(dcmread(BytesIO(content)).SOPInstanceUID)
            if self.failing and not failed:
                failed.append({"00081155": {"Value": [uid]}, "00081197": {"Value": [self.failing]}})
            else:
                self.stored[uid] = content
        return (409 if failed else self.code), {"00081198": {"Value": failed}} if failed else {}


def test_a_dicomweb_server_gets_the_files_byte_for_byte_and_is_asked_whether_it_has_them(
    ledger: Ledger,
    config: Config,
    finish: Finish,
    made: list[Path],
    tmp_path: Path,
) -> None:
    token = tmp_path / "token"
    token.write_text("secret\n")
    web = Web()
    with web.up(token_file=str(token)) as address:
        config = replace(config, destinations=(address,))
        job_id = finish(address)
        assert delivery.deliver(ledger, config, only(ledger, job_id))
    assert list(web.stored.values()) == [path.read_bytes() for path in made]
    assert web.seen[0] == ("/dicom-web/studies", "Bearer secret")
    assert {each for _, each in web.seen} == {"Bearer secret"}
    done = only(ledger, job_id)
    assert (done.state, done.detail) == ("delivered", "3 instances stored, and found by a query")


@pytest.mark.parametrize(
    ("web", "state", "told"),
    [
        (Web(code=401), "failed", "token_file or user_file"),
        (Web(code=404), "failed", "is the url right"),
        (Web(code=413), "failed", "413"),
        (Web(code=500), "pending", "500"),
        (Web(code=503, header={"Retry-After": "120"}), "pending", "503"),
        (Web(failing=0xA700), "pending", "0xA700"),
        (Web(failing=0xC000), "failed", "0xC000"),
        (Web(loses=True), "sent", "3 instances stored"),
    ],
)
def test_what_a_dicomweb_server_answers_decides_what_follows(
    ledger: Ledger,
    config: Config,
    finish: Finish,
    web: Web,
    state: str,
    told: str,
) -> None:
    with web.up() as address:
        job_id = finish(address)
        delivery.deliver(ledger, config, only(ledger, job_id))
    ended = only(ledger, job_id)
    assert ended.state == state
    assert told in ended.detail
    if web.header:
        assert (ended.next_at - datetime.now(UTC)).total_seconds() > 100


def test_a_dicomweb_server_that_is_not_there_is_said(
    ledger: Ledger,
    config: Config,
    finish: Finish,
) -> None:
    with Web().up() as address:
        pass
    job_id = finish(address)
    assert not delivery.deliver(ledger, config, only(ledger, job_id))
    assert "cannot be reached" in only(ledger, job_id).detail
