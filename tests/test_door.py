import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dicom_node import config as settings
from dicom_node.config import Config
from dicom_node.config.peers import Identity, Peer
from dicom_node.errors import ConfigError
from dicom_node.ledger import Ledger
from dicom_node.scp.door import LEAST_WAITING, MOST_TOLD, Door, Refusals, Refused, Visitor

CT, PACS = "192.0.2.5", "198.51.100.9"
CERTIFICATE = Identity("ab" * 32, "ct1", ("CT1.clinic.example", "192.0.2.5"))
CALLING_UNKNOWN, CALLED_UNKNOWN = (1, 1, 3), (1, 1, 7)
CONGESTION, LOCAL_LIMIT = (2, 3, 1), (2, 3, 2)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def door(*peers: Peer, clock: Callable[[], float] = Clock(), **settings: Any) -> Door:  # noqa: B008
    certified = any(each.certificates for each in peers)
    if certified:
        settings["tls_certificate"] = "node.pem"
    return Door(Config(peers=peers, **settings), clock)


def enter(of: Door, address: str = CT) -> Visitor:
    visitor = of.connected(address)
    assert isinstance(visitor, Visitor), visitor
    return visitor


def ask(
    of: Door,
    address: str = CT,
    calling: str = "CT1",
    called: str = "LAMED",
    identity: Identity | None = None,
) -> tuple[int, int, int] | Visitor:
    """Go through the door as a connection does; what it is refused with, or the visitor."""
    visitor = enter(of, address)
    refused = of.identified(visitor, identity) or of.asked(visitor, calling, called)
    if refused is None:
        return visitor
    of.left(visitor)
    return (refused.result, refused.source, refused.diagnostic)


def admits(*args: Any, **named: Any) -> bool:
    return isinstance(ask(*args, **named), Visitor)


# --- who ------------------------------------------------------------------------------------------


def test_without_settings_anyone_is_admitted_who_calls_us_by_our_title() -> None:
    for address in (CT, "fe80::1%eth0", "not an address"):
        assert admits(door(), address, "ANY", "LAMED")
        assert admits(door(), address, " ANY ", " LAMED ")
        assert ask(door(), address, "ANY", "OTHER") == CALLED_UNKNOWN


def test_the_calling_ae_titles_admit_as_before() -> None:
    of = door(calling_ae_titles=("CT1",))
    assert admits(of, calling="CT1")
    assert ask(of, calling="CT2") == CALLING_UNKNOWN
    assert ask(of, calling="ct1") == CALLING_UNKNOWN
    assert ask(of, calling="CT2", called="OTHER") == CALLING_UNKNOWN


def test_an_address_that_no_peer_has_is_refused_before_anything_is_read() -> None:
    of = door(Peer("ct", addresses=("192.0.2.0/24",)), Peer("v6", addresses=("2001:db8::/32",)))
    for known in (
        "192.0.2.0",
        "192.0.2.255",
        "::ffff:192.0.2.7",
        "2001:db8::1",
        "2001:db8::1%eth0",
    ):
        assert isinstance(of.connected(known), Visitor)
    for unknown in ("198.51.100.0", "::ffff:198.51.100.7", "2001:db9::1", "", "192.0.2.7.evil"):
        refused = of.connected(unknown)
        assert isinstance(refused, Refused)
        assert "no peer is allowed from this address" in refused.reason


def test_a_peer_is_its_title_from_its_address() -> None:
    of = door(
        Peer("ct", ae_titles=("CT1",), addresses=(CT,)),
        Peer("pacs", ae_titles=("PACS",), addresses=(PACS,)),
    )
    assert admits(of, CT, "CT1")
    assert admits(of, PACS, "PACS")
    for address, calling in ((CT, "PACS"), (PACS, "CT1"), (CT, "OTHER"), (CT, "")):
        assert ask(of, address, calling) == CALLING_UNKNOWN


def test_a_stranger_does_not_learn_which_titles_there_are() -> None:
    of = door(
        Peer("ct", ae_titles=("CT1",), certificates=("cn:ct1",)),
        Peer("old", ae_titles=("OLD",), allowed=False),
    )
    told = {ask(of, calling=each) for each in ("CT1", "OLD", "NONE")}
    assert told == {CALLING_UNKNOWN}


