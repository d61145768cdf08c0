"""What comes back: a radiologist's report, or edited outlines, linked to the draft they answer.

Knows the ledger's reviews and how an answer shows which draft it is of: it names one that it takes
the place of, it refers to one of our objects, or it is of the same study and came later. Runs in
the worker, between two jobs: comparing outlines needs their pixels.
"""

import logging
from dataclasses import asdict
from typing import Any

from pydicom import Dataset, dcmread

from sr_templates import as_text, reading_back
from sr_templates.reading_back import SEGMENTATIONS

from .errors import Unavailable
from .ledger import Job, Ledger, Result, Review

log = logging.getLogger(__name__)

LONGEST_TEXT = 100_000
NO_DRAFT = "there is no draft of this study"
OTHER = "it neither names our draft nor is a final report or a segmentation that came after it"


def step(ledger: Ledger) -> int:
    """Look at what has come back to studies that are read; return at how many.

    Raises
    ------
    Unavailable
        The ledger cannot be written now; what is not looked at stays so.
    """
    waiting = ledger.waiting_reviews()
    for each in waiting:
        try:
            _look(ledger, each)
        except Unavailable:
            raise
        except Exception as error:  # one answer's edge: anything may have been sent
            log.exception("answer.unread", extra={"sop": each.sop_uid})
            reason = f"{type(error).__name__}: {error}"
            ledger.record_review(each, "unread", detail={"reason": reason})
    return len(waiting)


def _look(ledger: Ledger, review: Review) -> None:
    jobs = [each for each in ledger.jobs(review.study_uid) if each.state == "done"]
    made = {each.sop_uid: each for job in jobs for each in ledger.results(job.id)}
    if not made:
        ledger.record_review(review, "unrelated", detail={"reason": NO_DRAFT})
        return
    answer = dcmread(review.path)
    link, draft = _link(review, answer, jobs, made)
    if draft is None:
        ledger.record_review(review, "unrelated", detail={"reason": OTHER})
        return
    outlines = [each for each in made.values() if each.job_id == draft.job_id]
    ledger.record_review(review, "linked", link=link, draft=draft, detail=_told(answer, outlines))


def _link(
    review: Review, answer: Dataset, jobs: list[Job], made: dict[str, Result]
) -> tuple[str, Result | None]:
    """Say how an answer shows which of our objects it is of, and of which; the newest one first."""
    for link, named in (
        ("predecessor", reading_back.predecessors(answer)),
        ("evidence", reading_back.references(answer)),
    ):
        found = [each for uid, each in made.items() if uid in named]
        if found:
            return link, found[-1]
    wanted = "seg" if _is_segmentation(answer) else "draft"
    if wanted == "draft" and not reading_back.is_final(answer):
        return "", None
    earlier = {each.id for each in jobs if each.finished_at and each.finished_at <= review.at}
    found = [each for each in made.values() if each.label == wanted and each.job_id in earlier]
    return ("study", found[-1]) if found else ("", None)


def _told(answer: Dataset, made: list[Result]) -> dict[str, Any]:
    """Say what stands in an answer, of values that JSON has."""
    told = {"what": "report", "title": str(answer.get("SeriesDescription") or "")}
    if not _is_segmentation(answer):
        return told | {
            "completion": str(answer.get("CompletionFlag") or ""),
            "verification": str(answer.get("VerificationFlag") or ""),
            "verified_by": reading_back.verifier(answer),
            "text": as_text(answer)[:LONGEST_TEXT],
        }
    ours = next((each for each in made if each.label == "seg"), None)
    told["what"] = "segmentation"
    if ours is None:
        return told | {"reason": "we outlined nothing"}
    return told | asdict(reading_back.compare(dcmread(ours.path), answer))


def _is_segmentation(answer: Dataset) -> bool:
    return str(answer.SOPClassUID) in SEGMENTATIONS
