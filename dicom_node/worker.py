"""THE STORY: a job is claimed, its series becomes a volume, the model is asked, objects are made.

    claim -> volume.load -> LaMed.read -> masks back on the source grid -> encode -> save -> check
    -> record

`interpret` is the whole way of one series and knows no queue; `Worker` puts the queue around it.
With the command line the only module of the node that knows the model and the templates.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
from numpy.typing import NDArray

import model
import sr_templates
from sr_templates import GENERIC, Algorithm, Finding, Predecessor, Profile, Protocol
from sr_templates.run_record import RECORD, encode_record

from . import profiles, read_back, results, run_record, volume
from .config import Config
from .config.destinations import TEXT
from .errors import BadInput, Mismatch, Unavailable
from .instance import Instance
from .jobs import Job, Jobs, State
from .ledger import Ledger, Result
from .ledger.records import DELIVERED
from .results import Reading
from .validator import Validator
from .volume import SourceVolume

log = logging.getLogger(__name__)

Tell = Callable[[str], None]
IDLE_S = 0.5
RETRY_S = 5.0
TELLINGS = 5  # of how a job ended, each of which waits for the ledger
BEATS = 3  # renewals within one lease: two may be missed


def interpret(  # noqa: PLR0913 - a series, who reads it, and as which job
    paths: Sequence[Path],
    protocol: Protocol,
    lamed: model.LaMed,
    *,
    job_id: str,
    created_at: datetime,
    manufacturer: str,
    shown: Sequence[Profile] = (GENERIC,),
    predecessors: Mapping[str, Predecessor] | None = None,
    caveat: str = "",
    tell: Tell = lambda _: None,
) -> Reading:
    """Read one series: volume, answers, masks on the source grid, DICOM objects.

    Parameters
    ----------
    paths
        Every instance of the series, in any order.
    job_id, created_at
        The UIDs and the dates of the results follow from them, so that a repeat makes no twins.
    shown
        What the destinations can show; what all of them can, is made besides.
    predecessors
        The objects of an earlier job that these replace, by label.
    caveat
        What the drafts are to say of the images as a whole, such as that some are missing.

    Raises
    ------
    UnusableSeries
        The instances make no regular volume.
    model.ModelError, sr_templates.TemplateError
        The model or the templates refuse what they were given.
    """
    timings: dict[str, float] = {}
    algorithm = _algorithm(lamed, manufacturer)
    with _timed(timings, "volume", tell, f"stacking {len(paths)} instances"):
        source = volume.load(paths)
    with _timed(timings, "read", tell, f"asking {len(protocol.questions)} questions"):
        answers = _ask(lamed, source, protocol)
    with _timed(timings, "masks", tell, "putting the masks back on the source grid"):
        masks = _masks(protocol, answers)
        findings = _findings(protocol, answers, masks, source)
    with _timed(timings, "encode", tell, "writing SEG and SR"):
        objects = sr_templates.encode(
            protocol,
            source.sources,
            findings,
            algorithm,
            job_id=job_id,
            image=source.image,
            created_at=created_at,
            profiles=profiles.once(shown),
            predecessors=predecessors,
            caveat=caveat,
        )
    return Reading(
        protocol, source, lamed.card, tuple(answers), findings, masks,
        objects, objects["draft"], algorithm, timings,
    )  # fmt: skip


class Worker:
    """Takes jobs from the queue, one at a time, until told to stop.

    Parameters
    ----------
    name
        Who holds the lease: host and process.
    """

    def __init__(
        self,
        ledger: Ledger,
        jobs: Jobs,
        lamed: model.LaMed,
        protocols: Mapping[str, Protocol],
        config: Config,
        *,
        name: str,
    ) -> None:
        self._ledger, self._jobs, self._lamed = ledger, jobs, lamed
        self._protocols, self._config, self._name = protocols, config, name
        self._profiles, self._validator = profiles.known(config), Validator.of(config)

    def run(self, stop: threading.Event) -> None:
        """Work until told to stop; a job that is under way is finished first.

        Between two jobs, what has come back to studies that were read is linked to its draft.
        """
        while not stop.is_set():
            try:
                answers = read_back.step(self._ledger)
                pause_s = 0.0 if self.step() or answers else IDLE_S
            except Exception:  # the loop's edge: a ledger that is locked must not end the worker
                log.exception("worker.error")
                pause_s = RETRY_S
            stop.wait(pause_s)

    def step(self) -> bool:
        """Take one job through; tell whether there was one.

        Raises
        ------
        Unavailable
            The ledger cannot be written now; what is begun is found when its lease has run out.
        """
        job = self._jobs.claim(self._name, self._config.lease_s)
        if job is None:
            return False
        with self._heartbeat(job):
            self._tell(job, self._attempt(job))
        return True

    def _tell(self, job: Job, end: Callable[[], None]) -> None:
        """Tell the queue how a job ended; while the lease lasts, what was read is worth a wait."""
        for left in reversed(range(TELLINGS)):
            try:
                end()
            except Mismatch:  # another worker has it: what becomes of it is not for us to say
                log.warning("job.lease_lost", extra={"job": job.id})
            except Unavailable as error:
                if not left:
                    raise
                log.warning("job.untold", extra={"job": job.id, "reason": str(error)})
                time.sleep(IDLE_S)
                continue
            return

    def _attempt(self, job: Job) -> Callable[[], None]:
        """Do a job as far as it goes; give what is to be told to the queue."""
        finish = partial(self._jobs.finish, job.id, self._name)
        try:
            return self._do(job)
        except BadInput as error:
            return partial(finish, State.REJECTED, str(error))
        except (model.ModelError, sr_templates.TemplateError) as error:
            return partial(finish, State.FAILED, str(error))
        except Exception as error:  # the worker's edge: the next attempt may find better conditions
            log.exception("job.error", extra={"job": job.id})
            reason = f"{type(error).__name__}: {error}"
            return partial(self._jobs.release, job.id, self._name, reason)

    def _do(self, job: Job) -> Callable[[], None]:
        protocol = self._protocols.get(job.protocol)
        if protocol is None:
            raise BadInput(f"no protocol is called {job.protocol!r}")
        inputs = self._inputs(job)
        reading = interpret(
            [each.path for each in inputs],
            protocol,
            self._lamed,
            job_id=job.id,
            created_at=job.created_at,
            manufacturer=self._config.manufacturer,
            shown=profiles.of(self._config),
            predecessors=self._predecessors(job),
            caveat=job.caveat,
            tell=lambda text: log.info("job.step", extra={"job": job.id, "step": text}),
        )
        folder = (self._config.results_dir / job.id).absolute()
        summary = results.save(reading, folder)
        rows, record = self._examined(job, reading, inputs, folder)
        plan = self._plan([each.label for each in rows], job.destinations)
        complete = partial(self._jobs.complete, job.id, self._name, rows, plan, summary)
        return partial(complete, record=record)

    def _examined(
        self, job: Job, reading: Reading, inputs: Sequence[Instance], folder: Path
    ) -> tuple[list[Result], dict[str, Any]]:
        """Check what lies in the folder; give it, with what is to be held, and the run's record."""
        rows = results.rows(reading, folder, job.id)
        verdicts = {each.label: self._validator.check(each.path) for each in rows}
        held = self._validator.held(rows, verdicts)
        record = run_record.compose(reading, inputs, rows, verdicts)
        if self._config.run_record:
            written = self._written(job, reading, record, folder)
            rows.append(written)
            # It tells of the others, and goes also if they do not.
            verdict = {written.label: self._validator.check(written.path)}
            held |= self._validator.held([written], verdict)
        return [replace(each, held=held.get(each.label, "")) for each in rows], record

    def _written(
        self, job: Job, reading: Reading, record: Mapping[str, Any], folder: Path
    ) -> Result:
        """Write the record of a run as an object of the study."""
        made = encode_record(
            record,
            reading.protocol,
            reading.source.sources,
            reading.algorithm,
            job_id=job.id,
            created_at=job.created_at,
        )
        results.save_object(made, folder, RECORD.name)
        return results.row(made, folder, job.id, RECORD.name)

    def _plan(self, labels: Sequence[str], only: Sequence[str]) -> dict[str, tuple[str, ...]]:
        """Say which of the objects each destination gets, and which the RIS.

        If a rule of the site names destinations, the `only` ones, no other gets any.
        """
        record = [each for each in labels if each == RECORD.name]
        plan = {}
        for each in self._config.destinations:
            if only and str(each) not in only:
                continue
            profile = self._profiles[each.profile]
            # What takes no Enhanced SR for a draft takes none for a record.
            more = record if profile.report == "enhanced" else []
            plan[str(each)] = (*sr_templates.chosen(profile, labels), *more)
        if self._config.report_text_dir:
            plan[f"{TEXT}{Path(self._config.report_text_dir).absolute()}"] = ("draft",)
        return plan

    def _predecessors(self, job: Job) -> dict[str, Predecessor]:
        """Give by label what the last job before this one sent of the same study and protocol."""
        earlier = [
            each
            for each in self._ledger.jobs(job.study_uid)
            if each.protocol == job.protocol and each.created_at < job.created_at
            if any(sent.state in DELIVERED for sent in self._ledger.deliveries(each.id))
        ]
        return {
            each.label: Predecessor(
                job.study_uid, each.series_uid, each.sop_class_uid, each.sop_uid
            )
            for each in (self._ledger.results(earlier[-1].id) if earlier else ())
            if not each.held
        }

    def _inputs(self, job: Job) -> list[Instance]:
        wanted = set(job.sop_uids)
        return [each for each in self._ledger.instances(job.study_uid) if each.sop_uid in wanted]

    def _renew(self, job: Job) -> bool:
        return self._jobs.heartbeat(job.id, self._name, self._config.lease_s)

    @contextmanager
    def _heartbeat(self, job: Job) -> Iterator[None]:
        done = threading.Event()

        def beat() -> None:
            while not done.wait(self._config.lease_s / BEATS):
                try:
                    if not self._renew(job):
                        log.warning("job.lease_lost", extra={"job": job.id})
                        return
                except Unavailable as error:  # the next beat may find the ledger free
                    log.warning("job.no_heartbeat", extra={"job": job.id, "reason": str(error)})

        thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()


