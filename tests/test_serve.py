import http.client
import os
import shutil
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from commands import Served, lamed_node, served, short_protocols, until
from orthanc_server import free_ports
from pydicom import Dataset

from dicom_node import scu
from dicom_node.commands import check
from dicom_node.config import Config, Destination
from dicom_node.demo import sample
from dicom_node.ledger import Ledger
from dicom_node.scp import Scp
from dicom_node.spool import Spool
from dicom_node.supervisor import ROLES

pytestmark = pytest.mark.slow

SHAPE, SPACING_MM = (6, 32, 32), (8.0, 5.0, 5.0)


@contextmanager
def pacs(folder: Path, port: int = 0) -> Iterator[Destination]:
    config = Config(ae_title="PACS", dicom_port=port, data_dir=folder, minimum_free_mb=1)
    with Ledger(config.ledger_path) as ledger:
        spool = Spool(folder, ledger, minimum_free_mb=1)
        with Scp(config, spool, ledger) as scp:
            yield Destination("PACS", "127.0.0.1", scp.port)


def chest(seed: int) -> list[Dataset]:
    return sample.series(shape=SHAPE, spacing_mm=SPACING_MM, seed=seed)


@dataclass(frozen=True)
class Site:
    """A folder in which nodes are served, and what a test does to them."""

    folder: Path
    settings: dict[str, object]

    @property
    def data(self) -> Path:
        return self.folder / "node"

    @property
    def log(self) -> Path:
        return self.folder / "log"

    def send(self, node: Served, images: list[Dataset]) -> str:
        to = Destination("LAMED", "127.0.0.1", node.port("dicom"))
        paths = sample.write(images, self.folder / f"sent-{images[0].SOPInstanceUID}")
        scu.send(paths, to, calling_ae="CT1", timeout_s=5)
        return str(images[0].StudyInstanceUID)

    def state(self, study_uid: str) -> str:
        with Ledger(self.data / "ledger.sqlite") as ledger:
            study = ledger.study(study_uid)
        assert study is not None
        assert study.state not in {"failed", "rejected"}, study.reason
        return study.state

    def done(self, study_uid: str, seconds: float = 90.0) -> None:
        until(lambda: self.state(study_uid) == "done", seconds)

    def events(self, kind: str) -> list[dict[str, object]]:
        with Ledger(self.data / "ledger.sqlite") as ledger:
            return [each.data for each in ledger.events() if each.kind == kind]

    def pid(self, role: str) -> int:
        started = [each["pid"] for each in self.events("role.started") if each["role"] == role]
        return int(str(started[-1]))

    def received(self) -> set[str]:
        return {path.stem for path in (self.folder / "pacs").rglob("*.dcm")}

    def results(self, study_uid: str) -> set[str]:
        with Ledger(self.data / "ledger.sqlite") as ledger:
            return {each.sop_uid for each in ledger.results(ledger.jobs(study_uid)[-1].id)}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Site:
    folder = tmp_path_factory.mktemp("site")
    return new_site(folder, checkpoint)


def new_site(folder: Path, checkpoint: Path, **more: object) -> Site:
    return Site(
        folder,
        {
            "data_dir": folder / "node",
            "checkpoint": checkpoint,
            "protocols": short_protocols(folder / "protocols"),
            "dicom_port": 0,
            "http_port": 0,
            "quiet_s": 1.0,
            "lease_s": 2.0,
            "delivery_backoff_s": 0.2,
            "network_timeout_s": 5.0,
            "minimum_free_mb": 1,
        }
        | more,
    )


@pytest.fixture(scope="module")
def node(site: Site) -> Iterator[Served]:
    """One node that is up for all tests of it, with a PACS behind it."""
    with pacs(site.folder / "pacs") as to:
        site.settings["destinations"] = to
        with served(site.log, **site.settings) as up:
            yield up


# --- one node that is up ------------------------------------------------------------------------


