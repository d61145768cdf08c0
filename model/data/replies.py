"""JSON out of what a language model says: behind thoughts, in fences, amid chatter, cut short.

Knows text and JSON; neither questions nor the endpoint.
"""

import json
import re
from collections.abc import Iterator
from typing import cast

THOUGHT = re.compile(r"<(think|thinking|reasoning)>.*?(</\1>|\Z)", re.DOTALL | re.IGNORECASE)
UNOPENED = re.compile(r"\A.*?</(think|thinking|reasoning)>", re.DOTALL | re.IGNORECASE)
TRAILING_COMMA = re.compile(r",(\s*[\]}])")

OPENINGS = 1000  # that are tried; a model that is stuck writes brackets without end

Object = dict[str, object]


def objects(text: str, key: str) -> list[Object]:
    """Every object with that key, in the order of the text.

    What is inside such an object is not looked through. An object that is cut short is passed
    over, the whole ones before and within it are found.
    """
    spoken = _spoken(text)
    found = _objects(spoken, key)
    repaired = _objects(TRAILING_COMMA.sub(r"\1", spoken), key)
    return repaired if len(repaired) > len(found) else found


def strings(text: str, key: str) -> list[str]:
    """Every string that is listed under that key, anywhere in the text."""
    lists = [each[key] for each in objects(text, key)]
    return [str(item) for each in lists if isinstance(each, list) for item in each]


def _spoken(text: str) -> str:
    """Leave out what a model thinks aloud: drafts stand there.

    Some servers take the opening mark for part of the prompt, so that only the closing one comes.
    """
    return UNOPENED.sub("", THOUGHT.sub("", text))


def _objects(text: str, key: str) -> list[Object]:
    found: list[Object] = []
    decoder = json.JSONDecoder(strict=False)
    at = 0
    for _ in range(OPENINGS):
        start = text.find("{", at)
        if start < 0:
            break
        try:
            value, at = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            at = start + 1
        else:
            found += _within(value, key)
    return found


def _within(value: object, key: str) -> Iterator[Object]:
    if isinstance(value, dict):
        if key in value:
            yield cast(Object, value)
            return
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            yield from _within(each, key)
