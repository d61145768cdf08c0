import importlib.metadata
import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from certificates import Authority
from commands import short_protocols, tamper
from syslog_receiver import SyslogReceiver

from dicom_node.__main__ import main
from dicom_node.commands import check
from dicom_node.commands.check import Finding
from dicom_node.config import Config
from dicom_node.ledger import Ledger
from dicom_node.scp import Scp
from dicom_node.supervisor import announce, withdraw

LOOKS = [
    "settings",
    "names",
    "disk",
    "ports",
    "callers",
    "certificate",
    "ledger",
    "protocols",
    "profiles",
]
LOOKS += ["validator", "checkpoint", "device", "audit"]
Look = Callable[..., dict[str, Finding]]


@pytest.fixture
def look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Look:
    """Let the doctor look at settings; by default everything is well."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")

    def run(**settings: object) -> dict[str, Finding]:
        well = {"data_dir": str(tmp_path / "node"), "dicom_port": 0, "http_port": 0}
        lines = [f"{key} = {json.dumps(value)}" for key, value in (well | settings).items()]
        (tmp_path / "node.toml").write_text("\n".join([*lines, "network_timeout_s = 3.0"]))
        return {each.what: each for each in check.run(tmp_path / "node.toml")}

    return run


def port_of(listening: socket.socket) -> int:
    return int(listening.getsockname()[1])


def test_everything_is_looked_at_and_well(look: Look, tmp_path: Path) -> None:
    found = look(protocols=str(short_protocols(tmp_path / "protocols")))
    assert list(found) == LOOKS
    assert [each.what for each in found.values() if not each.ok] == []
    assert found["settings"].detail.startswith(f"AE title LAMED, data in {tmp_path / 'node'}")
    assert "no destination: results stay in the data folder" in found["settings"].detail
    assert "MB free in" in found["disk"].detail
    assert "ct_chest" in found["protocols"].detail
    assert "lamed-small in" in found["checkpoint"].detail
    assert "UNTRAINED" not in found["checkpoint"].detail
    assert found["ledger"].detail == "none yet; made at the first start"
    assert not (tmp_path / "node").exists()


def test_settings_that_cannot_be_read_are_the_only_finding(look: Look) -> None:
    found = look(quiet_s="soon")
    assert list(found) == ["settings"]
    assert (found["settings"].ok, found["settings"].exit_code) == (False, 2)
    assert "quiet_s" in found["settings"].detail


def test_a_port_of_another_program_is_bad(look: Look) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        for name in ("dicom_port", "http_port"):
            found = look(**{name: port_of(other)})["ports"]
            assert (found.ok, found.exit_code) == (False, 4)
            assert f"127.0.0.1:{port_of(other)} is taken by another program" in found.detail
    found = look(dicom_port=port_of_a_free_one())["ports"]
    assert "is free" in found.detail


def port_of_a_free_one() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return port_of(listening)


def test_who_may_call_is_told(look: Look) -> None:
    assert look()["callers"].detail.startswith("anyone may call")
    assert look(calling_ae_titles=["CT1", "CT2"])["callers"].detail == "only CT1, CT2 may call"


def test_our_certificate_is_looked_at_before_peers_refuse_it(look: Look, tmp_path: Path) -> None:
    ca = Authority(tmp_path / "pki")
    well = ca.issue("node", days=90.5)

    def found(**settings: str) -> Finding:
        return look(tls_ca=str(ca.path), **settings)["certificate"]

    assert look()["certificate"].detail == "none: DICOM is spoken without TLS"
    assert found(**well.settings).ok
    assert "and its key fit, it expires in 90 days" in found(**well.settings).detail
    for days, told in ((5.5, "expires in 5 days; renew it"), (-1, "has expired")):
        ending = found(**ca.issue("ending", days=days).settings)
        assert (ending.ok, ending.exit_code) == (False, 4)
        assert told in ending.detail
    other = ca.issue("other")
    wrong = found(tls_certificate=str(well.certificate), tls_key=str(other.key))
    assert (wrong.ok, wrong.exit_code) == (False, 2)
    assert f"{other.key} is not the key of the certificate {well.certificate}" in wrong.detail
    missing = found(tls_certificate=str(tmp_path / "none.pem"))
    assert "cannot read" in missing.detail
    assert "No such file" in missing.detail


def test_a_port_of_our_own_node_is_well(look: Look, tmp_path: Path) -> None:
    config = Config(data_dir=tmp_path / "node")
    with socket.create_server(("127.0.0.1", 0)) as ours:
        announce(config, "scp", port=port_of(ours))
        found = look(dicom_port=port_of(ours))["ports"]
        assert found.ok
        assert f"DICOM 127.0.0.1:{port_of(ours)} is this node's, which is up" in found.detail
        withdraw(config, "scp")
        assert not look(dicom_port=port_of(ours))["ports"].ok


def test_an_address_that_is_not_ours_is_bad(look: Look) -> None:
    found = look(dicom_host="192.0.2.7", dicom_port=11112)["ports"]  # RFC 5737: nobody's
    assert (found.ok, found.exit_code) == (False, 4)
    assert "cannot listen on 192.0.2.7:11112" in found.detail


def test_too_little_room_is_bad(look: Look, tmp_path: Path) -> None:
    found = look(minimum_free_mb=1_000_000_000)["disk"]
    assert (found.ok, found.exit_code) == (False, 4)
    assert "below minimum_free_mb=1000000000: images are refused" in found.detail
    (tmp_path / "file").write_text("no folder")
    for data_dir in (tmp_path / "file", tmp_path / "file" / "below"):
        found = look(data_dir=str(data_dir))["disk"]
        assert (found.ok, found.exit_code) == (False, 2)
        assert found.detail == f"data_dir: {tmp_path / 'file'} is a file, not a folder"


def test_a_ledger_that_was_changed_is_bad_and_the_event_is_named(
    look: Look, tmp_path: Path
) -> None:
    with Ledger(tmp_path / "node" / "ledger.sqlite") as ledger:
        for kind in ("first", "second", "third"):
            ledger.event(kind)
        assert look()["ledger"].detail == "3 events, the chain is whole"
    tamper(tmp_path / "node" / "ledger.sqlite", "UPDATE events SET kind = 'x' WHERE seq = 2")
    found = look()["ledger"]
    assert (found.ok, found.exit_code, found.detail) == (False, 5, "event 2 was changed")


def test_a_ledger_that_is_none_is_bad(look: Look, tmp_path: Path) -> None:
    (tmp_path / "node").mkdir()
    (tmp_path / "node" / "ledger.sqlite").write_bytes(b"no database" * 100)
    found = look()["ledger"]
    assert (found.ok, found.exit_code) == (False, 4)
    assert "cannot open the ledger" in found.detail
    assert len(found.detail.splitlines()) == 1


def test_a_protocol_with_a_typo_is_bad_and_the_key_is_named(look: Look, tmp_path: Path) -> None:
    folder = short_protocols(tmp_path / "protocols")
    file = folder / "ct_chest.toml"
    file.write_text(file.read_text().replace("minimum_slices", "minimum_slice"))
    found = look(protocols=str(folder))["protocols"]
    assert (found.ok, found.exit_code) == (False, 2)
    assert str(file) in found.detail
    assert "minimum_slices" in found.detail
    found = look(fallback_protocol="ct_chst")["protocols"]
    assert (found.ok, found.exit_code) == (False, 2)
    assert "fallback_protocol must be one of" in found.detail


def test_a_checkpoint_is_held_against_its_manifest(
    look: Look, tmp_path: Path, checkpoint: Path
) -> None:
    found = look(checkpoint=str(checkpoint))["checkpoint"]
    assert found.ok
    assert "every file as in its manifest, UNTRAINED" in found.detail
    empty = look(checkpoint=str(tmp_path / "none"))["checkpoint"]
    assert (empty.ok, empty.exit_code) == (False, 2)
    assert "`lamed-node checkpoint import` makes one" in empty.detail
    broken = shutil.copytree(checkpoint, tmp_path / "broken")
    with (broken / "tokenizer.model").open("ab") as file:
        file.write(b"more")
    changed = look(checkpoint=str(broken))["checkpoint"]
    assert (changed.ok, changed.exit_code) == (False, 2)
    assert f"{broken / 'tokenizer.model'}: expected sha256" in changed.detail


def test_a_device_that_is_not_there_is_bad(look: Look) -> None:
    found = look(device="cuda:3")["device"]
    assert (found.ok, found.exit_code) == (False, 4)
    assert "torch sees no CUDA device" in found.detail
    assert "cpu in" in look(device="cpu")["device"].detail


def test_a_peer_answers_is_down_or_is_somebody_else(look: Look, scp: Scp) -> None:
    there, nobody = f"127.0.0.1:{scp.port}", f"127.0.0.1:{port_of_a_free_one()}"
    found = look(destinations=[f"LAMED@{there}", f"OTHER@{there}", f"PACS@{nobody}"])
    assert found[f"peer LAMED@{there}"].detail.startswith("answers C-ECHO; ")
    assert "no destination" not in found["settings"].detail
    other, down = found[f"peer OTHER@{there}"], found[f"peer PACS@{nobody}"]
    assert (other.ok, other.exit_code, down.ok, down.exit_code) == (False, 4, False, 4)
    assert "Called AE title not recognised" in other.detail
    assert "cannot be reached: Connection refused" in down.detail


def test_the_receiver_of_audit_messages_answers_or_is_down(look: Look) -> None:
    with SyslogReceiver() as receiver:
        url = f"tcp://127.0.0.1:{receiver.port}"
        assert look(audit_syslog=url)["audit"].detail.endswith(f"{url} takes connections")
    found = look(audit_syslog=url)["audit"]
    assert (found.ok, found.exit_code) == (False, 4)
    assert found.detail.startswith(f"audit receiver {url}: ")
    assert "never answers" in look(audit_syslog="udp://127.0.0.1:514")["audit"].detail


def test_the_names_of_our_packages_are_ours_alone() -> None:
    owners = importlib.metadata.packages_distributions()
    for name in ("dicom_node", "model", "sr_templates"):
        assert set(owners[name]) == {"lamed-node"}


def test_another_package_called_model_is_bad(
    look: Look, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "site" / "greedy-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: greedy\nVersion: 1.0\n")
    (info / "top_level.txt").write_text("model\n")
    monkeypatch.syspath_prepend(tmp_path / "site")
    found = look()["names"]
    assert (found.ok, found.exit_code) == (False, 2)
    assert found.detail == "the package name model also comes from greedy"


def test_the_worst_finding_is_the_exit_code_and_each_has_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LAMED_DATA_DIR", str(tmp_path / "node"))
    monkeypatch.setenv("LAMED_DICOM_PORT", "0")
    monkeypatch.setenv("LAMED_HTTP_PORT", "0")
    assert main(["check"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines] == [["ok", each] for each in LOOKS]
    assert main(["check", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [each["what"] for each in told] == LOOKS
    assert all(set(each) == {"what", "ok", "detail", "exit_code"} for each in told)
    monkeypatch.setenv("LAMED_PROTOCOLS", str(tmp_path / "none"))
    monkeypatch.setenv("LAMED_MINIMUM_FREE_MB", "1000000000")
    assert main(["check"]) == 4
    bad = [line for line in capsys.readouterr().out.splitlines() if line.startswith("BAD ")]
    assert [line.split()[1] for line in bad] == ["disk", "protocols"]
    assert all(len(line.splitlines()) == 1 for line in bad)
