"""When a study is complete: it is routed, and becomes a job or a refusal with its reason.

Knows the ledger, the queue and the rules; runs beside the SCP and needs neither torch nor pixels.
"""

import logging
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from . import routing
from .errors import NodeError
from .jobs import Jobs
from .ledger import Ledger
from .records import Study
from .routing import NoFit, Rule

log = logging.getLogger(__name__)

POLL_S = 0.25


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
        while not stop.wait(POLL_S):
            try:
                self.step()
            except Exception:  # the loop's edge: a locked database must not end reception
                log.exception("intake.error")

    def step(self) -> int:
        """Take every study that is complete now; return how many."""
        studies = self.ledger.quiet_studies(self.quiet_s, self.open_limit_s)
        for study in studies:
            try:
                self._take(study)
            except NodeError as error:
                self.jobs.reject(study.study_uid, str(error))
            except Exception as error:  # one study's edge: the others are not to wait for it
                log.exception("intake.study_failed", extra={"study": study.study_uid})
                self.jobs.reject(study.study_uid, f"cannot be routed: {error}")
        return len(studies)

    def _take(self, study: Study) -> None:
        instances = self.ledger.instances(study.study_uid)
        self.ledger.event(
            "study.complete",
            study_uid=study.study_uid,
            why=self._why(study),
            instances=len(instances),
        )
        try:
            route = routing.route(routing.summarize(instances), self.rules, fallback=self.fallback)
        except NoFit as error:
            choices = [asdict(each) for each in error.choices]
            self.jobs.reject(study.study_uid, str(error), series=choices)
            return
        choices = [asdict(each) for each in route.choices]
        self.ledger.event(
            "study.routed",
            study_uid=study.study_uid,
            protocol=route.protocol,
            series_uid=route.series_uid,
            reason=route.reason,
            series=choices,
        )
        self.jobs.enqueue(
            study.study_uid,
            route.protocol,
            [each.sop_uid for each in instances if each.series_uid == route.series_uid],
            model_digest=self.model_digest,
            series=choices,
        )

    def _why(self, study: Study) -> str:
        if study.complete_requested:
            return "asked for"
        quiet_s = (datetime.now(UTC) - study.last_at).total_seconds()
        if quiet_s >= self.quiet_s:
            return f"quiet for {quiet_s:.1f} s"
        return f"open for more than {self.open_limit_s:g} s"
