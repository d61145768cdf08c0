import json
import time

import pytest

from model.data.replies import objects, strings

OBJECTS = [{"letter": "A", "why": {"letter": "x"}}, {"letter": "{B}"}]
PLAIN = json.dumps({"answers": OBJECTS})


@pytest.mark.parametrize(
    "text",
    [
        PLAIN,
        json.dumps(OBJECTS),
        f"```json\n{json.dumps({'answers': OBJECTS}, indent=2)}\n```",
        f"Sure! Here is [what you asked for] {{in JSON}}:\n{PLAIN}\nAnything else?",
        f'<think>{{"letter": "D"}} or so</think>\n{PLAIN}',
        f'the thought {{"letter": "D"}} begins before the reply</think>{PLAIN}',
        f'{PLAIN}<think>Was that {{"letter": "D"}}?',
        PLAIN[:-1],
        PLAIN + ' {"letter": "C", "why": "cut sho',
        PLAIN.replace("}]", "},]").replace('"}}', '",}}'),
        "\n".join(map(json.dumps, OBJECTS)),
        '{"letter": ' * 3 + PLAIN,
    ],
)
def test_objects_are_found_in_fences_chatter_thoughts_and_what_is_cut_short(text: str) -> None:
    assert objects(text, "letter") == OBJECTS


@pytest.mark.parametrize(
    "text", ["", "null", "No.", '"letter"', "<think>{}", '{"letter": "A', "{[" * 9]
)
def test_where_there_is_no_object_none_is_found(text: str) -> None:
    assert objects(text, "letter") == []


def test_brackets_without_end_are_no_trap() -> None:
    started = time.monotonic()
    for stuck in ("[", "{", '{"a": ', '{"a": ['):
        assert objects('{"letter": "A"}' + stuck * 20_000, "letter") == [{"letter": "A"}]
    assert time.monotonic() - started < 10


def test_lists_of_words_are_found() -> None:
    assert strings('{"questions": [], "not_stated": ["phase", 3]}', "not_stated") == ["phase", "3"]
    assert strings('{"not_stated": "phase"}', "not_stated") == []
