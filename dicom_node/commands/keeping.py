"""The commands about what stays in the node and what leaves it: hold, retention, erase."""

import argparse
import getpass
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from dicom_node.errors import ConfigError

from .command import Outcome, settings_of, verb
from .ledger import open_ledger

if TYPE_CHECKING:
    from dicom_node.retention import Going

MB = 1_000_000


def add(verbs: Any) -> None:  # noqa: ANN401 - argparse has no public name for it
    """Add the commands to those of `lamed-node`."""
    hold = verbs.add_parser("hold", help="studies that must stay as they are").add_subparsers(
        required=True, metavar="VERB", title="verbs"
    )
    for name, command, text in (
        ("add", _hold_add, "keep a study until further notice: it never expires"),
        ("remove", _hold_remove, "let a study go its way again"),
    ):
        one = verb(hold, name, command, text)
        one.add_argument("study", metavar="STUDY_UID")
        one.add_argument(
            "--reason", required=name == "add", default="", help="goes into the ledger"
        )
    verb(hold, "list", _hold_list, "what is held, since when, by whom and why")

    expire = verb(verbs, "retention", _retention, "let go now what is old enough, or too much")
    expire.add_argument("--dry-run", action="store_true", help="only tell what would go")

    erase = verb(verbs, "erase", _erase, "erase a study or a patient for good (GDPR art. 17)")
    whose = erase.add_mutually_exclusive_group(required=True)
    whose.add_argument("study", nargs="?", metavar="STUDY_UID")
    whose.add_argument("--patient", metavar="ID", help="all studies with this Patient ID")
    erase.add_argument("--issuer", default="", help="only of this Issuer of Patient ID")
    erase.add_argument("--reason", default="", help="goes into the ledger: name nobody")
    erase.add_argument("--yes", action="store_true", help="do it; without, only tell what would go")


def _hold_add(arguments: argparse.Namespace) -> Outcome:
    from dicom_node.ledger import removals

    with open_ledger(arguments) as ledger, ledger.transaction() as transaction:
        removals.hold(transaction, arguments.study, arguments.reason, _who())
    told = {"study_uid": arguments.study, "held": True, "reason": arguments.reason}
    return Outcome(told, f"{arguments.study} is held: {arguments.reason}")


def _hold_remove(arguments: argparse.Namespace) -> Outcome:
    from dicom_node.ledger import removals

    with open_ledger(arguments) as ledger, ledger.transaction() as transaction:
        removals.unhold(transaction, arguments.study, arguments.reason, _who())
    told = {"study_uid": arguments.study, "held": False}
    return Outcome(told, f"{arguments.study} is held no more")


def _hold_list(arguments: argparse.Namespace) -> Outcome:
    from dicom_node.ledger import removals

    with open_ledger(arguments) as ledger, ledger.reading() as connection:
        held = removals.held(connection)
    lines = [
        f"{each.study_uid}  since {each.at:%Y-%m-%d} {each.by}: {each.reason}" for each in held
    ]
    return Outcome([asdict(each) for each in held], "\n".join(lines) or "nothing is held")


def _retention(arguments: argparse.Namespace) -> Outcome:
    from dicom_node import retention

    config = settings_of(arguments)
    with open_ledger(arguments) as ledger:
        going, kept = retention.plan(ledger, config)
        if not arguments.dry_run:
            with retention.alone(config, retention.PATIENCE_S):
                retention.resume(ledger, config)
                going = retention.sweep(ledger, config)
    data = {
        "dry_run": arguments.dry_run,
        "bytes": sum(each.bytes for each in going),
        "going": [asdict(each) for each in going],
        "kept": kept,
    }
    return Outcome(data, _described(going, kept, "would go" if arguments.dry_run else "gone"))


def _described(going: "list[Going]", kept: dict[str, int], word: str) -> str:
    lines = [
        f"{each.what:<8} {each.study_uid} {each.job_id}".rstrip()
        + f"  since {each.since:%Y-%m-%d}  {each.files} files  {each.bytes / MB:.1f} MB"
        + f"  {each.why}"
        for each in going
    ]
    total = sum(each.bytes for each in going) / MB
    lines.append(f"{word}: {len(going)}, {total:.1f} MB")
    lines += [f"stay, {why}: {count} studies" for why, count in sorted(kept.items())]
    return "\n".join(lines)


def _erase(arguments: argparse.Namespace) -> Outcome:
    from dicom_node.retention import erasure

    if arguments.issuer and not arguments.patient:
        raise ConfigError("--issuer goes with --patient")
    config = settings_of(arguments)
    with open_ledger(arguments) as ledger:
        studies = [arguments.study]
        if arguments.patient:
            studies = erasure.of_patient(ledger, arguments.patient, arguments.issuer)
        if not arguments.yes:
            data: dict[str, Any] = {"erased": [], "would_erase": studies}
            told = "\n".join(("would be erased, for good:", *studies, "with --yes it is done"))
            return Outcome(data, told)
        gone = erasure.erase(ledger, config, studies, by=_who(), reason=arguments.reason)
        count = ledger.verify()
    lines = [
        f"erased: {each.files} files, {each.events} events emptied; it is {each.pseudonym} now"
        for each in gone
    ]
    lines += [f"not reached, look yourself: {each}" for one in gone for each in one.unreached]
    lines.append(f"the chain of {count} events is whole")
    return Outcome({"erased": [asdict(each) for each in gone]}, "\n".join(lines))


def _who() -> str:
    return f"{getpass.getuser()} at the command line"
