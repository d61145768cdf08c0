"""A small language of conditions on DICOM attributes, as rules of a site are written in it.

    Modality == "CT" and BodyPartExamined in ["CHEST", "THORAX"] and SliceThickness <= 3
    not (SeriesDescription matches "scout|topo" or ImageType contains "LOCALIZER")

    condition   "or" of "and" of "not" of comparisons, with parentheses
    comparison  NAME | NAME OPERATOR VALUE | NAME ["not"] "in" "[" VALUE, ... "]"
    operator    == != < <= > >= contains matches "starts with" "ends with"
    value       "text" or 'text', or a number

A name is a keyword of PS3.6, or a fact that whoever reads the condition has. An attribute that is
missing or empty makes its comparison false, whatever the operator; of several values (PS3.5 6.4)
one is enough, and none for ``!=`` and ``not in``. A name alone holds where there is a value. Case
does not count. Against a number a value counts as one, an Age String in years; what is none does
not hold. ``matches`` finds a regular expression of RE2 anywhere, in time linear to the text.

Knows text and the data dictionary. Nothing is evaluated, imported or called by name; depth, length
and the memory of a regular expression are bounded. Must not know where values come from.
"""

import difflib
import math
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from pydicom.datadict import dictionary_keyword, dictionary_VR, keyword_dict

from dicom_node.errors import ConfigError

from .comparing import (
    ORDERS,
    Test,
    Value,
    among,
    beginning,
    containing,
    ending,
    matching,
    number,
    ordered,
)

Values = Callable[[str], Sequence[Value]]  # of an attribute or a fact, by its name

MOST_CHARACTERS: Final = 4000
DEEPEST: Final = 32
SHOWN: Final = 60  # characters of a value in a reason
WORDS: Final = ("and", "or", "not", "in", "contains", "matches", "starts", "ends", "with")
# PS3.5 6.2: what holds bytes or items has nothing to compare.
INCOMPARABLE: Final = frozenset({"SQ", "UN", "AT", "OB", "OD", "OF", "OL", "OV", "OW", "OB or OW"})
PATIENT: Final = 0x0010  # the group that tells who somebody is (PS3.6)
TOKEN: Final = re.compile(
    r"""(?P<space>\s+)
    |(?P<number>-?\d+(\.\d+)?([eE][-+]?\d{1,3})?)
    |(?P<name>[A-Za-z_][A-Za-z0-9_]*)
    |(?P<text>"(\\"|[^"\n])*"|'(\\'|[^'\n])*')
    |(?P<sign>==|!=|<=|>=|[<>()\[\],+*])""",
    re.VERBOSE,
)


class ExpressionError(ConfigError):
    """A condition cannot be read; ``line`` and ``column`` count from 1."""

    def __init__(self, line: int, column: int, reason: str) -> None:
        super().__init__(f"line {line}, column {column}: {reason}")
        self.line, self.column, self.reason = line, column, reason


@dataclass(frozen=True)
class Condition:
    """A condition that has been read; `names` are the attributes and facts that it asks for."""

    text: str
    names: frozenset[str]
    node: "_Node" = field(repr=False)

    def holds(self, values: Values) -> bool:
        """Tell whether the condition holds."""
        return not self.node.why_not(values)

    def why_not(self, values: Values) -> str:
        """Say what of the condition does not hold; empty if it holds."""
        return self.node.why_not(values)

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Quantity:
    """A number, or one made of attributes with ``+`` and ``*``, as ``ImagesInAcquisition * 2``."""

    text: str
    names: frozenset[str]
    node: "_Amount" = field(repr=False)

    def number(self, values: Values) -> float | None:
        """Give the number; None if an attribute is missing or is none."""
        return self.node(values)

    def __str__(self) -> str:
        return self.text


_Amount = Callable[[Values], float | None]


def parse(text: str, facts: Collection[str] = ()) -> Condition:
    """Read a condition.

    Parameters
    ----------
    facts
        Names besides the keywords of PS3.6.

    Raises
    ------
    ExpressionError
        Says where, what was expected and what came.
    """
    reader = _Reader(text, facts)
    node = reader.condition()
    reader.end()
    return Condition(text, frozenset(reader.names), node)


def parse_quantity(text: str, facts: Collection[str] = ()) -> Quantity:
    """Read a quantity; raises as `parse`."""
    reader = _Reader(text, facts)
    node = reader.quantity()
    reader.end()
    return Quantity(text, frozenset(reader.names), node)


# --- what has been read -------------------------------------------------------------------------


