"""The page on which rules are tried: what it says, what it keeps, and whom it answers."""

from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import missing
from playwright.sync_api import Browser, expect, sync_playwright
from pydicom import Dataset

from dicom_node import qa, serve
from dicom_node.config import Config
from dicom_node.demo import sample
from dicom_node.ledger import Ledger
from dicom_node.qa import rules as page
from dicom_node.routing import rules
from dicom_node.routing.trial import Trial

CHROMIUM = Path("/usr/bin/chromium")
MARKUP = "<script>alert(1)</script>"
TEXT = """
[[rules]]
name = "<b>emergency</b>"
when = 'StationName starts with "ER"'
protocol = "ct_chest"
priority = "urgent"
quiet_s = 5
[[rules]]
name = "trunk"
when = 'Modality == "CT"'
protocol = "each"
fetch = "archive"
priority = "off-peak"
window = "19:00-06:00"
series = {prefer = ['contrast == "venous"']}
"""


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ledger]:
    with Ledger(tmp_path_factory.mktemp("qa") / "ledger.sqlite") as opened:
        yield opened


@pytest.fixture(scope="module")
def url(ledger: Ledger) -> Iterator[str]:
    folder = ledger.path.parent
    (folder / "rules.toml").write_text(TEXT)
    known = serve.protocols(Config())
    book = rules.read(folder / "rules.toml", list(known), [], ["archive"])
    trial = Trial(book, serve.rules(known)).of_bytes
    app = qa.create_app(ledger, results_dir=folder, api_token="t", trial=trial)
    with qa.Server(app, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.port}"


@pytest.fixture
def client(ledger: Ledger, url: str) -> Iterator[httpx.Client]:
    """Be one who is signed in."""
    with httpx.Client(base_url=url, follow_redirects=True) as opened:
        token = qa.login_link(ledger, url).split("token=")[1]
        assert opened.post("/login", data={"token": token}).status_code == 200
        yield opened


def image(**options: Any) -> Dataset:
    known = {"description": "Thorax Abdomen venous", "body_part": "CHESTABDOMEN"}
    made = sample.series(shape=(1, 8, 8), **known | options)[0]
    made.StationName = "ER1" if options.get("seed") else "CT7"
    return made


def encoded(made: Dataset) -> bytes:
    file = BytesIO()
    made.save_as(file, enforce_file_format=True)
    return file.getvalue()


def form_of(client: httpx.Client) -> str:
    return client.get("/rules").text.split('name="form" value="')[1].split('"')[0]


def shown(client: httpx.Client, data: bytes, **changed: str) -> httpx.Response:
    form = {"form": form_of(client)} | changed
    return client.post("/rules", data=form, files={"file": ("a.dcm", data)})


def test_a_dropped_image_tells_what_would_be_decided_and_nothing_is_kept(
    client: httpx.Client, ledger: Ledger
) -> None:
    before, files = ledger.head(), sorted(ledger.path.parent.iterdir())
    answer = shown(client, encoded(image()))
    assert answer.status_code == 200
    assert "Job: ct_abdomen, off-peak, 19:00-06:00" in answer.text
    assert "Job: ct_chest, off-peak" in answer.text
    assert "as the settings have it; what else archive has is fetched before" in answer.text
    assert "StationName starts with &#34;ER&#34; is not so: it is &#39;CT7&#39;" in answer.text
    assert "preferred: contrast == &#34;venous&#34; +25" in answer.text
    assert (ledger.head(), sorted(ledger.path.parent.iterdir())) == (before, files)
    assert ledger.studies() == []


def test_every_text_of_the_image_and_of_the_rules_is_text(client: httpx.Client) -> None:
    made = image(seed=1)
    made.SeriesDescription = f"Thorax {MARKUP}"
    text = shown(client, encoded(made)).text
    assert "<script" not in text
    assert "&lt;script&gt;" in text
    assert "<b>emergency" not in text
    assert "&lt;b&gt;emergency" in text


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "choose a file first"),
        (b"x" * 4096, "is no DICOM file"),
        (b"\0" * 128 + b"DICM", "no"),
    ],
)
def test_what_is_no_image_is_told(client: httpx.Client, data: bytes, said: str) -> None:
    answer = shown(client, data)
    assert (answer.status_code, said in answer.text) == (400, True)
    assert 'id="fault"' in answer.text


def test_only_a_session_and_its_own_form_are_answered(client: httpx.Client, url: str) -> None:
    refused = shown(client, encoded(image()), form="0" * 64)
    assert (refused.status_code, "not made for your session" in refused.text) == (403, True)
    assert httpx.get(f"{url}/rules").headers["location"] == "/login"
    data = {"form": form_of(client)}
    assert httpx.post(f"{url}/rules", data=data, files={"file": b"x"}).status_code == 403


def test_what_is_too_large_is_not_read_to_its_end(
    client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page, "LARGEST_FILE", 5000)
    assert shown(client, b"x" * 6000).status_code == 413
    parts = iter([b"x" * 4000] * 3)
    kind = {"content-type": "multipart/form-data; boundary=b"}
    assert client.post("/rules", content=parts, headers=kind).status_code == 413
    assert shown(client, b"x" * 1000).status_code == 400


@pytest.mark.parametrize(
    ("kind", "status"),
    [("text/plain", 415), ("multipart/form-data", 400), ("multipart/form-data; boundary=b", 400)],
)
def test_what_is_no_form_is_refused(client: httpx.Client, kind: str, status: int) -> None:
    answer = client.post("/rules", content=b"--x\r\nnonsense", headers={"content-type": kind})
    assert answer.status_code == status


def test_without_a_trial_there_is_no_page(ledger: Ledger, tmp_path: Path) -> None:
    app = qa.create_app(ledger, results_dir=tmp_path, api_token="t")
    with qa.Server(app, "127.0.0.1", 0) as server:
        assert httpx.get(f"http://127.0.0.1:{server.port}/rules").status_code == 404


# --- in a browser -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if not CHROMIUM.exists():
        missing(f"{CHROMIUM} (apt: chromium)")
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])


@pytest.mark.chromium
def test_a_reader_tries_a_file_in_a_browser(
    browser: Browser, ledger: Ledger, url: str, tmp_path: Path
) -> None:
    complaints: list[str] = []
    path = tmp_path / "slice.dcm"
    made = image()
    made.StudyDescription = MARKUP
    path.write_bytes(encoded(made))
    with browser.new_context(viewport={"width": 1400, "height": 900}) as context:
        opened = context.new_page()
        opened.on("console", lambda said: complaints.append(said.text))
        opened.goto(qa.login_link(ledger, url))
        opened.get_by_role("button", name="Open the QA pages").click()
        opened.get_by_role("link", name="Rules").click()
        opened.get_by_label("DICOM file").set_input_files(path)
        opened.get_by_role("button", name="Try the rules").click()
        expect(opened.get_by_role("heading", name="slice.dcm")).to_be_visible()
        expect(opened.locator("#rules tbody tr")).to_have_count(2)
        expect(opened.locator("#rules .fits")).to_have_count(1)
        expect(opened.locator("table.choices")).to_have_count(2)
        expect(opened.locator("table.choices .chosen")).to_have_count(2)
        expect(opened.locator(".banner")).to_contain_text("not for diagnostic use")
    assert complaints == []
