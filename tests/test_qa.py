"""The QA application over HTTP: who is let in, what is shown, what is remembered."""

import re
import shutil
import socket
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import httpx
import pydicom
import pytest
from read_studies import MARKUP, Read, read_studies

from dicom_node import qa
from dicom_node.demo import sample
from dicom_node.errors import Unavailable
from dicom_node.ledger import Ledger
from dicom_node.qa import views
from dicom_node.spool import Spool

API = "an-api-token"


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path) -> Iterator[Read]:
    with read_studies(tmp_path_factory.mktemp("read"), checkpoint) as made:
        yield made


@pytest.fixture(scope="module")
def url(node: Read) -> Iterator[str]:
    app = qa.create_app(node.ledger, results_dir=node.config.results_dir, api_token=API)
    with qa.Server(app, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.port}"


@pytest.fixture
def stranger(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, trust_env=False, timeout=30) as client:
        yield client


@pytest.fixture
def reader(stranger: httpx.Client, node: Read) -> httpx.Client:
    """One who has used a one-time link."""
    link = qa.login_link(node.ledger, str(stranger.base_url).rstrip("/"))
    answer = stranger.post("/login", data={"token": link.partition("token=")[2]})
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    return stranger


def kinds(node: Read, kind: str, study_uid: str | None = None) -> int:
    return sum(each.kind == kind for each in node.ledger.events(study_uid=study_uid))


def form(page: str) -> str:
    return re.findall(r'name="form" value="([0-9a-f]{64})"', page)[0]


def test_pages_are_shown_to_nobody_without_a_session(stranger: httpx.Client, node: Read) -> None:
    study = f"/studies/{node.done}"
    for path in (
        "/",
        study,
        f"{study}/jobs/{node.job_id}/overlay.png",
        f"{study}/jobs/{node.job_id}/draft.dcm",
        "/ledger",
        "/ledger/verify",
    ):
        answer = stranger.get(path)
        assert (answer.status_code, answer.headers["location"]) == (303, "/login"), path
        assert not answer.content


def test_a_link_opens_once_and_looking_at_it_does_not_use_it_up(
    stranger: httpx.Client, node: Read, url: str
) -> None:
    link = qa.login_link(node.ledger, url)
    for _ in range(2):
        assert "Open the QA pages" in stranger.get(link).text
    token = {"token": link.partition("token=")[2]}
    first = stranger.post("/login", data=token)
    cookie = first.headers["set-cookie"].lower()
    assert first.status_code == 303
    assert {"httponly", "samesite=strict"} <= set(cookie.split("; "))
    stranger.cookies.clear()
    second = stranger.post("/login", data=token)
    assert second.status_code == 403
    assert "used already" in second.text
    assert "set-cookie" not in second.headers
    assert stranger.get("/").status_code == 303


@pytest.mark.parametrize("token", ["", "x", "a" * 43, "\x00", "' OR 1=1 --"])
def test_an_invented_token_opens_nothing(stranger: httpx.Client, token: str) -> None:
    assert stranger.post("/login", data={"token": token}).status_code == 403
    stranger.cookies.set("lamed_qa", token.replace("\x00", "") or "none")
    assert stranger.get("/").status_code == 303


def test_a_login_link_is_no_session_and_a_session_is_no_link(
    stranger: httpx.Client, node: Read, url: str
) -> None:
    login = qa.login_link(node.ledger, url).partition("token=")[2]
    stranger.cookies.set("lamed_qa", login)
    assert stranger.get("/").status_code == 303
    stranger.cookies.clear()
    stranger.post("/login", data={"token": login})
    session = stranger.cookies["lamed_qa"]
    stranger.cookies.clear()
    assert stranger.post("/login", data={"token": session}).status_code == 403


def test_who_signs_out_is_out(reader: httpx.Client, node: Read) -> None:
    page, session = reader.get("/").text, reader.cookies["lamed_qa"]
    before = kinds(node, "qa.logout")
    assert reader.post("/logout", data={"form": form(page)}).status_code == 303
    reader.cookies.set("lamed_qa", session)
    assert reader.get("/").headers["location"] == "/login"
    assert kinds(node, "qa.logout") == before + 1


