"""The commands about what the ledger remembers."""

import argparse
import contextlib
import getpass
import sys
from typing import TYPE_CHECKING, Any

from dicom_node.errors import ConfigError, NodeError

from .command import Outcome, settings_of, verb

if TYPE_CHECKING:
    from dicom_node.ledger import Ledger


def add(verbs: Any) -> None:  # noqa: ANN401 - argparse has no public name for it
    """Add the commands to those of `lamed-node`."""
    ledger = verbs.add_parser("ledger", help="the audit log").add_subparsers(
        required=True, metavar="VERB", title="verbs"
    )
    verify = verb(ledger, "verify", _ledger_verify, "check the hash chain")
    verify.add_argument("--head", type=_head, help="SEQ:DIGEST noted earlier; must still be there")
    export = verb(ledger, "export", _ledger_export, "all events as CSV, or JSON")
    export.add_argument("--study", help="only this StudyInstanceUID")
    tail = verb(ledger, "tail", _ledger_tail, "follow the events")
    release = verb(verbs, "release", _release, "send results that are held, faults and all")
    release.add_argument("uids", nargs="+", metavar="RESULT_UID")
    tail.add_argument("--once", action="store_true", help="the last ones, then end")


def _release(arguments: argparse.Namespace) -> Outcome:
    by = f"{getpass.getuser()} at the command line"
    with open_ledger(arguments) as ledger:
        released = [ledger.release(uid, by=by) for uid in arguments.uids]
        still = [each.sop_uid for each in ledger.held() if each.job_id == released[-1].job_id]
    told = [f"{each.label} {each.sop_uid} is sent as it is" for each in released]
    told += [f"still held, of the same job: {uid}" for uid in still]
    data = {"released": [each.sop_uid for each in released], "still_held": still}
    return Outcome(data, "\n".join(told))


def _ledger_verify(arguments: argparse.Namespace) -> Outcome:
    with open_ledger(arguments) as ledger:
        count = ledger.verify(head=arguments.head)
        seq, digest = ledger.head()
        erased = ledger.erased_events()
    told = f"\n{erased} of them are emptied, as a later event of an erasure tells" if erased else ""
    return Outcome(
        {"events": count, "erased": erased, "head": f"{seq}:{digest}"},
        f"{count} events, the chain is whole{told}\nhead {seq}:{digest}"
        "\nnote the head elsewhere: with --head a cut-off end is found too",
    )


def _ledger_export(arguments: argparse.Namespace) -> None:
    from dicom_node.ledger import export

    with open_ledger(arguments) as ledger:
        events = ledger.events(study_uid=arguments.study)
        _remember_reading(ledger, "export")
        arguments.told = True
        export.export(events, sys.stdout, as_json=arguments.as_json)
        sys.stdout.flush()


def _ledger_tail(arguments: argparse.Namespace) -> None:
    from dicom_node.ledger import export

    with open_ledger(arguments) as ledger:
        arguments.told = True
        if arguments.once:
            export.last(ledger, sys.stdout, as_json=arguments.as_json)
            _remember_reading(ledger, "tail")
            return
        _remember_reading(ledger, "tail")
        try:
            export.follow(ledger, sys.stdout, as_json=arguments.as_json)
        except KeyboardInterrupt:  # the only way to end it
            return


def open_ledger(arguments: argparse.Namespace) -> "Ledger":
    """Open the ledger of the settings; one that is not there is not made.

    Raises
    ------
    ConfigError
        There is none.
    """
    from dicom_node.ledger import Ledger

    config = settings_of(arguments)
    if not config.ledger_path.exists():
        raise ConfigError(f"no ledger at {config.ledger_path}; is data_dir right?")
    return Ledger(config.ledger_path)


def _remember_reading(ledger: "Ledger", how: str) -> None:
    """Who reads the audit log is audited (PS3.15 A.5.3.2); but read it can be in any case."""
    with contextlib.suppress(NodeError):
        ledger.event("ledger.read", by=f"{getpass.getuser()} at the command line", how=how)


def _head(text: str) -> tuple[int, str]:
    seq, _, digest = text.partition(":")
    if not (seq.isdigit() and digest):
        raise argparse.ArgumentTypeError(f"a head is SEQ:DIGEST, not {text!r}")
    return int(seq), digest