def _ask(lamed: model.LaMed, source: SourceVolume, protocol: Protocol) -> list[model.Answer]:
    questions = [
        model.Question(
            each.text, id=each.id, caption=each.caption, max_new_tokens=each.max_new_tokens
        )
        for each in protocol.questions
    ]
    return lamed.read(
        source.image.array, questions, window=protocol.window, percentiles=protocol.percentiles
    )


def _masks(protocol: Protocol, answers: Sequence[model.Answer]) -> dict[str, NDArray[np.bool_]]:
    """Restore the mask of each question that asked for one; what nobody asked for is not shown.

    No two of them overlap, as in the SEG, so that picture and summary say what is sent.
    """
    masks: dict[str, NDArray[np.bool_]] = {}
    sure: dict[str, float] = {}
    for question, answer in zip(protocol.questions, answers, strict=True):
        if question.target is not None and answer.masks:
            logits = [each.restore() for each in answer.masks]
            masks[question.id] = np.maximum.reduce(logits) > 0
            sure[question.id] = answer.confidence
    taken: NDArray[np.bool_] | None = None
    for name in sorted(masks, key=lambda each: -sure[each]):
        if taken is not None:
            masks[name] &= ~taken
        taken = masks[name] if taken is None else taken | masks[name]
    return masks