def test_the_list_names_every_study_with_its_state(reader: httpx.Client, node: Read) -> None:
    page = reader.get("/").text
    for study_uid in (node.done, node.rejected, node.receiving):
        assert f"/studies/{study_uid}" in page
    assert "no protocol is for its region" in page
    only = reader.get("/", params={"state": "rejected"}).text
    assert f"/studies/{node.rejected}" in only
    assert f"/studies/{node.done}" not in only
    found = reader.get("/", params={"text": node.done[-12:]}).text
    assert f"/studies/{node.done}" in found
    assert f"/studies/{node.rejected}" not in found
    assert "No study fits" in reader.get("/", params={"text": "%"}).text


@pytest.mark.parametrize("page", ["-1", "x", "99999999999999999999", "7"])
def test_a_page_number_that_leads_nowhere_is_an_empty_page(reader: httpx.Client, page: str) -> None:
    answer = reader.get("/", params={"page": page})
    assert answer.status_code == 200
    assert ("No study has come" in answer.text) == (page == "7")


def test_the_card_of_a_done_study_tells_its_whole_story(reader: httpx.Client, node: Read) -> None:
    page = reader.get(f"/studies/{node.done}").text
    job = node.ledger.jobs(node.done)[-1]
    told = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page))
    assert "The model is untrained" in told
    assert "NOT FOR DIAGNOSTIC USE" in told
    assert job.series[0]["reason"] in page.replace("&#39;", "'")
    for result in node.ledger.results(job.id):
        assert result.sop_uid in page
        assert result.sha256 in page
    assert told.count("as recorded") == len(node.ledger.results(job.id))
    assert str(node.config.destinations[0]) in told
    assert "instance.stored &times; 24" in told
    for kind in ("study.routed", "job.claimed", "job.results", "delivery.sent"):
        assert kind in told
    draft = (node.config.results_dir / job.id / "draft.txt").read_text()
    for line in draft.splitlines():
        words = line.split(": ", 1)[-1].strip()
        assert words in told.replace("&#34;", '"').replace("&#39;", "'"), line


def test_a_look_is_remembered_once_for_a_session(reader: httpx.Client, node: Read) -> None:
    before = kinds(node, "qa.viewed", node.done)
    for _ in range(3):
        reader.get(f"/studies/{node.done}")
    assert kinds(node, "qa.viewed", node.done) == before + 1


def test_the_picture_and_the_objects_are_those_on_the_disk(
    reader: httpx.Client, node: Read
) -> None:
    here, folder = f"/studies/{node.done}/jobs/{node.job_id}", node.config.results_dir / node.job_id
    picture = reader.get(f"{here}/overlay.png")
    assert picture.headers["content-type"] == "image/png"
    assert picture.content == (folder / "overlay.png").read_bytes()
    before = kinds(node, "qa.downloaded")
    for result in node.ledger.results(node.job_id):
        answer = reader.get(f"{here}/{result.label}.dcm")
        assert answer.content == result.path.read_bytes()
        assert answer.headers["content-type"] == "application/dicom"
    assert kinds(node, "qa.downloaded") == before + 3
    assert reader.get(f"{here}/nothing.dcm").status_code == 404
    assert reader.get(f"{here}/..%2f..%2fledger.dcm").status_code == 404
    # A job of another study is not shown under this one.
    assert reader.get(f"/studies/{node.rejected}/jobs/{node.job_id}/draft.dcm").status_code == 404


def test_an_object_that_was_changed_or_is_gone_is_said(reader: httpx.Client, node: Read) -> None:
    seg, draft = (
        next(each.path for each in node.ledger.results(node.job_id) if each.label == label)
        for label in ("seg", "draft")
    )
    kept = {path: path.read_bytes() for path in (seg, draft)}
    try:
        seg.unlink()
        changed = pydicom.dcmread(draft)
        changed.VerificationFlag = "VERIFIED"
        changed.save_as(draft)
        page = reader.get(f"/studies/{node.done}").text
        assert page.count("missing or changed since it was recorded") == 2
        assert page.count("<td>as recorded") == 1
    finally:
        for path, content in kept.items():
            path.write_bytes(content)


def test_text_from_outside_is_never_markup(reader: httpx.Client, node: Read) -> None:
    for path in ("/", f"/studies/{node.rejected}", "/ledger", f"/ledger?study={node.rejected}"):
        page = reader.get(path).text
        assert MARKUP not in page
        assert "&lt;script&gt;" in page
    assert MARKUP not in reader.get("/", params={"text": MARKUP, "state": MARKUP}).text