def test_a_node_greets_with_its_ports_its_model_and_one_link(site: Site, node: Served) -> None:
    assert node.told["ae_title"] == "LAMED"
    assert node.told["data_dir"] == str(site.data)
    assert node.told["model"] == "lamed-tiny-untrained (UNTRAINED: its answers mean nothing)"
    assert node.told["results_to"] == str(site.settings["destinations"])
    assert node.told["login"].startswith(f"{node.told['http']}/login?token=")
    to = Destination("LAMED", "127.0.0.1", node.port("dicom"))
    scu.echo(to, calling_ae="CT1", timeout_s=5)
    page = http.client.HTTPConnection("127.0.0.1", node.port("http"), timeout=5)
    page.request("GET", node.told["login"].removeprefix(node.told["http"]))
    assert page.getresponse().status == 200
    page.close()


def test_a_study_comes_back_as_drafts(site: Site, node: Served) -> None:
    study = site.send(node, chest(1))
    site.done(study)
    assert len(site.results(study)) == 3
    assert site.results(study) <= site.received()


def test_two_studies_at_once_are_both_read(site: Site, node: Served) -> None:
    one, two = chest(2), chest(3)
    uids = {site.send(node, [*one[:3], *two[:3]]), site.send(node, [*two[3:], *one[3:]])}
    assert len(uids) == 2
    for study in uids:
        site.done(study)
        assert site.results(study) <= site.received()


def test_a_link_to_a_node_on_a_chosen_port_finds_it(site: Site, node: Served) -> None:
    done = lamed_node("login-link", "--json", **site.settings)
    assert done.data["link"].startswith(f"{node.told['http']}/login?token=")


def test_the_doctor_knows_a_node_that_is_up(site: Site, node: Served) -> None:
    found = "; ".join(check._ports(Config(data_dir=site.data, dicom_port=0, http_port=0)))
    assert f"127.0.0.1:{node.port('dicom')} is this node's, which is up" in found
    assert f"127.0.0.1:{node.port('http')} is this node's, which is up" in found


@pytest.mark.parametrize("role", ROLES)
def test_a_role_that_is_killed_comes_back_and_nothing_is_lost(
    site: Site, node: Served, role: str
) -> None:
    before = site.pid(role)
    study = site.send(node, chest(10 + ROLES.index(role)))
    if role == "worker":
        until(lambda: site.state(study) == "processing")
    os.kill(before, signal.SIGKILL)
    site.done(study)
    assert site.results(study) <= site.received()
    until(lambda: site.pid(role) != before)
    died = [each for each in site.events("role.died") if each["role"] == role]
    assert [each["reason"] for each in died] == [f"{role}: ended with signal 9 (SIGKILL)"]
    assert f"role.died role={role} reason={role}: ended with signal 9" in site.log.read_text()
    to = Destination("LAMED", "127.0.0.1", node.port("dicom"))
    until(lambda: answers(lambda: scu.echo(to, calling_ae="CT1", timeout_s=5)))
    until(lambda: answers(lambda: socket.create_connection(("127.0.0.1", node.port("http")))))


def answers(ask: Callable[[], object]) -> bool:
    try:
        found = ask()
    except (OSError, Exception):  # noqa: BLE001 - whatever it is, it does not answer yet
        return False
    if isinstance(found, socket.socket):
        found.close()
    return True


def test_a_second_node_on_the_same_folder_is_refused_and_the_first_goes_on(
    site: Site, node: Served
) -> None:
    done = lamed_node("serve", "--json", **site.settings)
    assert done.code == 4
    assert f"another node serves {site.data}; stop it, or give" in done.error
    study = site.send(node, chest(20))
    site.done(study)


def test_a_second_node_on_the_same_port_ends_with_a_sentence(
    site: Site, node: Served, tmp_path: Path
) -> None:
    other = site.settings | {"data_dir": tmp_path, "dicom_port": node.port("dicom")}
    done = lamed_node("serve", "--json", **other)
    assert done.code == 4
    assert f"scp: cannot listen on 127.0.0.1:{node.port('dicom')}: " in done.error
    assert "in use" in done.error
    other = other | {"dicom_port": 0, "http_port": node.port("http")}
    done = lamed_node("serve", "--json", **other)
    assert done.code == 4
    assert f"qa: cannot listen on 127.0.0.1:{node.port('http')}: " in done.error


# --- a node that ends and starts again ----------------------------------------------------------


