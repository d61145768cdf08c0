"""The programs that judge: where they lie, how they are run, how one gets what is missing."""

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

OURS: Final = str(Path(sys.executable).parent)
SYSTEM: Final = "/usr/bin"
JAR: Final = Path("/usr/share/java/pixelmed.jar")
# The stock wrapper crashes on JDK 17: its style sheets are larger than what that allows.
JAVA: Final = (
    *(f"-Djdk.xml.xpath{name}=0" for name in ("TotalOpLimit", "ExprGrpLimit", "ExprOpLimit")),
    "-cp",
    str(JAR),
    "com.pixelmed.validate.DicomSRValidator",
)
TIMEOUT_S: Final = 300


@dataclass(frozen=True)
class Program:
    """A program, the folder it is taken from, and what brings it.

    The folder matters: Debian's dicom3tools do not know LABELMAP, and pynetdicom brings programs of
    the same names as DCMTK's.
    """

    name: str
    folder: str
    brought_by: str
    files: tuple[Path, ...] = ()

    @property
    def missing(self) -> str:
        """Say what is not there and how to get it, or nothing."""
        lacking = [each for each in self.files if not each.is_file()]
        if self._path and not lacking:
            return ""
        what = self.name if not self._path else ", ".join(map(str, lacking))
        return f"{what} is missing: {self.brought_by}"

    @property
    def _path(self) -> str | None:
        return shutil.which(self.name, path=self.folder)

    def run(self, *words: object) -> tuple[int, str]:
        """Run it to its end; give its exit code and all that it said."""
        done = subprocess.run(
            [str(self._path), *map(str, words)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            timeout=TIMEOUT_S,
            check=False,
        )
        return done.returncode, done.stdout.decode(errors="replace")


PIP: Final = "pip install '.[dev]' (or `make test`)"
DCIODVFY = Program("dciodvfy", OURS, PIP)
DCENTVFY = Program("dcentvfy", OURS, PIP)
SEGIMAGE2ITKIMAGE = Program("segimage2itkimage", OURS, PIP)
TID1500READER = Program("tid1500reader", OURS, PIP)
DSRDUMP = Program("dsrdump", SYSTEM, "apt-get install dcmtk")
DSR2HTML = Program("dsr2html", SYSTEM, "apt-get install dcmtk")
PIXELMED = Program("java", SYSTEM, "apt-get install pixelmed-apps default-jre-headless", (JAR,))
