"""What would be decided about studies that are only shown to the node: nothing is stored or queued.

Knows how the headers of files are read, and who decides. Pixels are not read.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from io import BytesIO
from itertools import groupby
from pathlib import Path
from typing import Any

import pydicom
from pydicom.errors import InvalidDicomError

from dicom_node.errors import NotDicom, Unavailable
from dicom_node.instance import Instance

from . import deciding
from .routing import Rule
from .rules import RuleBook
from .series import SeriesSummary, of_header, summarize

HEADER = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID", "Modality")


@dataclass(frozen=True)
class Trial:
    """Tries the rules of a site, if there are any, and the protocols.

    Parameters
    ----------
    fallback
        As for `deciding.decide`.
    """

    book: RuleBook | None
    protocols: Sequence[Rule]
    fallback: str = ""

    def of_files(self, paths: Sequence[Path]) -> list[dict[str, Any]]:
        """Decide about each study of which there are files.

        Raises
        ------
        NotDicom
            A file is none of DICOM, or lacks a UID.
        Unavailable
            A file cannot be read.
        """
        instances = sorted(map(_instance, paths), key=lambda each: each.study_uid)
        keywords = self.book.keywords if self.book else ()
        return [
            self._told(uid, summarize(list(members), keywords), whole=True)
            for uid, members in groupby(instances, key=lambda each: each.study_uid)
        ]

    def of_bytes(self, data: bytes) -> dict[str, Any]:
        """Decide by one image, as if it were one of many of its series; raises as `of_files`."""
        header = _header(BytesIO(data), "the file")
        keywords = self.book.keywords if self.book else ()
        try:
            series = of_header(header, keywords)
        except Exception as error:  # the edge: pydicom raises whatever a broken value makes it
            raise NotDicom(f"the file cannot be used: {type(error).__name__}") from error
        return self._told(str(header.StudyInstanceUID), [series], whole=False)

    def _told(
        self, study_uid: str, series: Sequence[SeriesSummary], *, whole: bool
    ) -> dict[str, Any]:
        decision = deciding.decide(
            series, self.book, self.protocols, fallback=self.fallback, whole=whole
        )
        terms = deciding.terms(series, self.book)
        return {
            "study_uid": study_uid,
            "instances": sum(len(each.sop_uids) for each in series),
            "whole": whole,
            "action": decision.action,
            "reason": decision.reason,
            "rules": [asdict(each) for each in decision.verdicts],
            "jobs": [asdict(each) for each in decision.jobs],
            "series": [asdict(each) for each in decision.choices],
            **asdict(terms),
        }


def describe(told: Mapping[str, Any]) -> str:
    """Say in lines what would be decided about one study."""
    return "\n".join(_lines(told))


def _lines(told: Mapping[str, Any]) -> Iterator[str]:
    yield f"study {told['study_uid']}, {told['instances']} instances: {told['action']}"
    for each in told["rules"]:
        yield f"  rule {each['rule']!r} {'fits' if each['fits'] else 'does not fit'}: {each['why']}"
    if told["quiet_s"] is not None:
        yield f"  complete after {told['quiet_s']:g} s without an instance"
    if told["expected"] is not None:
        yield f"  complete with {told['expected']} instances"
    if told["fetch"]:
        yield f"  what else {told['fetch']} has of it is fetched before"
    for job in told["jobs"]:
        window = f" in {job['window']}" if job["window"] else ""
        to = f", to {', '.join(job['destinations'])}" if job["destinations"] else ""
        yield f"  job {job['protocol']}, {job['priority']}{window}{to}"
        yield from _series(job["choices"])
    if not told["jobs"]:
        yield f"  no job: {told['reason']}"
        yield from _series(told["series"])


def _series(choices: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for each in sorted(choices, key=lambda one: (not one["chosen"], -(one.get("score") or 0))):
        mark = "reads" if each["chosen"] else "skips"
        yield f"    {mark} {each['description'] or each['series_uid']}: {each['reason']}"


def _instance(path: Path) -> Instance:
    header = _header(path, str(path))
    return Instance(
        study_uid=str(header.StudyInstanceUID),
        series_uid=str(header.SeriesInstanceUID),
        sop_uid=str(header.SOPInstanceUID),
        sop_class_uid=str(header.SOPClassUID),
        transfer_syntax_uid="",
        path=path,
        sha256="",
        size=0,
        received_at=datetime.now(UTC),
        modality=str(header.get("Modality") or ""),
    )


def _header(source: Path | BytesIO, name: str) -> pydicom.Dataset:
    """Read all before the pixels, and see that it says which image it is."""
    try:
        header = pydicom.dcmread(source, stop_before_pixels=True)
        missing = [each for each in HEADER[:4] if not str(header.get(each) or "").strip()]
    except InvalidDicomError as error:
        raise NotDicom(f"{name} is no DICOM file (Part 10)") from error
    except OSError as error:
        raise Unavailable(f"{name} cannot be read: {error.strerror}") from error
    except Exception as error:  # the edge: pydicom raises whatever a broken file makes it
        raise NotDicom(f"{name} cannot be used: {type(error).__name__}") from error
    if missing:
        raise NotDicom(f"{name} has no {', '.join(missing)}")
    return header
