"""What fuzzing has found, and a few cases of each kind, are put to the node again; some are new.

`python -m tests.breaking fuzz` runs as many as there is time for.
"""

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dicom_node.errors import BadInput, Mismatch, NotDicom
from dicom_node.network.dimse import Command
from dicom_node.network.part10 import Part10
from dicom_node.network.upper_layer import Violation, decode_proposal
from dicom_node.spool import header
from dicom_node.volume import codestream
from tests.breaking import CORPUS, campaign, data_sets, fuzz, speech
from tests.breaking.mutation import mangled, shaken
from tests.breaking.targets import TARGETS, Found, exchange

FRESH = 60  # new cases of each target, the same in every run
pytestmark = pytest.mark.filterwarnings("ignore")  # pydicom warns of what is broken on purpose


@pytest.mark.parametrize("name", TARGETS)
def test_what_was_telling_is_answered_in_every_run(name: str, tmp_path: Path) -> None:
    told = json.loads((CORPUS / f"{name}.json").read_text())
    with TARGETS[name](tmp_path / name) as target:
        for each in told:
            with campaign.limited(target.limit_s):
                target.run(campaign.case_of(each))
        for index in range(FRESH // 4 if name in {"http", "frames"} else FRESH):
            with campaign.limited(target.limit_s):
                target.run(target.make(Random(f"every run:{index}")))
        target.check()
    assert len(told) >= 10


def test_a_broken_promise_is_found_and_a_campaign_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = campaign.run("header", 40, 7, tmp_path, lambda _: None)
    again = campaign.run("header", 60, 7, tmp_path, lambda _: None)
    assert (first["done"], again["done"], again["found"]) == (40, 60, [])
    assert sum(again["outcomes"].values()) == 60
    with TARGETS["header"](tmp_path / "t") as target:
        whole = data_sets.models()[0]
        monkeypatch.setattr(header, "_read", lambda *_: dict.fromkeys(header.HEADER, "another"))
        with pytest.raises(Found, match="differ"):
            target.run(campaign.Case(whole.content, whole.syntax))


def test_a_process_that_dies_has_found_something(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(campaign, "_child", _dying)
    block = campaign._block("header", 1, 5, 9)
    assert (block["done"], block["outcomes"]) == (8, {"crash": 1})
    assert block["found"][0]["what"] == "the process ended with -9"


def _dying(_: str, __: int, ___: int, ____: int, place: str, _____: Any) -> None:
    import os
    import signal

    Path(place).write_bytes((7).to_bytes(8, "little"))
    os.kill(os.getpid(), signal.SIGKILL)


def test_the_corpus_is_small() -> None:
    assert sum(path.stat().st_size for path in CORPUS.glob("*.json")) < 400_000
    assert fuzz.KEPT <= 40


# --- by hypothesis: what is bytes only ------------------------------------------------------------

SEEDS = st.integers(0, 1 << 32)


def _proposal() -> bytes:
    asked = [(speech.CT, [speech.EXPLICIT]), (speech.VERIFICATION, [speech.IMPLICIT])]
    return speech.proposal(asked, b"LAMED", b"SCANNER", 16_382).encode()[6:]


def _command() -> bytes:
    return speech.command(speech.C_STORE, speech.CT, "1.2.3", data=True).encode()


READERS: dict[str, tuple[Callable[[bytes], object], Callable[[], bytes], tuple[Any, ...]]] = {
    "proposal": (decode_proposal, _proposal, (Violation,)),
    "command": (Command.decode, _command, (BadInput,)),
    "header": (
        lambda content: header.read(content, speech.EXPLICIT),
        lambda: data_sets.models()[0].content,
        (NotDicom, Mismatch),
    ),
    "codestream": (
        codestream.size,
        lambda: b"\xff\x4f\xff\x51" + bytes(60),
        (ValueError,),
    ),
}


@pytest.mark.parametrize("name", READERS)
@given(seed=SEEDS, noise=st.binary(max_size=200))
@settings(max_examples=150, deadline=None)
def test_bytes_are_read_or_refused_in_the_words_of_the_node(
    name: str, seed: int, noise: bytes
) -> None:
    read, whole, refusals = READERS[name]
    random = Random(seed)
    for content in (mangled(whole(), random, 3), noise, whole()[: seed % 300] + noise):
        with suppress(*refusals):
            read(content)


@given(seed=SEEDS)
@settings(max_examples=60, deadline=None)
def test_a_tree_that_lies_about_its_lengths_is_no_crash(seed: int) -> None:
    tree, random = speech.proposal([(speech.CT, [speech.EXPLICIT])], b"A", b"B", 0), Random(seed)
    shaken(tree, random, 5)
    with suppress(Violation):
        decode_proposal(tree.encode()[6:])


@given(content=st.binary(max_size=600))
@settings(max_examples=100, deadline=None)
def test_a_file_is_one_or_bad_input(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.dcm"
    for each in (content, bytes(128) + b"DICM" + content):
        path.write_bytes(each)
        with suppress(BadInput):
            _ = Part10.read(path).place


def test_a_thousand_peers_that_only_connect_leave_nothing(tmp_path: Path) -> None:
    with TARGETS["association"](tmp_path / "node") as target:
        before = campaign.resident_mb()
        for _ in range(1000):
            exchange(target.scp.port, b"")  # type: ignore[attr-defined]
        target.check()
        assert campaign.resident_mb() - before < 10
