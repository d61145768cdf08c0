import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_ledger import STUDY, instance

from dicom_node.errors import Mismatch
from dicom_node.jobs import Job, Jobs, State
from dicom_node.ledger import Ledger


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger(tmp_path / "ledger.sqlite") as opened:
        opened.record_instance(instance())
        yield opened


@pytest.fixture
def jobs(ledger: Ledger) -> Jobs:
    return Jobs(ledger, maximum_attempts=2)


def enqueue(jobs: Jobs, *sop_uids: str) -> Job:
    return jobs.enqueue(
        STUDY, "ct_chest", sop_uids or ["1"], model_digest="m", series=[{"uid": "s"}]
    )


def kinds(ledger: Ledger) -> list[str]:
    return [each.kind for each in ledger.events()]


def test_a_job_goes_from_the_queue_to_its_end(ledger: Ledger, jobs: Jobs) -> None:
    job = enqueue(jobs)
    assert (job.state, ledger.study(STUDY).state) == (State.QUEUED, "queued")
    held = jobs.claim("w", 60)
    assert held is not None
    assert (held.id, held.worker, held.attempts, held.series) == (job.id, "w", 1, ({"uid": "s"},))
    assert ledger.study(STUDY).state == "processing"
    assert jobs.claim("other", 60) is None
    jobs.finish(job.id, "w", State.FAILED, "no good")
    assert (jobs.get(job.id).state, jobs.get(job.id).reason) == (State.FAILED, "no good")
    assert ledger.study(STUDY).state == "failed"
    assert kinds(ledger)[-2:] == ["job.failed", "study.state"]


def test_the_same_question_about_the_same_images_is_one_job(jobs: Jobs) -> None:
    first = enqueue(jobs, "1", "2")
    assert enqueue(jobs, "2", "1").id == first.id
    assert len(jobs.for_study(STUDY)) == 1


def test_more_images_supersede_a_job_that_still_waits(jobs: Jobs) -> None:
    first = enqueue(jobs, "1")
    second = enqueue(jobs, "1", "2")
    assert jobs.get(first.id).state == State.REJECTED
    assert second.id in jobs.get(first.id).reason
    assert jobs.claim("w", 60).id == second.id


def test_a_silent_worker_loses_its_job(ledger: Ledger, jobs: Jobs) -> None:
    job = enqueue(jobs)
    jobs.claim("silent", -1)
    assert jobs.claim("awake", 60).attempts == 2
    assert not jobs.heartbeat(job.id, "silent", 60)
    assert jobs.heartbeat(job.id, "awake", 60)
    with pytest.raises(Mismatch, match="not held by silent"):
        jobs.finish(job.id, "silent", State.DONE)
    jobs.finish(job.id, "awake", State.DONE)
    assert kinds(ledger).count("job.claimed") == 2


def test_a_job_begun_too_often_has_failed(ledger: Ledger, jobs: Jobs) -> None:
    job = enqueue(jobs)
    jobs.claim("a", -1)
    jobs.claim("b", -1)
    assert jobs.claim("c", 60) is None
    assert jobs.get(job.id).state == State.FAILED
    assert ledger.study(STUDY).state == "failed"


def test_a_released_job_waits_again_until_its_attempts_are_used(jobs: Jobs) -> None:
    job = enqueue(jobs)
    jobs.claim("w", 60)
    jobs.release(job.id, "w", "out of memory")
    assert jobs.get(job.id).state == State.QUEUED
    jobs.claim("w", 60)
    jobs.release(job.id, "w", "out of memory")
    assert jobs.get(job.id).state == State.FAILED
    assert "out of memory" in jobs.get(job.id).reason


def test_a_rejected_study_has_a_job_that_says_why(ledger: Ledger, jobs: Jobs) -> None:
    job = jobs.reject(STUDY, "no protocol fits", series=[{"uid": "s", "reason": "localizer"}])
    assert (job.state, job.reason) == (State.REJECTED, "no protocol fits")
    assert (ledger.study(STUDY).state, ledger.study(STUDY).reason) == (
        "rejected",
        "no protocol fits",
    )


def test_a_reopened_study_with_nothing_new_is_done_again(ledger: Ledger, jobs: Jobs) -> None:
    job = enqueue(jobs)
    jobs.claim("w", 60)
    ledger.record_results(job.id, [], [], {})
    jobs.finish(job.id, "w", State.DONE)
    ledger.record_instance(instance(2))
    assert enqueue(jobs).id == job.id
    assert ledger.study(STUDY).state == "done"


def test_images_that_come_while_a_job_runs_keep_the_study_open(ledger: Ledger, jobs: Jobs) -> None:
    job = enqueue(jobs)
    jobs.claim("w", 60)
    ledger.record_instance(instance(2))
    ledger.record_results(job.id, [], [], {})
    jobs.finish(job.id, "w", State.DONE)
    assert ledger.study(STUDY).state == "receiving"


def test_two_workers_never_hold_one_job(jobs: Jobs) -> None:
    for number in range(20):
        jobs.enqueue(STUDY, f"p{number}", ["1"], model_digest="m", series=[])
    taken: list[str] = []

    def work(name: str) -> None:
        while job := jobs.claim(name, 60):
            taken.append(job.id)

    threads = [threading.Thread(target=work, args=(str(n),)) for n in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert len(taken) == len(set(taken)) == 20