def _findings(
    protocol: Protocol,
    answers: Sequence[model.Answer],
    masks: Mapping[str, NDArray[np.bool_]],
    source: SourceVolume,
) -> tuple[Finding, ...]:
    return tuple(
        Finding(
            question,
            answer.text,
            mask=source.on_source(masks[question.id]) if question.id in masks else None,
            confidence=answer.confidence,
            probability=partial(_probability, answer, source) if question.id in masks else None,
        )
        for question, answer in zip(protocol.questions, answers, strict=True)
    )


def _probability(answer: model.Answer, source: SourceVolume) -> hd.Volume:
    """Restore what a mask was cut from: float32 0 to 1 on the source grid, above 0.5 inside."""
    logits = np.maximum.reduce([each.restore() for each in answer.masks])
    # One over one plus e to the minus x, and no overflow where x is far below zero.
    return source.on_source(0.5 * (1.0 + np.tanh(0.5 * logits)).astype(np.float32))


def _algorithm(lamed: model.LaMed, manufacturer: str) -> Algorithm:
    card = lamed.card
    return Algorithm(
        name=card.name,
        version=card.version,
        sha256=card.sha256,
        manufacturer=manufacturer,
        untrained=card.untrained,
        parameters={
            "decoding": "greedy",
            "dtype": str(lamed.dtype).removeprefix("torch."),
            "device": lamed.device.type,
        },
    )


@contextmanager
def _timed(timings: dict[str, float], name: str, tell: Tell, text: str) -> Iterator[None]:
    tell(text)
    start = time.monotonic()
    yield
    timings[name] = time.monotonic() - start
