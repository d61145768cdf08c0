"""When a study is complete: it is routed, and becomes a job or a refusal with its reason.

Knows the ledger, the queue and the rules; runs beside the SCP and needs neither torch nor pixels.
"""

import logging
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from . import routing
from .errors import Unavailable
from .jobs import Jobs
from .ledger import Ledger, Study
from .routing import NoFit, Rule

log = logging.getLogger(__name__)

POLL_S = 0.25
RETRY_S = 2.0  # a ledger that cannot be written now is not asked four times a second


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
        A study is complete after so long without a new instance, or so long after its first.
    """

    ledger: Ledger
    jobs: Jobs
    rules: Sequence[Rule]
    model_digest: str
    fallback: str
    quiet_s: float
    open_limit_s: float

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
        studies = self.ledger.quiet_studies(self.quiet_s, self.open_limit_s)
        for study in studies:
            try:
                self._take(study)
            except Unavailable:
                raise
            except Exception as error:  # one study's edge: the others are not to wait for it
                log.exception("intake.study_failed", extra={"study": study.study_uid})
                self._fail(study, f"cannot be routed: {type(error).__name__}: {error}")
        return len(studies)

    def _take(self, study: Study) -> None:
        uid, instances = study.study_uid, self.ledger.instances(study.study_uid)
        self.ledger.event("study.complete", study_uid=uid, **self._why(study))
        series = routing.summarize(instances)
        try:
            route = routing.route(series, self.rules, fallback=self.fallback)
        except NoFit as error:
            refused = [asdict(each) for each in error.choices]
            self.jobs.reject(uid, str(error), series=refused, seen=study.arrivals)
            return
        choices = [asdict(each) for each in route.choices]
        told = {"protocol": route.protocol, "series_uid": route.series_uid, "reason": route.reason}
        self.ledger.event("study.routed", study_uid=uid, **told, series=choices)
        self.jobs.enqueue(
            uid,
            route.protocol,
            next(each.sop_uids for each in series if each.uid == route.series_uid),
            model_digest=self.model_digest,
            series=choices,
            seen=study.arrivals,
        )

    def _why(self, study: Study) -> dict[str, Any]:
        """Tell why a study counts as complete: ``request``, ``quiet`` or ``limit``."""
        now = datetime.now(UTC)
        quiet_s = (now - study.last_at).total_seconds()
        why = "quiet" if quiet_s >= self.quiet_s else "limit"
        return {
            "why": "request" if study.complete_requested else why,
            "instances": study.instance_count,
            "quiet_s": round(quiet_s, 1),
            "open_s": round((now - study.opened_at).total_seconds(), 1),
        }

    def _fail(self, study: Study, reason: str) -> None:
        with self.ledger.transaction() as transaction:
            transaction.event("intake.error", study_uid=study.study_uid, reason=reason)
            transaction.advance_study(study.study_uid, ("receiving",), "failed", reason)
