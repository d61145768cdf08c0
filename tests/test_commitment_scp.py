"""What a PACS hears that asks us to commit: on its association, or on one of ours."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pydicom
import pytest
from desk import until
from orthanc_server import Orthanc
from pydicom import Dataset
from pynetdicom import AE, evt
from pynetdicom.sop_class import StorageCommitmentPushModel
from raw_peer import IMPLICIT, RawPeer, fragments, request

from dicom_node import scu
from dicom_node.config import Config, Destination
from dicom_node.demo import sample
from dicom_node.ledger import Ledger
from dicom_node.network import dimse, negotiation, outgoing
from dicom_node.scp import Scp
from dicom_node.scp import commitment as commitment_scp
from dicom_node.scp.commitment import Provider
from dicom_node.spool import Spool

CT = "1.2.840.10008.5.1.4.1.1.2"
WELL_KNOWN = "1.2.840.10008.1.20.1.1"


@contextmanager
def providing(config: Config, spool: Spool, ledger: Ledger) -> Iterator[Scp]:
    provider = Provider(ledger, config)
    stop = threading.Event()
    thread = threading.Thread(target=provider.run, args=(stop,))
    added = {(dimse.N_ACTION_RQ, negotiation.COMMITMENT): provider.asked}
    with Scp(config, spool, ledger, added) as scp:
        thread.start()
        try:
            yield scp
        finally:
            stop.set()
            thread.join()


def received(scp: Scp, folder: Path, slices: int = 3) -> list[str]:
    paths = sample.write(sample.series(shape=(slices, 16, 16)), folder)
    scu.send(paths, Destination("LAMED", "127.0.0.1", scp.port), calling_ae="PACS", timeout_s=5)
    return [str(pydicom.dcmread(path).SOPInstanceUID) for path in paths]


def asking(uids: dict[str, str], transaction: str = "1.2.3.4") -> Dataset:
    asked = Dataset()
    asked.TransactionUID = transaction
    asked.ReferencedSOPSequence = []
    for uid, sop_class in uids.items():
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = sop_class, uid
        asked.ReferencedSOPSequence.append(item)
    return asked


class Asker:
    """A PACS of pynetdicom's that asks, and keeps what it hears."""

    def __init__(self) -> None:
        self.heard: list[tuple[int, Dataset]] = []

    def take(self, event: Any) -> tuple[int, None]:
        self.heard.append((event.event_type, event.event_information))
        return 0x0000, None

    def ask(self, scp: Scp, asked: Dataset) -> int:
        ae = AE("PACS")
        ae.add_requested_context(StorageCommitmentPushModel)
        assoc = ae.associate(
            "127.0.0.1",
            scp.port,
            ae_title="LAMED",
            evt_handlers=[(evt.EVT_N_EVENT_REPORT, self.take)],
        )
        status, _ = assoc.send_n_action(asked, 1, StorageCommitmentPushModel, WELL_KNOWN)
        until(lambda: bool(self.heard))
        assoc.release()
        return int(status.Status)


def ask_and_hang_up(scp: Scp, asked: Dataset) -> int:
    """Ask as a peer that is gone when it has its answer; give the status of that."""
    elements: dict[int, int | str] = {
        dimse.REQUESTED_CLASS: negotiation.COMMITMENT,
        dimse.COMMAND_FIELD: dimse.N_ACTION_RQ,
        dimse.MESSAGE_ID: 7,
        dimse.DATA_SET_TYPE: dimse.A_DATA_SET,
        dimse.REQUESTED_INSTANCE: WELL_KNOWN,
        dimse.ACTION_TYPE: 1,
    }
    with RawPeer(scp.port) as raw:
        raw.associate(request([(negotiation.COMMITMENT, [IMPLICIT])], calling="PACS"))
        raw.send(fragments(1, outgoing.command_set(elements), command=True))
        raw.send(fragments(1, outgoing.encoded(asked, IMPLICIT), command=False))
        return raw.status()


def failures(said: Dataset) -> dict[str, int]:
    return {
        str(each.ReferencedSOPInstanceUID): int(each.FailureReason)
        for each in said.get("FailedSOPSequence") or []
    }


def kinds(ledger: Ledger) -> list[str]:
    return [each.kind for each in ledger.events() if each.kind.startswith("commitment.")]


