"""What a run may take of an endpoint: requests and tokens a minute, and money.

Knows numbers and the clock; no HTTP, no reports.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from model.errors import ModelError

MILLION = 1_000_000
ROUNDING = 1e-9  # what sums of prices leave of nothing


class EndpointError(ModelError):
    """The endpoint cannot be used any further; the run ends, and can go on later."""


class BudgetReached(EndpointError):
    """The next request could cost more than is left."""


@dataclass(frozen=True)
class Usage:
    """Tokens of one request; `estimated` if the endpoint did not say."""

    prompt_tokens: int
    completion_tokens: int
    estimated: bool = False

    @property
    def tokens(self) -> int:
        """Both together."""
        return self.prompt_tokens + self.completion_tokens

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.estimated or other.estimated,
        )


class Pace:
    """So many units a minute, evenly spread; who asks first goes first. Zero a minute: no limit."""

    def __init__(self, per_minute: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._unit_s = 60 / per_minute if per_minute else 0.0
        self._free_at = 0.0

    def reserve(self, units: float) -> float:
        """Take the next free moment; returns in how many seconds it comes."""
        now = self._clock()
        start = max(now, self._free_at)
        self._free_at = start + units * self._unit_s
        return start - now

    def correct(self, units: float) -> None:
        """Add what a request took beyond its reservation, or give back (negative) what it left."""
        self._free_at += units * self._unit_s


@dataclass
class Spending:
    """What was used and what it cost; prices are for a million tokens, a budget of 0 is none."""

    price_prompt: float = 0.0
    price_completion: float = 0.0
    budget: float = 0.0
    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    estimated: int = 0
    cost: float = 0.0
    reserved: float = field(default=0.0, repr=False)

    def price(self, usage: Usage) -> float:
        """Tell what these tokens cost."""
        prompt = usage.prompt_tokens * self.price_prompt
        return (prompt + usage.completion_tokens * self.price_completion) / MILLION

    def fits(self, most: Usage) -> bool:
        """Whether the budget allows a request at its most, besides what is under way."""
        return not self.budget or self.cost + self.reserved + self.price(most) <= self.budget

    def reserve(self, most: Usage) -> float:
        """Set aside the most that a request can cost, before it is sent.

        Raises
        ------
        BudgetReached
            It does not fit.
        """
        price = self.price(most)
        if not self.fits(most):
            raise BudgetReached(
                f"the budget of {self.budget:g} is used up: {self.cost:.4f} spent, and the next "
                f"request could cost {price:.4f}"
            )
        self.reserved += price
        return price

    def release(self, reserved: float) -> None:
        """Give back what was set aside for a request that came to nothing."""
        left = self.reserved - reserved
        self.reserved = left if left > ROUNDING else 0.0

    def charge(self, reserved: float) -> None:
        """Count a request in full whose end is not known: it may have been billed."""
        self.release(reserved)
        self.cost += reserved

    def add(self, usage: Usage, cost: float | None = None) -> None:
        """Count an answered request; `cost` if it was paid at another price."""
        self.requests += 1
        self.prompt_tokens += usage.prompt_tokens
        self.completion_tokens += usage.completion_tokens
        self.estimated += usage.estimated
        self.cost += self.price(usage) if cost is None else cost
