"""Who may come in: decided when a peer connects, shows a certificate, and asks for an association.

Knows the settings' peers, counts and rates. Must not know sockets, TLS or pynetdicom: it is asked
by whoever has those, from any thread, and never waits for anything.

    connected    before a byte is read: is any peer allowed from this address; is there room to wait
    identified   after the TLS handshake: is any peer allowed with this certificate from here
    asked        with the AE titles of the A-ASSOCIATE-RQ: which peer it is, its limits, its rate
    left         whatever became of it

Peers are tried in the order of the settings, as a firewall's rules are. An AE title or certificate
that some peer names belongs to the peers that name it: no other one admits it. No ``[[peers]]``
admit anyone; ``calling_ae_titles``, if set, must hold the title whatever the peers say.

Who only connects, as the probes of load balancers do, leaves nothing behind and spends no rate; it
waits in a room of its own, of which one address never gets more than half.
"""

import ipaddress
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from dicom_node.config import Config
from dicom_node.config.peers import Identity, Peer

Clock = Callable[[], float]
LEAST_WAITING = 32  # connections that have not asked yet, however few associations are allowed
MINUTE_S = 60.0
MOST_TOLD, MOST_REASONS = 256, 8  # addresses told of by themselves; reasons counted for each
OTHERS = "others"

log = logging.getLogger(__name__)

# PS3.8 Table 9-21: result, source, reason/diagnostic. A stranger is told the same whatever it is
# that does not fit, so that nobody learns by trying which AE titles there are.
Triple = tuple[int, int, int]
CALLING_UNKNOWN: Triple = (1, 1, 3)
CALLED_UNKNOWN: Triple = (1, 1, 7)
CONGESTION: Triple = (2, 3, 1)
LOCAL_LIMIT: Triple = (2, 3, 2)


@dataclass(frozen=True)
class Refused:
    """A decision against a peer: the A-ASSOCIATE-RJ (PS3.8 Table 9-21), and why, in plain words.

    The triple is also given where nothing was asked yet; there the connection is just closed.
    """

    result: int
    source: int
    diagnostic: int
    reason: str


@dataclass(eq=False)
class Visitor:
    """One connection, from `Door.connected` to `Door.left`."""

    address: str
    identity: Identity | None = None
    peer: Peer | None = None  # once it is admitted


class Door:
    """The counts of one process, and its decisions."""

    def __init__(self, config: Config, clock: Clock = time.monotonic) -> None:
        self._called = config.ae_title
        self._calling = frozenset(config.calling_ae_titles)
        self._most = config.maximum_associations
        self._peers = _Peers(config.peers or (Peer("anyone"),))
        self._rates = {
            each.name: _Bucket(each.associations_per_minute, clock)
            for each in config.peers
            if each.associations_per_minute
        }
        self._here: set[Visitor] = set()
        self._waiting: Counter[str] = Counter()
        self._open: Counter[str] = Counter()
        self._lock = threading.Lock()

    def connected(self, address: str) -> Visitor | Refused:
        """Decide before anything is read; the address without its port."""
        address = _plain(address)
        if self._peers.first(_Facts(address)) is None:
            return _refused(CALLING_UNKNOWN, "no peer is allowed from this address")
        room = max(LEAST_WAITING, self._most)
        with self._lock:
            if self._waiting.total() >= room:
                return _refused(LOCAL_LIMIT, f"{room} connections wait that have not asked yet")
            if self._waiting[address] >= room // 2:
                return _refused(
                    LOCAL_LIMIT, f"{room // 2} connections of this address have not asked yet"
                )
            self._waiting[address] += 1
            visitor = Visitor(address)
            self._here.add(visitor)
        return visitor

    def identified(self, visitor: Visitor, identity: Identity | None) -> Refused | None:
        """Decide after the TLS handshake; None is a peer without TLS or without a certificate."""
        visitor.identity = identity
        if self._peers.first(_Facts(visitor.address, identity, told=True)) is None:
            shown = f"the certificate {identity}" if identity else "no certificate"
            return _refused(CALLING_UNKNOWN, f"no peer is allowed from this address with {shown}")
        return None

    def asked(self, visitor: Visitor, calling_ae: str, called_ae: str) -> Refused | None:
        """Decide on an A-ASSOCIATE-RQ; None admits, and counts until `left`."""
        calling_ae, called_ae = calling_ae.strip(), called_ae.strip()
        facts = _Facts(visitor.address, visitor.identity, calling_ae, told=True)
        peer = self._peers.first(facts)
        if peer is None or (self._calling and calling_ae not in self._calling):
            return _refused(CALLING_UNKNOWN, "calling AE title not recognized")
        if called_ae != self._called:
            return _refused(CALLED_UNKNOWN, "called AE title not recognized")
        with self._lock:
            return self._count(visitor, peer)

    def left(self, visitor: Visitor) -> None:
        """Forget a connection; a second time changes nothing."""
        with self._lock:
            if visitor not in self._here:
                return
            self._here.remove(visitor)
            if visitor.peer is None:
                _less(self._waiting, visitor.address)
            else:
                _less(self._open, visitor.peer.name)

    @property
    def open(self) -> dict[str, int]:
        """How many associations each peer has open now, by the peer's name."""
        with self._lock:
            return dict(self._open)

    @property
    def waiting(self) -> int:
        """How many connections have not asked for an association yet."""
        with self._lock:
            return self._waiting.total()

    def _count(self, visitor: Visitor, peer: Peer) -> Refused | None:
        if visitor not in self._here or visitor.peer is not None:
            raise ValueError("a visitor asks once, between connected and left")
        if self._open.total() >= self._most:
            return _refused(LOCAL_LIMIT, f"local limit of {self._most} associations")
        if 0 < peer.maximum_associations <= self._open[peer.name]:
            limit = peer.maximum_associations
            return _refused(LOCAL_LIMIT, f"limit of {limit} associations for peer {peer.name}")
        if peer.name in self._rates and not self._rates[peer.name].take():
            limit = peer.associations_per_minute
            return _refused(CONGESTION, f"more than {limit} associations a minute of {peer.name}")
        _less(self._waiting, visitor.address)
        self._open[peer.name] += 1
        visitor.peer = peer
        return None


