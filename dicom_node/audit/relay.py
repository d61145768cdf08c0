"""The ledger's events, told as audit messages to every place that is to have them.

Knows the ledger and the places. Each place has a cursor in the ledger: the last event whose
messages it has. It moves after they are there, so nothing is lost by a crash, a receiver that is
down or a network that is away; a message may come twice. Each place has its own thread, and none of
them keeps anything else waiting.
"""

import fcntl
import logging
import os
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Final

from sqlalchemy import select
from sqlalchemy.dialects.sqlite import insert

from dicom_node.config import Config
from dicom_node.errors import NodeError, Unavailable
from dicom_node.ledger import Event, Ledger, tables
from dicom_node.network import tls

from . import store, syslog
from .message import Message, Source
from .told import Teller

log = logging.getLogger(__name__)

POLL_S: Final = 1.0
LONGEST_WAIT_S: Final = 60.0
AT_ONCE: Final = 200  # events
Put = Callable[[Sequence[tuple[Message, bytes]]], None]


@dataclass(frozen=True)
class Place:
    """Where messages go, under the name of its cursor."""

    name: str
    put: Put
    close: Callable[[], None] = lambda: None


def run(ledger: Ledger, config: Config, told: Sequence[Place], stop: threading.Event) -> None:
    """Tell these places until told to stop."""
    threads = [
        threading.Thread(
            target=_relay, args=(ledger, config, each, stop), name=f"audit {each.name}"
        )
        for each in told
    ]
    for each in threads:
        each.start()
    stop.wait()
    for each in threads:
        each.join()


def _relay(ledger: Ledger, config: Config, place: Place, stop: threading.Event) -> None:
    pause_s = POLL_S
    while not stop.is_set():
        try:
            with _alone(config, place):
                while not stop.is_set():
                    pause_s = POLL_S
                    if not step(ledger, config, place):
                        stop.wait(POLL_S)
        except NodeError as error:
            log.warning("audit.put_off", extra={"place": place.name, "reason": str(error)})
        except Exception:  # the loop's edge
            log.exception("audit.error", extra={"place": place.name})
        stop.wait(pause_s)
        pause_s = min(2 * pause_s, LONGEST_WAIT_S)
    place.close()  # what is written from here on, the next start tells


def step(ledger: Ledger, config: Config, place: Place) -> int:
    """Tell the next events, and return how many they were.

    Raises
    ------
    NodeError
        The place does not take them now; they are told again.
    """
    seq = cursor(ledger, place.name)
    events = ledger.events(after=seq, limit=AT_ONCE)
    if not events:
        return 0
    host = socket.gethostname()
    teller = Teller(ledger, config.ae_title, host)
    source = Source(config.audit_source or f"{config.ae_title}@{host}", config.audit_site)
    made = [(message, message.to_xml(source)) for each in events for message in _told(teller, each)]
    if made:
        place.put(made)
    _advance(ledger, place.name, events[-1].seq)
    return len(events)


def cursor(ledger: Ledger, name: str) -> int:
    """Give the number of the last event that a place has; 0 if there is none."""
    table = tables.cursors.c
    with ledger.reading() as connection:
        return connection.scalar(select(table.seq).where(table.name == name)) or 0


def _told(teller: Teller, event: Event) -> list[Message]:
    try:
        return teller.messages(event)
    except Exception:  # one event's edge: those after it are not to wait for it
        log.exception("audit.untold", extra={"seq": event.seq, "kind": event.kind})
        return []


def _advance(ledger: Ledger, name: str, seq: int) -> None:
    row = insert(tables.cursors).values(name=name, seq=seq)
    with ledger.transaction() as transaction:
        transaction.connection.execute(
            row.on_conflict_do_update(index_elements=["name"], set_={"seq": seq})
        )


def places(config: Config) -> list[Place]:
    """Tell where audit messages are to go, by the settings; nowhere is an answer too.

    Raises
    ------
    ConfigError
        ``audit_syslog`` is none of the forms that it may have.
    """
    found = []
    if config.audit_store:
        found.append(Place("audit.store", _keeper(config)))
    if config.audit_syslog:
        found.append(_sender(config))
    return found


def _keeper(config: Config) -> Put:
    def put(made: Sequence[tuple[Message, bytes]]) -> None:
        for day, group in groupby(made, key=lambda each: f"{each[0].at:%Y-%m-%d}"):
            store.add(config.audit_dir, day, [xml for _, xml in group])
        store.expire(config.audit_dir, config.audit_retain_days)

    return put


def _sender(config: Config) -> Place:
    receiver = syslog.Receiver.parse(config.audit_syslog)
    host = socket.gethostname()
    links: list[syslog.Link] = []

    def put(made: Sequence[tuple[Message, bytes]]) -> None:
        if not links:
            context = tls.client_context(config) if receiver.transport == "tls" else None
            links.append(syslog.Link(receiver, context, config.network_timeout_s))
        try:
            links[0].send([syslog.compose(xml, message.at, host) for message, xml in made])
        except NodeError:
            close()  # certificates may be renewed meanwhile
            raise

    def close() -> None:
        while links:
            links.pop().close()

    return Place("audit.syslog", put, close)


def reach(config: Config) -> Iterator[str]:
    """Say where audit messages go, and that it is there.

    Raises
    ------
    ConfigError, PeerError
        ``audit_syslog`` is none of the forms that it may have, or nobody answers there.
    """
    if config.audit_store:
        yield f"kept as files in {config.audit_dir}"
    if not config.audit_syslog:
        if not config.audit_store:
            yield "the ledger alone: neither audit_store nor audit_syslog is set"
        return
    receiver = syslog.Receiver.parse(config.audit_syslog)
    if receiver.transport == "udp":
        yield f"sent to {config.audit_syslog}, which never answers"
        return
    context = tls.client_context(config) if receiver.transport == "tls" else None
    link = syslog.Link(receiver, context, config.network_timeout_s)
    try:
        link.send([])
    finally:
        link.close()
    yield f"{config.audit_syslog} takes connections"


@contextmanager
def _alone(config: Config, place: Place) -> Iterator[None]:
    """Be the only process that tells this place; raises `Unavailable`."""
    handle = os.open(config.data_dir / f"{place.name}.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise Unavailable("another process of the node tells it") from error
    finally:
        os.close(handle)
