"""What a radiologist sees of the plugin on Orthanc Explorer's page of a study, in Chromium."""

import os
from collections.abc import Iterator
from pathlib import Path

import drafts
import pytest
from conftest import missing
from node import TOKEN, Answering
from orthanc_server import Orthanc, eventually, with_our_plugin
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright
from pydicom import Dataset

from dicom_node.demo import sample

pytestmark = [pytest.mark.orthanc, pytest.mark.chromium, pytest.mark.slow]

CHROMIUM = Path("/usr/bin/chromium")
DRAFT = (
    "AI DRAFT - not for diagnostic use. "
    "A physician must read the images and verify every statement and measurement."
)
HTML = "<b id=bold>KNEE</b><script>document.title='taken'</script>"


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Answering]:
    with Answering(tmp_path_factory.mktemp("node")) as started:
        yield started


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory: pytest.TempPathFactory, node: Answering) -> Iterator[Orthanc]:
    folder = tmp_path_factory.mktemp("orthanc")
    settings = {
        "DicomModalities": {"lamed": ["LAMED", "127.0.0.1", node.config.dicom_port]},
        "DicomScuTimeout": 2,
    }
    with with_our_plugin(folder, {"Url": node.url, "Token": TOKEN}, settings) as started:
        yield started


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if not CHROMIUM.exists():
        missing(f"{CHROMIUM} (apt: chromium)")
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture
def page(browser: Browser, request: pytest.FixtureRequest) -> Iterator[Page]:
    """A window; with PICTURES=FOLDER what it shows at the end of each test is kept there."""
    errors: list[str] = []
    with browser.new_context(viewport={"width": 1100, "height": 800}) as context:
        opened = context.new_page()
        opened.on("pageerror", lambda error: errors.append(str(error)))
        yield opened
        if folder := os.environ.get("PICTURES"):
            opened.screenshot(path=Path(folder) / f"{request.node.name}.png", full_page=True)
    assert errors == []


def box(page: Page, orthanc: Orthanc, study_id: str) -> Locator:
    """Open the page of a study and give our part of it."""
    page.goto(f"{orthanc.url}/app/explorer.html#study?uuid={study_id}")
    found = page.locator("#study #lamed")
    expect(found).to_be_visible(timeout=20_000)
    return found


def upload(orthanc: Orthanc, instances: list[Dataset], folder: Path) -> str:
    return orthanc.upload(sample.write(instances, folder))


def state(orthanc: Orthanc, study_id: str) -> str:
    return str(orthanc.get(f"/lamed/studies/{study_id}")["state"])


def test_a_study_is_followed_from_the_node_to_its_drafts(
    orthanc: Orthanc, node: Answering, page: Page, tmp_path: Path
) -> None:
    instances = drafts.series(seed=1)
    study_id = upload(orthanc, instances, tmp_path)
    eventually(lambda: state(orthanc, study_id) == "receiving")
    ours = box(page, orthanc, study_id)
    expect(ours.locator("#lamed-state")).to_contain_text("LaMed: receiving")
    expect(ours.locator("#lamed-meaning")).to_contain_text("will take the study as complete")
    expect(ours.locator("#lamed-send")).to_have_text("Send again to LaMed")
    expect(ours.locator("#lamed-draft")).to_have_count(0)
    expect(page.locator("#list-series h3")).to_have_count(1)

    node.answer(instances, orthanc.address)
    # Nobody reloads the page: state, warning and the new series come by themselves.
    expect(ours.locator("#lamed-state")).to_contain_text("LaMed: done", timeout=30_000)
    expect(ours.locator("#lamed-draft")).to_have_text(DRAFT)
    series = page.locator("#list-series h3")
    expect(series).to_have_count(4)
    assert sum(each.startswith("AI DRAFT") for each in series.all_text_contents()) == 3


