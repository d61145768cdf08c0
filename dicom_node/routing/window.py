"""A stretch of each day in local time, such as 19:00-06:00, in which what may wait is read.

Knows clocks. Must not know jobs.
"""

import re
from dataclasses import dataclass
from datetime import datetime, time
from datetime import timedelta as span

FORM = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-3]):([0-5]\d)", re.ASCII)


@dataclass(frozen=True)
class Window:
    """From `start` until before `end`, over midnight if that is earlier."""

    start: time
    end: time

    @classmethod
    def parse(cls, text: str) -> "Window":
        """Read ``HH:MM-HH:MM``.

        Raises
        ------
        ValueError
            It is not of this form, or nothing lies between the two.
        """
        found = FORM.fullmatch(text)
        if found is None:
            raise ValueError(f"a window is HH:MM-HH:MM, as 19:00-06:00, not {text!r}")
        start, end = (time(int(found[each]), int(found[each + 1])) for each in (1, 3))
        if start == end:
            raise ValueError(f"a window ends at another time than it begins, not {text!r}")
        return cls(start, end)

    def opens(self, now: datetime) -> datetime | None:
        """Say when it opens next; None if it is open at `now`, which has a time zone."""
        local = now.astimezone()
        clock = local.time()
        late, early = clock >= self.start, clock < self.end
        if (late and early) if self.start < self.end else (late or early):
            return None
        day = local.date() + span(days=1) if late else local.date()
        # Naive and then local: the clock on the wall counts, also where it is put forward.
        return datetime.combine(day, self.start).astimezone()