def test_every_answer_carries_the_headers(reader: httpx.Client, node: Read) -> None:
    for path in ("/", "/login", "/nowhere", f"/studies/{node.done}", "/static/qa.css", "/api/x"):
        headers = reader.get(path).headers
        assert headers["x-content-type-options"] == "nosniff", path
        assert "default-src 'none'" in headers["content-security-policy"], path
        assert headers["cache-control"] == "no-store", path
        assert "server" not in headers, path


def test_a_study_is_asked_to_be_read_now_and_by_whom(reader: httpx.Client, node: Read) -> None:
    here = f"/studies/{node.receiving}"
    page = reader.get(here).text
    for forged in ({}, {"form": ""}, {"form": "0" * 64}):
        assert reader.post(f"{here}/complete", data=forged).status_code == 403
    assert not node.ledger.study(node.receiving).complete_requested
    answer = reader.post(f"{here}/complete", data={"form": form(page)})
    assert (answer.status_code, answer.headers["location"]) == (303, here)
    assert node.ledger.study(node.receiving).complete_requested
    (asked,) = [
        each
        for each in node.ledger.events(study_uid=node.receiving)
        if each.kind == "study.completion_requested"
    ]
    assert re.fullmatch(r"session [0-9a-f]{12}", asked.data["by"])


def test_a_form_of_another_session_is_refused(reader: httpx.Client, node: Read, url: str) -> None:
    page = reader.get("/").text
    with httpx.Client(base_url=url, trust_env=False) as other:
        token = qa.login_link(node.ledger, url).partition("token=")[2]
        other.post("/login", data={"token": token})
        assert other.post("/logout", data={"form": form(page)}).status_code == 403
        assert other.get("/").status_code == 200


def test_a_form_that_is_too_large_is_refused(reader: httpx.Client) -> None:
    answer = reader.post("/login", content=b"token=" + b"x" * 100_000)
    assert answer.status_code == 413


def test_what_is_not_there_is_said_in_a_page_or_in_json(reader: httpx.Client) -> None:
    page = reader.get("/studies/1.2.3")
    assert (page.status_code, page.headers["content-type"]) == (404, "text/html; charset=utf-8")
    assert "no study has this Study Instance UID" in page.text
    answer = reader.get("/api/nowhere")
    assert (answer.status_code, answer.json()) == (404, {"error": "Not Found"})


def test_the_event_log_shows_and_verifies_the_chain(reader: httpx.Client, node: Read) -> None:
    page = reader.get("/ledger").text  # that it was read is the last event
    seq, digest = node.ledger.head()
    assert f"{seq}:{digest}" in page
    one = reader.get("/ledger", params={"study": node.done}).text
    assert one.count("<tr>") - 1 == len(node.ledger.events(study_uid=node.done))
    assert f"{seq} events, the chain is whole" in reader.get("/ledger/verify").text


def test_a_broken_chain_is_said(tmp_path: Path, node: Read) -> None:
    path = tmp_path / "ledger.sqlite"
    with sqlite3.connect(node.config.ledger_path) as source, sqlite3.connect(path) as copy:
        source.backup(copy)
        copy.execute("DROP TRIGGER events_refuse_update")
        copy.execute("UPDATE events SET data = '{}' WHERE seq = 7")
    source.close(), copy.close()
    with Ledger(path) as ledger:
        app = qa.create_app(ledger, results_dir=tmp_path, api_token=API)
        with qa.Server(app, "127.0.0.1", 0) as server:
            base = f"http://127.0.0.1:{server.port}"
            with httpx.Client(base_url=base, trust_env=False, follow_redirects=True) as client:
                token = qa.login_link(ledger, base).partition("token=")[2]
                client.post("/login", data={"token": token})
                assert "event 7 was changed" in client.get("/ledger/verify").text


def test_the_log_is_paged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(views, "EVENTS", 4)
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        for number in range(10):
            ledger.event("some.kind", number=number)
        last = views.log(ledger, None, None)
        assert [each.seq for each in last.events] == [7, 8, 9, 10]
        assert (last.earlier, last.later) == (2, None)
        before = views.log(ledger, None, last.earlier)
        assert [each.seq for each in before.events] == [3, 4, 5, 6]
        assert (before.earlier, before.later) == (0, 6)
        first = views.log(ledger, None, before.earlier)
        assert [each.seq for each in first.events] == [1, 2, 3, 4]
        assert (first.earlier, first.later) == (None, 4)


