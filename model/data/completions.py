"""The words of an OpenAI-compatible `/chat/completions`: requests and replies, as JSON.

Knows the wire; neither patience nor what is asked. Structured output is asked for in three forms,
since servers differ: vLLM and llama.cpp take a JSON schema, older ones an object, some only text.
"""

import email.utils
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum

from model.data.allowance import Usage

BYTES_PER_TOKEN = 2  # fewer than any European language and its numbers have
OVERHEAD = 16  # tokens of a chat template


class NoCompletion(Exception):
    """What came with status 200 is no chat completion."""


class Filtered(Exception):
    """The endpoint will not say what it was to say."""


class Form(IntEnum):
    """How structured output is asked for, the strictest first."""

    SCHEMA = 0
    OBJECT = 1
    TEXT = 2


@dataclass(frozen=True)
class Prompt:
    """One request: which step of the work, on what, what is said, and the schema of the reply.

    A reply is of use if it holds an object with one of the `keys`.
    """

    step: str
    subject: str
    system: str
    user: str
    schema: Mapping[str, object]
    keys: tuple[str, ...]
    max_tokens: int
    temperature: float = 0.0


@dataclass(frozen=True)
class Reply:
    """What was said, and what it took."""

    text: str
    usage: Usage


def request(prompt: Prompt, form: Form, *, model: str, seed: int) -> dict[str, object]:
    """Say the body of a request."""
    body: dict[str, object] = {
        "model": model,
        "messages": [
            {"role": "system", "content": prompt.system},
            {"role": "user", "content": prompt.user},
        ],
        "max_tokens": prompt.max_tokens,
        "temperature": prompt.temperature,
        "seed": seed,
    }
    if form is Form.SCHEMA:
        schema = {"name": prompt.step, "strict": True, "schema": prompt.schema}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    elif form is Form.OBJECT:
        body["response_format"] = {"type": "json_object"}
    return body


def most(prompt: Prompt) -> Usage:
    """Estimate the most that a request can take."""
    said = _tokens(prompt.system) + _tokens(prompt.user) + OVERHEAD
    return Usage(said, prompt.max_tokens, estimated=True)


def reply(body: bytes, prompt: Prompt) -> Reply:
    """Read a completion.

    Raises
    ------
    NoCompletion
        It is none; some gateways report errors with status 200.
    Filtered
        It was held back.
    """
    try:
        told = json.loads(body)
        choice = told["choices"][0]
        text = choice["message"].get("content") or ""
        filtered = choice.get("finish_reason") == "content_filter"
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise NoCompletion(type(error).__name__) from error
    if filtered:
        raise Filtered("the endpoint filtered its answer")
    return Reply(str(text), _usage(told.get("usage"), prompt, str(text)))


def _usage(told: object, prompt: Prompt, text: str) -> Usage:
    if isinstance(told, dict):
        asked, said = told.get("prompt_tokens"), told.get("completion_tokens")
        if isinstance(asked, int) and isinstance(said, int) and min(asked, said) >= 0:
            return Usage(asked, said)
    return Usage(most(prompt).prompt_tokens, _tokens(text), estimated=True)


def _tokens(text: str) -> int:
    return len(text.encode(errors="replace")) // BYTES_PER_TOKEN + 1


def retry_after(told: str, now: float) -> float:
    """Seconds until the server wants to be asked again (RFC 9110 10.2.3); 0 if it does not say.

    `now` is the wall clock, for a server that names a date.
    """
    if re.fullmatch(r"\d+(\.\d+)?", told.strip()):
        return float(told)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(told).timestamp() - now)
    except (ValueError, OverflowError):
        return 0.0


def error_text(body: bytes) -> str:
    """Find what a server says of an error: the words, its code and type."""
    text = body.decode(errors="replace")
    try:
        told = json.loads(text)
    except ValueError:
        return " ".join(text.split())
    error = told.get("error", told) if isinstance(told, dict) else told
    if isinstance(error, dict):
        error = " ".join(
            str(error[each]) for each in ("message", "code", "type") if error.get(each)
        )
    return " ".join(str(error).split())
