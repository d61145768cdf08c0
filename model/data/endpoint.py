"""A client for any OpenAI-compatible endpoint: vLLM, Ollama, llama.cpp, a service.

Knows HTTP and patience; nothing of reports and questions. The key comes from the environment and
goes nowhere but into the request.
"""

import asyncio
import ipaddress
import logging
import os
import random
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from typing import TYPE_CHECKING, Self
from urllib.parse import urlsplit

from model.errors import ModelError

from . import completions
from .allowance import EndpointError, Pace, Spending, Usage
from .completions import Form, Prompt, Reply
from .replies import objects

if TYPE_CHECKING:
    import httpx

LONGEST_WAIT_S = 900  # a server that asks for more is asked again by the next run
LONGEST_PAUSE_S = 60
CONNECT_S = 10
QUOTED = 300  # characters of what a server says of an error

TRY_AGAIN = {
    HTTPStatus.REQUEST_TIMEOUT,
    HTTPStatus.CONFLICT,
    HTTPStatus.TOO_EARLY,
    HTTPStatus.TOO_MANY_REQUESTS,
}
WRONG = {HTTPStatus.BAD_REQUEST, HTTPStatus.UNPROCESSABLE_ENTITY}
NO_KEY = {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}
QUOTA = re.compile(r"insufficient_quota|billing|quota exceeded", re.IGNORECASE)
TOO_LONG = re.compile(
    r"context.?(length|size|window)|prompt is too long|too many tokens|reduce the length",
    re.IGNORECASE,
)
FILTERED = re.compile(r"content.?(filter|policy|management)", re.IGNORECASE)

log = logging.getLogger(__name__)


class Unanswered(ModelError):
    """One request has no answer; others may have."""


class _Again(Exception):
    """Try again, not before `wait_s`; `sent` if it may have been worked on."""

    def __init__(self, why: str, *, wait_s: float = 0.0, sent: bool = False) -> None:
        super().__init__(why)
        self.wait_s = wait_s
        self.sent = sent


class _Unreachable(_Again):
    """Nobody listens there."""


class _BadRequest(Exception):
    """The server takes this request, or its form, to be wrong."""


