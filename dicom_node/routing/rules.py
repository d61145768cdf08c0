"""The rules of a site: a TOML file that says which studies are read, how, when and for whom.

    match = "first"        # or "all": every rule that fits has its say
    otherwise = "auto"     # what no rule fits: as the protocols imply; or "ignore", "refuse"

    [[rules]]
    name = "emergency chest"
    when = 'Modality == "CT" and BodyPartExamined == "CHEST" and StationName starts with "ER"'
    protocol = "ct_chest"  # or a list; "each": one job for every protocol whose region is named
    priority = "urgent"    # normal, off-peak
    window = "19:00-06:00" # in which what is off-peak is read
    quiet_s = 10           # seconds without a new instance until the study is complete
    expected = "ImagesInAcquisition"      # or a number: complete as soon as so many are there
    fetch = "archive"      # of [[sources]]: what else it has of the study is fetched before
    destinations = ["PACS@192.0.2.5:104"] # of the settings; without, all of them
    action = "read"        # ignore: these series are left out; refuse: the study waits for a person

    [rules.series]         # or series = "SliceThickness <= 5"
    only = 'not sharp'
    prefer = ['contrast == "venous"', {when = 'plane == "axial"', points = 40}]
    minimum_slices = 40
    any_region = false     # true: also a series that names another region than the protocol's

A condition is asked of each series, of the attributes of its image in the middle. A rule fits a
study if it holds for one series at least, and only those for which it holds are read by it.

Knows TOML and what may stand in it; everything is checked when it is read. Must not know studies.
"""

import difflib
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

from dicom_node.config.destinations import Destination
from dicom_node.errors import ConfigError

from .expression import Condition, Quantity, parse, parse_quantity
from .selection import FACTS, PREFERRED, Preference
from .window import Window

PRIORITIES: Final = ("urgent", "normal", "off-peak")
ACTIONS: Final = ("read", "ignore", "refuse")
EACH: Final = "each"
MOST_RULES: Final = 500
MOST_POINTS: Final = 1000
WEEK_S: Final = 604_800.0
SHORTEST_S: Final = 0.05
MOST_SLICES: Final = 1_000_000

Read = TypeVar("Read")


@dataclass(frozen=True)
class SiteRule:
    """One rule; without `protocols` the protocols decide by themselves which of them reads."""

    name: str
    when: Condition
    protocols: tuple[str, ...] = ()  # ("each",): every one whose region a series names
    action: str = "read"
    priority: str = "normal"
    window: str = ""
    quiet_s: float | None = None  # None: as the settings have it
    expected: Quantity | None = None  # None: it is not said how many will come
    fetch: str = ""  # source that has more of the study; empty: none is asked
    destinations: tuple[str, ...] = ()  # as the ledger writes them; none: all
    only: Condition | None = None
    prefer: tuple[Preference, ...] = ()
    minimum_slices: int | None = None
    any_region: bool = False

    @property
    def names(self) -> frozenset[str]:
        """Give the attributes and facts that it asks for."""
        asked = (self.when, self.expected, self.only, *(each.when for each in self.prefer))
        return frozenset().union(*(each.names for each in asked if each is not None))


@dataclass(frozen=True)
class RuleBook:
    """All rules of a site, in their order."""

    rules: tuple[SiteRule, ...]
    match: str = "first"
    otherwise: str = "auto"

    @property
    def keywords(self) -> frozenset[str]:
        """Give the attributes that the rules ask for."""
        return frozenset().union(*(each.names for each in self.rules)) - {*FACTS}


