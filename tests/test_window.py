from datetime import UTC, datetime, timedelta

import pytest

from dicom_node.routing.window import Window


def at(clock: str) -> datetime:
    return datetime.fromisoformat(f"2026-06-10T{clock}").astimezone()


@pytest.mark.parametrize(
    ("window", "now", "opens"),
    [
        ("19:00-06:00", "18:59", "2026-06-10T19:00"),
        ("19:00-06:00", "19:00", None),
        ("19:00-06:00", "05:59", None),
        ("19:00-06:00", "06:00", "2026-06-10T19:00"),
        ("01:00-02:00", "00:30", "2026-06-10T01:00"),
        ("01:00-02:00", "01:30", None),
        ("01:00-02:00", "02:00", "2026-06-11T01:00"),
    ],
)
def test_a_window_is_open_or_says_when_it_opens(window: str, now: str, opens: str | None) -> None:
    expected = None if opens is None else datetime.fromisoformat(opens).astimezone()
    assert Window.parse(window).opens(at(now)) == expected


def test_the_time_zone_of_the_question_does_not_matter() -> None:
    now, window = at("18:00"), Window.parse("19:00-06:00")
    assert window.opens(now.astimezone(UTC)) == now + timedelta(hours=1)


@pytest.mark.parametrize("text", ["", "19-06", "24:00-06:00", "19:00-19:00", "19:00 - 06:00"])
def test_what_is_no_window_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="window"):
        Window.parse(text)
