"""How a job's objects came to be: in the ledger, in the summary of `run`, in the study."""

import hashlib
import json
import subprocess
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import drafts
import pytest
from desk import FAST, PACS, PROTOCOLS, Desk, ct, slices
from pydicom import dcmread
from pydicom.uid import EnhancedSRStorage

import model
from dicom_node.config import Config
from dicom_node.ledger import Ledger
from dicom_node.run_record import libraries
from dicom_node.spool import Spool
from dicom_node.validator import Validator, Verdict
from sr_templates import as_text
from sr_templates.run_record import encode_record


@pytest.fixture(scope="module")
def lamed(checkpoint: Path) -> model.LaMed:
    return model.load(checkpoint)


@pytest.fixture
def desk(config: Config, ledger: Ledger, spool: Spool, lamed: model.LaMed) -> Desk:
    return Desk(replace(config, destinations=(PACS,)), ledger, spool, lamed)


def record_of(desk: Desk) -> dict[str, Any]:
    (found,) = [each for each in desk.ledger.events() if each.kind == "job.record"]
    assert found.job_id == desk.job.id
    return found.data


def test_the_ledger_has_what_a_repeat_would_need(desk: Desk, lamed: model.LaMed) -> None:
    desk.receive(slices())
    desk.worker(known=PROTOCOLS).step()
    told = record_of(desk)
    assert told["inputs"] == [
        {"sop_instance_uid": each.sop_uid, "sha256": each.sha256}
        for each in sorted(desk.ledger.instances(desk.study_uid), key=lambda each: each.sop_uid)
    ]
    assert told["model"]["weights_sha256"] == lamed.card.sha256
    protocol = PROTOCOLS["ct_chest"]
    assert told["parameters"] == {
        "protocol": "ct_chest",
        "protocol_sha256": hashlib.sha256(repr(protocol).encode()).hexdigest(),
        "questions": len(protocol.questions),
        "decoding": "greedy",
        "dtype": "float32",
        "device": "cpu",
    }
    assert told["libraries"]["torch"] == version("torch")
    assert told["libraries"] == libraries()
    assert set(told["timings_s"]) == {"volume", "read", "masks", "encode"}
    assert {each["label"]: each["sha256"] for each in told["outputs"]} == {
        label: each.sha256 for label, each in desk.results().items()
    }


def test_the_verdict_on_each_object_is_part_of_it(desk: Desk, tool: Callable[[str], str]) -> None:
    assert tool("dciodvfy")
    desk.receive(ct())
    desk.worker().step()
    assert {each["validation"]["state"] for each in record_of(desk)["outputs"]} == {"valid"}
    assert desk.ledger.held() == []


def test_on_request_it_goes_into_the_study(desk: Desk, tool: Callable[[str], str]) -> None:
    viewer = replace(PACS, ae_title="OLD", profile="legacy-pacs")
    desk.config = replace(desk.config, destinations=(PACS, viewer), run_record=True)
    desk.receive(ct())
    desk.worker(known=FAST).step()
    made = dcmread(desk.results()["record"].path)
    assert made.SOPClassUID == EnhancedSRStorage
    assert made.StudyInstanceUID == desk.study_uid
    text = as_text(made)
    for each in desk.ledger.instances(desk.study_uid):
        assert f"sop_instance_uid {each.sop_uid}, sha256 {each.sha256}" in text
    assert "AI DRAFT - NOT FOR DIAGNOSTIC USE" in text
    plans = [each.labels for each in desk.ledger.deliveries(desk.job.id)]
    assert ["record" in each for each in plans] == [True, False]
    assert desk.results()["record"].held == ""
    assert tool("dciodvfy")


def test_a_record_of_anything_is_a_valid_sr_and_always_the_same(
    tmp_path: Path, tool: Callable[[str], str]
) -> None:
    record = {
        "inputs": [{"sop_instance_uid": "1.2", "sha256": "0f" * 32}],
        "nothing": [],
        "note": "<b>ünlü</b>\x07\u202e",
        "outputs": [{"label": "seg", "validation": {"state": "invalid", "lines": ["a", "b"]}}],
        "timings_s": {"read": 1.5},
    }
    sources, _ = drafts.stack(drafts.series())
    written = []
    for name in ("one", "two"):
        path = tmp_path / name
        encode_record(
            record,
            drafts.PROTOCOLS["ct_chest"],
            sources,
            drafts.ALGORITHM,
            job_id=drafts.JOB,
            created_at=drafts.CREATED_AT,
        ).save_as(path, enforce_file_format=True)
        written.append(path.read_bytes())
    assert written[0] == written[1]
    done = subprocess.run(
        [tool("dciodvfy"), str(tmp_path / "one")], capture_output=True, text=True, check=False
    )
    assert "Error" not in done.stdout + done.stderr
    done = subprocess.run(
        [tool("dsrdump"), "+U8", str(tmp_path / "one")], capture_output=True, text=True, check=True
    )
    assert "Run record of an AI draft" in done.stdout
    text = as_text(dcmread(tmp_path / "one"))
    assert "label seg, validation state invalid, lines a; b" in text
    assert "Comment: <b>ünlü</b>" in text
    assert "\x07" not in text
    assert json.dumps("\u202e") not in json.dumps(text)


def test_it_goes_into_the_study_also_if_what_it_tells_of_is_held(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    check = Validator.check

    def strict(program: Validator, path: Path) -> Verdict:
        return Verdict("invalid", ("Error",)) if path.stem == "draft" else check(program, path)

    monkeypatch.setattr(Validator, "check", strict)
    desk.config = replace(desk.config, run_record=True)
    desk.receive(ct())
    desk.worker().step()
    assert [each.label for each in desk.ledger.held()] == ["draft"]
    assert "draft, " in as_text(dcmread(desk.results()["record"].path))
    assert record_of(desk)["outputs"][0]["validation"] == {"state": "invalid", "lines": ["Error"]}
