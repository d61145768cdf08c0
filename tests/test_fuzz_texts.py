"""SQL, HTML and paths in every text that a peer can send: kept as they came, and harmless."""

import html
from collections.abc import Iterator
from dataclasses import replace
from urllib.parse import quote

import httpx
import pytest
from pydicom import Dataset
from pydicom.config import disable_value_validation
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset

from dicom_node import qa
from dicom_node.config import Config
from dicom_node.demo import sample
from dicom_node.ledger import Ledger
from dicom_node.scp import Scp
from dicom_node.spool import Announced, Spool
from tests.breaking import speech
from tests.breaking.targets import exchange

TEXTS = (
    "'; DROP TABLE studies; --",
    "<script>alert(1)</script>",
    "\"><img src=x onerror=alert('1')>",
    "{{7*7}}{% raw %}${7*7}",
    "../../../../etc/passwd",
    "..\\..\\windows",
    "/etc/passwd",
)
TEXT_VRS = {"AE", "CS", "DA", "LO", "LT", "PN", "SH", "ST", "TM", "UT"}
UIDS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def everywhere(text: str, number: int) -> Dataset:
    """Put a text into every text of an image, but for those that say what it is."""
    made = sample.series(shape=(2, 16, 16), seed=number)[0]
    with disable_value_validation():
        for each in made.iterall():
            if each.VR in TEXT_VRS and each.keyword not in {"SpecificCharacterSet", "Modality"}:
                each.value = text
    return made


def announced(instance: Dataset) -> Announced:
    meta = instance.file_meta
    return Announced(
        str(instance.SOPClassUID), str(instance.SOPInstanceUID), str(meta.TransferSyntaxUID), "X"
    )


def encoded(instance: Dataset) -> bytes:
    raw = DicomBytesIO()
    raw.is_little_endian, raw.is_implicit_VR = True, False
    with disable_value_validation():
        write_dataset(raw, instance)
    return raw.getvalue()


@pytest.fixture
def pages(config: Config, ledger: Ledger) -> Iterator[httpx.Client]:
    app = qa.create_app(ledger, results_dir=config.results_dir, api_token="token")
    with (
        qa.Server(app, "127.0.0.1", 0) as server,
        httpx.Client(base_url=f"http://127.0.0.1:{server.port}") as client,
    ):
        token = qa.login_link(ledger, "").rpartition("=")[2]
        client.post("/login", data={"token": token})
        yield client


def test_sql_html_and_paths_in_every_text_are_shown_as_text(
    spool: Spool, ledger: Ledger, pages: httpx.Client
) -> None:
    studies = []
    for number, text in enumerate(TEXTS):
        instance = everywhere(text, number)
        stored = spool.store(encoded(instance), announced(instance))
        studies.append(stored.study_uid)
        ledger.event("instance.refused", study_uid=stored.study_uid, reason=text, calling_ae=text)
        assert ledger.study(stored.study_uid).patient_id == text
    asked = ["/", "/ledger", f"/?text={quote(TEXTS[1])}", *(f"/studies/{each}" for each in studies)]
    shown = [pages.get(each).text for each in asked]
    for page in shown:
        assert "<script>alert" not in page
        assert "<img src=x" not in page
        assert "{49}" not in page
    assert html.escape(TEXTS[1]) in shown[0]
    assert len(ledger.studies()) == len(TEXTS)
    assert ledger.verify() == len(ledger.events())


@pytest.mark.parametrize("text", [*TEXTS, "..", ".", "1/2", "1" * 300, "~root", "CON"])
def test_no_uid_and_no_title_leads_out_of_the_spool(
    spool: Spool, ledger: Ledger, config: Config, pages: httpx.Client, text: str
) -> None:
    instance = sample.series(shape=(2, 16, 16))[0]
    with disable_value_validation():
        for each in UIDS:
            setattr(instance, each, text)
        content = encoded(instance)
    said = replace(announced(instance), sop_uid=text, calling_ae=text)
    stored = spool.store(content, said)
    parts = stored.path.relative_to(config.spool_dir.absolute()).parts
    assert [each[:2] for each in parts] == ["x-"] * 3
    assert pages.get(f"/studies/{quote(text, safe='')}").status_code < 500
    inside = {path for path in config.data_dir.rglob("*") if path.is_file()}
    assert {path for path in config.data_dir.parent.rglob("*") if path.is_file()} == inside
    assert ledger.verify() == len(ledger.events())


@pytest.mark.parametrize("text", TEXTS)
def test_a_title_is_a_title_whatever_it_says(
    scp: Scp, ledger: Ledger, pages: httpx.Client, text: str
) -> None:
    asked = speech.proposal(
        [(speech.VERIFICATION, [speech.IMPLICIT])], b"LAMED", text.encode(), 16_382
    )
    answer = exchange(scp.port, asked.encode() + speech.RELEASE)
    assert [kind for kind, _ in speech.answers(answer)] == [2, 6]
    told = [each.data["calling_ae"] for each in ledger.events() if "calling_ae" in each.data]
    assert set(told) == {text[:16].strip()}
    page = pages.get("/ledger").text
    assert "<script>" not in page
    assert "<img src" not in page