class Refusals:
    """What is told of those who were refused: for each address one event a minute, with a count.

    A scanner of ports, or a scanner of the other kind with a wrong AE title that tries for ever,
    does not fill the ledger. `add` only counts, and may be called from the thread that accepts;
    `run` tells, in a thread of its own: the first refusal within a second, and what follows at the
    end of the minute.

    Parameters
    ----------
    tell
        Called as ``tell("association.rejected", peer=, calling_ae=, called_ae=, reason=, count=)``
        with the last refusal of the address; ``reasons`` says how many there were of each.
    """

    def __init__(self, tell: Callable[..., None], clock: Clock = time.monotonic) -> None:
        self._tell, self._clock = tell, clock
        self._lock = threading.Lock()
        self._held: dict[str, _Tally] = {}

    def add(self, address: str, reason: str, calling_ae: str = "", called_ae: str = "") -> None:
        """Count one refusal."""
        with self._lock:
            # So many addresses are no peers but a flood, and are told of as one.
            key = address if address in self._held or len(self._held) < MOST_TOLD else OTHERS
            tally = self._held.setdefault(key, _Tally(due=self._clock()))
            if len(tally.reasons) < MOST_REASONS or reason in tally.reasons:
                tally.reasons[reason] += 1
            tally.count += 1
            tally.last = {"calling_ae": calling_ae, "called_ae": called_ae, "reason": reason}

    def flush(self, *, everything: bool = False) -> None:
        """Tell what is due, or `everything` at the end; forget who was quiet for a minute."""
        with self._lock:
            now = self._clock()
            due = {key: each for key, each in self._held.items() if everything or each.due <= now}
            for key, each in due.items():
                if each.count and not everything:
                    self._held[key] = _Tally(due=now + MINUTE_S)
                else:
                    del self._held[key]
        for key, each in due.items():
            if each.count:
                self._say(key, each)

    def run(self, stop: threading.Event) -> None:
        """Tell until the stop, and then what is left."""
        while not stop.wait(1.0):
            self.flush()
        self.flush(everything=True)

    def _say(self, address: str, tally: "_Tally") -> None:
        reasons = dict(tally.reasons)
        told = {"peer": address, "count": tally.count, "reasons": reasons, **tally.last}
        try:
            self._tell("association.rejected", **told)
        except Exception:  # the loop's edge: a ledger that is out of order ends no telling
            log.exception("refusals.error", extra=told)


@dataclass
class _Tally:
    """The refusals of one address since they were last told."""

    due: float
    count: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    last: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Facts:
    """What is known of a caller; `told` once the certificate is, or that there is none."""

    address: str
    identity: Identity | None = None
    calling_ae: str | None = None
    told: bool = False


class _Peers:
    """The peers of the settings, in their order."""

    def __init__(self, peers: Sequence[Peer]) -> None:
        self._rules = [(each, each.networks, each.marks) for each in peers]
        self._titles = frozenset(title for each in peers for title in each.ae_titles)
        self._marks = frozenset(mark for each in peers for mark in each.marks)

    def first(self, facts: _Facts) -> Peer | None:
        """Find the first peer that the caller is, or may turn out to be; None if it is refused."""
        for peer, networks, marks in self._rules:
            answers = (
                _within(facts.address, networks),
                self._shows(facts, marks),
                self._calls_itself(facts, peer),
            )
            if False in answers:
                continue
            if peer.allowed:
                return peer
            if None not in answers:
                return None
        return None

    def _shows(self, facts: _Facts, marks: frozenset[str]) -> bool | None:
        if not facts.told:
            return None if self._marks else True
        shown = facts.identity.marks if facts.identity else frozenset()
        return bool(shown & marks) if marks else not shown & self._marks

    def _calls_itself(self, facts: _Facts, peer: Peer) -> bool | None:
        if facts.calling_ae is None:
            return None if self._titles else True
        if peer.ae_titles:
            return facts.calling_ae in peer.ae_titles
        return facts.calling_ae not in self._titles


class _Bucket:
    """Tokens that come back evenly over a minute; a full bucket lets a burst of a minute in."""

    def __init__(self, per_minute: int, clock: Clock) -> None:
        self._size, self._clock = float(per_minute), clock
        self._tokens, self._at = self._size, clock()

    def take(self) -> bool:
        """Take one if there is one."""
        now = self._clock()
        gained = (now - self._at) * self._size / MINUTE_S
        self._tokens, self._at = min(self._size, self._tokens + gained), now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


def _within(
    address: str, networks: Sequence[ipaddress.IPv4Network | ipaddress.IPv6Network]
) -> bool:
    if not networks:
        return True
    try:
        found = ipaddress.ip_address(address)
    except ValueError:  # no IP address is in no network
        return False
    return any(found in each for each in networks)


def _plain(address: str) -> str:
    """Write an IPv4 address that an IPv6 socket saw as the IPv4 address it is, and no zone."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    mapped = getattr(found, "ipv4_mapped", None)
    return str(mapped or found)


def _less(counter: Counter[str], key: str) -> None:
    counter[key] -= 1
    if counter[key] <= 0:
        del counter[key]


def _refused(triple: Triple, reason: str) -> Refused:
    return Refused(*triple, reason)
