"""Reports to make questions of: from a table, or from the list of M3D-Cap.

Knows rows and files; the images need not be there, only their names.
"""

from collections.abc import Iterator
from pathlib import Path

from .published import Row, listing, located, table
from .questions import Report
from .sample import DataError

COLUMNS = ("Image Path", "Text")
FORMATS = (
    'a .csv with the columns "Image Path" and "Text" as in the published tables, or M3D_Cap.json; '
    "the names of the images should tell plane and phase"
)


def read(path: Path, *, split: str, root: Path) -> list[Report]:
    """Read reports in the order of the file; `split` and `root` are those of M3D_Cap.json.

    Rows that say the same of the same image count once, so that a table of questions can be given.

    Raises
    ------
    DataError
        A row has no image or no text, or says otherwise than another row of the same image.
    """
    found: dict[str, Report] = {}
    for row, report in (
        _from_list(path, split, root) if path.suffix == ".json" else _from_table(path)
    ):
        if found.setdefault(report.image, report) != report:
            raise row.error("one report for an image", f"another one of {report.image}")
    if not found:
        raise DataError(path, None, "a report", "none")
    return list(found.values())


def _from_table(path: Path) -> Iterator[tuple[Row, Report]]:
    for row in table(path, COLUMNS, root=path.parent):
        yield row, Report(row.text("Image Path"), row.text("Text"))


def _from_list(path: Path, split: str, root: Path) -> Iterator[tuple[Row, Report]]:
    for row in listing(path, split, root=root):
        try:
            text = located(root, row.text("text")).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise row.error("a report in UTF-8", str(error)) from error
        if not text:
            raise row.error("a report", f"nothing in {row.text('text')}")
        yield row, Report(row.text("image"), text)
