"""The command that has a study fetched from a source, and watches it come."""

import argparse
import getpass
import sys
import time
from typing import Any, Final

from dicom_node.errors import PeerError, Unavailable

from .command import Outcome, UsageError, settings_of, verb
from .ledger import open_ledger

POLL_S: Final = 0.2


def add(verbs: Any) -> None:  # noqa: ANN401 - argparse has no public name for it
    """Add the command to those of `lamed-node`."""
    pull = verb(verbs, "pull", _pull, "fetch a study from a source; the node that is up does it")
    pull.add_argument("--from", dest="source", required=True, metavar="NAME", help="of [[sources]]")
    whose = pull.add_mutually_exclusive_group(required=True)
    whose.add_argument("--study", metavar="UID")
    whose.add_argument("--accession", metavar="NUMBER")
    whose.add_argument("--patient", metavar="ID", help="with --date")
    pull.add_argument("--date", metavar="YYYYMMDD", help="of the study")


def _pull(arguments: argparse.Namespace) -> Outcome:
    from dicom_node import supervisor
    from dicom_node.config import sources
    from dicom_node.ways_in import pull

    config = settings_of(arguments)
    source = sources.named(config.sources, arguments.source)
    wanted = _wanted(arguments)
    if "scp" not in supervisor.announced(config):
        raise Unavailable("the node is not up, and it is the node that fetches: `lamed-node serve`")
    with open_ledger(arguments) as ledger:
        by = f"{getpass.getuser()} at the command line"
        number = pull.ask(ledger, source.name, wanted, by=by)
        one = _watch(ledger, number)
    if one.state == "failed":
        raise PeerError(one.detail)
    data = {"number": one.id, "source": one.source, "stored": one.stored}
    return Outcome(data, f"{one.detail} from {one.source}")


def _wanted(arguments: argparse.Namespace) -> dict[str, str]:
    if bool(arguments.patient) != bool(arguments.date):
        raise UsageError("--patient ID goes with --date YYYYMMDD")
    given = {
        "StudyInstanceUID": arguments.study,
        "AccessionNumber": arguments.accession,
        "PatientID": arguments.patient,
        "StudyDate": arguments.date,
    }
    return {key: value for key, value in given.items() if value is not None}


def _watch(ledger: Any, number: int) -> Any:  # noqa: ANN401 - Ledger and Pull
    from dicom_node.ways_in import pull

    shown = None
    while (one := pull.find(ledger, number)).state not in pull.ENDED:
        told = f"{one.stored} of {one.expected or '?'} instances"
        if told != shown and sys.stderr.isatty():
            sys.stderr.write(f"\r  {told}")
            sys.stderr.flush()
        shown = told
        time.sleep(POLL_S)
    if shown and sys.stderr.isatty():
        sys.stderr.write("\n")
    return one
