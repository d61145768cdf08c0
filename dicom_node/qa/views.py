"""What each page shows: values made ready for the templates, which decide nothing themselves."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from dicom_node.ledger import Delivery, Event, Job, Ledger, Result, Review, Study

MOVING = ("receiving", "queued", "processing", "delivering")
STATES = (*MOVING, "done", "rejected", "failed", "erased")
PAGE = 50  # studies on a page
EVENTS = 200  # events on a page
DRAFT, PICTURE = "draft.txt", "overlay.png"
LINKS = {
    "predecessor": "since it takes the place of an object of this draft:",
    "evidence": "since it refers to an object of this draft:",
    "study": "since it is of the same study and came later:",
}
HIDDEN = frozenset(  # shown elsewhere on the card
    {
        "series",
        "model",
        "results",
        "sha256",
        "inputs",
        "parameters",
        "libraries",
        "outputs",
        "timings_s",
    }
)


@dataclass(frozen=True)
class Listing:
    """The page of all studies."""

    studies: Sequence[Study]
    counts: dict[str, int]
    state: str  # empty: any
    text: str  # what is sought; empty: nothing
    page: int
    more: bool  # whether a later page holds something


@dataclass(frozen=True)
class Object:
    """One object that was made; `intact` compares the file with the digest in the ledger."""

    result: Result
    intact: bool


@dataclass(frozen=True)
class Step:
    """One line of the timeline: an event, or a run of events of one kind."""

    at: datetime
    until: datetime
    kind: str
    count: int
    told: str


@dataclass(frozen=True)
class Line:
    """One line of a draft: how deep it stands in the tree, what it is called, what it says."""

    depth: int
    name: str  # empty: it goes on with what the line before it said
    text: str


@dataclass(frozen=True)
class Part:
    """One part of the record of a run, a line for each thing that it tells."""

    name: str
    lines: Sequence[str]


@dataclass(frozen=True)
class Answer:
    """What came back and answers the draft that is shown."""

    review: Review
    lines: Sequence[Line]  # of a report
    dice: Sequence[tuple[str, str]]  # of a segmentation: label of a segment, how alike


@dataclass(frozen=True)
class Card:
    """The page of one study; `job` is the one that is shown, None if there is none yet."""

    study: Study
    jobs: Sequence[Job]
    job: Job | None
    objects: Sequence[Object]
    deliveries: Sequence[Delivery]
    draft: Sequence[Line]
    picture: bool
    model: dict[str, Any]
    record: Sequence[Part]
    answers: Sequence[Answer]
    steps: Sequence[Step]

    @property
    def moving(self) -> bool:
        """Whether something is still to come."""
        return self.study.state in MOVING


@dataclass(frozen=True)
class Log:
    """A page of the event log, the latest last."""

    events: Sequence[Event]
    head: tuple[int, str]
    earlier: int | None  # where the page before begins; None: this is the first
    later: int | None


def listing(ledger: Ledger, state: str, text: str, page: int) -> Listing:
    """Collect a page of studies, the latest first."""
    wanted = state if state in STATES else ""
    found = ledger.studies(
        limit=PAGE + 1, offset=page * PAGE, state=wanted or None, text=text.strip()
    )
    counts = ledger.study_counts()
    return Listing(
        studies=found[:PAGE],
        counts={each: counts.get(each, 0) for each in STATES},
        state=wanted,
        text=text.strip(),
        page=page,
        more=len(found) > PAGE,
    )


def card(ledger: Ledger, results_dir: Path, study: Study, job_id: str = "") -> Card:
    """Collect all about one study; of its jobs the one that is asked for, or the newest."""
    jobs = ledger.jobs(study.study_uid)
    named = [each for each in jobs if each.id == job_id]
    job = (named or jobs)[-1] if jobs else None
    events = ledger.events(study_uid=study.study_uid)
    folder = results_dir / (job.id if job else "none")
    results = ledger.results(job.id) if job else []
    return Card(
        study=study,
        jobs=jobs,
        job=job,
        objects=[Object(each, _intact(each)) for each in results],
        deliveries=ledger.deliveries(job.id) if job else [],
        draft=list(lines(_text(folder / DRAFT))) if results else [],
        picture=bool(results) and (folder / PICTURE).is_file(),
        model=(job.summary.get("model") if job else None) or {},
        record=_record(events, job),
        answers=[
            _answer(each)
            for each in ledger.reviews(study.study_uid)
            if job and each.job_id == job.id
        ],
        steps=list(timeline(events)),
    )


def log(ledger: Ledger, study_uid: str | None, after: int | None) -> Log:
    """Collect a page of events after a number; without one the last page."""
    head = ledger.head()
    if study_uid is not None:
        return Log(ledger.events(study_uid=study_uid), head, None, None)
    start = max(0, head[0] - EVENTS) if after is None else max(0, after)
    found = ledger.events(after=start, limit=EVENTS)
    last = found[-1].seq if found else start
    return Log(
        events=found,
        head=head,
        earlier=max(0, start - EVENTS) if start else None,
        later=last if last < head[0] else None,
    )


def timeline(events: Sequence[Event]) -> Iterator[Step]:
    """Draw runs of instances together: a CT has hundreds of them."""
    run: list[Event] = []
    for each in events:
        if run and not (each.kind == run[0].kind and each.kind.startswith("instance.")):
            yield _step(run)
            run = []
        run.append(each)
    if run:
        yield _step(run)


def lines(draft: str) -> Iterator[Line]:
    """Read a draft that was written as an indented tree of ``name: text``."""
    for line in draft.splitlines():
        text = line.lstrip()
        name, colon, rest = text.partition(": ")
        depth = (len(line) - len(text)) // 2
        yield Line(depth, name, rest) if colon else Line(depth, "", text)


def _step(run: Sequence[Event]) -> Step:
    first, last = run[0], run[-1]
    return Step(first.at, last.at, first.kind, len(run), told(last) if len(run) == 1 else "")


def told(event: Event) -> str:
    """Say what an event tells, in one line."""
    shown = {key: value for key, value in event.data.items() if key not in HIDDEN}
    return ", ".join(f"{key} {_plain(value)}" for key, value in shown.items() if value != "")


def person(name: str) -> str:
    """Write a Person Name (PS3.5 6.2.1) as people read it: the first spelling, family first."""
    spelling = next((each for each in name.split("=") if each.strip("^ ")), "")
    family, _, given = spelling.partition("^")
    return ", ".join(filter(None, (family.strip(), " ".join(given.replace("^", " ").split()))))


def _answer(review: Review) -> Answer:
    told = review.detail
    dice = [(label, f"{value:.3f}") for label, value in told.get("dice", {}).items()]
    dice += [(label, "removed") for label in told.get("removed", ())]
    dice += [(label, "added") for label in told.get("added", ())]
    return Answer(review, list(lines(told.get("text", ""))), dice)


def _record(events: Sequence[Event], job: Job | None) -> list[Part]:
    """Give the record of the last run of a job; nothing if there is none yet."""
    if job is None:
        return []
    kept = [each for each in events if (each.kind, each.job_id) == ("job.record", job.id)]
    record = kept[-1].data if kept else {}
    return [Part(key.replace("_", " "), list(_entries(each))) for key, each in record.items()]


def _entries(value: object) -> Iterator[str]:
    if isinstance(value, dict):
        yield from (f"{key}: {_entry(each)}" for key, each in value.items())
    elif isinstance(value, list):
        yield from map(_entry, value)
    else:
        yield str(value)


def _entry(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key.replace('_', ' ')} {_entry(each)}" for key, each in value.items())
    return "; ".join(map(_entry, value)) if isinstance(value, list) else str(value)


def _plain(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _intact(result: Result) -> bool:
    try:
        with result.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == result.sha256
    except OSError:
        return False


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""
