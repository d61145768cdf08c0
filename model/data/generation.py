"""The run: reports in, tables of questions out, resumable at any moment.

Every reply is in the journal before anything is made of it, known by a hash of all that decides it.
To go on is to run again: what was answered is read, what is missing is asked. So no step keeps a
state of its own, and the tables follow from the replies alone, in whatever order those came.
"""

import argparse
import asyncio
import csv
import hashlib
import io
import json
import logging
import tomllib
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from model.errors import ModelError

from . import checking, pairs, questions, reports, tally
from .allowance import Spending, Usage
from .checking import Guesses, Verdict
from .completions import Prompt
from .endpoint import Chat, Settings, Unanswered
from .journal import Entry, Journal
from .questions import LETTERS, Question, Report
from .sample import DataError
from .tally import Outcome, Unit

# Of the published tables.
YES_NO = ("Image Path", "Text", "Question Type", "Question", "Answer")
FOUR_CHOICE = (*YES_NO[:-1], *(f"Choice {each}" for each in LETTERS), "Answer", "Answer Choice")
TRIES = 3
MOST_TRIES = 20
NOT_TRIED = Guesses(())

R = TypeVar("R")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Missing:
    """A report that could not be worked on, and why."""

    report: Report
    reason: str


Result = Outcome | Missing
OnDone = Callable[[Result, Spending], None]


def generate(
    reports: Sequence[Report],
    settings: Settings,
    out: Path,
    *,
    tries: int = TRIES,
    on_done: OnDone | None = None,
) -> dict[str, Any]:
    """Make questions of reports; write `questions.csv`, `yes_no.csv` and `report.json` to `out`.

    Returns what the report holds. `on_done` is told each result as it comes. What an earlier run in
    the same folder was answered is not asked again.

    Raises
    ------
    ModelError
        The run came to an end before all reports were done; the tables hold those that are.
    """
    spending = settings.spending()
    _make(out)
    with Journal(out / "journal.jsonl", lambda entry: _count(entry, spending)) as journal:
        run = Run(settings, journal, spending, tries)
        try:
            results = asyncio.run(run.results(reports, on_done))
        except KeyboardInterrupt:
            raise ModelError("interrupted; the same command goes on from here") from None
        told = _write(results, settings, out)
        told |= {"usage": _usage(spending), "stopped": str(run.stopped or "")}
        _replace(out / "report.json", json.dumps(told, indent=1) + "\n")
    if run.stopped:
        done = f"{told['reports']['done']} of {len(reports)} reports are done"
        message = f"{done}: {run.stopped}. The same command goes on from there"
        raise ModelError(message) from run.stopped
    return told


