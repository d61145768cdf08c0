import resource
from pathlib import Path

import pytest

from model.data.journal import Entry, Journal
from model.data.sample import DataError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.jsonl"


def test_what_was_written_is_read_by_the_next_process(path: Path) -> None:
    with Journal(path) as journal:
        journal.add("a", {"text": "line\nbreak \u2028 \u00e9 \U0001fac1"})
        journal.add("b", {"text": "B"})
    assert path.read_bytes().count(b"\n") == 2
    shown: list[Entry] = []
    with Journal(path, shown.append) as journal:
        assert (len(journal), journal.dropped) == (2, 0)
        assert journal.get("b") == {"key": "b", "text": "B"}
        assert journal.get("a") == {"key": "a", "text": "line\nbreak \u2028 \u00e9 \U0001fac1"}
        assert journal.get("c") is None
    assert [each["key"] for each in shown] == ["a", "b"]


def test_half_a_surrogate_can_be_kept(path: Path) -> None:
    with Journal(path) as journal:
        journal.add("a", {"text": "cut \ud83e"})
        assert journal.get("a") == {"key": "a", "text": "cut \ud83e"}


def test_nobody_else_may_read_it(path: Path) -> None:
    with Journal(path):
        assert path.stat().st_mode & 0o077 == 0


def test_a_journal_that_could_not_be_opened_holds_nothing_open(path: Path) -> None:
    path.write_text("damaged\n{}\n")
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        with pytest.raises(DataError, match="row 1"), Journal(path):
            pass
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_disk_that_is_full_leaves_a_whole_journal(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Journal(path) as journal:
        journal.add("first", {"text": "x"})
        whole = path.read_bytes()
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + 40, before[1]))
            with pytest.raises(DataError, match="room for an entry"):
                journal.add("second", {"text": "y" * 100})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert path.read_bytes() == whole
        assert journal.get("second") is None
        journal.add("third", {"text": "z"})
        assert journal.get("first") == {"key": "first", "text": "x"}
        assert journal.get("third") == {"key": "third", "text": "z"}
