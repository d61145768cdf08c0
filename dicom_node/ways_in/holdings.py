"""What a source has: which studies, and which instances of one, by C-FIND or QIDO-RS.

Knows queries (PS3.4 C.4.1, PS3.18 10.6). Must not know the spool or the ledger.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import httpx
from pydicom import Dataset

from dicom_node import scu
from dicom_node.config import Config
from dicom_node.config.sources import Source
from dicom_node.errors import PeerError
from dicom_node.instance import is_uid
from dicom_node.network import outgoing
from dicom_node.network.requestor import Offer
from dicom_node.scu import stow

Holding = Mapping[str, str]  # SOP class UIDs by SOP instance UID; an empty one was not told
PAGE: Final = 1000
MOST: Final = 100_000  # instances of a study
TAGS: Final = {
    "StudyInstanceUID": "0020000D",
    "SOPInstanceUID": "00080018",
    "SOPClassUID": "00080016",
    "NumberOfStudyRelatedInstances": "00201208",
}


def studies(source: Source, config: Config, wanted: Mapping[str, str]) -> list[str]:
    """Find the StudyInstanceUIDs of the studies that match.

    Parameters
    ----------
    wanted
        By keyword, such as AccessionNumber; without wildcards.

    Raises
    ------
    PeerError
        The source cannot be reached or does not answer.
    """
    found = _matches(source, config, wanted)
    return sorted({uid for each in found if is_uid(uid := each.get("StudyInstanceUID", ""))})


def count(source: Source, config: Config, study_uid: str) -> int | None:
    """Ask how many instances a study has; None if the source does not have it. Raises the same."""
    found = _matches(source, config, {"StudyInstanceUID": study_uid})
    if not found:
        return None
    said = max(each.get("NumberOfStudyRelatedInstances", "") for each in found)
    return int(said) if said.isdigit() else len(instances(source, config, study_uid)) or None


def instances(source: Source, config: Config, study_uid: str) -> Holding:
    """Find every instance of a study; raises the same."""
    if source.peer.url:
        with stow.client(source.peer, config) as http:
            path, keys = f"studies/{study_uid}/instances", ("SOPInstanceUID", "SOPClassUID")
            rows = list(_pages(http, source, path, {"includefield": TAGS["SOPClassUID"]}, keys))
    else:
        with _asking(source, config) as opened:
            rows = list(_by_series(opened, study_uid))
    return {each["SOPInstanceUID"]: each["SOPClassUID"] for each in rows if each["SOPInstanceUID"]}


def _matches(source: Source, config: Config, wanted: Mapping[str, str]) -> list[Mapping[str, str]]:
    keys = ("StudyInstanceUID", "NumberOfStudyRelatedInstances")
    if source.peer.url:
        query = {**wanted, "includefield": TAGS["NumberOfStudyRelatedInstances"]}
        with stow.client(source.peer, config) as http:
            return list(_pages(http, source, "studies", query, keys))
    with _asking(source, config) as opened:
        return list(_found(opened, "STUDY", wanted, keys))


@contextmanager
def _asking(source: Source, config: Config) -> Iterator[scu.Session]:
    offers = [Offer(scu.STUDY_ROOT_FIND, outgoing.SYNTAXES)]
    with scu.session(source.peer, offers, scu.Caller.of(config, source.peer)) as opened:
        yield opened


def _by_series(opened: scu.Session, study_uid: str) -> Iterator[Mapping[str, str]]:
    study = {"StudyInstanceUID": study_uid}
    for series in _found(opened, "SERIES", study, ("SeriesInstanceUID",)):
        yield from _found(opened, "IMAGE", {**study, **series}, ("SOPInstanceUID", "SOPClassUID"))


def _found(
    opened: scu.Session, level: str, wanted: Mapping[str, str], keys: tuple[str, ...]
) -> Iterator[Mapping[str, str]]:
    asked = Dataset()
    asked.QueryRetrieveLevel = level
    for key, value in (dict.fromkeys(keys, "") | dict(wanted)).items():
        setattr(asked, key, value or None)
    for each in opened.find(asked):
        yield {key: str(each.get(key) or "").strip() for key in keys}


def _pages(
    http: httpx.Client, source: Source, path: str, query: Mapping[str, str], keys: tuple[str, ...]
) -> Iterator[Mapping[str, str]]:
    """Ask page by page, until one brings nothing that is new (PS3.18 8.3.4)."""
    known: set[str] = set()
    while len(known) < MOST:
        answer = http.get(
            path,
            params={**query, "limit": str(PAGE), "offset": str(len(known))},
            headers={"Accept": stow.DICOM_JSON},
        )
        stow.check(source.peer, answer, also={httpx.codes.NOT_FOUND})
        rows = [_row(source, each, keys) for each in _list(source, answer)]
        new = [each for each in rows if each[keys[0]] not in known]
        yield from new
        known |= {each[keys[0]] for each in new}
        if len(rows) < PAGE or not new:
            return


def _list(source: Source, answer: httpx.Response) -> list[Any]:
    if not answer.content or answer.status_code in {httpx.codes.NO_CONTENT, httpx.codes.NOT_FOUND}:
        return []
    try:
        said = answer.json()
    except ValueError as error:
        raise PeerError(f"{source.peer}: the answer to QIDO-RS is no JSON") from error
    return said if isinstance(said, list) else []


def _row(source: Source, said: Any, keys: tuple[str, ...]) -> Mapping[str, str]:  # noqa: ANN401 - JSON
    try:
        return {
            key: str(next(iter(said.get(TAGS[key], {}).get("Value") or [""]))).strip()
            for key in keys
        }
    except (AttributeError, TypeError) as error:
        raise PeerError(f"{source.peer}: the answer to QIDO-RS cannot be read") from error
