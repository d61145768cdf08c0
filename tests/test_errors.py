import inspect
import re

import pytest

from dicom_node import errors
from dicom_node.errors import NodeError, UnusableSeries

ROW = re.compile(
    r"^    (?P<indent>[│ ]*(?:├── |└── )?)(?P<name>\w+) +(?:(?P<status>0x[0-9A-F]{4}) +)?"
    r"(?P<http>\d{3})  exit (?P<code>\d)   (?P<meaning>\S.*)$",
    re.MULTILINE,
)
TABLE = list(ROW.finditer(str(errors.__doc__)))
CLASSES = {
    name: each
    for name, each in vars(errors).items()
    if inspect.isclass(each) and issubclass(each, NodeError)
}


def test_the_table_has_every_class_once() -> None:
    assert [row["name"] for row in TABLE].count("NodeError") == 1
    assert sorted(row["name"] for row in TABLE) == sorted(CLASSES)
    lines = [line for line in str(errors.__doc__).splitlines() if re.search(r" exit \d", line)]
    assert len(lines) == len(TABLE)


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row["name"])
def test_the_table_says_what_the_class_says(row: re.Match[str]) -> None:
    error = CLASSES[row["name"]]
    assert (error.http_status, error.exit_code) == (int(row["http"]), int(row["code"]))
    if row["status"]:
        assert error.status == int(row["status"], 16)
    else:
        assert "status" not in vars(error)


def test_the_table_is_the_tree_of_the_classes() -> None:
    above: list[str] = []
    for row in TABLE:
        depth = len(row["indent"]) // 4
        above[depth:] = [row["name"]]
        parent = above[depth - 1] if depth else Exception.__name__
        assert [each.__name__ for each in CLASSES[row["name"]].__bases__] == [parent]


def test_every_class_says_what_it_means() -> None:
    for error in CLASSES.values():
        assert str(error.__doc__).split("\n")[0].endswith(".")


def test_each_number_is_one_that_the_other_side_knows() -> None:
    # PS3.7 C.5.7 processing failure; PS3.4 Table B.2-1: A7xx, A9xx, Cxxx.
    assert {each.status >> 12 for each in CLASSES.values()} <= {0x0, 0xA, 0xC}
    assert {each.status for each in CLASSES.values() if each.status >> 12 == 0} == {0x0110}
    assert {each.exit_code for each in CLASSES.values()} == {2, 3, 4, 5}
    assert all(400 <= each.http_status < 600 for each in CLASSES.values())


def test_a_peer_is_told_to_try_again_only_where_that_may_help() -> None:
    again = {name for name, each in CLASSES.items() if each.status >> 8 == 0xA7}
    peers = {"PeerError", "SilentPeer", "Busy", "NotTaken"}
    assert again == {"Unavailable", "OutOfResources"} | peers
    assert {CLASSES[name].exit_code for name in again} == {4}


def test_an_unusable_series_has_a_word_for_rules_and_a_sentence_for_people() -> None:
    error = UnusableSeries("missing-slice", "expected 40 slices, got 39")
    assert error.reason == "missing-slice"
    assert str(error) == "missing-slice: expected 40 slices, got 39"