def test_the_button_sends_the_study_again(
    orthanc: Orthanc, node: Answering, page: Page, tmp_path: Path
) -> None:
    instances = drafts.series(seed=2)
    study_uid = str(instances[0].StudyInstanceUID)
    study_id = upload(orthanc, instances, tmp_path)
    eventually(lambda: state(orthanc, study_id) == "receiving")
    assert node.kinds("instance.duplicate", study_uid) == 0
    box(page, orthanc, study_id).locator("#lamed-send").click()
    eventually(lambda: node.kinds("instance.duplicate", study_uid) == len(instances))
    expect(page.locator("#lamed-send")).to_have_text("Send again to LaMed")


def test_a_reason_with_html_in_it_is_shown_as_text(
    orthanc: Orthanc, node: Answering, page: Page, tmp_path: Path
) -> None:
    study_id = upload(orthanc, drafts.series(seed=3, description=HTML, body_part="KNEE"), tmp_path)
    eventually(lambda: state(orthanc, study_id) == "receiving")
    node.intake.step()
    eventually(lambda: state(orthanc, study_id) == "rejected")
    ours = box(page, orthanc, study_id)
    expect(ours.locator("#lamed-state")).to_contain_text("LaMed: rejected")
    expect(ours.locator("#lamed-reason")).to_contain_text(HTML)
    expect(ours.locator("#lamed-meaning")).to_have_text("The node does not read this study.")
    expect(ours.locator("b, script")).to_have_count(0)


def test_a_node_that_is_down_is_said_and_found_again(
    orthanc: Orthanc, node: Answering, page: Page, tmp_path: Path
) -> None:
    node.stop()
    try:
        study_id = upload(orthanc, drafts.series(seed=4), tmp_path)
        eventually(lambda: state(orthanc, study_id) == "waiting")
        ours = box(page, orthanc, study_id)
        expect(ours.locator("#lamed-state")).to_contain_text("LaMed: waiting")
        expect(ours.locator("#lamed-reason")).to_contain_text("node unreachable over DICOM")
        expect(ours.locator("#lamed-meaning")).to_contain_text("is tried again by itself")
    finally:
        node.start()
    expect(ours.locator("#lamed-state")).to_contain_text("LaMed: receiving", timeout=60_000)


def test_drafts_that_are_not_there_are_asked_about(
    orthanc: Orthanc, node: Answering, page: Page, tmp_path: Path
) -> None:
    instances = drafts.series(seed=5)
    study_id = upload(orthanc, instances, tmp_path)
    eventually(lambda: state(orthanc, study_id) == "receiving")
    node.answer(instances, orthanc.address)
    eventually(lambda: state(orthanc, study_id) == "done")
    for series in orthanc.get(f"/studies/{study_id}/series"):
        if series["MainDicomTags"]["SeriesDescription"].startswith("AI DRAFT"):
            orthanc.http.delete(f"/series/{series['ID']}").raise_for_status()
    ours = box(page, orthanc, study_id)
    expect(ours.locator("#lamed-meaning")).to_contain_text("no draft is here: it was deleted, or")
    expect(ours.locator("#lamed-draft")).to_have_count(0)


def test_drafts_without_their_study_still_warn(
    orthanc: Orthanc, page: Page, tmp_path: Path
) -> None:
    alone = list(drafts.encoded(instances=drafts.series(seed=6)).values())
    ours = box(page, orthanc, upload(orthanc, alone, tmp_path))
    expect(ours.locator("#lamed-draft")).to_have_text(DRAFT)
    expect(ours.locator("#lamed-state, #lamed-send")).to_have_count(0)


def test_a_study_that_is_none_of_ours_has_no_box(
    orthanc: Orthanc, page: Page, tmp_path: Path
) -> None:
    instances = drafts.series(seed=7)
    for each in instances:
        each.Modality = "US"
    study_id = upload(orthanc, instances, tmp_path)
    with page.expect_response(lambda answer: f"/lamed/studies/{study_id}" in answer.url):
        page.goto(f"{orthanc.url}/app/explorer.html#study?uuid={study_id}")
    expect(page.locator("#list-series h3")).to_have_count(1)
    expect(page.locator("#lamed")).to_have_count(0)
