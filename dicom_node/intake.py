"""When a study is complete: it is decided upon, and becomes jobs or a refusal with its reason.

Knows the ledger, the queue and the rules; runs beside the SCP and needs neither torch nor pixels.
"""

import logging
import threading
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

from . import routing
from .errors import Unavailable
from .jobs import Jobs, Order
from .ledger import Ledger, Study
from .routing import Choice, Rule, deciding
from .routing.deciding import Decision, Planned, Terms
from .routing.rules import RuleBook
from .ways_in import expectations
from .ways_in.standing_orders import StandingOrders

log = logging.getLogger(__name__)

POLL_S = 0.25
RETRY_S = 2.0  # a ledger that cannot be written now is not asked four times a second
GRACE_S = 2.0  # without a new instance, when as many as were expected are there


@dataclass(frozen=True)
class Completion:
    """Why a study counts as complete: ``request``, ``expected``, ``quiet`` or ``limit``."""

    why: str
    expected: int | None = None  # None: it is not known how many should come

    def missing(self, study: Study) -> int:
        """Count the instances that should have come and have not."""
        return max(0, (self.expected or 0) - study.instance_count)


@dataclass(frozen=True)
class Intake:
    """Takes complete studies from reception to the queue.

    Parameters
    ----------
    model_digest
        Digest of the weights, part of the key of each job.
    fallback
        Protocol for a study that no rule fits; empty refuses it.
    quiet_s, open_limit_s
        A study is complete after so long without a new instance, or so long after its first. If
        it is known how many instances are to come, it is complete as soon as they are there, and
        before the limit not without them.
    book
        The rules of the site; None: there are none.
    """

    ledger: Ledger
    jobs: Jobs
    rules: Sequence[Rule]
    model_digest: str
    fallback: str
    quiet_s: float
    open_limit_s: float
    book: RuleBook | None = None
    _terms: dict[tuple[str, int], Terms] = field(default_factory=dict, repr=False, compare=False)

    @cached_property
    def _orders(self) -> StandingOrders:
        return StandingOrders(self.ledger)

    def run(self, stop: threading.Event) -> None:
        """Take studies in until told to stop."""
        pause_s = POLL_S
        while not stop.wait(pause_s):
            try:
                self.step()
                pause_s = POLL_S
            except Exception:  # the loop's edge: a locked database must not end reception
                log.exception("intake.error")
                pause_s = RETRY_S

    def step(self) -> int:
        """Take every study that is complete now; return how many.

        A study that cannot be routed for no reason of its own has failed; the others go on.

        Raises
        ------
        Unavailable
            The ledger cannot be written now; what is not taken stays complete.
        """
        complete = list(self._complete())
        for study, completion in complete:
            try:
                self._take(study, completion)
            except Unavailable:
                raise
            except Exception as error:  # one study's edge: the others are not to wait for it
                log.exception("intake.study_failed", extra={"study": study.study_uid})
                self._fail(study, f"cannot be routed: {type(error).__name__}: {error}")
        return len(complete)

    # --- when -----------------------------------------------------------------------------------

    def _complete(self) -> Iterator[tuple[Study, Completion]]:
        """Find the studies that are complete."""
        now, grace_s = datetime.now(UTC), min(GRACE_S, self.quiet_s)
        studies = self.ledger.quiet_studies(
            self._shortest_s(), self.open_limit_s, now, grace_s=grace_s
        )
        self._orders.forget({each.study_uid for each in studies})
        asked = {(each.study_uid, each.arrivals) for each in studies}
        for gone in self._terms.keys() - asked:
            del self._terms[gone]
        for study in studies:
            completion = self._completion(study, now)
            if completion is not None and not self._is_on_its_way(study, now):
                yield study, completion

    def _shortest_s(self) -> float:
        """Say after how long without an instance any study may be complete at all."""
        rules = self.book.rules if self.book else ()
        quiet = [each.quiet_s for each in rules if each.quiet_s is not None]
        told = any(each.expected for each in rules)
        return min([self.quiet_s, *quiet, *([GRACE_S] if told else [])])

    def _completion(self, study: Study, now: datetime) -> Completion | None:
        """Tell why a study is complete; None if it is not."""
        quiet_s = (now - study.last_at).total_seconds()
        terms = self._terms_of(study)
        said = expectations.expected(self.ledger, study.study_uid)
        expected = terms.expected if said is None else said
        patience_s = self.quiet_s if terms.quiet_s is None else terms.quiet_s
        if study.complete_requested:
            return Completion("request", expected)
        if expected is not None and study.instance_count >= expected:
            if quiet_s >= min(GRACE_S, patience_s):
                return Completion("expected", expected)
        elif expected is None and quiet_s >= patience_s:
            return Completion("quiet")
        return Completion("limit", expected) if self._is_open_too_long(study, now) else None

    def _is_open_too_long(self, study: Study, now: datetime) -> bool:
        return (now - study.opened_at).total_seconds() >= self.open_limit_s

    def _is_on_its_way(self, study: Study, now: datetime) -> bool:
        """Tell whether the rules have more of a study fetched, which nobody waits for for ever."""
        if study.complete_requested or self._is_open_too_long(study, now):
            return False
        source = self._terms_of(study).fetch
        return bool(source) and self._orders.pending(study, source)

    def _terms_of(self, study: Study) -> Terms:
        """Tell what the rules say of a study as it is now; looked up once until more comes."""
        if self.book is None:
            return Terms()
        key = (study.study_uid, study.arrivals)
        if key not in self._terms:
            instances = self.ledger.instances(study.study_uid)
            series = routing.summarize(instances, self.book.keywords)
            self._terms[key] = deciding.terms(series, self.book)
        return self._terms[key]

    # --- what becomes of it ---------------------------------------------------------------------

    def _take(self, study: Study, completion: Completion) -> None:
        uid, instances = study.study_uid, self.ledger.instances(study.study_uid)
        self.ledger.event("study.complete", study_uid=uid, **_told(study, completion))
        series = routing.summarize(instances, self.book.keywords if self.book else ())
        decision = deciding.decide(series, self.book, self.rules, fallback=self.fallback)
        if decision.verdicts:
            verdicts = [asdict(each) for each in decision.verdicts]
            self.ledger.event("study.rules", study_uid=uid, action=decision.action, rules=verdicts)
        if decision.jobs:
            self._enqueue(study, decision, completion)
            return
        end = self.jobs.ignore if decision.action == "ignore" else self.jobs.reject
        skipped = [asdict(each) for each in decision.choices]
        end(uid, decision.reason, series=skipped, seen=study.arrivals)

    def _enqueue(self, study: Study, decision: Decision, completion: Completion) -> None:
        missing = completion.missing(study)
        short = f"{missing} of {completion.expected} instances are missing" if missing else ""
        marked = f"incomplete: {short}"
        planned = [_marked(each, marked) if missing else each for each in decision.jobs]
        caveat = f"INCOMPLETE: {short}." if missing else ""
        for each in planned:
            self.ledger.event("study.routed", study_uid=study.study_uid, **_routed(each))
        self.jobs.enqueue_all(
            study.study_uid,
            [_order(each, caveat) for each in planned],
            model_digest=self.model_digest,
            seen=study.arrivals,
        )

    def _fail(self, study: Study, reason: str) -> None:
        with self.ledger.transaction() as transaction:
            transaction.event("intake.error", study_uid=study.study_uid, reason=reason)
            transaction.advance_study(study.study_uid, ("receiving",), "failed", reason)


