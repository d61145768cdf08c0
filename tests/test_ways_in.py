import json
import shutil
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pydicom
import pytest
from commands import Served, lamed_node, served, until
from orthanc_server import Orthanc, free_ports
from pynetdicom import AE
from test_expectations import ian, reference

from dicom_node import ways_in
from dicom_node.config import Config, Destination
from dicom_node.config.sources import Source
from dicom_node.demo import sample
from dicom_node.ledger import Ledger
from dicom_node.network.part10 import Part10
from dicom_node.scu import stow
from dicom_node.spool import Spool
from dicom_node.ways_in import expectations


@pytest.fixture
def orthanc(tmp_path: Path) -> Iterator[Orthanc]:
    settings = {"DicomAlwaysAllowGet": True, "DicomAlwaysAllowFind": True}
    with Orthanc(tmp_path / "orthanc", settings=settings) as started:
        yield started


def announce(node: Served, study_uid: str, count: int) -> None:
    ae = AE(ae_title="MOD")
    ae.add_requested_context(expectations.IAN)
    assoc = ae.associate("127.0.0.1", node.port("dicom"), ae_title="LAMED")
    said = ian(*(reference(f"1.2.{each}") for each in range(count)))
    said.StudyInstanceUID = study_uid
    status, _ = assoc.send_n_create(said, expectations.IAN, "1.2.3.4.5")
    assoc.release()
    assert status.Status == 0


@pytest.mark.orthanc
@pytest.mark.slow
def test_every_way_leads_into_one_spool(
    tmp_path: Path, checkpoint: Path, config: Config, orthanc: Orthanc
) -> None:
    posted, put, pulled = (
        sample.write(sample.series(shape=(3, 16, 16), seed=seed), tmp_path / str(seed))
        for seed in (1, 2, 3)
    )
    uids = [str(pydicom.dcmread(each[0]).StudyInstanceUID) for each in (posted, put, pulled)]
    orthanc.upload(pulled)
    (port,), watch = free_ports(1), tmp_path / "watch"
    watch.mkdir()
    (tmp_path / "node.toml").write_text(
        '[[sources]]\nname = "PACS"\nae_title = "ORTHANC"\nhost = "127.0.0.1"\n'
        f"port = {orthanc.dicom_port}\nexpects = true\n"
    )
    words = ("--config", str(tmp_path / "node.toml"))
    settings = {
        "data_dir": tmp_path / "node",
        "checkpoint": checkpoint,
        "dicom_port": 0,
        "stow_port": port,
        "watch_dir": watch,
        "minimum_free_mb": 1,
        "quiet_s": 600.0,
    }
    with served(tmp_path / "log", "--only", "scp", *words, **settings) as node:
        us = Destination(
            url=f"http://127.0.0.1:{port}/dicom-web", token_file=str(tmp_path / "node/api-token")
        )
        stow.send([Part10.read(each) for each in posted], us, config)
        for each in put:
            shutil.copy(each, watch)
        done = lamed_node(
            "pull", "--json", "--from", "PACS", "--study", uids[2], *words, **settings
        )
        assert (done.code, json.loads(done.out).get("stored")) == (0, 3), done.err
        announce(node, uids[0], 4)
        with Ledger(tmp_path / "node" / "ledger.sqlite") as ledger:
            until(lambda: len(ledger.studies()) == 3 and not any(watch.iterdir()))
            assert {len(ledger.instances(each)) for each in uids} == {3}
            assert expectations.expected(ledger, uids[0]) == 4
            asked = until(lambda: _asked(ledger, uids[2]))
            assert asked["instances"] == 3
            # As many as were expected are there: nobody waits for the quiet time.
            assert until(lambda: _why(ledger, uids[2])) == "expected"
            assert not _why(ledger, uids[0])  # one is still to come
        assert node.end() == 0


def _why(ledger: Ledger, study_uid: str) -> str:
    """Tell why a study counts as complete; empty if it does not."""
    told = ledger.events(study_uid=study_uid)
    return next((str(each.data["why"]) for each in told if each.kind == "study.complete"), "")


def _asked(ledger: Ledger, study_uid: str) -> dict[str, object]:
    told = [each.data for each in ledger.events(study_uid=study_uid)]
    return next((each for each in told if each.get("source") == "query PACS"), {})


def test_nothing_is_opened_that_is_not_set(config: Config, ledger: Ledger, spool: Spool) -> None:
    (only,) = ways_in.threads(config, ledger, spool, threading.Event())
    assert only.name == "room"
    with ways_in.stow(config, ledger, spool, "token") as port:
        assert port == 0


def test_each_way_has_its_loop(
    config: Config, ledger: Ledger, spool: Spool, tmp_path: Path
) -> None:
    peer = Destination("PACS", "127.0.0.1", 104)
    sources = (Source("A", peer, "c-get", expects=True), Source("B", peer, "c-move"))
    both = Config(data_dir=config.data_dir, sources=sources, watch_dir=str(tmp_path / "watched"))
    names = [each.name for each in ways_in.threads(both, ledger, spool, threading.Event())]
    assert names == ["room", "watched", "pull", "expects A"]


@pytest.mark.slow
def test_a_port_for_stow_that_is_taken_is_said(tmp_path: Path, checkpoint: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = lamed_node(
            *("serve", "--json", "--only", "scp"),
            data_dir=tmp_path / "node",
            checkpoint=checkpoint,
            dicom_port=0,
            stow_port=port,
        )
    assert done.code == 4
    assert f"cannot listen on 127.0.0.1:{port}" in done.error