# --- the interface for programs -----------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer wrong"},
        {"Authorization": f"Basic {API}"},
        {"Authorization": API},
    ],
)
def test_a_program_without_the_token_is_refused(
    stranger: httpx.Client, node: Read, headers: dict[str, str]
) -> None:
    path = f"/api/studies/{node.done}"
    for answer in (
        stranger.get(path, headers=headers),
        stranger.post(f"{path}/complete", headers=headers),
    ):
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
        assert "api-token" in answer.json()["error"]


def test_an_empty_api_token_lets_nobody_in(node: Read, tmp_path: Path) -> None:
    app = qa.create_app(node.ledger, results_dir=tmp_path, api_token="")
    with qa.Server(app, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.port}/api/studies/{node.done}"
        answer = httpx.get(url, headers={"Authorization": "Bearer"}, trust_env=False)
        assert answer.status_code == 401


def test_a_program_learns_what_became_of_a_study(stranger: httpx.Client, node: Read) -> None:
    stranger.headers["Authorization"] = f"Bearer {API}"
    answer = stranger.get(f"/api/studies/{node.done}").json()
    assert (answer["study_uid"], answer["state"], answer["reason"]) == (node.done, "done", "")
    (job,) = answer["jobs"]
    assert [each["label"] for each in job["results"]] == ["seg", "measurements", "draft"]
    assert [each["state"] for each in job["deliveries"]] == ["sent-unproven"]
    assert job["model"]["untrained"] is True
    rejected = stranger.get(f"/api/studies/{node.rejected}").json()
    assert rejected["state"] == "rejected"
    assert "KNEE" in rejected["reason"]
    assert stranger.get("/api/studies/9.9").status_code == 404


def test_a_program_says_that_a_study_is_complete(stranger: httpx.Client, node: Read) -> None:
    stranger.headers["Authorization"] = f"Bearer {API}"
    answer = stranger.post(f"/api/studies/{node.done}/complete")
    assert answer.status_code == 202
    # It was done already: nothing is asked twice.
    assert answer.json() == {"study_uid": node.done, "state": "done", "reason": ""}
    assert not node.ledger.study(node.done).complete_requested
    assert stranger.post("/api/studies/9.9/complete").status_code == 404


@pytest.mark.filterwarnings("ignore:Invalid value for VR UI")
def test_a_uid_with_a_slash_is_found(tmp_path: Path) -> None:
    instance = sample.series(shape=(1, 16, 16))[0]
    instance.StudyInstanceUID = "1.2/../3"
    path = sample.write([instance], tmp_path / "sent")[0]
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        spool = Spool(tmp_path / "spool", ledger, minimum_free_mb=1)
        folder = tmp_path / "spool" / "x" / "y"
        folder.mkdir(parents=True)
        shutil.copy(path, folder / "z.dcm")
        assert spool.recover() == 1
        app = qa.create_app(ledger, results_dir=tmp_path, api_token=API)
        with qa.Server(app, "127.0.0.1", 0) as server:
            url = f"http://127.0.0.1:{server.port}/api/studies/1.2%2F..%2F3"
            answer = httpx.get(url, headers={"Authorization": f"Bearer {API}"}, trust_env=False)
            assert answer.json()["state"] == "receiving"


def test_health_needs_no_token_and_tells_nothing(stranger: httpx.Client) -> None:
    assert stranger.get("/api/health").json() == {"status": "ok"}


def test_a_taken_port_is_said_in_plain_words() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(Unavailable, match=rf"cannot listen on 127.0.0.1:{port}: .*in use"):
            qa.Server(None, "127.0.0.1", port).__enter__()


@pytest.mark.parametrize(
    ("sent", "shown"),
    [
        ("DOE^JANE", "DOE, JANE"),
        ("DOE^JANE^Q^DR^MD", "DOE, JANE Q DR MD"),
        ("Yamada^Tarou=山田^太郎=やまだ^たろう", "Yamada, Tarou"),
        ("=山田^太郎", "山田, 太郎"),
        ("DOE", "DOE"),
        ("", ""),
    ],
)
def test_a_name_is_written_as_people_read_it(sent: str, shown: str) -> None:
    assert views.person(sent) == shown