class Run:
    """Reports on their way through an endpoint, with a journal."""

    def __init__(
        self, settings: Settings, journal: Journal, spending: Spending, tries: int
    ) -> None:
        self._settings = settings
        self._journal = journal
        self._spending = spending
        self._tries = tries
        self._chat = Chat(settings, spending)

    @property
    def stopped(self) -> ModelError | None:
        """Why the run came to an early end; None if it did not."""
        return self._chat.ended

    async def results(
        self, reports: Sequence[Report], on_done: OnDone | None
    ) -> list[Result | None]:
        """Work on reports side by side; results in their order, None for what was left undone."""
        results: list[Result | None] = [None] * len(reports)
        waiting = iter(enumerate(reports))

        async def work() -> None:
            for place, report in waiting:
                result = results[place] = await self._one(report)
                if result is None:
                    return
                if on_done:
                    on_done(result, self._spending)

        async with self._chat:
            await asyncio.gather(*(work() for _ in range(self._settings.concurrency)))
        return results

    async def _one(self, report: Report) -> Result | None:
        try:
            return await self._outcome(report)
        except Unanswered as error:
            log.warning("questions.unanswered", extra={"reason": str(error)})
            return Missing(report, str(error))
        except ModelError as error:
            self._chat.end(error)
            return None

    async def _outcome(self, report: Report) -> Outcome:
        """Tell the way of one report: write, check with the report, check without the image."""
        written = await questions.write(report, self.ask)
        twins = await pairs.write(report, self.ask)
        groups: list[tuple[Question, ...]] = [(each,) for each in written.kept]
        groups += [each.questions for each in twins.kept]
        asked = [each for group in groups for each in group]
        found = iter(await checking.self_check(report, asked, self.ask, self._settings.seed))
        units = await _together(
            self._unit(f"{report.image}#{number}", group, [next(found) for _ in group])
            for number, group in enumerate(groups)
        )
        many = len(written.kept)
        return Outcome(report, written, twins, tuple(units[:many]), tuple(units[many:]))

    async def _unit(
        self, name: str, group: tuple[Question, ...], verdicts: Sequence[Verdict]
    ) -> Unit:
        """Check blind what passed the self-check; a pair passes if both its questions do."""
        failed = [each for each in verdicts if each is not Verdict.AGREES]
        if failed:
            return Unit(name, group[0].kind, group, failed[0], NOT_TRIED)
        guesses = await checking.blind_check(
            name, group, self.ask, tries=self._tries, seed=self._settings.seed
        )
        return Unit(name, group[0].kind, group, Verdict.AGREES, guesses)

    async def ask(self, prompt: Prompt) -> str:
        """Look into the journal, and ask only what is not there."""
        key = _key(prompt, self._settings)
        entry = self._journal.get(key)
        if entry is None:
            entry = await self._asked(prompt)
            self._journal.add(key, entry)
        return str(entry["text"])

    async def _asked(self, prompt: Prompt) -> Entry:
        reply = await self._chat.ask(prompt)
        told = {"step": prompt.step, "subject": prompt.subject, "text": reply.text}
        return told | {"usage": asdict(reply.usage), "cost": self._spending.price(reply.usage)}


async def _together(work: Iterable[Awaitable[R]]) -> list[R]:
    """Do work side by side. If some fails the rest is finished first: it may have been paid for."""
    done = await asyncio.gather(*work, return_exceptions=True)
    failed = [each for each in done if isinstance(each, BaseException)]
    # What ends the run goes before what ends one report.
    for each in sorted(failed, key=lambda error: isinstance(error, Unanswered)):
        raise each
    return [each for each in done if not isinstance(each, BaseException)]


def _key(prompt: Prompt, settings: Settings) -> str:
    decides = json.dumps([settings.model, settings.seed, asdict(prompt)], sort_keys=True)
    return hashlib.sha256(decides.encode()).hexdigest()


def _count(entry: Entry, spending: Spending) -> None:
    spending.add(Usage(**entry["usage"]), cost=float(entry["cost"]))


def _usage(spending: Spending) -> dict[str, float]:
    names = ("requests", "prompt_tokens", "completion_tokens", "estimated", "cost")
    return {name: round(getattr(spending, name), 6) for name in names}


def _write(results: Sequence[Result | None], settings: Settings, out: Path) -> dict[str, Any]:
    """Write the tables, and count what is in them."""
    done = [each for each in results if isinstance(each, Outcome)]
    four_choice = [unit for each in done for unit in each.four_choice]
    twins = [unit for each in done for unit in each.twins]
    kept, kept_twins = tally.kept(four_choice, settings.seed), tally.kept(twins, settings.seed)
    lettered = questions.lettered(_rows(kept), settings.seed)
    yes_no = list(_rows(kept_twins))
    texts = {each.report.image: " ".join(each.report.text.split()) for each in done}
    _replace(out / "questions.csv", _csv(FOUR_CHOICE, lettered, texts))
    _replace(out / "yes_no.csv", _csv(YES_NO, yes_no, texts))
    return {
        "model": settings.model,
        "endpoint": settings.url,
        "seed": settings.seed,
        "instructions": questions.instructions_sha256(),
        **_reports(results),
        "four_choice": tally.count([e.questions for e in done], four_choice, kept, questions.PLAN),
        "yes_no_pairs": tally.count([each.pairs for each in done], twins, kept_twins, pairs.PLAN),
        "letters": tally.letters(each for _, each in lettered),
        "answers": tally.answers(each for _, each in yes_no),
    }


def _rows(units: Iterable[Unit]) -> Iterator[tuple[str, Question]]:
    """Pair each question with its image."""
    for unit in units:
        for question in unit.questions:
            yield unit.image, question


