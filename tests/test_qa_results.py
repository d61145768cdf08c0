"""What the QA pages and the command line tell of a job's objects: held ones, and the record."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from desk import PACS, Desk, ct

import model
from dicom_node import qa
from dicom_node.__main__ import main
from dicom_node.config import Config
from dicom_node.ledger import Ledger
from dicom_node.spool import Spool
from dicom_node.validator import Validator, Verdict

FAULT = "Error - <script>alert(1)</script>"


@pytest.fixture(scope="module")
def lamed(checkpoint: Path) -> model.LaMed:
    return model.load(checkpoint)


@pytest.fixture
def desk(config: Config, ledger: Ledger, spool: Spool, lamed: model.LaMed) -> Desk:
    return Desk(replace(config, destinations=(PACS,)), ledger, spool, lamed)


@pytest.fixture
def reader(desk: Desk) -> Iterator[httpx.Client]:
    app = qa.create_app(desk.ledger, results_dir=desk.config.results_dir, api_token="t")
    with qa.Server(app, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.port}"
        with httpx.Client(base_url=url, trust_env=False, timeout=30) as client:
            link = qa.login_link(desk.ledger, url)
            client.post("/login", data={"token": link.partition("token=")[2]})
            yield client


def test_an_object_that_is_held_is_shown_with_its_faults_until_it_is_let_go(
    desk: Desk,
    reader: httpx.Client,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(Validator, "check", lambda *_: Verdict("invalid", (FAULT,)))
    monkeypatch.setenv("LAMED_DATA_DIR", str(desk.config.data_dir))
    desk.receive(ct())
    desk.worker().step()
    held = desk.results()["draft"]
    page = reader.get(f"/studies/{desk.study_uid}").text
    assert "not as the Standard wants it" in page
    assert "Error - &lt;script&gt;" in page
    assert f"lamed-node release {held.sop_uid}" in page
    assert desk.study == ("delivering", "held, not sent: draft")
    told = reader.get(f"/api/studies/{desk.study_uid}", headers={"Authorization": "Bearer t"})
    assert FAULT in told.json()["jobs"][0]["results"][0]["held"]
    capsys.readouterr()
    assert main(["release", held.sop_uid, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"released": [held.sop_uid], "still_held": []}
    assert "lamed-node release" not in reader.get(f"/studies/{desk.study_uid}").text
    assert main(["release", held.sop_uid, "--json"]) == 3
    assert desk.kinds("result.held") == desk.kinds("result.released") == 1


def test_the_record_of_a_run_is_on_the_page_of_its_study(desk: Desk, reader: httpx.Client) -> None:
    desk.receive(ct())
    desk.worker().step()
    page = reader.get(f"/studies/{desk.study_uid}").text
    assert "How these objects came to be" in page
    assert desk.lamed.card.sha256 in page
    for each in desk.ledger.instances(desk.study_uid):
        assert f"sha256 {each.sha256}, sop instance uid {each.sop_uid}" in page
    assert "torch: " in page
