"""Whether an object is as the Standard wants it, by somebody else's word: dciodvfy of dicom3tools.

Knows where the program lies, what it says and how long it may take. Must not know what becomes of
an object that it finds fault with, but for this: what refers to one that is held is held too.
"""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from .config import Config
from .errors import Unavailable
from .ledger import Result

PROGRAM: Final = "dciodvfy"
TIMEOUT_S: Final = 120.0
MOST_LINES, LONGEST_LINE = 50, 500
ABSENT: Final = f"{PROGRAM} is not on this machine; the package dicom3tools brings it"

# It takes no label map for a segmentation where a report refers to one (PS3.3 10.3).
UNFOUNDED: Final = "Shall not be present for Referenced SOP Class that is not segmentation"

# What names patient, study or order is copied as it came, also where it is too long: cut, it would
# name another one. The images, which the destination has, are no better.
COPIED: Final = re.compile(
    r"\((0x0008,0x0050|0x0010,0x0010|0x0010,0x0020|0x0010,0x0021|0x0020,0x0010)\).*Length invalid"
)
INVALID_VALUE: Final = "Value invalid for this VR"
SUM_OF_VALUES: Final = "contains invalid data values for Value Representations"

State = Literal["valid", "invalid", "unchecked"]


@dataclass(frozen=True)
class Verdict:
    """What was found: the errors of an invalid object, or why another could not be checked.

    The lines of a valid one are complaints of what was copied from the images.
    """

    state: State
    lines: tuple[str, ...] = ()


@dataclass(frozen=True)
class Validator:
    """Checks objects, if there is a `program`; `required`: what is not checked is not sent."""

    program: str = ""
    required: bool = False
    absent: str = ABSENT

    @classmethod
    def of(cls, config: Config) -> "Validator":
        """Find the program as the setting ``validate`` wants it.

        Raises
        ------
        Unavailable
            It is required, and not there.
        """
        if config.validate == "off":
            return cls(absent="the setting validate is off")
        found, required = find(), config.validate == "required"
        if required and not found:
            raise Unavailable(f"validate is required, but {ABSENT}")
        return cls(found, required)

    def check(self, path: Path) -> Verdict:
        """Check one object; what goes wrong in doing so is no fault of the object."""
        if not self.program:
            return Verdict("unchecked", (self.absent,))
        try:
            code, said = _run([self.program, str(path)])
        except subprocess.TimeoutExpired:
            return Verdict("unchecked", (f"no verdict in {TIMEOUT_S:g} s",))
        except OSError as error:
            return Verdict("unchecked", (f"{self.program}: {error.strerror}",))
        errors = [line[:LONGEST_LINE] for line in said.splitlines() if line.startswith("Error")]
        founded = _founded(errors)
        if founded:
            return Verdict("invalid", tuple(founded[:MOST_LINES]))
        if code and not errors:
            return Verdict("unchecked", (f"{PROGRAM} ended with code {code}",))
        return Verdict("valid", tuple(each for each in errors if COPIED.search(each)))

    def held(self, results: Sequence[Result], verdicts: Mapping[str, Verdict]) -> dict[str, str]:
        """Say by label which results are not to be sent, and why."""
        held = {label: _why(each) for label, each in verdicts.items() if self._holds(each)}
        if not held:
            return held
        content = {each.label: each.path.read_bytes() for each in results}
        while True:
            named = {each.label: each.sop_uid.encode() for each in results if each.label in held}
            more = {
                label: f"refers to {', '.join(found)}, held too"
                for label, whole in content.items()
                if label not in held and (found := [key for key in named if named[key] in whole])
            }
            if not more:
                return held
            held |= more

    def _holds(self, verdict: Verdict) -> bool:
        return verdict.state == "invalid" or (self.required and verdict.state != "valid")


def find() -> str:
    """Give the path of the program: the one of our own environment first, or nothing."""
    ours = str(Path(sys.executable).parent)
    return shutil.which(PROGRAM, path=os.pathsep.join((ours, os.environ.get("PATH", "")))) or ""


def _founded(errors: Sequence[str]) -> list[str]:
    """Leave the errors that are ours."""
    ours = [each for each in errors if UNFOUNDED not in each and not COPIED.search(each)]
    if any(INVALID_VALUE in each for each in ours):
        return ours
    return [each for each in ours if SUM_OF_VALUES not in each]


def _why(verdict: Verdict) -> str:
    what = "not as the Standard wants it" if verdict.state == "invalid" else "not validated"
    return "\n".join([what, *verdict.lines])


def _run(command: Sequence[str]) -> tuple[int, str]:
    # Ended as a group: the program may be a script that waits for another.
    with subprocess.Popen(  # noqa: S603 - the validator, with a path of ours
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        errors="replace",
        start_new_session=True,
    ) as process:
        try:
            said, _ = process.communicate(timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise
    return process.returncode, said
