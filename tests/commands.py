"""The command line as somebody types it: a process, what it printed, how it ended."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROGRAM = Path(sys.executable).parent / "lamed-node"
# One question for words and one for an outline: reading takes a second.
SHORT = """
name = "ct_chest"
title = "Chest CT"
modality = "CT"
body_parts = ["CHEST"]
keywords = ["chest"]
minimum_slices = 4
window = [40, 400]
language = "en"
document_title = "LN 24627-2 CT Chest Report"
procedure = "LN 25045-6 CT unspecified body region"
region = "SCT 816094009 Chest"

[[questions]]
id = "effusion"
heading = "Pleura"
text = "Is there fluid in the pleural space, and on which side?"
max_new_tokens = 8

[[questions]]
id = "seg_heart"
heading = "Outlines"
text = "Please segment the heart in this image."
max_new_tokens = 8

[questions.target]
label = "Heart"
category = "SCT 91723000 Anatomical Structure"
type = "SCT 80891009 Heart"
colour_rgb = [213, 94, 0]
"""


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def data(self) -> Any:
        return json.loads(self.out)

    @property
    def error(self) -> str:
        return str(self.data["error"])


def short_protocols(folder: Path) -> Path:
    folder.mkdir()
    (folder / "ct_chest.toml").write_text(SHORT)
    return folder


def lamed_node(*words: object, **settings: object) -> Done:
    """Run one command to its end; settings become LAMED_* variables."""
    command = [PROGRAM, *map(str, words)]
    done = subprocess.run(
        command,
        env=environ(settings),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return Done(done.returncode, done.stdout, done.stderr)


def environ(settings: Mapping[str, object]) -> dict[str, str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("LAMED_")}
    return clean | {f"LAMED_{key.upper()}": str(value) for key, value in settings.items()}


def tamper(ledger: Path, statement: str) -> None:
    """Change a ledger past its triggers, as somebody with the file can."""
    with closing(sqlite3.connect(ledger)) as database, database:
        triggers = database.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'")
        for (name,) in triggers.fetchall():
            database.execute(f"DROP TRIGGER {name}")
        database.execute(statement)


@dataclass(frozen=True)
class Served:
    """A node, or one of its roles, that has greeted."""

    process: subprocess.Popen[str]
    told: dict[str, str]
    log: Path

    def port(self, name: str) -> int:
        return int(self.told[name].rpartition(":")[2])

    def end(self) -> int:
        """Terminate it and return the exit code."""
        self.process.terminate()
        return self.process.wait(60)

    def interrupt(self) -> int:
        """Do what Ctrl-C in a terminal does, to all its processes; return the exit code."""
        os.killpg(self.process.pid, signal.SIGINT)
        return self.process.wait(60)


@contextmanager
def served(log: Path, *words: str, **settings: object) -> Iterator[Served]:
    """Start `serve --json`, wait for its greeting, and see to it that nothing is left running."""
    with log.open("a") as complaints:
        process = subprocess.Popen(
            [PROGRAM, "serve", "--json", *words],
            env=environ(settings),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=complaints,
            text=True,
            start_new_session=True,
        )
    try:
        yield Served(process, _greeting(process, log), log)
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait(60)
        if process.stdout is not None:
            process.stdout.close()


def _greeting(process: subprocess.Popen[str], log: Path) -> dict[str, str]:
    assert process.stdout is not None
    text = ""
    for line in process.stdout:
        text += line
        if line.startswith("}"):
            break
    assert text, log.read_text()
    told: dict[str, str] = json.loads(text)
    assert "error" not in told, told
    return told


def until(what: Callable[[], object], seconds: float = 60.0) -> Any:
    """Wait for something to become true, and return it."""
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, "it has not come true in time"
        time.sleep(0.1)
    return found
