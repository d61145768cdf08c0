import csv
import json
import logging
import os
import signal
import socket
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from commands import PROGRAM, Done, environ, lamed_node, served, until

from dicom_node import serve
from dicom_node.__main__ import Fields, main
from dicom_node.config import Config
from dicom_node.demo import sample
from dicom_node.ledger import Ledger
from dicom_node.scp import Scp
from dicom_node.spool import Spool

HEAVY = {"torch", "transformers", "monai", "model"}
COMMANDS = (
    "serve", "demo", "login-link", "run", "ask", "send", "check", "config",
    "ledger verify", "ledger export", "ledger tail", "checkpoint import",
)  # fmt: skip


def nowhere() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return f"PACS@127.0.0.1:{listening.getsockname()[1]}"


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        ([], 2, "required: COMMAND"),
        (["nonsense"], 2, "invalid choice: 'nonsense'"),
        (["ledger"], 2, "required: VERB"),
        (["run"], 2, "required: DIR, --out"),
        (["serve", "--only", "kitchen"], 2, "invalid choice: 'kitchen'"),
        (["config", "--config", "nowhere.toml"], 2, "nowhere.toml: No such file"),
        (["send", ".", "--to", "PACS"], 2, "AET@HOST:PORT/PROFILE, not 'PACS'"),
        (["ledger", "verify"], 2, "no ledger at"),
        (["ledger", "verify", "--head", "7"], 2, "SEQ:DIGEST, not '7'"),
        (["send", "nowhere", "--to", "PACS@127.0.0.1:104"], 3, "no such file or folder: nowhere"),
        (["send", ".", "--to", "PACS@127.0.0.1:104"], 3, "no DICOM file in ."),
        (["run", "nowhere", "--out", "out"], 3, "no such file or folder: nowhere"),
        (["ask", ".", " "], 3, "a question is not empty"),
    ],
)
def test_an_error_is_one_document_one_sentence_and_one_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], code: int, sentence: str
) -> None:
    monkeypatch.chdir(tmp_path)
    done = lamed_node(*words, "--json")
    assert done.code == code
    assert sentence in done.data["error"]
    assert done.data["exit_code"] == code
    assert sentence in done.err
    assert "Traceback" not in done.err
    assert [path.name for path in tmp_path.iterdir()] == []


def test_an_error_leaves_standard_output_empty_where_a_person_reads_it() -> None:
    done = lamed_node("config", "--config", "nowhere.toml")
    assert (done.code, done.out) == (2, "")
    assert done.err == (
        "lamed-node: cannot read the settings file nowhere.toml: No such file or directory\n"
    )


def test_every_command_of_the_contract_explains_itself() -> None:
    for command in COMMANDS:
        done = lamed_node(*command.split(), "--help")
        assert done.code == 0, command
        assert "--json" in done.out, command
        assert done.out.count("lamed-node") == 1, command


def test_config_tells_every_setting_and_where_it_came_from(tmp_path: Path) -> None:
    (tmp_path / "node.toml").write_text('ae_title = "FILE"\nquiet_s = 7.5\n')
    done = lamed_node("config", "--json", "--config", tmp_path / "node.toml", ae_title="SHELL")
    rows = {row["name"]: row for row in done.data}
    assert list(rows) == [each.name for each in fields(Config)]
    assert rows["ae_title"]["value"] == "SHELL"
    assert rows["ae_title"]["origin"] == "LAMED_AE_TITLE"
    assert rows["quiet_s"]["value"] == "7.5"
    assert rows["quiet_s"]["origin"] == str(tmp_path / "node.toml")
    assert rows["dicom_port"]["origin"] == "default"
    assert all(row["help"] for row in rows.values())
    plain = lamed_node("config", ae_title="SHELL").out
    assert "SHELL   [LAMED_AE_TITLE]" in plain


def test_options_of_all_commands_may_stand_before_the_command() -> None:
    before = lamed_node("--json", "--config", "nowhere.toml", "config")
    after = lamed_node("config", "--json", "--config", "nowhere.toml")
    assert (before.code, before.data) == (after.code, after.data)
    assert before.code == 2


