"""The QA reader at work, in a real Chromium."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import missing
from playwright.sync_api import Browser, Page, expect, sync_playwright
from read_studies import Read, intake, read_studies

from dicom_node import qa

CHROMIUM = Path("/usr/bin/chromium")
pytestmark = pytest.mark.chromium


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Iterator[Read]:
    with read_studies(tmp_path_factory.mktemp("read"), checkpoint) as made:
        yield made


@pytest.fixture(scope="module")
def url(node: Read) -> Iterator[str]:
    app = qa.create_app(node.ledger, results_dir=node.config.results_dir, api_token="t")
    with qa.Server(app, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.port}"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if not CHROMIUM.exists():
        missing(f"{CHROMIUM} (apt: chromium)")
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])


@pytest.fixture
def page(browser: Browser, node: Read, url: str) -> Iterator[Page]:
    """A window of one who has just used a one-time link; whatever a page complains of fails."""
    complaints: list[str] = []
    with browser.new_context(viewport={"width": 1400, "height": 900}) as context:
        opened = context.new_page()
        opened.on("console", lambda said: complaints.append(said.text))
        opened.on("pageerror", lambda error: complaints.append(str(error)))
        opened.goto(qa.login_link(node.ledger, url))
        opened.get_by_role("button", name="Open the QA pages").click()
        expect(opened.get_by_role("heading", name="Studies")).to_be_visible()
        yield opened
    assert complaints == []


def test_from_the_list_to_the_draft_and_its_picture(page: Page, node: Read) -> None:
    expect(page.locator("tbody tr")).to_have_count(3)
    page.locator(f"a[href='/studies/{node.done}']").click()
    expect(page.locator("h1 .badge")).to_have_text("done")
    expect(page.locator("#draft")).to_contain_text("NOT FOR DIAGNOSTIC USE")
    expect(page.locator(".alarm")).to_contain_text("untrained")
    size = page.locator("#overlay").evaluate("image => [image.naturalWidth, image.naturalHeight]")
    assert min(size) > 300
    expect(page.locator("#series tbody tr")).to_have_count(1)
    expect(page.locator("#objects tbody tr")).to_have_count(3)
    expect(page.locator("#deliveries .badge")).to_have_text("sent-unproven")
    expect(page.locator("#events")).to_contain_text("delivery.sent")


def test_the_warning_is_on_every_page_and_first(page: Page, node: Read, url: str) -> None:
    for path in ("/", f"/studies/{node.done}", f"/studies/{node.rejected}", "/ledger", "/login"):
        page.goto(url + path)
        banner = page.locator(".banner")
        expect(banner).to_contain_text(re.compile("not for diagnostic use", re.IGNORECASE))
        box = banner.bounding_box()
        assert box is not None
        assert box["y"] == 0
        assert box["width"] == 1400


def test_a_study_is_found_by_its_state_and_by_its_patient(page: Page, node: Read) -> None:
    page.get_by_label("State").select_option("rejected")
    page.get_by_role("button", name="Show").click()
    expect(page.locator("tbody tr")).to_have_count(1)
    expect(page.locator("tbody .reason")).to_contain_text("KNEE")
    page.get_by_label("State").select_option("")
    page.get_by_role("searchbox").fill(node.ledger.study(node.done).patient_id)
    page.keyboard.press("Enter")
    expect(page.locator("tbody tr")).to_have_count(1)
    expect(page.locator("tbody .badge")).to_have_text("done")


def test_markup_in_a_name_is_text(page: Page, node: Read, url: str) -> None:
    page.goto(f"{url}/studies/{node.rejected}")
    expect(page.locator("h1")).to_contain_text("<script>alert(1)</script>, SYNTHETIC")
    assert page.locator("script").count() == 0


def test_a_study_that_is_arriving_is_taken_by_hand(page: Page, node: Read, url: str) -> None:
    page.goto(f"{url}/studies/{node.receiving}")
    assert page.locator("meta[http-equiv=refresh]").count() == 1
    page.get_by_role("button", name="read it now").click()
    expect(page.locator("#events")).to_contain_text("study.completion_requested")
    assert node.ledger.study(node.receiving).complete_requested


def test_a_study_that_was_rejected_is_tried_again_by_hand(page: Page, node: Read, url: str) -> None:
    page.goto(f"{url}/studies/{node.rejected}")
    page.get_by_role("button", name="Try again").click()
    expect(page.locator("h1 .badge")).to_have_text("receiving")
    intake(node.config, node.ledger).step()
    page.reload()
    expect(page.locator("h1 .badge")).to_have_text("rejected")
    page.goto(f"{url}/studies/{node.done}")
    expect(page.get_by_role("button", name="Try again")).to_have_count(0)


def test_the_pages_are_used_with_the_keyboard_alone(page: Page, url: str) -> None:
    page.goto(url)
    page.keyboard.press("Tab")
    focused = page.locator(":focus")
    expect(focused).to_have_text("Skip to the content")
    expect(focused).to_be_in_viewport()
    page.keyboard.press("Enter")
    assert page.url.endswith("#content")
    names = []
    for _ in range(4):
        page.keyboard.press("Tab")
        names.append(page.evaluate("document.activeElement.name || document.activeElement.text"))
    assert {"text", "state"} <= set(names)


def test_the_chain_is_verified_by_a_click(page: Page, node: Read) -> None:
    page.get_by_role("link", name="Verify the chain").click()
    expect(page.locator("#verdict")).to_have_text(
        f"{node.ledger.head()[0]} events, the chain is whole."
    )


@pytest.mark.parametrize("width", [420, 900, 1400])
def test_nothing_runs_out_of_the_window(page: Page, node: Read, url: str, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    for path in ("/", f"/studies/{node.done}", "/ledger", "/ledger/verify"):
        page.goto(url + path)
        wide = page.evaluate("document.documentElement.scrollWidth")
        assert wide <= width, path


def test_who_signs_out_sees_nothing_more(page: Page, url: str) -> None:
    page.get_by_role("button", name="Sign out").click()
    expect(page.locator("main")).to_contain_text("lamed-node login-link")
    page.goto(url)
    assert page.url == f"{url}/login"