class _Node:
    def why_not(self, values: Values) -> str:
        raise NotImplementedError


@dataclass(frozen=True)
class _All(_Node):
    parts: tuple[_Node, ...]

    def why_not(self, values: Values) -> str:
        return next(filter(None, (each.why_not(values) for each in self.parts)), "")


@dataclass(frozen=True)
class _Any(_Node):
    parts: tuple[_Node, ...]

    def why_not(self, values: Values) -> str:
        reasons = []
        for each in self.parts:
            reason = each.why_not(values)
            if not reason:
                return ""
            reasons.append(reason)
        return ", and ".join(reasons)


@dataclass(frozen=True)
class _Not(_Node):
    part: _Node
    text: str

    def why_not(self, values: Values) -> str:
        return "" if self.part.why_not(values) else f"{self.text} is so"


@dataclass(frozen=True)
class _Comparison(_Node):
    """One attribute against literals: any of its values with any of them, or none if `negated`."""

    name: str
    text: str
    negated: bool
    fits: Test

    def why_not(self, values: Values) -> str:
        found = values(self.name)
        if not found:
            return f"{self.name} is missing"
        if any(map(self.fits, found)) != self.negated:
            return ""
        return f"{self.text} is not so{_shown(self.name, found)}"


def _shown(name: str, found: Sequence[Value]) -> str:
    tag = keyword_dict.get(name)
    if tag is not None and tag >> 16 == PATIENT:
        return ""
    shown = "\\".join(f"{each:g}" if isinstance(each, float) else each for each in found)
    return f": it is {shown[:SHOWN]!r}"


# --- how it is read -----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Token:
    kind: str  # number, name, text, sign or end
    text: str
    at: int

    def __str__(self) -> str:
        return repr(self.text) if self.kind != "end" else "the end"