def test_a_node_finishes_what_it_reads_before_it_ends(site: Site, node: Served) -> None:
    study = site.send(node, chest(30))
    until(lambda: site.state(study) not in {"receiving", "queued"})
    assert node.interrupt() == 0
    assert site.state(study) in {"delivering", "done"}
    assert {str(each["role"]) for each in site.events("role.stopped")} == set(ROLES)
    assert "role.killed" not in site.log.read_text()
    assert all_free(node.port("dicom"), node.port("http"))


def test_a_node_that_is_killed_starts_again_where_it_was_and_nothing_is_lost(
    site: Site, node: Served
) -> None:
    if node.process.poll() is None:
        node.end()
    ports = {"dicom_port": node.port("dicom"), "http_port": node.port("http")}
    settings = site.settings | ports
    with served(site.log, **settings) as second:
        assert second.told["login"] == ""
        pids = [site.pid(role) for role in ROLES]
        unread = site.send(second, chest(31))
        second.process.kill()
        second.process.wait()
        with served(site.log, **settings) as third:
            assert not any(map(is_alive, pids))
            site.done(unread)
            assert site.results(unread) <= site.received()
            assert third.end() == 0
    assert all_free(*ports.values())
    assert "role.killed" not in site.log.read_text()
    with Ledger(site.data / "ledger.sqlite") as ledger:
        assert ledger.verify() > 0
        assert ledger.study_counts().keys() == {"done"}


def all_free(*ports: int) -> bool:
    for port in ports:
        socket.create_server(("127.0.0.1", port)).close()
    return True


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_a_model_that_can_no_more_be_loaded_holds_no_result_back_and_is_told(
    tmp_path: Path, checkpoint: Path
) -> None:
    (peer,) = free_ports(1)
    own = shutil.copytree(checkpoint, tmp_path / "checkpoint")
    site = new_site(
        tmp_path, own, destinations=f"PACS@127.0.0.1:{peer}", quiet_s=600.0, open_limit_s=2.0
    )
    with ExitStack() as stack:
        node = stack.enter_context(served(site.log, **site.settings))
        study = site.send(node, chest(1))
        until(lambda: site.state(study) == "delivering")
        assert [each["why"] for each in site.events("study.complete")] == ["limit"]
        (own / "model.safetensors").write_bytes(b"broken")
        os.kill(site.pid("worker"), signal.SIGKILL)
        died = until(lambda: site.events("role.died")[1:])
        assert str(died[0]["reason"]).startswith(f"worker: checkpoint: {own}")
        assert float(str(died[0]["again_in_s"])) == 2.0
        assert f"reason=worker: checkpoint: {own}" in site.log.read_text()
        stack.enter_context(pacs(site.folder / "pacs", peer))
        site.done(study)
        assert site.results(study) <= site.received()
        assert node.end() == 0


# --- what cannot be served ----------------------------------------------------------------------


def test_a_setting_that_cannot_be_used_is_exit_code_2_in_one_sentence(
    tmp_path: Path, checkpoint: Path
) -> None:
    site = new_site(tmp_path, checkpoint)
    for setting, sentence in (
        ({"fallback_protocol": "ct_chst"}, "fallback_protocol must be one of"),
        ({"protocols": tmp_path / "none"}, "expected a folder of protocols"),
        ({"checkpoint": tmp_path / "none"}, "no readable manifest.json"),
        ({"quiet_s": -1}, "quiet_s must be"),
    ):
        done = lamed_node("serve", "--json", **site.settings | setting)
        assert (done.code, sentence in done.error) == (2, True), done
        assert "Traceback" not in done.err


def test_the_word_of_a_role_that_cannot_start_is_the_word_of_the_node(
    tmp_path: Path, checkpoint: Path
) -> None:
    own = shutil.copytree(checkpoint, tmp_path / "checkpoint")
    (own / "tokenizer.model").write_bytes(b"broken")
    done = lamed_node("serve", "--json", **new_site(tmp_path, own).settings)
    assert done.code == 2
    assert done.error.startswith(f"worker: checkpoint: {own / 'tokenizer.model'}")
    assert done.err.count(str(own / "tokenizer.model")) == 1
    assert "Traceback" not in done.err