def test_the_first_peer_that_fits_decides() -> None:
    bad = Peer("bad", addresses=("192.0.2.66",), allowed=False)
    rest = Peer("clinic", addresses=("192.0.0.0/16",))
    assert isinstance(door(bad, rest).connected("192.0.2.66"), Refused)
    assert admits(door(bad, rest), "192.0.2.67")
    assert admits(door(rest, bad), "192.0.2.66")


def test_a_title_that_is_refused_is_refused_from_everywhere_once_it_is_known() -> None:
    of = door(Peer("old", ae_titles=("OLD",), allowed=False), Peer("clinic"))
    assert ask(of, CT, "OLD") == CALLING_UNKNOWN
    assert admits(of, CT, "NEW")


def test_a_title_belongs_to_the_peers_that_name_it() -> None:
    of = door(Peer("pacs", ae_titles=("PACS",), addresses=(PACS,)), Peer("clinic"))
    assert admits(of, PACS, "PACS")
    assert admits(of, CT, "CT1")
    assert ask(of, CT, "PACS") == CALLING_UNKNOWN


@pytest.mark.parametrize(
    "mark",
    [
        "cn:ct1",
        "cn:CT1",
        "san:ct1.clinic.example",
        "san:192.0.2.5",
        f"sha256:{'AB' * 32}",
        "sha256:" + ":".join(["ab"] * 32),
    ],
)
def test_a_certificate_may_use_the_titles_of_its_peer_and_no_others(mark: str) -> None:
    of = door(Peer("ct", ae_titles=("CT1", "CT2"), certificates=(mark,)), Peer("clinic"))
    assert admits(of, calling="CT1", identity=CERTIFICATE)
    assert admits(of, calling="CT2", identity=CERTIFICATE)
    assert ask(of, calling="CT3", identity=CERTIFICATE) == CALLING_UNKNOWN
    for other in (None, Identity("cd" * 32, "ct11", ("clinic.example",))):
        assert ask(of, calling="CT1", identity=other) == CALLING_UNKNOWN
        assert admits(of, calling="CT3", identity=other)


def test_who_shows_no_fitting_certificate_is_refused_before_it_asks() -> None:
    of = door(Peer("ct", certificates=("cn:ct1",)))
    for identity, told in ((None, "no certificate"), (Identity("cd" * 32, "ct2"), "ct2")):
        refused = of.identified(enter(of), identity)
        assert refused is not None
        assert told in refused.reason
    assert of.identified(enter(of), CERTIFICATE) is None


def test_a_common_name_is_no_san_and_no_fingerprint() -> None:
    posing = Identity("cd" * 32, "ct1.clinic.example", ("ab" * 32,))
    for mark in ("san:ct1.clinic.example", f"sha256:{'ab' * 32}", "cn:" + "ab" * 32):
        assert not admits(door(Peer("ct", certificates=(mark,))), identity=posing)


# --- how many -------------------------------------------------------------------------------------


def refused_asking(of: Door, address: str = CT) -> tuple[int, int, int]:
    refused = ask(of, address)
    assert not isinstance(refused, Visitor)
    return refused


def test_the_associations_of_all_are_counted_until_they_leave() -> None:
    of = door(maximum_associations=2)
    first, second = ask(of), ask(of, PACS)
    assert isinstance(first, Visitor)
    assert isinstance(second, Visitor)
    assert refused_asking(of) == LOCAL_LIMIT
    of.left(first)
    of.left(first)
    assert isinstance(ask(of), Visitor)
    assert refused_asking(of) == LOCAL_LIMIT


def test_a_peer_has_a_limit_of_its_own() -> None:
    of = door(Peer("ct", addresses=(CT,), maximum_associations=1), Peer("pacs", addresses=(PACS,)))
    first = ask(of)
    assert refused_asking(of) == LOCAL_LIMIT
    assert admits(of, PACS)
    assert of.open == {"ct": 1, "pacs": 1}
    assert isinstance(first, Visitor)
    of.left(first)
    assert admits(of)


def test_a_rate_lets_a_minutes_burst_in_and_then_comes_back_evenly() -> None:
    clock = Clock()
    of = door(Peer("ct", addresses=(CT,), associations_per_minute=6), Peer("rest"), clock=clock)
    for _ in range(6):
        assert admits(of)
    assert refused_asking(of) == CONGESTION
    assert admits(of, PACS)
    clock.now += 9.9
    assert refused_asking(of) == CONGESTION
    clock.now += 0.2
    assert admits(of)
    assert refused_asking(of) == CONGESTION
    clock.now += 3600
    assert [isinstance(ask(of), Visitor) for _ in range(7)] == [True] * 6 + [False]