def _reports(results: Sequence[Result | None]) -> dict[str, Any]:
    missing = [each for each in results if isinstance(each, Missing)]
    done = sum(isinstance(each, Outcome) for each in results)
    return {
        "reports": {"given": len(results), "done": done, "unanswered": len(missing)},
        "unanswered": [{"image": each.report.image, "reason": each.reason} for each in missing],
    }


def _csv(
    columns: Sequence[str], rows: Iterable[tuple[str, Question]], texts: Mapping[str, str]
) -> str:
    file = io.StringIO()
    writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for image, each in rows:
        choices = {f"Choice {letter}": c for letter, c in zip(LETTERS, each.choices, strict=False)}
        asked = {"Question Type": each.kind.number, "Question": each.text, **choices}
        answer = {"Answer": each.answer, "Answer Choice": each.letter}
        writer.writerow({"Image Path": image, "Text": texts[image], **asked, **answer})
    return file.getvalue()


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ModelError(f"{folder} cannot be made: {error}") from error


def _replace(path: Path, text: str) -> None:
    """Write a file so that it is there whole, or as it was."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(text, encoding="utf-8", newline="")
        partial.replace(path)
    except OSError as error:
        raise ModelError(f"{path} cannot be written: {error}") from error


def add_to(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `questions` to the verbs of `lamed-model data`."""
    parser = verbs.add_parser("questions", help="have a language model write questions on reports")
    parser.set_defaults(command=_questions)
    parser.add_argument("reports", type=Path, metavar="FILE", help=reports.FORMATS)
    parser.add_argument("--split", default="train", help="of M3D_Cap.json (default train)")
    parser.add_argument(
        "--root", type=Path, metavar="DIR", help="where its paths begin (its folder)"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--settings", type=Path, metavar="TOML", help="the options below, by name")
    parser.add_argument(
        "--tries", type=int, default=TRIES, help=f"of the blind check; 0: none (default {TRIES})"
    )
    parser.add_argument("--json", action="store_true", help="machine-readable output")
    for each in fields(Settings):
        kind = each.type if callable(each.type) else str
        default = "" if each.default is MISSING else f" (default {each.default!r})"
        option = f"--{each.name.replace('_', '-')}"
        parser.add_argument(
            option, type=kind, metavar="VALUE", help=each.metadata["help"] + default
        )


def _questions(arguments: argparse.Namespace) -> dict[str, object]:
    if not 0 <= arguments.tries <= MOST_TRIES:
        raise ModelError(f"--tries must be 0 to {MOST_TRIES}, not {arguments.tries}")
    settings = _settings(arguments)
    root = arguments.root or arguments.reports.parent
    given = reports.read(arguments.reports, split=arguments.split, root=root)
    console = Console(stderr=True, quiet=arguments.json)
    console.print(f"{len(given)} reports go to {settings.url}, model {settings.model}")
    with _progress(console, len(given)) as on_done:
        told = generate(given, settings, arguments.out, tries=arguments.tries, on_done=on_done)
    console.print(tally.table(told))
    return {
        **told["reports"],
        "questions": sum(told["letters"].values()),
        "yes_no": sum(told["answers"].values()),
        "cost": told["usage"]["cost"],
        "out": str(arguments.out),
    }


def _settings(arguments: argparse.Namespace) -> Settings:
    """Read the file of settings; what stands on the command line goes before."""
    names = {each.name for each in fields(Settings)}
    given: dict[str, Any] = {}
    if arguments.settings:
        try:
            given = tomllib.loads(arguments.settings.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(arguments.settings, None, "a TOML file", str(error)) from error
    if unknown := sorted(set(given) - names):
        raise DataError(arguments.settings, None, f"some of {sorted(names)}", ", ".join(unknown))
    given |= {name: value for name in names if (value := getattr(arguments, name)) is not None}
    return Settings(**{"model": ""} | given)


@contextmanager
def _progress(console: Console, total: int) -> Iterator[OnDone]:
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[at]}"),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("reports", total=total, at="")

        def on_done(_: Result, spending: Spending) -> None:
            at = f"{spending.requests} replies, cost {spending.cost:.2f}"
            bar.update(task, advance=1, at=at)

        yield on_done