def _told(study: Study, completion: Completion) -> dict[str, Any]:
    now = datetime.now(UTC)
    told = {
        "why": completion.why,
        "instances": study.instance_count,
        "quiet_s": round((now - study.last_at).total_seconds(), 1),
        "open_s": round((now - study.opened_at).total_seconds(), 1),
    }
    if completion.expected is not None:
        told |= {"expected": completion.expected, "missing": completion.missing(study)}
    return told


def _routed(job: Planned) -> dict[str, Any]:
    told: dict[str, Any] = {
        "protocol": job.protocol,
        "series_uid": job.series_uid,
        "reason": job.reason,
        "series": [asdict(each) for each in job.choices],
    }
    if job.rule:
        told |= {"rule": job.rule, "priority": job.priority, "window": job.window}
    return told


def _order(job: Planned, caveat: str) -> Order:
    return Order(
        job.protocol,
        job.sop_uids,
        tuple(asdict(each) for each in job.choices),
        job.priority,
        job.window,
        job.rule,
        job.destinations,
        caveat,
    )


def _marked(job: Planned, short: str) -> Planned:
    """Say of a job, and of its series, that the study was not whole."""

    def mark(each: Choice) -> Choice:
        return replace(each, reason=f"{each.reason}; {short}") if each.chosen else each

    return replace(job, reason=f"{job.reason}; {short}", choices=tuple(map(mark, job.choices)))