@dataclass(frozen=True)
class Settings:
    """Where to ask, how fast, and for how much; checked when made."""

    model: str = field(metadata={"help": "name of the language model, as the endpoint knows it"})
    url: str = field(
        default="http://127.0.0.1:8000/v1",
        metadata={"help": "address of the endpoint: what stands before /chat/completions"},
    )
    key_variable: str = field(
        default="", metadata={"help": "environment variable that holds the API key; empty: no key"}
    )
    concurrency: int = field(default=8, metadata={"help": "requests at once, 1 to 1000"})
    requests_per_minute: float = field(default=0.0, metadata={"help": "0: no limit"})
    tokens_per_minute: float = field(default=0.0, metadata={"help": "0: no limit"})
    timeout_s: float = field(default=120.0, metadata={"help": "seconds for one request, over 0"})
    retries: int = field(
        default=6, metadata={"help": "further tries after 429, 5xx or silence, 0 to 100"}
    )
    pause_s: float = field(
        default=1.0, metadata={"help": "seconds before the first further try; doubles each time"}
    )
    thinking_tokens: int = field(
        default=0, metadata={"help": "room for what the model thinks aloud before it answers"}
    )
    seed: int = field(default=0, metadata={"help": "of shuffling and, where it can, of the model"})
    price_prompt: float = field(default=0.0, metadata={"help": "price of a million prompt tokens"})
    price_completion: float = field(
        default=0.0, metadata={"help": "price of a million tokens of replies"}
    )
    budget: float = field(
        default=0.0, metadata={"help": "end the run before it costs more; 0: no limit"}
    )

    def __post_init__(self) -> None:
        """Raise ModelError for a setting that cannot be."""
        for name, (lowest, highest) in LIMITS.items():
            value = getattr(self, name)
            if not (
                _is_number(value, type(getattr(type(self), name))) and lowest <= value <= highest
            ):
                raise ModelError(f"{name} must be {lowest:g} to {highest:g}, not {value!r}")
        if not self.model:
            raise ModelError("model must name a language model, not be empty")
        if self.budget and not (self.price_prompt or self.price_completion):
            raise ModelError("a budget needs price_prompt and price_completion to be counted")
        _check_address(self.url)

    @property
    def host(self) -> str:
        """Where the reports go."""
        return str(urlsplit(self.url).hostname)

    @property
    def is_local(self) -> bool:
        """Whether this machine itself is asked."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    def spending(self) -> Spending:
        """Begin to count what is spent."""
        return Spending(self.price_prompt, self.price_completion, self.budget)

    def key(self) -> str:
        """Read the API key from the environment; empty if none is to be sent."""
        if not self.key_variable:
            return ""
        key = os.environ.get(self.key_variable, "").strip()
        if not key:
            raise ModelError(f"the environment variable {self.key_variable} holds no API key")
        if not (key.isascii() and key.isprintable()) or " " in key:
            raise ModelError(
                f"the environment variable {self.key_variable} holds no API key but something with "
                "blanks or unprintable characters"
            )
        return key


ENDLESS = float("inf")
LIMITS: Mapping[str, tuple[float, float]] = {
    "concurrency": (1, 1000),
    "requests_per_minute": (0, 1e9),
    "tokens_per_minute": (0, 1e12),
    "timeout_s": (0.01, 86400),
    "retries": (0, 100),
    "pause_s": (0, LONGEST_PAUSE_S),
    "thinking_tokens": (0, 1e6),
    "seed": (0, 2**31 - 1),
    "price_prompt": (0, 1e9),
    "price_completion": (0, 1e9),
    "budget": (0, 1e12),
}


def _is_number(value: object, kind: type) -> bool:
    allowed = (int,) if kind is int else (int, float)
    return isinstance(value, allowed) and not isinstance(value, bool)


def _check_address(url: str) -> None:
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise ModelError(f"url must be like http://127.0.0.1:8000/v1: {error}") from error
    # What stands there would be written into messages and reports.
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ModelError("url must hold no user, password or query: name the key by key_variable")
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ModelError(f"url must be like http://127.0.0.1:8000/v1, not {url!r}")


class Chat:
    """An open endpoint: asked side by side, with patience, and counted."""

    def __init__(self, settings: Settings, spending: Spending) -> None:
        self.ended: ModelError | None = None
        self._settings = settings
        self._spending = spending
        self._key = settings.key()
        self._slots = asyncio.Semaphore(settings.concurrency)
        self._requests = Pace(settings.requests_per_minute)
        self._tokens = Pace(settings.tokens_per_minute)
        self._held_until = 0.0
        self._form = Form.SCHEMA
        self._form_works = False
        self._accepted: set[Form] = set()
        self._unanswered_in_a_row = 0
        self._waiting: list[asyncio.Future[None]] = []

    async def __aenter__(self) -> Self:
        try:
            import httpx
        except ModuleNotFoundError as error:
            raise ModelError("httpx is missing: pip install 'lamed-node[train]'") from error
        settings = self._settings
        self._http = httpx.AsyncClient(
            headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
            # Elsewhere is not where the reports were to go.
            follow_redirects=False,
            timeout=httpx.Timeout(settings.timeout_s, connect=min(CONNECT_S, settings.timeout_s)),
            limits=httpx.Limits(max_connections=settings.concurrency),
            # No proxy between this machine and itself.
            trust_env=not settings.is_local,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def ask(self, prompt: Prompt) -> Reply:
        """Ask once, as often as it takes.

        Raises
        ------
        Unanswered
            There is no answer to this request.
        EndpointError
            There will be no answers to others either, or no money for them.
        """
        async with self._slots:
            if self.ended:
                raise self.ended
            try:
                return await self._usefully(prompt)
            except EndpointError as error:
                self.end(error)
                raise

    def end(self, reason: ModelError) -> None:
        """Send nothing any more, not even what waits already; the first reason counts."""
        self.ended = self.ended or reason

    async def _usefully(self, prompt: Prompt) -> Reply:
        """Ask in plainer forms until one brings what is wanted."""
        prompt = replace(prompt, max_tokens=prompt.max_tokens + self._settings.thinking_tokens)
        in_vain = Usage(0, 0)
        while True:
            form = self._form
            try:
                reply = await self._patiently(prompt, form)
            except _BadRequest as error:
                self._plainer(form, error)
            except Unanswered as error:
                self._count_unanswered(error)
                raise
            else:
                self._unanswered_in_a_row = 0
                self._accepted.add(form)
                if self._settles(reply, prompt, form):
                    return replace(reply, usage=reply.usage + in_vain)
                in_vain += reply.usage
                self._form = max(self._form, Form(form + 1))

    def _settles(self, reply: Reply, prompt: Prompt, form: Form) -> bool:
        """Whether to stay with the reply; if not, a plainer form may bring what this one did not.

        Some servers take a form and do not keep to it. Once a form has worked, a useless reply is
        the model's own and for the caller to judge.
        """
        works = any(objects(reply.text, key) for key in prompt.keys)
        self._form_works |= works and form == self._form
        return works or self._form_works or form is Form.TEXT

    def _plainer(self, form: Form, error: _BadRequest) -> None:
        """Ask in a plainer form, if it can be the form that was wrong."""
        if form < self._form:  # another request has found out meanwhile
            return
        if form in self._accepted:
            unanswered = Unanswered(f"{self._settings.host} refuses this request: {error}")
            self._count_unanswered(unanswered)
            raise unanswered
        if form is Form.TEXT:
            raise EndpointError(f"{self._settings.host} refuses every request: {error}")
        self._form = Form(form + 1)
        log.info("endpoint.form", extra={"form": self._form.name.lower()})

    def _count_unanswered(self, error: Unanswered) -> None:
        self._unanswered_in_a_row += 1
        if self._unanswered_in_a_row > self._settings.concurrency + 1:
            raise EndpointError(
                f"{self._unanswered_in_a_row} requests in a row had no answer; the last: {error}"
            ) from error

    async def _patiently(self, prompt: Prompt, form: Form) -> Reply:
        failed = _Again("")
        for attempt in range(self._settings.retries + 1):
            try:
                return await self._counted(prompt, form)
            except _Again as error:
                failed = error
                log.warning("endpoint.again", extra={"reason": str(error), "attempt": attempt + 1})
                await self._pause(attempt, error)
        if isinstance(failed, _Unreachable):
            raise EndpointError(f"{self._settings.url} cannot be reached: {failed}") from failed
        raise Unanswered(f"no answer in {self._settings.retries + 1} tries: {failed}") from failed

    async def _counted(self, prompt: Prompt, form: Form) -> Reply:
        most = completions.most(prompt)
        reserved = await self._reserve(most)
        try:
            await self._turn(most)
            reply = await self._once(prompt, form)
        except BaseException as error:  # also a cancelled task: what was reserved is settled
            sent = isinstance(error, _Again) and error.sent
            (self._spending.charge if sent else self._spending.release)(reserved)
            raise
        else:
            self._spending.release(reserved)
            self._spending.add(reply.usage)
            self._tokens.correct(reply.usage.tokens - most.tokens)
            return reply
        finally:
            self._wake()

    async def _reserve(self, most: Usage) -> float:
        """Set money aside. What is under way may leave some: a request costs less than its most."""
        while self._spending.reserved and not self._spending.fits(most):
            waiting = asyncio.get_running_loop().create_future()
            self._waiting.append(waiting)
            await waiting
        return self._spending.reserve(most)

    def _wake(self) -> None:
        for each in self._waiting:
            if not each.done():
                each.set_result(None)
        self._waiting.clear()

    async def _turn(self, most: Usage) -> None:
        """Wait for what the rates allow, and while the server wants to be left alone."""
        await asyncio.sleep(max(self._requests.reserve(1), self._tokens.reserve(most.tokens)))
        while True:
            wait_s = self._held_until - time.monotonic()
            if wait_s <= 0:
                return
            await asyncio.sleep(wait_s)

    async def _pause(self, attempt: int, error: _Again) -> None:
        if error.wait_s > LONGEST_WAIT_S:
            raise EndpointError(
                f"{self._settings.host} asks to be left alone for {error.wait_s:.0f} s ({error}); "
                "the same command goes on later"
            )
        self._held_until = max(self._held_until, time.monotonic() + error.wait_s)
        if attempt < self._settings.retries:
            longest = min(self._settings.pause_s * 2**attempt, LONGEST_PAUSE_S)
            # Not all at once: half of it is left to chance.
            await asyncio.sleep(longest * random.uniform(0.5, 1))  # noqa: S311 - no secret

    async def _once(self, prompt: Prompt, form: Form) -> Reply:
        settings = self._settings
        body = completions.request(prompt, form, model=settings.model, seed=settings.seed)
        response = await self._post(body)
        if not response.is_success:
            raise self._failure(response)
        try:
            return completions.reply(response.content, prompt)
        except completions.NoCompletion as error:
            raise _Again(f"no chat completion but {self._said(response)!r}", sent=True) from error
        except completions.Filtered as error:
            raise Unanswered(str(error)) from error

    async def _post(self, body: Mapping[str, object]) -> "httpx.Response":
        import httpx

        limit_s = self._settings.timeout_s
        try:
            # The time limits of httpx are for each read; a server that trickles meets none.
            async with asyncio.timeout(limit_s):
                url = self._settings.url.rstrip("/") + "/chat/completions"
                return await self._http.post(url, json=body)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise _Unreachable(str(error) or type(error).__name__) from error
        except (TimeoutError, httpx.TimeoutException) as error:
            raise _Again(f"nothing within {limit_s:g} s", sent=True) from error
        except httpx.RequestError as error:
            raise _Again(f"{type(error).__name__}: {error}", sent=True) from error

    def _failure(self, response: "httpx.Response") -> Exception:
        """Tell what a status other than success means: for this request, or for the run."""
        status, said = response.status_code, self._said(response)
        if status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
            return Unanswered(f"too long for the endpoint: {said}")
        if status in WRONG:
            return _wrong(said)
        if response.is_server_error or (status in TRY_AGAIN and not QUOTA.search(said)):
            told = response.headers.get("Retry-After", "")
            return _Again(f"{status} {said}", wait_s=completions.retry_after(told, time.time()))
        return EndpointError(
            f"{self._settings.host} answers {status}{self._meaning(response)}: {said}"
        )

    def _meaning(self, response: "httpx.Response") -> str:
        settings, status = self._settings, response.status_code
        if status in NO_KEY:
            variable = settings.key_variable
            return (
                f", it refuses the key in {variable}" if variable else ", it wants a key_variable"
            )
        if status == HTTPStatus.NOT_FOUND:
            return f", there is no {settings.url} or no model {settings.model!r}"
        if response.has_redirect_location:
            # The reports were to go to the address that was named, and nowhere else.
            return f", go to {response.headers['Location'][:QUOTED]!r}; if that is right, name it"
        return ""

    def _said(self, response: "httpx.Response") -> str:
        """Quote the server; some repeat the key in what they say."""
        said = completions.error_text(response.content)
        return (said.replace(self._key, "***") if self._key else said)[:QUOTED]


def _wrong(said: str) -> Exception:
    if TOO_LONG.search(said):
        return Unanswered(f"too long for the model: {said}")
    return Unanswered(f"filtered: {said}") if FILTERED.search(said) else _BadRequest(said)
