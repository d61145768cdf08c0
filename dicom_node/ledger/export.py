"""The events of the ledger as CSV or JSON, whole or followed as they come.

Knows that what stands in an event may come from a foreign sender: no cell becomes a formula, no
line more than one, and no terminal is told what to do.
"""

import csv
import json
import time
from collections.abc import Iterable
from typing import Any, TextIO

from .ledger import Event, Ledger

COLUMNS = ("seq", "at", "kind", "study_uid", "job_id", "data", "previous", "digest")
POLL_S = 0.5
LAST = 20
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")  # what spreadsheets take for the start of one


def export(events: Iterable[Event], out: TextIO, *, as_json: bool) -> None:
    """Write every event: CSV with a heading, or one JSON array with an event on each line."""
    if as_json:
        _array(events, out)
        return
    writer = csv.DictWriter(out, COLUMNS)
    writer.writeheader()
    for each in events:
        row = _row(each) | {"data": json.dumps(each.data)}
        writer.writerow({key: _harmless(value) for key, value in row.items()})


def last(ledger: Ledger, out: TextIO, *, as_json: bool) -> None:
    """Print the last events."""
    events = ledger.events(after=_shortly_before_the_end(ledger))
    if as_json:
        _array(events, out)
    else:
        out.writelines(map(_line, events))


def follow(ledger: Ledger, out: TextIO, *, as_json: bool) -> None:
    """Print the last events, then each new one until interrupted; JSON has one on each line."""
    after = _shortly_before_the_end(ledger)
    while True:
        for each in ledger.events(after=after):
            after = each.seq
            out.write(json.dumps(_row(each)) + "\n" if as_json else _line(each))
        out.flush()
        time.sleep(POLL_S)


def _shortly_before_the_end(ledger: Ledger) -> int:
    return max(0, ledger.head()[0] - LAST)


def _array(events: Iterable[Event], out: TextIO) -> None:
    lines = (json.dumps(_row(each)) for each in events)
    out.write("[\n")
    out.writelines(f",\n{line}" if index else line for index, line in enumerate(lines))
    out.write("\n]\n")


def _row(event: Event) -> dict[str, Any]:
    row = {name: getattr(event, name) for name in COLUMNS}
    return row | {"at": event.at.isoformat()}


def _line(event: Event) -> str:
    told = " ".join(f"{key}={value}" for key, value in event.data.items())
    about = event.job_id or event.study_uid or ""
    line = f"{event.seq:>6}  {event.at:%Y-%m-%d %H:%M:%S}  {event.kind:<22} {about} {told}"
    return "".join(each if each.isprintable() else "\ufffd" for each in line).rstrip() + "\n"


def _harmless(value: object) -> object:
    """Keep a spreadsheet from taking the text of a tag for a formula."""
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value
