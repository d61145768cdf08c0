"""What becomes of a study: which rules of the site fit it, which jobs follow, and why, and why not.

Knows rules, and what each series says about itself. Pure: reads nothing, writes nothing. Without
rules of a site the protocols decide, as `routing` tells.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from . import routing
from .regions import Rule
from .routing import Choice, NoFit
from .rules import RuleBook, SiteRule
from .selection import Scored, Wish, select, values_of
from .series import SeriesSummary

SHOWN: Final = 3  # series of which is told why a rule does not hold for them


@dataclass(frozen=True)
class Verdict:
    """What one rule of the site has to say about a study."""

    rule: str
    fits: bool
    why: str
    series: tuple[str, ...] = ()  # UIDs of those for which it holds


@dataclass(frozen=True)
class Planned:
    """A job that is to be: one protocol, one series; every series with its reason."""

    protocol: str
    series_uid: str
    sop_uids: tuple[str, ...]
    reason: str
    choices: tuple[Choice, ...]
    rule: str = ""  # of the site; empty: the protocols imply it
    priority: str = "normal"
    window: str = ""
    destinations: tuple[str, ...] = ()


@dataclass(frozen=True)
class Decision:
    """What becomes of a study; without jobs `reason` says why, and `choices` of each series."""

    action: str  # read, ignore or refuse
    reason: str
    jobs: tuple[Planned, ...] = ()
    verdicts: tuple[Verdict, ...] = ()
    choices: tuple[Choice, ...] = ()


@dataclass(frozen=True)
class Terms:
    """When a study is complete, as far as its rules say so."""

    quiet_s: float | None = None  # None: as the settings have it
    expected: int | None = None  # instances; None: it is not said
    fetch: str = ""  # source that is asked before for what else it has; empty: none


@dataclass(frozen=True)
class _Fit:
    rule: SiteRule
    series: tuple[SeriesSummary, ...]


def decide(
    series: Sequence[SeriesSummary],
    book: RuleBook | None,
    protocols: Sequence[Rule],
    *,
    fallback: str = "",
    whole: bool = True,
) -> Decision:
    """Decide about one study.

    Parameters
    ----------
    book
        The rules of the site; None: there are none.
    protocols
        Which exams each protocol is for.
    fallback
        As for `routing.route`.
    whole
        Whether these are all images; if not, how many slices there are does not count.
    """
    if not whole:
        protocols = [
            Rule(each.protocol, each.modality, each.body_parts, each.keywords, 1)
            for each in protocols
        ]
    if book is None:
        return _Study(series, protocols, fallback).implied()
    fits, verdicts = _fitting(series, book)
    refusing = next((each.rule for each in fits if each.rule.action == "refuse"), None)
    if refusing is not None:
        reason = f"rule {refusing.name!r} refuses it"
        return Decision("refuse", reason, (), verdicts, _skipped(series, reason))
    gone = tuple(
        choice
        for fit in fits
        if fit.rule.action == "ignore"
        for choice in _skipped(fit.series, f"ignored by rule {fit.rule.name!r}")
    )
    out = {each.series_uid for each in gone}
    study = _Study([each for each in series if each.uid not in out], protocols, fallback, whole)
    reading = [each for each in fits if each.rule.action == "read"]
    decision = study.by(reading, book) if study.series else Decision("ignore", gone[0].reason)
    return _with(decision, verdicts, gone)


def terms(series: Sequence[SeriesSummary], book: RuleBook | None) -> Terms:
    """Tell when a study is complete; of several rules that fit the most patient one counts."""
    if book is None:
        return Terms()
    fits = [each for each in _fitting(series, book)[0] if each.rule.action == "read"]
    quiet = [each.rule.quiet_s for each in fits if each.rule.quiet_s is not None]
    expected = [count for each in fits if (count := _expected(each)) is not None]
    fetch = next((each.rule.fetch for each in fits if each.rule.fetch), "")
    return Terms(max(quiet, default=None), max(expected, default=None), fetch)


def _expected(fit: _Fit) -> int | None:
    """Give how many instances are to come, by the series that says the most."""
    if fit.rule.expected is None:
        return None
    said = [fit.rule.expected.number(values_of(each)) for each in fit.series]
    return max((int(each) for each in said if each is not None and each >= 1), default=None)


# --- which rules fit ----------------------------------------------------------------------------


def _fitting(
    series: Sequence[SeriesSummary], book: RuleBook
) -> tuple[list[_Fit], tuple[Verdict, ...]]:
    """Ask the rules in their order: what is ignored is seen by no later one."""
    left, fits, verdicts, decided = list(series), [], [], ""
    for rule in book.rules:
        if decided:
            why = f"not asked: rule {decided!r} came first"
            verdicts.append(Verdict(rule.name, fits=False, why=why))
            continue
        held = tuple(each for each in left if rule.when.holds(values_of(each)))
        uids = tuple(each.uid for each in held)
        verdicts.append(Verdict(rule.name, bool(held), _why(rule, left, len(held)), uids))
        if not held:
            continue
        fits.append(_Fit(rule, held))
        if rule.action == "ignore":
            left = [each for each in left if each not in held]
        elif book.match == "first" or rule.action == "refuse":
            decided = rule.name
    return fits, tuple(verdicts)


def _why(rule: SiteRule, series: Sequence[SeriesSummary], held: int) -> str:
    if held:
        return f"holds for {held} of {len(series)} series: {rule.action}"
    if not series:
        return "no series is left"
    reasons = dict.fromkeys(rule.when.why_not(values_of(each)) for each in series)
    shown = "; ".join(list(reasons)[:SHOWN])
    return shown + (f"; and {len(reasons) - SHOWN} more" if len(reasons) > SHOWN else "")


# --- what follows -------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Study:
    """The series that are left of a study, and the protocols that may read them."""

    series: Sequence[SeriesSummary]
    protocols: Sequence[Rule]
    fallback: str
    whole: bool = True

    def by(self, fits: Sequence[_Fit], book: RuleBook) -> Decision:
        """Let the rules that fit decide; of two with one protocol the earlier one."""
        if not fits:
            if book.otherwise == "auto":
                return self.implied()
            why = "no rule fits it"
            return Decision(book.otherwise, why, choices=_skipped(self.series, why))
        jobs: dict[str, Planned] = {}
        choices: list[Choice] = []
        for fit in fits:
            made = self._of(fit)
            for each in made.jobs:
                jobs.setdefault(each.protocol, each)
            choices.extend(made.choices)
        if jobs:
            return Decision(
                "read", "; ".join(each.reason for each in jobs.values()), (*jobs.values(),)
            )
        told = dict.fromkeys(
            f"{each.description or each.series_uid}: {each.reason}" for each in choices
        )
        names = ", ".join(repr(each.rule.name) for each in fits)
        reason = f"rule {names} fits, but no series can be read. {'; '.join(told)}"
        return Decision("refuse", reason, choices=tuple(choices))

    def implied(self) -> Decision:
        """Let the protocols decide."""
        try:
            route = routing.route(self.series, self.protocols, fallback=self.fallback)
        except NoFit as error:
            return Decision("refuse", str(error), choices=error.choices)
        sop_uids = self._images(route.series_uid)
        job = Planned(route.protocol, route.series_uid, sop_uids, route.reason, route.choices)
        return Decision("read", route.reason, (job,))

    def _of(self, fit: _Fit) -> Decision:
        """Let one rule decide; `choices` are those for protocols that found no series."""
        rule = fit.rule
        if not rule.protocols:
            own = _Study(fit.series, self.protocols, self.fallback, self.whole).implied()
            return replace(own, jobs=tuple(_under(rule, each) for each in own.jobs))
        passed = {
            each.uid: f"rule {rule.name!r} is not for it: {rule.when.why_not(values_of(each))}"
            for each in self.series
            if each not in fit.series
        }
        jobs: list[Planned] = []
        missed: list[Choice] = []
        for protocol in (each for name in rule.protocols for each in self.protocols
                         if each.protocol == name):  # fmt: skip
            choices = select(self.series, _wish(rule, protocol, self.whole), self.protocols, passed)
            chosen = next((each for each in choices if each.chosen), None)
            if chosen is None:
                missed.extend(choices)
            else:
                jobs.append(self._job(rule, protocol.protocol, chosen, choices))
        return Decision("read", "", tuple(jobs), choices=tuple(missed))

    def _job(
        self, rule: SiteRule, protocol: str, chosen: Scored, choices: tuple[Scored, ...]
    ) -> Planned:
        reason = f"{protocol}: rule {rule.name!r}; {chosen.reason}"
        images = self._images(chosen.series_uid)
        return _under(rule, Planned(protocol, chosen.series_uid, images, reason, choices))

    def _images(self, series_uid: str) -> tuple[str, ...]:
        return next(each.sop_uids for each in self.series if each.uid == series_uid)


def _wish(rule: SiteRule, protocol: Rule, whole: bool) -> Wish:  # noqa: FBT001 - as `_Study` has it
    return Wish(
        protocol,
        rule.only,
        rule.prefer,
        # Of several protocols each reads its own region, and nothing else.
        must_name_region=len(rule.protocols) > 1,
        any_region=rule.any_region,
        minimum_slices=rule.minimum_slices if whole else 1,
    )


def _under(rule: SiteRule, job: Planned) -> Planned:
    """Add what a rule of the site says of its jobs."""
    return replace(
        job,
        rule=rule.name,
        priority=rule.priority,
        window=rule.window,
        destinations=rule.destinations,
    )


def _skipped(series: Sequence[SeriesSummary], reason: str) -> tuple[Choice, ...]:
    return tuple(
        Choice(each.uid, chosen=False, reason=reason, description=each.description)
        for each in series
    )


def _with(decision: Decision, verdicts: tuple[Verdict, ...], gone: tuple[Choice, ...]) -> Decision:
    """Add what the rules said, and the series that were ignored."""
    jobs = tuple(replace(each, choices=(*each.choices, *gone)) for each in decision.jobs)
    return replace(
        decision,
        jobs=jobs,
        verdicts=verdicts,
        choices=(*decision.choices, *gone) if not jobs else (),
    )
