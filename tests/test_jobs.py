import multiprocessing
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy.exc import IntegrityError
from test_ledger import STUDY, instance

from dicom_node.errors import Mismatch
from dicom_node.jobs import Job, Jobs, State
from dicom_node.ledger import Ledger
from dicom_node.ledger.records import Result


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


def finish(jobs: Jobs, job: Job) -> None:
    assert jobs.claim("w", 60).id == job.id
    jobs.complete(job.id, "w", [], {}, {})


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


def test_a_superseded_job_leaves_its_study_alone(ledger: Ledger, jobs: Jobs) -> None:
    enqueue(jobs, "1")
    enqueue(jobs, "1", "2")
    assert "job.superseded" in kinds(ledger)
    assert [each.data["state"] for each in ledger.events() if each.kind == "study.state"] == [
        "queued"
    ]


def test_more_images_supersede_a_job_whose_worker_fell_silent(jobs: Jobs) -> None:
    first = enqueue(jobs, "1")
    jobs.claim("silent", -1)
    second = enqueue(jobs, "1", "2")
    assert jobs.get(first.id).state == State.REJECTED
    assert jobs.claim("w", 60).id == second.id
    assert jobs.claim("w", 60) is None


def test_images_replaced_under_their_uids_are_another_question(ledger: Ledger, jobs: Jobs) -> None:
    first = enqueue(jobs, instance().sop_uid)
    finish(jobs, first)
    ledger.record_instance(replace(instance(), path=Path("/spool/new.dcm"), sha256="2" * 64))
    second = enqueue(jobs, instance().sop_uid)
    assert (second.id != first.id, second.state) == (True, State.QUEUED)
    assert enqueue(jobs, instance().sop_uid).id == second.id


def test_a_failed_job_is_queued_again_when_it_is_asked_for_again(
    ledger: Ledger, jobs: Jobs
) -> None:
    job = enqueue(jobs)
    jobs.claim("w", 60)
    jobs.finish(job.id, "w", State.FAILED, "the model was missing")
    again = enqueue(jobs)
    assert (again.id, again.state, again.attempts) == (job.id, State.QUEUED, 0)
    assert ledger.study(STUDY).state == "queued"
    assert kinds(ledger).count("job.requeued") == 1
    finish(jobs, job)
    assert ledger.study(STUDY).state == "done"


def test_an_older_job_that_fails_does_not_fail_a_study_with_a_newer_one(
    ledger: Ledger, jobs: Jobs
) -> None:
    first = enqueue(jobs, "1")
    jobs.claim("slow", 60)
    ledger.record_instance(instance(2))
    second = enqueue(jobs, "1", "2")
    jobs.finish(first.id, "slow", State.FAILED, "no good")
    assert ledger.study(STUDY).state == "queued"
    finish(jobs, second)
    assert ledger.study(STUDY).state == "done"


def test_images_that_come_between_look_and_queue_keep_the_study_open(
    ledger: Ledger, jobs: Jobs
) -> None:
    seen = ledger.study(STUDY).arrivals
    ledger.record_instance(instance(2))
    jobs.enqueue(STUDY, "ct_chest", ["1"], model_digest="m", series=[], seen=seen)
    assert ledger.study(STUDY).state == "receiving"
    jobs.reject(STUDY, "nothing fits", seen=seen)
    assert ledger.study(STUDY).state == "receiving"
    jobs.reject(STUDY, "nothing fits", seen=seen + 1)
    assert ledger.study(STUDY).state == "rejected"


def test_a_refused_study_leaves_no_earlier_job_waiting(jobs: Jobs) -> None:
    enqueue(jobs)
    jobs.reject(STUDY, "nothing fits")
    assert jobs.claim("w", 60) is None


def test_a_job_of_an_unknown_study_is_refused(jobs: Jobs) -> None:
    with pytest.raises(Mismatch, match=r"no study is known as '7\.7'"):
        jobs.enqueue("7.7", "ct_chest", ["1"], model_digest="m", series=[])


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
    jobs.complete(job.id, "w", [], {}, {})
    ledger.record_instance(instance(2))
    assert enqueue(jobs).id == job.id
    assert ledger.study(STUDY).state == "done"


def test_images_that_come_while_a_job_runs_keep_the_study_open(ledger: Ledger, jobs: Jobs) -> None:
    job = enqueue(jobs)
    jobs.claim("w", 60)
    ledger.record_instance(instance(2))
    jobs.complete(job.id, "w", [], {}, {})
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


