"""How one value of an attribute compares with what a condition says: as a text, or as a number.

Knows values, and the regular expressions of RE2, whose time is linear in the text and whose memory
is bounded. Must not know how a condition is written.
"""

import math
import operator
import re
from collections.abc import Callable, Sequence
from typing import Any, Final

import re2

Value = str | float
Test = Callable[[Value], bool]

LONGEST_PATTERN: Final = 256
LONGEST_VALUE: Final = 1024  # characters of a value that are looked at
PATTERN_MEMORY: Final = 1 << 20  # bytes that RE2 may take for one expression
AGE: Final = re.compile(r"(\d{3})([DWMY])", re.ASCII)  # PS3.5 6.2, AS
YEARS: Final = {"D": 1 / 365.25, "W": 7 / 365.25, "M": 1 / 12, "Y": 1.0}
ORDERS: Final[dict[str, Callable[[Any, Any], bool]]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
}


def plain(value: Value) -> str:
    """Write a value as a text."""
    return (value if isinstance(value, str) else f"{value:g}")[:LONGEST_VALUE]


def number(value: Value) -> float | None:
    """Read a value as a number, an Age String in years; None if it is none."""
    if isinstance(value, str):
        age = AGE.fullmatch(value.strip())
        if age:
            return int(age[1]) * YEARS[age[2]]
        try:
            value = float(value[:LONGEST_VALUE])
        except ValueError:
            return None
    return value if math.isfinite(value) else None


def among(literals: Sequence[Value]) -> Test:
    """Test whether a value is one of these."""
    return lambda value: any(_same(value, each) for each in literals)


def ordered(sign: str, literal: Value) -> Test:
    """Test a value by one of `ORDERS`: against a text by its letters, else as a number."""
    holds = ORDERS[sign]

    def test(value: Value) -> bool:
        if isinstance(literal, str):
            return holds(_folded(value), _folded(literal))
        amount = number(value)
        return amount is not None and holds(amount, literal)

    return test


def containing(part: str) -> Test:
    """Test whether a text holds another one."""
    sought = _folded(part)
    return lambda value: sought in _folded(value)


def beginning(part: str) -> Test:
    """Test how a text begins."""
    sought = _folded(part)
    return lambda value: _folded(value).startswith(sought)


def ending(part: str) -> Test:
    """Test how a text ends."""
    sought = _folded(part)
    return lambda value: _folded(value).endswith(sought)


def matching(pattern: str) -> Test:
    """Test whether a regular expression is found in a text.

    Raises
    ------
    ValueError
        It is too long, or none of RE2: that has no look-around and no back-references.
    """
    if len(pattern) > LONGEST_PATTERN:
        raise ValueError(f"it has {len(pattern)} characters, at most {LONGEST_PATTERN}")
    options = re2.Options()
    options.max_mem, options.case_sensitive, options.log_errors = PATTERN_MEMORY, False, False
    try:
        compiled = re2.compile(pattern, options)
    except re2.error as error:
        said = error.args[0]
        raise ValueError(said.decode() if isinstance(said, bytes) else str(said)) from error
    return lambda value: compiled.search(plain(value)) is not None


def _folded(value: Value) -> str:
    return plain(value).strip().casefold()


def _same(value: Value, literal: Value) -> bool:
    if isinstance(literal, str):
        return _folded(value) == _folded(literal)
    return number(value) == literal
