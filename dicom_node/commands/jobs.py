"""The commands about the queue: what waits, what comes first, what is tried again or given up."""

import argparse
import getpass
from typing import TYPE_CHECKING, Any

from dicom_node.errors import BadInput

from .command import Outcome, verb
from .ledger import open_ledger

if TYPE_CHECKING:
    from dicom_node.ledger.records import Job

STATES = ("queued", "running", "done", "failed", "rejected")
PRIORITIES = ("urgent", "normal", "off-peak")


def add(verbs: Any) -> None:  # noqa: ANN401 - argparse has no public name for it
    """Add the commands to those of `lamed-node`."""
    group = verbs.add_parser("jobs", help="the queue").add_subparsers(
        required=True, metavar="VERB", title="verbs"
    )
    listing = verb(group, "list", _list, "jobs that wait or run, who is next first")
    listing.add_argument("--state", choices=STATES, action="append", default=[])
    for name, command, text in (
        ("retry", _retry, "queue again what has failed, was refused or cancelled"),
        ("cancel", _cancel, "give up what waits; what runs is not stopped"),
    ):
        verb(group, name, command, text).add_argument("jobs", nargs="+", metavar="JOB_ID")
    first = verb(group, "prioritize", _prioritize, "another priority for what waits")
    first.add_argument("jobs", nargs="+", metavar="JOB_ID")
    first.add_argument("--priority", choices=PRIORITIES, default="urgent")

    process = verb(verbs, "process", _process, "nothing more will come: decide about a study now")
    process.add_argument("study", metavar="STUDY_UID")


def _list(arguments: argparse.Namespace) -> Outcome:
    from dicom_node.jobs import Jobs

    states = arguments.state or ["queued", "running"]
    with open_ledger(arguments) as ledger:
        found = Jobs(ledger).listed(states)
    return Outcome({"jobs": list(map(_data, found))}, "\n".join(map(_line, found)) or "none")


def _retry(arguments: argparse.Namespace) -> Outcome:
    from dicom_node.jobs import Jobs

    with open_ledger(arguments) as ledger:
        jobs = [Jobs(ledger).retry(each, by=_who()) for each in arguments.jobs]
    return _told(jobs)


def _cancel(arguments: argparse.Namespace) -> Outcome:
    from dicom_node.jobs import Jobs

    with open_ledger(arguments) as ledger:
        jobs = [Jobs(ledger).cancel(each, by=_who()) for each in arguments.jobs]
    return _told(jobs)


def _prioritize(arguments: argparse.Namespace) -> Outcome:
    from dicom_node.jobs import Jobs

    with open_ledger(arguments) as ledger:
        queue = Jobs(ledger)
        jobs = [queue.prioritize(each, arguments.priority, by=_who()) for each in arguments.jobs]
    return _told(jobs)


def _process(arguments: argparse.Namespace) -> Outcome:
    with open_ledger(arguments) as ledger:
        if not ledger.request_completion(arguments.study, by=_who()):
            raise BadInput(f"no study is known as {arguments.study!r}")
        study = ledger.study(arguments.study)
    told = {"study_uid": arguments.study, "state": study.state if study else ""}
    if study is not None and study.state == "receiving":
        return Outcome(told, f"{arguments.study} is decided upon now, with what is there")
    return Outcome(told, f"{arguments.study} is {told['state']}: there is nothing to decide")


def _told(jobs: "list[Job]") -> Outcome:
    return Outcome({"jobs": list(map(_data, jobs))}, "\n".join(map(_line, jobs)))


def _line(job: "Job") -> str:
    after = f", not before {job.not_before:%Y-%m-%d %H:%M} UTC" if job.not_before else ""
    why = f": {job.reason}" if job.reason else ""
    return (
        f"{job.id}  {job.state:<8}  {job.priority:<8}  {job.protocol or '-'}  {job.study_uid}"
        f"{after}{why}"
    )


def _data(job: "Job") -> dict[str, object]:
    return {
        "id": job.id,
        "study_uid": job.study_uid,
        "protocol": job.protocol,
        "state": job.state,
        "reason": job.reason,
        "priority": job.priority,
        "rule": job.rule,
        "window": job.window,
        "not_before": job.not_before and job.not_before.isoformat(),
        "attempts": job.attempts,
        "created_at": job.created_at.isoformat(),
    }


def _who() -> str:
    return f"{getpass.getuser()} at the command line"