def _take_all(path: Path, name: str, taken: "multiprocessing.SimpleQueue[str]") -> None:
    with Ledger(path) as ledger:
        jobs = Jobs(ledger)
        while job := jobs.claim(name, 60):
            taken.put(job.id)
            jobs.finish(job.id, name, State.DONE)


def test_two_worker_processes_never_hold_one_job(ledger: Ledger, jobs: Jobs) -> None:
    for number in range(30):
        jobs.enqueue(STUDY, f"p{number}", ["1"], model_digest="m", series=[])
    context = multiprocessing.get_context("spawn")
    taken = context.SimpleQueue()
    workers = [
        context.Process(target=_take_all, args=(ledger.path, str(n), taken)) for n in range(3)
    ]
    for each in workers:
        each.start()
    for each in workers:
        each.join()
    assert sorted(taken.get() for _ in range(30)) == sorted(
        each.id for each in jobs.for_study(STUDY)
    )
    assert taken.empty()
    assert ledger.verify() == len(ledger.events())
    assert {each.attempts for each in jobs.for_study(STUDY)} == {1}


@pytest.mark.parametrize("end", [State.FAILED, State.REJECTED])
def test_what_failed_is_tried_again_when_somebody_asks(
    ledger: Ledger, jobs: Jobs, end: State
) -> None:
    job = enqueue(jobs)
    jobs.claim("w", 60)
    jobs.finish(job.id, "w", end, "no luck")
    assert ledger.study(STUDY).state == end
    assert ledger.request_completion(STUDY, by="somebody")
    study = ledger.study(STUDY)
    assert (study.state, study.complete_requested) == ("receiving", True)
    assert ledger.quiet_studies(3600, 3600) == [study]
    assert enqueue(jobs).id == job.id
    assert (jobs.get(job.id).state, ledger.study(STUDY).state) == (State.QUEUED, "queued")
    assert kinds(ledger)[-4:-2] == ["study.reopened", "study.completion_requested"]


def test_a_delivery_that_was_given_up_begins_again_when_somebody_asks(
    ledger: Ledger, jobs: Jobs
) -> None:
    job = enqueue(jobs)
    jobs.claim("w", 60)
    jobs.complete(job.id, "w", [], {"A@host:1": [], "B@host:1": []}, {})
    sent, given_up = ledger.due_deliveries()
    ledger.record_delivery(sent.id, "sent")
    ledger.record_delivery(given_up.id, "failed", detail="refused")
    assert ledger.study(STUDY).state == "failed"
    ledger.request_completion(STUDY)
    enqueue(jobs)
    assert ledger.study(STUDY).state == "delivering"
    (due,) = ledger.due_deliveries()
    assert (due.destination, due.attempts) == ("B@host:1", 0)
    assert kinds(ledger).count("delivery.restarted") == 1
    ledger.record_delivery(due.id, "sent")
    assert ledger.study(STUDY).state == "done"


RESULT = Result("", "seg", "1.2", "9.9", "9.8", Path("/results/seg.dcm"), "1" * 64)


def test_a_job_ends_with_its_results_or_not_at_all(ledger: Ledger, jobs: Jobs) -> None:
    job = enqueue(jobs)
    jobs.claim("w", 60)
    made, before = replace(RESULT, job_id=job.id), ledger.head()
    with pytest.raises(IntegrityError):  # two objects of one UID
        jobs.complete(job.id, "w", [made, made], {"A@host:1": []}, {})
    assert (jobs.get(job.id).state, ledger.study(STUDY).state) == (State.RUNNING, "processing")
    assert (ledger.results(job.id), ledger.deliveries(job.id), ledger.head()) == ([], [], before)
    jobs.complete(job.id, "w", [made], {"A@host:1": [made.label]}, {"model": {"name": "tiny"}})
    assert (jobs.get(job.id).state, ledger.study(STUDY).state) == (State.DONE, "delivering")
    assert ledger.results(job.id) == [made]
    assert kinds(ledger)[-3:] == ["job.results", "study.state", "job.done"]


def test_who_holds_a_job_no_more_records_nothing_of_it(ledger: Ledger, jobs: Jobs) -> None:
    job = enqueue(jobs)
    jobs.claim("slow", 0)
    assert jobs.claim("w", 60).id == job.id
    made = replace(RESULT, job_id=job.id)
    with pytest.raises(Mismatch, match="not held by slow"):
        jobs.complete(job.id, "slow", [made], {}, {})
    assert ledger.results(job.id) == []
    jobs.complete(job.id, "w", [made], {}, {})
    with pytest.raises(Mismatch):
        jobs.complete(job.id, "w", [made], {}, {})
    assert (ledger.results(job.id), kinds(ledger).count("job.results")) == ([made], 1)