def test_probes_that_only_connect_cost_nothing_lasting_and_no_rate() -> None:
    of = door(Peer("ct", addresses=(CT,), associations_per_minute=1))
    for _ in range(10_000):
        of.left(enter(of))
    assert admits(of)
    assert (of.waiting, of.open, len(of._here), len(of._waiting)) == (0, {"ct": 1}, 1, 0)


def test_who_is_refused_spends_no_rate_of_the_peer() -> None:
    of = door(Peer("ct", ae_titles=("CT1",), addresses=(CT,), associations_per_minute=1))
    for _ in range(5):
        assert ask(of, CT, "GUESS") == CALLING_UNKNOWN
        assert ask(of, CT, "CT1", "OTHER") == CALLED_UNKNOWN
    assert admits(of)


def test_silent_connections_of_one_address_leave_room_for_others() -> None:
    of = door(maximum_associations=2)
    silent = [enter(of) for _ in range(LEAST_WAITING // 2)]
    refused = of.connected(CT)
    assert isinstance(refused, Refused)
    assert "of this address have not asked yet" in refused.reason
    assert admits(of, PACS)
    of.left(silent[0])
    assert admits(of, CT)


def test_silent_connections_of_many_addresses_are_bounded() -> None:
    of = door()
    outcomes = [of.connected(f"10.1.0.{each}") for each in range(250)]
    let_in = [each for each in outcomes if isinstance(each, Visitor)]
    assert len(let_in) == of.waiting == 64
    for each in let_in:
        of.left(each)
    assert of.waiting == 0
    assert not of._waiting


def test_an_association_waits_no_longer() -> None:
    of = door(maximum_associations=100)
    for _ in range(100):
        assert admits(of)
    assert of.waiting == 0


def test_a_visitor_asks_once_and_not_after_it_left() -> None:
    of = door()
    visitor = ask(of)
    assert isinstance(visitor, Visitor)
    for _ in range(2):
        with pytest.raises(ValueError, match="asks once"):
            of.asked(visitor, "CT1", "LAMED")
        of.left(visitor)
    assert of.open == {}


def test_the_counts_hold_with_many_threads() -> None:
    of = door(Peer("ct", maximum_associations=3), maximum_associations=50)
    most: list[int] = []
    lock = threading.Lock()

    def come_and_go(seed: int) -> None:
        dice = random.Random(seed)
        for _ in range(200):
            visitor = of.connected(f"192.0.2.{dice.randrange(4)}")
            if isinstance(visitor, Refused):
                continue
            if dice.random() < 0.5 and of.asked(visitor, "CT1", "LAMED") is None:
                with lock:
                    most.append(of.open["ct"])
            of.left(visitor)

    threads = [threading.Thread(target=come_and_go, args=(seed,)) for seed in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert 1 <= max(most) <= 3
    assert (of.waiting, of.open, of._here) == (0, {}, set())


# --- settings -------------------------------------------------------------------------------------

TABLES = """
tls_certificate = "node.pem"
[[peers]]
name = "CT 1"
ae_titles = ["CT1", "CT2"]
addresses = ["192.0.2.0/24", "2001:db8::5"]
certificates = ["cn:ct1"]
maximum_associations = 4
associations_per_minute = 120
[[peers]]
name = "old"
addresses = ["203.0.113.9"]
allowed = false
"""


def test_peers_are_tables_of_the_settings(tmp_path: Path) -> None:
    (tmp_path / "node.toml").write_text(TABLES)
    found = settings.load(tmp_path / "node.toml", {})
    assert found.peers == (
        Peer("CT 1", ("CT1", "CT2"), ("192.0.2.0/24", "2001:db8::5"), ("cn:ct1",), 4, 120),
        Peer("old", (), ("203.0.113.9",), allowed=False),
    )
    shown = {each.name: each.value for each in settings.describe(tmp_path / "node.toml", {})}
    assert shown["peers"] == (
        "CT 1: CT1/CT2 192.0.2.0/24/2001:db8::5 cn:ct1, old REFUSED: 203.0.113.9"
    )


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('adresses = ["192.0.2.5"]', "perhaps addresses"),
        ('ae_titles = "CT1"', "ae_titles of a peer must be a list"),
        ('ae_titles = ["SEVENTEEN LETTERS"]', "ae_titles of peer ct must be an AE title"),
        ('addresses = ["ct1.clinic"]', "addresses of peer ct must be IP addresses"),
        ('addresses = ["192.0.2.5/24"]', "addresses of peer ct must be IP addresses"),
        ("addresses = [167772165]", "addresses of peer ct must be IP addresses"),
        ('certificates = ["ct1"]', "certificates of peer ct must be sha256"),
        ('certificates = ["cn:"]', "certificates of peer ct must be sha256"),
        ('certificates = ["sha256:ab"]', "certificates of peer ct must be sha256"),
        ("maximum_associations = -1", "maximum_associations of peer ct must be a whole number, 0"),
        ("maximum_associations = true", "maximum_associations of peer ct must be a whole number"),
        ("associations_per_minute = 1.5", "associations_per_minute of peer ct must be a whole"),
        ('allowed = "no"', "allowed of peer ct must be true or false"),
        ('certificates = ["cn:ct1"]', "peers ct must show a certificate, but tls_certificate"),
        ('[[peers]]\nname = "ct"', "each of peers must have a name of its own"),
        ("[[peers]]\nname = 5", "the name of a peer must be 1-64 characters"),
    ],
)
def test_a_mistake_in_a_peer_is_told(line: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "node.toml").write_text(f'[[peers]]\nname = "ct"\n{line}\n')
    with pytest.raises(ConfigError, match=told):
        settings.load(tmp_path / "node.toml", {})


# --- what is told ---------------------------------------------------------------------------------


class Told:
    def __init__(self) -> None:
        self.clock, self.events = Clock(), list[dict[str, Any]]()
        self.refusals = Refusals(self.tell, self.clock)

    def tell(self, kind: str, **data: Any) -> None:
        assert kind == "association.rejected"
        self.events.append(data)

    def flush(self, after_s: float = 0.0) -> list[dict[str, Any]]:
        self.clock.now += after_s
        self.events.clear()
        self.refusals.flush()
        return list(self.events)


def test_a_refusal_is_told_at_once_and_what_follows_once_a_minute() -> None:
    told = Told()
    told.refusals.add(CT, "calling AE title not recognized", "CT9", "LAMED")
    (first,) = told.flush()
    assert first == {
        "peer": CT,
        "count": 1,
        "reasons": {"calling AE title not recognized": 1},
        "calling_ae": "CT9",
        "called_ae": "LAMED",
        "reason": "calling AE title not recognized",
    }
    for _ in range(500):
        told.refusals.add(CT, "called AE title not recognized", "CT9", "OTHER")
    told.refusals.add(PACS, "no certificate")
    assert [(each["peer"], each["count"]) for each in told.flush(1)] == [(PACS, 1)]
    assert told.flush(57) == []
    (rest,) = told.flush(3)
    assert (rest["peer"], rest["count"], rest["reason"]) == (
        CT,
        500,
        "called AE title not recognized",
    )


def test_who_was_quiet_for_a_minute_is_forgotten_and_told_at_once_again() -> None:
    told = Told()
    told.refusals.add(CT, "why")
    assert len(told.flush()) == 1
    assert told.flush(61) == []
    assert not told.refusals._held
    told.refusals.add(CT, "why")
    assert len(told.flush()) == 1


def test_a_flood_from_many_addresses_is_told_in_bounded_number() -> None:
    told = Told()
    for each in range(5000):
        told.refusals.add(f"2001:db8::{each:x}", f"reason {each}")
    events = told.flush()
    assert len(events) == MOST_TOLD + 1
    assert sum(each["count"] for each in events) == 5000
    assert max(len(each["reasons"]) for each in events) <= 8
    assert events[-1]["peer"] == "others"


def test_what_is_left_is_told_at_the_stop_whatever_becomes_of_the_ledger(ledger: Ledger) -> None:
    failing = iter([RuntimeError("database is locked")])

    def tell(kind: str, **data: object) -> None:
        for each in failing:
            raise each
        ledger.event(kind, **data)

    refusals = Refusals(tell)
    refusals.add(CT, "why")
    refusals.add(PACS, "why")
    stop = threading.Event()
    stop.set()
    refusals.run(stop)
    (event,) = ledger.events()
    assert (event.kind, event.data["peer"], event.data["count"]) == (
        "association.rejected",
        PACS,
        1,
    )
