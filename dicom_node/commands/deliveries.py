"""The commands about what is on its way to the destinations."""

import argparse
import getpass
from typing import TYPE_CHECKING, Any

from .command import Outcome, UsageError, verb
from .ledger import open_ledger

if TYPE_CHECKING:
    from dicom_node.ledger.records import Delivery

STATES = ("pending", "sent", "delivered", "sent-unproven", "failed", "held", "acknowledged")


def add(verbs: Any) -> None:  # noqa: ANN401 - argparse has no public name for it
    """Add the commands to those of `lamed-node`."""
    group = verbs.add_parser("deliveries", help="what goes to the destinations").add_subparsers(
        required=True, metavar="VERB", title="verbs"
    )
    listing = verb(group, "list", _list, "deliveries, the latest first")
    listing.add_argument("--state", choices=STATES)
    listing.add_argument("--destination", default="", help="those whose name begins so")
    for name, command, text in (
        ("resend", _resend, "send again, also what was given up"),
        ("acknowledge", _acknowledge, "leave as given up what has failed"),
    ):
        one = verb(group, name, command, text)
        one.add_argument("numbers", nargs="*", type=int, metavar="NUMBER")
        one.add_argument("--destination", default="", help="all that failed there")
        one.add_argument("--all", action="store_true", help="all that failed")


def _list(arguments: argparse.Namespace) -> Outcome:
    from dicom_node.ledger import deliveries

    with open_ledger(arguments) as ledger:
        found = deliveries.listed(
            ledger, state=arguments.state or "", destination=arguments.destination
        )
    told = [_line(each) for each in found] or ["none"]
    return Outcome({"deliveries": [_data(each) for each in found]}, "\n".join(told))


def _resend(arguments: argparse.Namespace) -> Outcome:
    from dicom_node.ledger import deliveries

    with open_ledger(arguments) as ledger:
        moved = deliveries.resend(ledger, _numbers(arguments, ledger), by=_who())
    return _moved(moved, "is sent again")


def _acknowledge(arguments: argparse.Namespace) -> Outcome:
    from dicom_node.ledger import deliveries

    with open_ledger(arguments) as ledger:
        moved = deliveries.acknowledge(ledger, _numbers(arguments, ledger), by=_who())
    return _moved(moved, "stays given up")


def _numbers(arguments: argparse.Namespace, ledger: Any) -> list[int]:  # noqa: ANN401 - Ledger
    from dicom_node.ledger import deliveries

    if bool(arguments.numbers) == bool(arguments.destination or arguments.all):
        raise UsageError("give numbers of deliveries, or --destination NAME, or --all")
    if arguments.numbers:
        return [int(each) for each in arguments.numbers]
    failed = deliveries.listed(ledger, state="failed", destination=arguments.destination)
    return [each.id for each in reversed(failed)]


def _moved(moved: "list[Delivery]", what: str) -> Outcome:
    told = [f"{each.id} to {each.destination} {what}" for each in moved]
    return Outcome({"deliveries": [each.id for each in moved]}, "\n".join(told) or "none")


def _line(each: "Delivery") -> str:
    return f"{each.id:6} {each.state:13} {each.attempts:3} {each.destination}  {each.detail}"


def _data(each: "Delivery") -> dict[str, object]:
    return {
        "number": each.id,
        "study_uid": each.study_uid,
        "job_id": each.job_id,
        "destination": each.destination,
        "state": each.state,
        "attempts": each.attempts,
        "next_at": each.next_at.isoformat(),
        "detail": each.detail,
    }


def _who() -> str:
    return f"{getpass.getuser()} at the command line"