class _Reader:
    """Reads one text, a token at a time; `names` are those met so far."""

    def __init__(self, text: str, facts: Collection[str]) -> None:
        self._text, self._facts, self._depth = text, facts, 0
        if len(text) > MOST_CHARACTERS:
            raise ExpressionError(1, 1, f"at most {MOST_CHARACTERS} characters, not {len(text)}")
        self._tokens = list(self._split())
        self._next = 0
        self.names: set[str] = set()

    def condition(self) -> _Node:
        """Read an "or" of "and"s."""
        self._deeper()
        parts = [self._and()]
        while self._take("or"):
            parts.append(self._and())
        self._depth -= 1
        return parts[0] if len(parts) == 1 else _Any(tuple(parts))

    def quantity(self) -> _Amount:
        """Read a sum of products."""
        self._deeper()
        parts = [self._product()]
        while self._take("+"):
            parts.append(self._product())
        self._depth -= 1
        return _together(sum, parts)

    def end(self) -> None:
        """Refuse what follows."""
        if self._now.kind != "end":
            self._refuse("and, or, or the end")

    # --- conditions

    def _and(self) -> _Node:
        parts = [self._not()]
        while self._take("and"):
            parts.append(self._not())
        return parts[0] if len(parts) == 1 else _All(tuple(parts))

    def _not(self) -> _Node:
        start = self._now.at
        if self._take("not"):
            self._deeper()
            part = self._not()
            self._depth -= 1
            return _Not(part, self._since(start, after_not=True))
        if self._take("("):
            inner = self.condition()
            self._need(")")
            return inner
        return self._comparison()

    def _comparison(self) -> _Node:
        start, name = self._now.at, self._name()
        negated, fits = self._operator()
        return _Comparison(name, self._since(start), negated, fits)

    def _operator(self) -> tuple[bool, Test]:
        if self._take("=="):
            return False, among([self._literal()])
        if self._take("!="):
            return True, among([self._literal()])
        for sign in ORDERS:
            if self._take(sign):
                return False, ordered(sign, self._literal())
        if self._take("not"):
            self._need("in")
            return True, among(self._list())
        if self._take("in"):
            return False, among(self._list())
        return False, self._textual()

    def _textual(self) -> Test:
        """Read an operator on texts; without one, any value will do."""
        if self._take("matches"):
            return self._pattern()
        if self._take("contains"):
            return containing(self._text_literal())
        for word, test in (("starts", beginning), ("ends", ending)):
            if self._take(word):
                self._need("with")
                return test(self._text_literal())
        return lambda _: True

    def _list(self) -> list[Value]:
        self._need("[")
        literals = [self._literal()]
        while self._take(","):
            literals.append(self._literal())
        self._need("]")
        return literals

    def _pattern(self) -> Test:
        token = self._now
        try:
            return matching(self._literal_of("text", "a regular expression in quotes"))
        except ValueError as error:
            raise self._error(token.at, f"no regular expression of RE2: {error}") from error

    # --- quantities

    def _product(self) -> _Amount:
        parts = [self._factor()]
        while self._take("*"):
            parts.append(self._factor())
        return _together(math.prod, parts)

    def _factor(self) -> _Amount:
        if self._take("("):
            inner = self.quantity()
            self._need(")")
            return inner
        if self._now.kind == "number":
            amount = self._number()
            return lambda _: amount
        name = self._name("a number or a keyword of DICOM")
        return lambda values: next(
            (each for each in map(number, values(name)) if each is not None), None
        )

    # --- tokens

    def _name(self, wanted: str = "a keyword of DICOM") -> str:
        token = self._now
        if token.kind != "name" or token.text in WORDS:
            self._refuse(wanted + (", not or (" if "number" not in wanted else ""))
        if token.text not in self._facts:
            self._check_keyword(token)
        self._next += 1
        self.names.add(token.text)
        return token.text

    def _check_keyword(self, token: _Token) -> None:
        tag = keyword_dict.get(token.text)
        if tag is None or not dictionary_keyword(tag):
            known = [*self._facts, *keyword_dict]
            folded = {each.casefold(): each for each in known}
            near = difflib.get_close_matches(token.text.casefold(), folded, 1, 0.7)
            meant = f", is {folded[near[0]]} meant?" if near else ""
            raise self._error(token.at, f"no keyword of DICOM is called {token.text!r}{meant}")
        if dictionary_VR(tag) in INCOMPARABLE:
            raise self._error(token.at, f"{token.text} has no value to compare with")

    def _literal(self) -> Value:
        if self._now.kind == "number":
            return self._number()
        return self._literal_of("text", "a text in quotes or a number")

    def _number(self) -> float:
        token = self._now
        self._next += 1
        amount = float(token.text)
        if not math.isfinite(amount):
            raise self._error(token.at, f"{token.text} is no number that can be compared with")
        return amount

    def _text_literal(self) -> str:
        return self._literal_of("text", "a text in quotes")

    def _literal_of(self, kind: str, wanted: str) -> str:
        token = self._now
        if token.kind != kind:
            self._refuse(wanted)
        self._next += 1
        quote = token.text[0]
        return token.text[1:-1].replace(f"\\{quote}", quote)

    @property
    def _now(self) -> _Token:
        return self._tokens[self._next]

    def _take(self, text: str) -> bool:
        found = self._now.kind in {"name", "sign"} and self._now.text == text
        self._next += found
        return found

    def _need(self, text: str) -> None:
        if not self._take(text):
            self._refuse(text)

    def _since(self, start: int, *, after_not: bool = False) -> str:
        last = self._tokens[self._next - 1]
        text = " ".join(self._text[start : last.at + len(last.text)].split())
        return text.removeprefix("not").strip() if after_not else text

    def _deeper(self) -> None:
        self._depth += 1
        if self._depth > DEEPEST:
            raise self._error(self._now.at, f"at most {DEEPEST} levels of parentheses and not")

    def _refuse(self, wanted: str) -> None:
        raise self._error(self._now.at, f"expected {wanted}, came {self._now}")

    def _error(self, at: int, reason: str) -> ExpressionError:
        before = self._text[:at]
        line = before.count("\n") + 1
        return ExpressionError(line, at - (before.rfind("\n") + 1) + 1, reason)

    def _split(self) -> Iterator[_Token]:
        at = 0
        while at < len(self._text):
            found = TOKEN.match(self._text, at)
            if found is None:
                raise self._error(at, _no_token(self._text[at]))
            kind = str(found.lastgroup)
            if kind != "space":
                yield _Token(kind, found.group(), at)
            at = found.end()
        yield _Token("end", "", at)


def _no_token(character: str) -> str:
    if character in "\"'":
        return "the text is not closed on its line"
    hint = ", is == meant?" if character == "=" else ""
    return (
        f"expected a keyword, an operator, a text in quotes or a number, came {character!r}{hint}"
    )


# --- values -------------------------------------------------------------------------------------


def _together(combine: Callable[[list[float]], Any], parts: Sequence[_Amount]) -> _Amount:
    def amount(values: Values) -> float | None:
        numbers = [each(values) for each in parts]
        known = [each for each in numbers if each is not None]
        made = float(combine(known)) if len(known) == len(numbers) else None
        return made if made is not None and math.isfinite(made) else None

    return amount