def read(
    path: Path,
    protocols: Sequence[str],
    destinations: Sequence[Destination],
    sources: Sequence[str] = (),
) -> RuleBook:
    """Read a file of rules.

    Parameters
    ----------
    protocols, destinations, sources
        Those that a rule may name.

    Raises
    ------
    ConfigError
        Names the file, the rule, what was expected and what came; of a condition line and column.
    """
    try:
        told = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"cannot read the rules {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error
    try:
        return _book(told, partial(_Row, protocols, destinations, sources))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def _book(told: dict[str, Any], of: "Callable[[Any], _Row]") -> RuleBook:
    _known(told, ("match", "otherwise", "rules"))
    rows = told.get("rules", [])
    if not isinstance(rows, list) or not rows or len(rows) > MOST_RULES:
        raise ConfigError(f"expected 1 to {MOST_RULES} tables [[rules]]")
    rules = []
    for number, row in enumerate(rows, 1):
        name = row.get("name") if isinstance(row, dict) else None
        try:
            rules.append(of(row).rule())
        except ConfigError as error:
            which = repr(name) if isinstance(name, str) else "without a name"
            raise ConfigError(f"rule {number}, {which}: {error}") from error
    names = [each.name for each in rules]
    twice = sorted({each for each in names if names.count(each) > 1})
    if twice:
        raise ConfigError(f"two rules are called {', '.join(map(repr, twice))}")
    return RuleBook(
        tuple(rules),
        _one_of("match", told.get("match", "first"), ("first", "all")),
        _one_of("otherwise", told.get("otherwise", "auto"), ("auto", "ignore", "refuse")),
    )


FIELDS: Final = (
    "name",
    "when",
    "protocol",
    "action",
    "priority",
    "window",
    "quiet_s",
    "expected",
    "fetch",
    "destinations",
    "series",
)


@dataclass(frozen=True)
class _Row:
    """One table [[rules]], being checked."""

    protocols: Sequence[str]
    destinations: Sequence[Destination]
    sources: Sequence[str]
    row: Any

    def rule(self) -> SiteRule:
        if not isinstance(self.row, dict):
            raise ConfigError("expected a table")
        _known(self.row, FIELDS)
        rule = SiteRule(
            name=_text("name", self.row.get("name"), 64),
            when=_condition("when", self.row.get("when")),
            protocols=tuple(self._protocols()),
            action=_one_of("action", self.row.get("action", "read"), ACTIONS),
            priority=_one_of("priority", self.row.get("priority", "normal"), PRIORITIES),
            window=self._window(),
            quiet_s=self._quiet_s(),
            expected=self._expected(),
            fetch=self._fetch(),
            destinations=tuple(self._destinations()),
            **self._series(),
        )
        self._check_action(rule)
        return rule

    def _check_action(self, rule: SiteRule) -> None:
        beside = sorted(set(self.row) - {"name", "when", "action"})
        if rule.action != "read" and beside:
            raise ConfigError(f"a rule that is to {rule.action} has no {', '.join(beside)}")
        if rule.window and rule.priority != "off-peak":
            raise ConfigError('a window is for priority = "off-peak"')
        if not rule.protocols and "series" in self.row:
            raise ConfigError("series needs a protocol: without one the protocols choose")

    def _protocols(self) -> Iterator[str]:
        for each in _texts("protocol", self.row.get("protocol", [])):
            if each == EACH:
                yield from self.protocols
            elif each not in self.protocols:
                raise ConfigError(
                    f"protocol must be of {', '.join(self.protocols)}, or each; not {each!r}"
                    + _meant(each, self.protocols)
                )
            else:
                yield each

    def _fetch(self) -> str:
        name = self.row.get("fetch", "")
        if name and name not in self.sources:
            known = ", ".join(self.sources) or "there is none"
            raise ConfigError(f"fetch must be a source of the settings ({known}), not {name!r}")
        return str(name)

    def _destinations(self) -> Iterator[str]:
        for name in _texts("destinations", self.row.get("destinations", [])):
            found = [str(each) for each in self.destinations if name in {str(each), each.ae_title}]
            if not found:
                known = ", ".join(map(str, self.destinations)) or "there is none"
                raise ConfigError(f"destinations must be of the settings ({known}), not {name!r}")
            yield from found

    def _window(self) -> str:
        window = self.row.get("window", "")
        if window:
            try:
                Window.parse(_text("window", window, 11))
            except ValueError as error:
                raise ConfigError(str(error)) from error
        return str(window)

    def _quiet_s(self) -> float | None:
        quiet_s = self.row.get("quiet_s")
        return None if quiet_s is None else _number("quiet_s", quiet_s, SHORTEST_S, WEEK_S)

    def _expected(self) -> Quantity | None:
        expected = self.row.get("expected")
        if expected is None:
            return None
        if isinstance(expected, str):
            return _parsed("expected", expected, parse_quantity)
        count = _number("expected", expected, 1, MOST_SLICES, whole=True)
        return parse_quantity(str(int(count)))

    def _series(self) -> dict[str, Any]:
        told = self.row.get("series", {})
        if isinstance(told, str):
            told = {"only": told}
        if not isinstance(told, dict):
            raise ConfigError(f"series must be a condition or a table, not {told!r}")
        _known(told, ("only", "prefer", "minimum_slices", "any_region"))
        least = told.get("minimum_slices")
        return {
            "only": _condition("series.only", told["only"]) if "only" in told else None,
            "prefer": tuple(_preferences(told.get("prefer", []))),
            "minimum_slices": None
            if least is None
            else int(_number("series.minimum_slices", least, 1, MOST_SLICES, whole=True)),
            "any_region": _flag("series.any_region", told.get("any_region", False)),
        }


