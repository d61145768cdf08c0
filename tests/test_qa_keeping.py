"""The QA pages of what is not here any more."""

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import httpx
import pytest
from keeping import Node

from dicom_node import qa
from dicom_node.config import Config
from dicom_node.retention import erasure

STUDY = "1.2.77.1"


@pytest.fixture
def node(config: Config) -> Iterator[Node]:
    with Node(config) as made:
        yield made


@pytest.fixture
def reader(node: Node) -> Iterator[httpx.Client]:
    app = qa.create_app(node.ledger, results_dir=node.config.results_dir, api_token="t")
    with qa.Server(app, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.port}"
        with httpx.Client(base_url=url, trust_env=False, timeout=30) as client:
            token = qa.login_link(node.ledger, url).partition("token=")[2]
            assert client.post("/login", data={"token": token}).status_code == 303
            yield client


def text(answer: httpx.Response) -> str:
    assert answer.status_code == 200
    return re.sub(r"<[^>]+>|\s+", " ", answer.text)


def test_an_expired_study_is_shown_as_expired(node: Node, reader: httpx.Client) -> None:
    job = node.delivered(STUDY)
    assert "expired" not in text(reader.get("/")) + text(reader.get(f"/studies/{STUDY}"))
    node.sweep(datetime.now(UTC) + timedelta(days=400))
    assert "CT 2 expired" in re.sub(" +", " ", text(reader.get("/")))
    page = reader.get(f"/studies/{STUDY}")
    assert "expired: the images that were here" in text(page)
    assert "expired, removed" in text(page)
    assert "missing or changed" not in text(page)
    assert "draft.dcm" not in page.text
    assert reader.get(f"/studies/{STUDY}/jobs/{job}/draft.dcm").status_code == 404


def test_a_failed_study_without_images_offers_no_second_try(
    node: Node, reader: httpx.Client
) -> None:
    node.failed(STUDY)
    assert "Try again" in text(reader.get(f"/studies/{STUDY}"))
    node.sweep(datetime.now(UTC) + timedelta(days=400))
    assert "Try again" not in text(reader.get(f"/studies/{STUDY}"))


def test_an_erased_study_has_a_page_that_names_nobody(node: Node, reader: httpx.Client) -> None:
    node.delivered(STUDY)
    (told,) = erasure.erase(node.ledger, node.config, [STUDY], by="test")
    assert told.pseudonym in text(reader.get("/"))
    assert "study.erased" in text(reader.get(f"/studies/{told.pseudonym}"))
    assert reader.get(f"/studies/{STUDY}").status_code == 404
    log = text(reader.get("/ledger"))
    assert STUDY not in log
    assert "SYNTHETIC" not in log
    verdict = text(reader.get("/ledger/verify"))
    assert "the chain is whole" in verdict
    assert f"{told.events} of them are emptied" in verdict


def test_logins_and_refusals_name_the_machine_and_reading_the_log_is_told(
    node: Node, reader: httpx.Client
) -> None:
    assert reader.post("/login", data={"token": "stolen"}).status_code == 403
    reader.get("/ledger")
    reader.get("/ledger")
    events = {each.kind: each.data for each in node.ledger.events()}
    assert events["qa.login"]["address"] == "127.0.0.1"
    assert events["qa.login_refused"] == {"address": "127.0.0.1"}
    assert [each.kind for each in node.ledger.events()].count("ledger.read") == 1
