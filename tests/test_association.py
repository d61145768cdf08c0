"""The upper layer against a peer that sends bytes: what is answered, and to whom."""

import os
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pydicom
import pytest
from raw_peer import (
    ABORT,
    CT,
    EXPLICIT,
    IMPLICIT,
    RELEASE_RQ,
    VERIFICATION,
    RawPeer,
    command,
    fragments,
    request,
)
from test_header import encoded
from test_scp import eventually, kinds

from dicom_node.config import Config
from dicom_node.demo import sample
from dicom_node.ledger import Ledger
from dicom_node.network import dimse, upper_layer
from dicom_node.network.dimse import Answer, Request
from dicom_node.network.negotiation import COMMITMENT
from dicom_node.scp import Scp
from dicom_node.spool import Spool

ECHO = fragments(1, command(0x30, data=False), command=True)


@pytest.fixture(autouse=True)
def short_farewell(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test waits for a peer of its own that does not hang up."""
    monkeypatch.setattr(upper_layer, "FAREWELL_S", 0.1)


@pytest.fixture
def peer(scp: Scp) -> Iterator[RawPeer]:
    with RawPeer(scp.port) as raw:
        yield raw


@pytest.fixture(scope="module")
def ct() -> pydicom.Dataset:
    return sample.series(shape=(3, 64, 64))[0]


def store(ct: pydicom.Dataset, size: int = 16_000, context: int = 1) -> bytes:
    asked = command(1, str(ct.SOPClassUID), str(ct.SOPInstanceUID), data=True)
    return fragments(context, asked, command=True, size=size) + fragments(
        context, encoded(ct), command=False, size=size
    )


def test_what_is_proposed_is_answered_context_by_context(peer: RawPeer) -> None:
    accepted = peer.associate(
        request(
            [
                (VERIFICATION, [IMPLICIT]),
                (CT, ["1.2.840.10008.1.2.4.94", EXPLICIT, IMPLICIT]),
                ("1.2.840.10008.5.1.4.1.2.2.1", [IMPLICIT]),  # query: not served
                ("1.3.12.2.1107.5.9.1", ["1.2.840.10008.1.2.4.90"]),
                ("1.2.840.10008.5.1.4.1.1.2", ["1.2.840.10008.1.2.4.102"]),
            ]
        )
    )
    found = [
        (each.context_id, each.result, each.transfer_syntax and str(each.transfer_syntax[0]))
        for each in accepted.presentation_context_definition_results_list
    ]
    assert [each[:2] for each in found] == [(1, 0), (3, 0), (5, 3), (7, 0), (9, 0)]
    # Referenced pixels do not come along, and video is taken only if nothing else is proposed.
    assert [found[index][2] for index in (0, 1, 3, 4)] == [
        IMPLICIT,
        EXPLICIT,
        "1.2.840.10008.1.2.4.90",
        "1.2.840.10008.1.2.4.102",
    ]
    assert accepted.maximum_length_received == 131_072


def test_a_commitment_may_be_reported_to_us_and_nothing_else_turns_the_roles(
    config: Config, spool: Spool, ledger: Ledger
) -> None:
    added = {(dimse.N_EVENT_REPORT_RQ, COMMITMENT): lambda _: Answer()}
    with Scp(config, spool, ledger, added) as scp, RawPeer(scp.port) as raw:
        roles = {COMMITMENT: (False, True), CT: (True, True)}
        accepted = raw.associate(request([(COMMITMENT, [IMPLICIT]), (CT, [EXPLICIT])], roles=roles))
        granted = {
            str(each.sop_class_uid): (bool(each.scu_role), bool(each.scp_role))
            for each in accepted.user_information
            if hasattr(each, "scu_role")
        }
    assert granted == {COMMITMENT: (False, True), CT: (True, False)}


@pytest.mark.parametrize("size", [50, 1000, 100_000])
def test_a_data_set_in_pieces_of_any_size_is_stored_as_it_came(
    peer: RawPeer, ledger: Ledger, ct: pydicom.Dataset, size: int
) -> None:
    peer.associate(request([(CT, [EXPLICIT])]))
    peer.send(store(ct, size))
    answer = peer.answer()
    assert int.from_bytes(answer[0x0900], "little") == 0
    assert int.from_bytes(answer[0x0100], "little") == 0x8001
    assert int.from_bytes(answer[0x0120], "little") == 7
    (stored,) = ledger.instances(str(ct.StudyInstanceUID))
    assert stored.path.read_bytes().endswith(encoded(ct))
    peer.send(RELEASE_RQ)
    assert peer.pdu() == struct.pack(">BxI4x", 6, 4)
    eventually(lambda: "association.released" in kinds(ledger))
    (end,) = (each for each in ledger.events() if each.kind == "association.released")
    assert end.data["stored"] == 1


def test_many_requests_may_lie_in_one_segment_and_many_fragments_in_one_pdu(peer: RawPeer) -> None:
    peer.associate(request())
    peer.send(ECHO * 50)
    assert [peer.status() for _ in range(50)] == [0] * 50
    asked = command(0x30, data=False)
    pdvs = b"".join(
        struct.pack(">IBB", len(piece) + 2, 1, control) + piece
        for piece, control in ((asked[:9], 1), (asked[9:], 3))
    )
    peer.send(struct.pack(">BxI", 4, len(pdvs)) + pdvs)
    assert peer.status() == 0


def test_what_came_byte_by_byte_is_understood(peer: RawPeer) -> None:
    for byte in request():
        peer.send(bytes([byte]))
    assert peer.pdu()[0] == 2
    for byte in ECHO:
        peer.send(bytes([byte]))
    assert peer.status() == 0


def test_a_command_that_is_not_served_is_answered_so(peer: RawPeer) -> None:
    peer.associate(request([(VERIFICATION, [IMPLICIT]), (CT, [EXPLICIT])]))
    peer.send(fragments(1, command(0x20, data=True), command=True))
    peer.send(fragments(1, b"\x08\x00\x52\x00\x00\x00\x00\x00", command=False))
    assert peer.status() == dimse.UNRECOGNIZED_OPERATION
    peer.send(fragments(1, command(0x30, "1.2.3", data=False), command=True))
    assert peer.status() == dimse.SOP_CLASS_NOT_SUPPORTED
    peer.send(fragments(1, command(0x0FFF, data=False), command=True))  # C-CANCEL: no answer
    peer.send(ECHO)
    assert peer.answer()[0x0100] == b"\x30\x80"


def test_a_handler_gets_what_was_asked_and_its_fault_is_an_answer(
    config: Config, spool: Spool, ledger: Ledger
) -> None:
    seen: list[Request] = []

    def commit(asked: Request) -> Answer:
        seen.append(asked)
        if len(seen) > 1:
            raise ValueError("broken")
        return Answer(0x0112, "no such object \\ ñ" + "x" * 100, data=b"\x00" * 40_000)

    added = {(dimse.N_ACTION_RQ, COMMITMENT): commit}
    with Scp(config, spool, ledger, added) as scp, RawPeer(scp.port) as raw:
        raw.associate(request([(COMMITMENT, [IMPLICIT])], maximum=4096))
        for _ in range(2):
            asked = command(0x0130, COMMITMENT, "1.2.840.10008.1.20.1.1", data=True)
            raw.send(fragments(1, asked, command=True) + fragments(1, b"data", command=False))
        answer = raw.answer()
        assert answer[0x0900] == b"\x12\x01"
        assert answer[0x0902].startswith(b"no such object / ?x")
        assert len(answer[0x0902]) == 64
        pieces = []
        while sum(map(len, pieces)) < 40_000:
            pdu = raw.pdu()
            assert len(pdu) <= 4096 + 6
            pieces.append(pdu[12:])
        assert raw.status() == 0x0110
    assert (seen[0].data, seen[0].calling_ae, seen[0].sop_uid) == (
        b"data",
        "SCANNER",
        "1.2.840.10008.1.20.1.1",
    )


def test_more_than_is_taken_is_refused_and_the_association_goes_on(
    config: Config, spool: Spool, ledger: Ledger
) -> None:
    big = sample.series(shape=(3, 800, 800))[0]
    small = sample.series(shape=(3, 16, 16))[0]
    with (
        Scp(replace(config, maximum_instance_mb=1), spool, ledger) as scp,
        RawPeer(scp.port) as raw,
    ):
        raw.associate(request([(CT, [EXPLICIT])]))
        raw.send(store(big))
        assert raw.status() == 0xA700
        raw.send(store(small))
        assert raw.status() == 0
    refused = next(each for each in ledger.events() if each.kind == "instance.refused")
    assert "maximum_instance_mb" in refused.data["reason"]


BROKEN = {
    "a type that no PDU has": (b"\x09\x00\x00\x00\x00\x00", 1),
    "another association": (request(), 2),
    "more than any PDU": (struct.pack(">BxI", 4, 1 << 31), 6),
    "a PDV that does not fit": (struct.pack(">BxIIBB", 4, 6, 500, 1, 3), 6),
    "a PDV cut short": (struct.pack(">BxI", 4, 3) + b"\x00\x00\x00", 6),
    "data before a command": (fragments(1, b"data", command=False), 6),
    "a command without end": (fragments(1, b"\x00" * 8 * 20_000, command=True), 6),
    "a command of group 8": (fragments(1, struct.pack("<HHI", 8, 0, 0), command=True), 6),
    "a context that was not accepted": (fragments(9, command(0x30, data=False), command=True), 0),
}


@pytest.mark.parametrize("what", BROKEN)
def test_who_breaks_the_protocol_is_aborted_and_remembered(
    peer: RawPeer, ledger: Ledger, what: str
) -> None:
    sent, reason = BROKEN[what]
    peer.associate(request())
    peer.send(sent)
    assert peer.pdu() == struct.pack(">BxI4B", 7, 4, 0, 0, 2, reason)
    assert peer.pdu() == b""
    eventually(lambda: "association.aborted" in kinds(ledger))


@pytest.mark.parametrize(
    "sent",
    [
        RELEASE_RQ,
        ABORT,
        b"GET / HTTP/1.1\r\n\r\n",
        struct.pack(">BxI", 1, 10) + b"\x00" * 10,
        struct.pack(">BxI", 1, 1 << 21),
        request()[:74] + b"\x20\x00\xff\xff",
    ],
)
def test_what_is_no_proposal_is_aborted(peer: RawPeer, ledger: Ledger, sent: bytes) -> None:
    peer.send(sent)
    peer.sock.shutdown(socket.SHUT_WR)
    assert peer.pdu()[:1] in {b"\x07", b""}
    assert "association.accepted" not in kinds(ledger)


def test_a_wrong_version_or_application_context_is_rejected(scp: Scp) -> None:
    proposal = request()
    for changed, diagnostic in (
        (proposal[:6] + b"\x00\x02" + proposal[8:], (1, 2, 2)),
        (proposal.replace(b"1.2.840.10008.3.1.1.1", b"1.2.840.10008.3.1.1.9"), (1, 1, 2)),
    ):
        with RawPeer(scp.port) as raw:
            raw.send(changed)
            assert tuple(raw.pdu()[7:10]) == diagnostic


def test_an_abort_and_a_hang_up_are_told_apart(scp: Scp, ledger: Ledger) -> None:
    for last, kind in ((ABORT, "association.aborted"), (b"", "association.lost")):
        with RawPeer(scp.port) as raw:
            raw.associate(request())
            raw.send(last)
        eventually(lambda kind=kind: kind in kinds(ledger))  # type: ignore[misc]


def test_who_reads_no_answers_holds_nobody_for_longer_than_said(
    config: Config, spool: Spool, ledger: Ledger
) -> None:
    impatient = replace(config, network_timeout_s=1.0)
    with Scp(impatient, spool, ledger) as scp, RawPeer(scp.port, 30) as peer:
        peer.associate(request())
        with suppress(OSError):  # until it gives us up
            for _ in range(2_000):
                peer.send(ECHO * 100)
    (told,) = [each.data for each in ledger.events() if each.kind == "association.lost"]
    assert told["reason"] == "the peer took no bytes for 1 s"


def test_who_is_silent_is_sent_away(config: Config, spool: Spool, ledger: Ledger) -> None:
    with Scp(replace(config, network_timeout_s=0.3), spool, ledger) as scp:
        with RawPeer(scp.port) as before, RawPeer(scp.port) as within, RawPeer(scp.port) as slow:
            within.associate(request())
            slow.send(request()[:40])
            for each in (before, within, slow):
                assert each.pdu()[:1] == b"\x07"
        eventually(lambda: not scp._open)
        eventually(lambda: "association.aborted" in kinds(ledger))


def test_the_end_of_the_node_aborts_and_loses_nothing(
    config: Config, spool: Spool, ledger: Ledger, ct: pydicom.Dataset
) -> None:
    with Scp(config, spool, ledger) as scp, RawPeer(scp.port) as raw:
        raw.associate(request([(CT, [EXPLICIT])]))
        raw.send(store(ct))
        assert raw.status() == 0
        start = time.monotonic()
        scp.stop()
        assert time.monotonic() - start < 4
        assert raw.pdu()[:1] == b"\x07"
    assert len(ledger.instances(str(ct.StudyInstanceUID))) == 1
    assert "association.lost" in kinds(ledger)


def test_ten_thousand_probes_leave_nothing_behind(scp: Scp, ledger: Ledger) -> None:
    def handles() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    def probe() -> None:
        with socket.create_connection(("127.0.0.1", scp.port)):
            pass

    probe()
    eventually(lambda: not scp._open)
    before, threads = handles(), threading.active_count()
    for _ in range(10_000):
        probe()
    eventually(lambda: not scp._open)
    eventually(lambda: threading.active_count() <= threads)
    # A connection of the ledger's pool or two; nothing that grows with the probes.
    eventually(lambda: handles() <= before + 4)
    assert kinds(ledger) == []
    with RawPeer(scp.port) as raw:
        raw.associate(request())
        raw.send(ECHO)
        assert raw.status() == 0


def test_random_noise_between_valid_pdus_ends_one_association_only(scp: Scp) -> None:
    with RawPeer(scp.port) as good:
        good.associate(request())
        for _ in range(20):
            with RawPeer(scp.port) as bad:
                bad.associate(request())
                bad.send(os.urandom(300))
                bad.sock.shutdown(socket.SHUT_WR)
                while bad.pdu():
                    pass
        good.send(ECHO)
        assert good.status() == 0