def _preferences(told: object) -> Iterator[Preference]:
    if not isinstance(told, list):
        raise ConfigError(f"series.prefer must be a list, not {told!r}")
    for each in told:
        row = {"when": each} if isinstance(each, str) else each
        if not isinstance(row, dict):
            raise ConfigError(f"series.prefer holds conditions or tables, not {each!r}")
        _known(row, ("when", "points"))
        points = row.get("points", PREFERRED)
        amount = _number("points", points, -MOST_POINTS, MOST_POINTS, whole=True)
        yield Preference(_condition("series.prefer", row.get("when")), int(amount))


def _known(told: Mapping[str, object], names: Sequence[str]) -> None:
    for each in told:
        if each not in names:
            raise ConfigError(
                f"{each!r} is not known here, only {', '.join(names)}" + _meant(each, names)
            )


def _meant(name: str, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, names, 1, 0.7)
    return f"; is {near[0]} meant?" if near else ""


def _condition(what: str, text: object) -> Condition:
    return _parsed(what, text, parse)


def _parsed(what: str, text: object, reader: Callable[[str, Sequence[str]], Read]) -> Read:
    if not isinstance(text, str):
        came = "nothing" if text is None else repr(text)
        raise ConfigError(f"{what} must be a condition, not {came}")
    try:
        return reader(text, FACTS)
    except ConfigError as error:
        raise ConfigError(f"{what}: {error}") from error


def _text(what: str, text: object, most: int) -> str:
    if not isinstance(text, str) or not text.strip() or len(text) > most or not text.isprintable():
        raise ConfigError(f"{what} must be 1-{most} characters on one line, not {text!r}")
    return text


def _texts(what: str, told: object) -> list[str]:
    several = [told] if isinstance(told, str) else told
    if not isinstance(several, list) or not all(isinstance(each, str) for each in several):
        raise ConfigError(f"{what} must be a text or a list of texts, not {told!r}")
    return list(dict.fromkeys(several))


def _one_of(what: str, word: object, words: Sequence[str]) -> str:
    if word not in words:
        near = _meant(word, words) if isinstance(word, str) else ""
        raise ConfigError(f"{what} must be {', '.join(words)}, not {word!r}{near}")
    return str(word)


def _flag(what: str, told: object) -> bool:
    if not isinstance(told, bool):
        raise ConfigError(f"{what} must be true or false, not {told!r}")
    return told


def _number(what: str, told: object, least: float, most: float, *, whole: bool = False) -> float:
    kinds = int if whole else int | float
    # A bool is no number, and NaN is within no range.
    if isinstance(told, bool) or not isinstance(told, kinds) or not least <= told <= most:
        kind = "a whole number" if whole else "a number"
        raise ConfigError(f"{what} must be {kind}, {least:g} to {most:g}, not {told!r}")
    return float(told)
