"""Who is next in the queue, what is done to it by hand, and how several jobs make one study."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update
from test_ledger import STUDY, instance

from dicom_node.errors import BadInput
from dicom_node.jobs import Job, Jobs, Order, State
from dicom_node.ledger import Ledger, tables
from dicom_node.ledger.records import Result, to_text


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger(tmp_path / "ledger.sqlite") as opened:
        opened.record_instance(instance())
        yield opened


@pytest.fixture
def jobs(ledger: Ledger) -> Jobs:
    return Jobs(ledger, maximum_attempts=2)


def add(jobs: Jobs, *orders: tuple[str, str], **options: Any) -> list[Job]:
    """Add jobs of the study: (protocol, priority) each."""
    wanted = [Order(name, ("1",), (), priority, **options) for name, priority in orders]
    return jobs.enqueue_all(STUDY, wanted, model_digest="m")


def claimed(jobs: Jobs) -> list[str]:
    found = []
    while job := jobs.claim("w", 60):
        found.append(job.protocol)
    return found


def age(ledger: Ledger, job: Job, hours: float) -> None:
    """Let a job have waited for so long."""
    table = tables.jobs
    due_at = datetime.fromisoformat(job.due_at) - timedelta(hours=hours)
    with ledger.transaction() as transaction:
        transaction.connection.execute(
            update(table).where(table.c.id == job.id).values(due_at=to_text(due_at))
        )


def kinds(ledger: Ledger) -> list[str]:
    return [each.kind for each in ledger.events()]


def state(ledger: Ledger) -> str:
    found = ledger.study(STUDY)
    assert found is not None
    return found.state


def finish(jobs: Jobs, *, to: str = "") -> Job:
    """Read the next job, with one result that goes to a destination, if any."""
    job = jobs.claim("w", 60)
    assert job is not None
    result = Result(job.id, "draft", "1.2", f"2.25.{int(job.id, 16)}", "1.3", Path("x"), "0")
    jobs.complete(job.id, "w", [result], {to: ["draft"]} if to else {}, {})
    return job


# --- who is next --------------------------------------------------------------------------------


def test_what_is_urgent_is_next_then_what_is_normal_then_what_can_wait(jobs: Jobs) -> None:
    add(jobs, ("late", "off-peak"), ("first", "normal"), ("second", "normal"), ("now", "urgent"))
    assert claimed(jobs) == ["now", *sorted(["first", "second"], key=_by_key(jobs)), "late"]


def _by_key(jobs: Jobs) -> Any:
    return lambda name: next(each.id for each in jobs.for_study(STUDY) if each.protocol == name)


def test_an_urgent_job_does_not_interrupt_one_that_runs(jobs: Jobs) -> None:
    (normal,) = add(jobs, ("plain", "normal"))
    held = jobs.claim("w", 60)
    assert held is not None
    add(jobs, ("now", "urgent"))
    assert jobs.claim("other", 60).protocol == "now"
    assert jobs.heartbeat(normal.id, "w", 60)


def test_what_has_waited_long_goes_before_what_is_urgent(ledger: Ledger, jobs: Jobs) -> None:
    late, plain, *_ = add(jobs, ("late", "off-peak"), ("plain", "normal"), ("now", "urgent"))
    age(ledger, plain, 3.9)
    age(ledger, late, 23.9)
    assert jobs.claim("w", 60).protocol == "now"
    add(jobs, ("again", "urgent"))
    age(ledger, plain, 4.1)
    age(ledger, late, 24.2)
    assert claimed(jobs) == ["late", "plain", "again"]


def closed_now() -> str:
    """Write a window that is closed for hours to come."""
    now = datetime.now(UTC).astimezone()
    start, end = (now + timedelta(hours=each) for each in (6, 12))
    return f"{start:%H:%M}-{end:%H:%M}"


def open_now() -> str:
    now = datetime.now(UTC).astimezone()
    start, end = (now + timedelta(hours=each) for each in (-6, 6))
    return f"{start:%H:%M}-{end:%H:%M}"


def test_what_is_off_peak_waits_for_its_window(ledger: Ledger, jobs: Jobs) -> None:
    (job,) = add(jobs, ("night", "off-peak"), window=closed_now())
    assert jobs.claim("w", 60) is None
    assert jobs.claim("w", 60) is None
    waiting = jobs.get(job.id)
    assert waiting is not None
    assert timedelta(hours=5) < waiting.not_before - datetime.now(UTC) < timedelta(hours=7)
    assert kinds(ledger).count("job.deferred") == 1
    assert state(ledger) == "queued"


def test_in_its_window_it_is_read(jobs: Jobs) -> None:
    add(jobs, ("night", "off-peak"), window=open_now())
    assert claimed(jobs) == ["night"]


def test_a_job_that_waits_for_its_window_is_superseded_by_more_images(jobs: Jobs) -> None:
    (job,) = add(jobs, ("night", "off-peak"), window=closed_now())
    jobs.claim("w", 60)
    jobs.enqueue(STUDY, "night", ["1", "2"], model_digest="m", series=[])
    assert jobs.get(job.id).state == State.REJECTED


# --- by hand ------------------------------------------------------------------------------------


def test_a_job_is_given_another_priority_and_that_is_told(ledger: Ledger, jobs: Jobs) -> None:
    _, late = add(jobs, ("plain", "normal"), ("late", "off-peak"), window=closed_now())
    jobs.claim("w", 60)
    jobs.prioritize(late.id, "urgent", by="Ann")
    (told,) = [each for each in ledger.events() if each.kind == "job.prioritized"]
    assert told.data == {"priority": "urgent", "before": "off-peak", "by": "Ann"}
    assert jobs.claim("w", 60).protocol == "late"
    with pytest.raises(BadInput, match=r"is running, not queued"):
        jobs.prioritize(late.id, "normal", by="Ann")
    with pytest.raises(BadInput, match="no job is known as 'x'"):
        jobs.prioritize("x", "normal", by="Ann")


def test_a_job_is_cancelled_and_queued_again(ledger: Ledger, jobs: Jobs) -> None:
    (job,) = add(jobs, ("plain", "normal"))
    assert jobs.cancel(job.id, by="Ann").reason == "cancelled by Ann"
    assert (jobs.claim("w", 60), state(ledger)) == (None, "rejected")
    assert jobs.retry(job.id, by="Ann").state == State.QUEUED
    assert state(ledger) == "queued"
    assert jobs.claim("w", 60).id == job.id
    assert [each for each in kinds(ledger) if each in {"job.cancelled", "job.requeued"}] == [
        "job.cancelled",
        "job.requeued",
    ]


def test_what_runs_is_not_cancelled_and_what_is_done_not_retried(jobs: Jobs) -> None:
    (job,) = add(jobs, ("plain", "normal"))
    jobs.claim("w", 60)
    with pytest.raises(BadInput, match="is running"):
        jobs.cancel(job.id, by="Ann")
    jobs.complete(job.id, "w", [], {}, {})
    with pytest.raises(BadInput, match="is done"):
        jobs.retry(job.id, by="Ann")


def test_what_a_later_job_took_the_place_of_is_not_retried(jobs: Jobs) -> None:
    (job,) = add(jobs, ("plain", "normal"))
    jobs.enqueue(STUDY, "plain", ["1", "2"], model_digest="m", series=[])
    with pytest.raises(BadInput, match="superseded by job"):
        jobs.retry(job.id, by="Ann")
    with pytest.raises(BadInput, match="no protocol"):
        jobs.retry(jobs.reject(STUDY, "no region").id, by="Ann")


# --- several jobs of one study ------------------------------------------------------------------


def both(jobs: Jobs) -> list[Job]:
    return add(jobs, ("ct_chest", "normal"), ("ct_abdomen", "normal"))


def test_the_same_decision_makes_the_same_jobs(jobs: Jobs) -> None:
    first = both(jobs)
    assert len({each.id for each in first}) == 2
    assert [each.id for each in both(jobs)] == [each.id for each in first]
    assert len(jobs.for_study(STUDY)) == 2


def test_one_order_given_twice_is_one_job(jobs: Jobs) -> None:
    assert len(add(jobs, ("ct_chest", "normal"), ("ct_chest", "urgent"))) == 1


def test_a_study_is_done_when_all_its_jobs_are(ledger: Ledger, jobs: Jobs) -> None:
    both(jobs)
    finish(jobs)
    assert state(ledger) == "queued"
    finish(jobs)
    assert state(ledger) == "done"
    states = [each.data["state"] for each in ledger.events() if each.kind == "study.state"]
    assert states == ["queued", "processing", "queued", "processing", "done"]


def test_a_study_is_delivering_until_all_results_are_there(ledger: Ledger, jobs: Jobs) -> None:
    both(jobs)
    done = [finish(jobs, to="PACS@192.0.2.5:104") for _ in range(2)]
    for each in done:
        assert state(ledger) == "delivering"
        (delivery,) = ledger.deliveries(each.id)
        ledger.record_delivery(delivery.id, "sent")
    assert state(ledger) == "done"


def test_a_study_of_which_one_job_failed_has_failed_when_all_have_ended(
    ledger: Ledger, jobs: Jobs
) -> None:
    both(jobs)
    bad = jobs.claim("w", 60)
    jobs.finish(bad.id, "w", State.FAILED, "no memory")
    assert state(ledger) == "queued"
    finish(jobs)
    assert (state(ledger), ledger.study(STUDY).reason) == ("failed", f"{bad.protocol}: no memory")
    jobs.retry(bad.id, by="Ann")
    assert state(ledger) == "queued"
    finish(jobs)
    assert (state(ledger), ledger.study(STUDY).reason) == ("done", "")


def test_a_study_of_which_one_job_was_refused_is_done_and_says_so(
    ledger: Ledger, jobs: Jobs
) -> None:
    both(jobs)
    bad = jobs.claim("w", 60)
    jobs.finish(bad.id, "w", State.REJECTED, "a gap")
    finish(jobs)
    assert (state(ledger), ledger.study(STUDY).reason) == ("done", f"{bad.protocol}: a gap")


def test_a_study_of_which_every_job_was_refused_is_rejected(ledger: Ledger, jobs: Jobs) -> None:
    for each in both(jobs):
        jobs.cancel(each.id, by="Ann")
    assert state(ledger) == "rejected"


def test_a_study_that_was_opened_again_is_moved_by_none_of_its_jobs(
    ledger: Ledger, jobs: Jobs
) -> None:
    both(jobs)
    with ledger.transaction() as transaction:
        transaction.reopen(STUDY, "late images")
    finish(jobs)
    finish(jobs)
    assert state(ledger) == "receiving"
    both(jobs)
    assert state(ledger) == "done"


def test_a_later_decision_for_one_region_is_for_that_one_alone(ledger: Ledger, jobs: Jobs) -> None:
    first = both(jobs)
    finish(jobs)
    finish(jobs)
    with ledger.transaction() as transaction:
        transaction.reopen(STUDY, "late images")
    (only,) = add(jobs, ("ct_abdomen", "normal"))
    assert only.id == first[1].id
    assert state(ledger) == "done"
    assert [each.lead for each in jobs.for_study(STUDY)] == ["", ""]


def test_a_study_that_is_not_to_be_read_is_done_and_nothing_of_it_waits(
    ledger: Ledger, jobs: Jobs
) -> None:
    both(jobs)
    with ledger.transaction() as transaction:
        transaction.reopen(STUDY, "late images")
    jobs.ignore(STUDY, "ignored by rule 'x'")
    assert claimed(jobs) == []
    assert (state(ledger), ledger.study(STUDY).reason) == ("done", "ignored by rule 'x'")
    assert "study.ignored" in kinds(ledger)