@pytest.mark.parametrize("words", [["config"], ["ledger", "tail", "--once"], ["login-link"]])
def test_a_light_command_imports_nothing_heavy(words: list[str], tmp_path: Path) -> None:
    Ledger(tmp_path / "ledger.sqlite").close()
    settings = environ({"data_dir": tmp_path})
    command = [sys.executable, "-X", "importtime", "-m", "dicom_node", *words, "--json"]
    done = subprocess.run(command, env=settings, capture_output=True, text=True, check=True)
    assert "dicom_node.config" in imported(done.stderr)
    assert not HEAVY & imported(done.stderr)
    if words == ["config"]:
        assert not {"sqlalchemy", "pydicom", "numpy", "rich"} & imported(done.stderr)


@pytest.mark.parametrize(("role", "module"), [("scp", "dicom_node.scp"), ("qa", "dicom_node.qa")])
def test_a_light_role_greets_and_drains_without_the_model(
    role: str, module: str, tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPROFILEIMPORTTIME", "1")
    settings = {"data_dir": tmp_path / "node", "checkpoint": checkpoint}
    with served(tmp_path / "log", "--only", role, **settings, dicom_port=0, http_port=0) as node:
        assert node.told["role"] == role
        assert node.port("dicom" if role == "scp" else "http") > 0
        assert node.end() == 0
    names = imported((tmp_path / "log").read_text())
    assert module in names
    assert not HEAVY & names
    with Ledger(tmp_path / "node" / "ledger.sqlite") as ledger:
        assert [each.kind for each in ledger.events()][-1] == "role.stopped"


def imported(log: str) -> set[str]:
    lines = (line for line in log.splitlines() if line.startswith("import time:"))
    return {line.rpartition("|")[2].strip() for line in lines}


@pytest.mark.parametrize("how", [["--json"], []])
def test_a_folder_is_sent_to_a_peer(
    scp: Scp, ledger: Ledger, ct_files: list[Path], how: list[str]
) -> None:
    to = f"LAMED@127.0.0.1:{scp.port}"
    done = lamed_node("send", ct_files[0].parent, "--to", to, *how)
    assert done.code == 0
    assert done.err == ""
    if how:
        assert done.data == {"sent": 5, "to": to}
    else:
        assert done.out == f"5 instances stored by {to}\n"
    stored = ledger.instances(str(sample.series(shape=(5, 16, 16))[0].StudyInstanceUID))
    assert {each.path.name for each in stored} == {each.name for each in ct_files}


def test_a_peer_that_is_not_there_or_will_not_is_exit_code_4(
    scp: Scp, spool: Spool, ct_files: list[Path], tmp_path: Path
) -> None:
    def send(to: str) -> Done:
        return lamed_node("send", ct_files[0].parent, "--to", to, "--json", network_timeout_s=3)

    nobody, stranger = send(nowhere()), send(f"OTHER@127.0.0.1:{scp.port}")
    assert (nobody.code, stranger.code) == (4, 4)
    assert "cannot be reached: Connection refused" in nobody.data["error"]
    assert "Called AE title not recognised" in stranger.data["error"]
    full = sample.write(sample.series(shape=(2, 16, 16)), tmp_path / "full")
    spool._minimum_free = 1 << 60
    refused = lamed_node("send", full[0].parent, "--to", f"LAMED@127.0.0.1:{scp.port}", "--json")
    assert refused.code == 4
    assert "Temporary congestion" in refused.data["error"]
    assert [each.err.count("\n") for each in (nobody, stranger, refused)] == [1, 1, 1]


def test_what_nobody_thought_of_is_exit_code_5_with_its_document(tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger.sqlite") as ledger, ledger.transaction() as transaction:
        row = "'yesterday', 'x', '{}', '', ''"
        transaction.connection.exec_driver_sql(
            f"INSERT INTO events (seq, at, kind, data, previous, digest) VALUES (1, {row})"
        )
    done = lamed_node("ledger", "export", "--json", data_dir=tmp_path)
    assert done.code == 5
    assert done.data["exit_code"] == 5
    assert done.data["error"].startswith("ValueError: ")
    assert "Traceback" in done.err


def test_no_room_for_what_is_written_is_exit_code_4(tmp_path: Path) -> None:
    (tmp_path / "node").write_text("a file where the data folder should be")
    done = lamed_node("login-link", "--json", data_dir=tmp_path / "node")
    assert done.code == 4
    assert str(tmp_path / "node") in done.data["error"]


def test_a_reader_that_has_had_enough_is_no_error(tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        ledger.event("test.event")
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [PROGRAM, "ledger", "export"],
        env=environ({"data_dir": tmp_path}),
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")


def test_ctrl_c_ends_what_follows_and_is_no_error(tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        ledger.event("first.event")
        with subprocess.Popen(
            [PROGRAM, "ledger", "tail", "--json"],
            env=environ({"data_dir": tmp_path}),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            assert json.loads(process.stdout.readline())["kind"] == "first.event"
            assert json.loads(process.stdout.readline())["kind"] == "ledger.read"  # that it is
            ledger.event("second.event")
            assert json.loads(process.stdout.readline())["kind"] == "second.event"
            process.send_signal(signal.SIGINT)
            assert (process.stdout.read(), process.stderr.read()) == ("", "")
            assert process.wait(20) == 0


def test_ctrl_c_elsewhere_is_130(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "settings.toml")  # whoever reads it waits
    with subprocess.Popen(
        [PROGRAM, "config", "--json", "--config", tmp_path / "settings.toml"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        writing = until(lambda: opened(tmp_path / "settings.toml"))
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    os.close(writing)
    assert json.loads(out) == {"error": "interrupted", "exit_code": 130}
    assert err == "lamed-node: interrupted\n"
    assert process.returncode == 130


def opened(fifo: Path) -> int | None:
    try:
        return os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
    except OSError:  # nobody reads it yet
        return None


def test_verbose_names_no_patient(tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        ledger.event("test.event", study_uid="1.2.3", patient_name="SYNTHETIC^NAME")
    done = lamed_node("ledger", "export", "--verbose", data_dir=tmp_path)
    assert next(iter(csv.DictReader(done.out.splitlines())))["study_uid"] == "1.2.3"
    assert "SYNTHETIC" in done.out
    assert "SYNTHETIC" not in done.err


def test_a_line_of_the_log_carries_its_fields() -> None:
    record = logging.makeLogRecord(
        {"msg": "role.died", "name": "dicom_node", "role": "worker", "reason": "no model"}
    )
    assert Fields("%(name)s %(message)s").format(record) == (
        "dicom_node role.died role=worker reason=no model"
    )


def test_a_link_needs_a_port_that_is_known(tmp_path: Path) -> None:
    known = lamed_node("login-link", "--json", data_dir=tmp_path, http_port=8282)
    assert known.data["link"].startswith("http://127.0.0.1:8282/login?token=")
    unknown = lamed_node("login-link", "--json", data_dir=tmp_path, http_port=0)
    assert unknown.code == 4
    assert "not up" in unknown.data["error"]
    for host, shown in (("::1", "[::1]"), ("0.0.0.0", "localhost"), ("qa.site", "qa.site")):
        assert serve.url(Config(http_host=host), 8282) == f"http://{shown}:8282"


def test_a_released_checkpoint_is_verified_and_rewritten(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    released = tmp_path / "M3D-LaMed-Tiny"
    released.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.model", "added_tokens.json"):
        (released / name).write_bytes((checkpoint / name).read_bytes())
    command = ["checkpoint", "import", str(released), "--out", str(tmp_path / "ours"), "--json"]
    assert main(command) == 0
    card = json.loads(capsys.readouterr().out)
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    assert card == {
        "name": "M3D-LaMed-Tiny",
        "version": "1",
        "sha256": manifest["sha256"],
        "untrained": True,  # said by its configuration, and not lost
    }
    assert json.loads((tmp_path / "ours" / "manifest.json").read_text())["sha256"] == card["sha256"]
    assert main(command) == 3
    assert f"{tmp_path / 'ours'} must be" in json.loads(capsys.readouterr().out)["error"]
    assert main(["checkpoint", "import", str(tmp_path), "--out", str(tmp_path / "x")]) == 3
    assert str(tmp_path / "config.json") in capsys.readouterr().err
