"""A destination that fails is left alone for a while, and gets everything when it is back."""

# ruff: noqa: F811 - fixtures of another file

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from desk import until
from test_delivery import events, finish, made, only, running  # noqa: F401 - fixtures
from test_proof import Pacs

from dicom_node.config import Config
from dicom_node.ledger import Ledger
from dicom_node.scu import backoff
from dicom_node.scu.backoff import FAILURES, Breaker

Finish = Callable[..., str]


def test_a_destination_that_fails_again_and_again_is_left_alone_for_a_while() -> None:
    now = [0.0]
    breaker = Breaker(lambda: now[0])
    assert [breaker.failed() for _ in range(FAILURES)] == [False] * (FAILURES - 1) + [True]
    assert breaker.is_open
    now[0] = 5.1
    assert not breaker.is_open
    assert breaker.is_tripped
    assert not breaker.failed()  # told once only
    now[0] = 15
    assert breaker.is_open
    for _ in range(50):
        breaker.failed()
    now[0] += 301
    assert not breaker.is_open
    assert breaker.worked()
    assert not breaker.is_tripped
    assert not breaker.worked()


def test_a_dead_destination_costs_three_attempts_not_one_for_each_study(
    ledger: Ledger,
    config: Config,
    finish: Finish,
) -> None:
    with Pacs().up() as address:
        pass
    jobs = [finish(address) for _ in range(8)]
    with running(ledger, config):
        until(lambda: bool(events(ledger, "destination.down")))
    tried = [only(ledger, each).attempts for each in jobs]
    assert sum(tried) == FAILURES
    assert "cannot be reached" in str(events(ledger, "destination.down")[0]["reason"])


def test_what_waits_for_a_destination_goes_at_once_when_that_is_back(
    ledger: Ledger,
    config: Config,
    finish: Finish,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The wait of one is over soon, those of the others in an hour."""
    monkeypatch.setattr(backoff, "SHORTEST_REST_S", 0.05)
    config = replace(config, delivery_backoff_s=0.05)
    peer = Pacs(report="never", status=0xA700)
    with peer.up() as address, running(ledger, config):
        jobs = [finish(address) for _ in range(4)]
        until(lambda: bool(events(ledger, "destination.down")))
        for each in jobs[1:]:
            later = datetime.now(UTC) + timedelta(hours=1)
            told = {"detail": "later", "next_at": later}
            until(lambda: only(ledger, jobs[0]).attempts > 2)
            ledger.record_delivery(only(ledger, each).id, "pending", **told)
        peer.status = 0x0000
        until(lambda: all(only(ledger, each).state == "sent-unproven" for each in jobs))
    assert events(ledger, "destination.up")


def test_a_peer_that_refuses_for_good_is_there_and_nothing_is_held_from_it(
    ledger: Ledger,
    config: Config,
    finish: Finish,
) -> None:
    with Pacs(report="never", status=0xC001).up() as address:
        jobs = [finish(address) for _ in range(FAILURES + 2)]
        with running(ledger, config):
            until(lambda: all(only(ledger, each).state == "failed" for each in jobs))
    assert not events(ledger, "destination.down")