def test_what_lies_here_is_committed_to_on_the_association_that_asked(
    config: Config, spool: Spool, ledger: Ledger, tmp_path: Path
) -> None:
    with providing(config, spool, ledger) as scp:
        uids = received(scp, tmp_path / "in")
        asker = Asker()
        assert asker.ask(scp, asking(dict.fromkeys(uids, CT))) == 0
        until(lambda: "commitment.reported" in kinds(ledger))
    ((kind, said),) = asker.heard
    assert (kind, said.TransactionUID, failures(said)) == (1, "1.2.3.4", {})
    assert {each.ReferencedSOPInstanceUID for each in said.ReferencedSOPSequence} == set(uids)


def test_what_is_not_here_or_not_whole_is_not_committed_to(
    config: Config, spool: Spool, ledger: Ledger, tmp_path: Path
) -> None:
    with providing(config, spool, ledger) as scp:
        whole, cut, gone = received(scp, tmp_path / "in")
        study = ledger.studies()[0].study_uid
        paths = {each.sop_uid: each.path for each in ledger.instances(study)}
        paths[cut].write_bytes(paths[cut].read_bytes()[:-1])
        paths[gone].unlink()
        wanted = dict.fromkeys((whole, cut, gone, "1.2.9"), CT)
        asker = Asker()
        assert asker.ask(scp, asking(wanted)) == 0
        other = Asker()
        assert other.ask(scp, asking({whole: "1.2.840.10008.5.1.4.1.1.4"})) == 0
    ((kind, said),) = asker.heard
    assert kind == 2
    assert failures(said) == dict.fromkeys((cut, gone, "1.2.9"), 0x0112)
    assert [each.ReferencedSOPInstanceUID for each in said.ReferencedSOPSequence] == [whole]
    assert failures(other.heard[0][1]) == {whole: 0x0119}


def test_who_hung_up_hears_it_on_an_association_of_ours_also_after_a_restart(
    config: Config, spool: Spool, ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commitment_scp, "PATIENCE_S", 0.1)
    with Scp(
        config,
        spool,
        ledger,
        {(dimse.N_ACTION_RQ, negotiation.COMMITMENT): Provider(ledger, config).asked},
    ) as scp:
        uids = received(scp, tmp_path / "in")
        asker = Asker()
        assert ask_and_hang_up(scp, asking(dict.fromkeys(uids, CT))) == 0
    pacs = AE("PACS")
    pacs.add_supported_context(StorageCommitmentPushModel, scu_role=True, scp_role=True)
    server = pacs.start_server(
        ("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_N_EVENT_REPORT, asker.take)]
    )
    address = Destination("PACS", "127.0.0.1", int(server.server_address[1]))
    try:
        with providing(replace(config, destinations=(address,)), spool, ledger):
            until(lambda: "commitment.reported" in kinds(ledger))
    finally:
        server.shutdown()
    assert [(kind, failures(said)) for kind, said in asker.heard] == [(1, {})]


def test_who_cannot_be_found_is_said_to_have_heard_nothing(
    config: Config, spool: Spool, ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commitment_scp, "PATIENCE_S", 0.1)
    with providing(config, spool, ledger) as scp:
        uids = received(scp, tmp_path / "in")
        assert ask_and_hang_up(scp, asking(dict.fromkeys(uids, CT))) == 0
        until(lambda: "commitment.unreported" in kinds(ledger))


def test_what_is_no_request_is_refused(config: Config, spool: Spool, ledger: Ledger) -> None:
    with providing(config, spool, ledger) as scp:
        assert ask_and_hang_up(scp, asking({})) == 0xC000
        assert ask_and_hang_up(scp, asking({"1.2": CT}, "")) == 0xC000
    assert kinds(ledger) == []


def test_orthanc_asks_us_and_hears_it(
    config: Config, spool: Spool, ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commitment_scp, "PATIENCE_S", 0.5)
    (tmp_path / "orthanc").mkdir()
    orthanc = Orthanc(tmp_path / "orthanc", settings={"DicomAlwaysAllowEcho": True})
    config = replace(config, destinations=(Destination.parse(orthanc.address),))
    with providing(config, spool, ledger) as scp:
        uids = received(scp, tmp_path / "in")
        us = {"AET": "LAMED", "Host": "127.0.0.1", "Port": scp.port}
        orthanc.settings["DicomModalities"] = {"lamed": us}
        with orthanc:
            asked = {"DicomInstances": [[CT, uid] for uid in uids]}
            begun = orthanc.http.post("/modalities/lamed/storage-commitment", json=asked).json()
            until(lambda: orthanc.http.get(begun["Path"]).json()["Status"] == "Success")
