"""`lamed-node deliveries`: what is on its way, what was given up, and sending it again."""

# ruff: noqa: F811 - fixtures of another file

from collections.abc import Callable

import pytest
from commands import Done
from test_delivery import dead, events, finish, made, only, study_of  # noqa: F401 - fixtures

from dicom_node.__main__ import main
from dicom_node.config import Config
from dicom_node.ledger import Ledger

Finish = Callable[..., str]


@pytest.fixture
def call(
    config: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Done]:
    monkeypatch.setenv("LAMED_DATA_DIR", str(config.data_dir))

    def run(*words: str) -> Done:
        code = main(["deliveries", *words])
        told = capsys.readouterr()
        return Done(code, told.out, told.err)

    return run


def give_up(ledger: Ledger, *jobs: str) -> None:
    for each in jobs:
        ledger.record_delivery(only(ledger, each).id, "failed", detail="status 0xC001")


def test_deliveries_are_listed_by_state_and_by_destination(
    ledger: Ledger, finish: Finish, call: Callable[..., Done]
) -> None:
    assert call("list").out == "none\n"
    one, two = finish(dead("ONE")), finish(dead("TWO"))
    give_up(ledger, two)
    (failed,) = call("list", "--state", "failed", "--json").data["deliveries"]
    assert (failed["job_id"], failed["state"], failed["attempts"]) == (two, "failed", 1)
    assert failed["detail"] == "status 0xC001"
    told = call("list", "--destination", "ONE").out.splitlines()
    assert len(told) == 1
    assert "pending" in told[0]
    assert only(ledger, one).destination in told[0]
    assert call("list", "--state", "lost").code == 2


def test_what_was_given_up_is_sent_again_one_by_one_by_destination_or_all(
    ledger: Ledger, finish: Finish, call: Callable[..., Done]
) -> None:
    jobs = [finish(dead("ONE")), finish(dead("TWO")), finish(dead("TWO")), finish(dead("THREE"))]
    give_up(ledger, *jobs)
    numbers = [only(ledger, each).id for each in jobs]
    assert study_of(ledger, jobs[0])[0] == "failed"
    assert call("resend", str(numbers[0])).out.endswith("is sent again\n")
    assert (only(ledger, jobs[0]).state, only(ledger, jobs[0]).attempts) == ("pending", 0)
    assert study_of(ledger, jobs[0])[0] == "delivering"
    assert call("resend", "--destination", "TWO", "--json").data == {"deliveries": numbers[1:3]}
    assert call("resend", "--all", "--json").data == {"deliveries": numbers[3:]}
    assert call("resend", "--all").out == "none\n"
    restarted = events(ledger, "delivery.restarted")
    assert len(restarted) == 4
    assert all(str(each["by"]).endswith("at the command line") for each in restarted)
    assert ledger.verify()


def test_what_stays_given_up_is_acknowledged(
    ledger: Ledger, finish: Finish, call: Callable[..., Done]
) -> None:
    job_id = finish(dead())
    give_up(ledger, job_id)
    number = str(only(ledger, job_id).id)
    assert call("acknowledge", number).out.endswith("stays given up\n")
    assert only(ledger, job_id).state == "acknowledged"
    assert study_of(ledger, job_id)[0] == "done"


def test_what_cannot_be_meant_is_refused(
    ledger: Ledger, finish: Finish, call: Callable[..., Done]
) -> None:
    job_id = finish(dead())
    give_up(ledger, job_id)
    for words, code in (
        (["resend"], 2),
        (["resend", "1", "--all"], 2),
        (["resend", "99"], 3),
        (["acknowledge", "x"], 2),
    ):
        assert call(*words).code == code
    assert only(ledger, job_id).state == "failed"
