"""The events of the ledger as CSV or JSON lines, whole or followed as they come."""

import csv
import json
import time
from collections.abc import Iterable
from typing import Any, TextIO

from .ledger import Event, Ledger

COLUMNS = ("seq", "at", "kind", "study_uid", "job_id", "data", "previous", "digest")
POLL_S = 0.5
LAST = 20


def export(events: Iterable[Event], out: TextIO, *, as_json: bool) -> None:
    """Write every event: CSV with a heading, or one JSON object on each line."""
    if as_json:
        out.writelines(json.dumps(_row(each), ensure_ascii=False) + "\n" for each in events)
        return
    writer = csv.DictWriter(out, COLUMNS)
    writer.writeheader()
    for each in events:
        row = _row(each) | {"data": json.dumps(each.data, ensure_ascii=False)}
        writer.writerow({key: _harmless(value) for key, value in row.items()})


def follow(ledger: Ledger, out: TextIO, *, as_json: bool, once: bool) -> None:
    """Print the last events, then each new one until interrupted."""
    after = max(0, ledger.head()[0] - LAST)
    while True:
        for each in ledger.events(after=after):
            after = each.seq
            out.write(json.dumps(_row(each)) + "\n" if as_json else _line(each))
        out.flush()
        if once:
            return
        time.sleep(POLL_S)


def _row(event: Event) -> dict[str, Any]:
    row = {name: getattr(event, name) for name in COLUMNS}
    return row | {"at": event.at.isoformat()}


def _line(event: Event) -> str:
    told = " ".join(f"{key}={value}" for key, value in event.data.items())
    about = event.job_id or event.study_uid or ""
    return f"{event.seq:>6}  {event.at:%Y-%m-%d %H:%M:%S}  {event.kind:<22} {about} {told}\n"


def _harmless(value: object) -> object:
    """Keep a spreadsheet from taking the text of a tag for a formula."""
    return f"'{value}" if isinstance(value, str) and value[:1] in {"=", "+", "-", "@"} else value
