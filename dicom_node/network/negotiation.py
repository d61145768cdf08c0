"""Which presentation contexts we accept (PS3.8 7.1.1.13): any storage, and the services we have.

Knows UIDs. Must not know sockets or PDUs. Any storage SOP class is taken, private and future ones
too; with the first transfer syntax proposed that carries its own pixels as still images.
"""

from collections.abc import Collection
from functools import lru_cache
from typing import Final

from dicom_node.instance import is_uid

from .upper_layer import Accepted, Context, Proposal

STANDARD: Final = "1.2.840.10008."
STORAGE: Final = "1.2.840.10008.5.1.4.1.1."  # PS3.4 Table B.5-1, but for those of ELSEWHERE
ELSEWHERE: Final = {"1.2.840.10008.5.1.4.34.7", "1.2.840.10008.5.1.4.34.10"}
# Of no patient, and queries (PS3.4 GG, II, JJ), though their UIDs begin so.
OTHERS: Final = {
    *(f"{STORAGE}200.{number}" for number in (1, 3, 4, 5, 6, 7)),
    *(f"{STORAGE}201.{number}" for number in range(1, 7)),
}
VERIFICATION: Final = "1.2.840.10008.1.1"
COMMITMENT: Final = "1.2.840.10008.1.20.1"  # its SCP calls back, with the roles turned around
# Referenced pixels, which do not come along, and video: taken only if nothing else is proposed.
AVOIDED: Final = (
    "1.2.840.10008.1.2.4.94",
    "1.2.840.10008.1.2.4.95",
    *(f"1.2.840.10008.1.2.4.{number}" for number in range(100, 109)),
    "1.2.840.10008.1.2.4.204",
    "1.2.840.10008.1.2.4.205",
)
READ: Final = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1")  # what services are asked in


def is_storage(uid: str) -> bool:
    """Say whether instances of this SOP class are stored; one that nobody knows is."""
    if not uid.startswith(STANDARD):
        return is_uid(uid)
    return (uid.startswith(STORAGE) and uid not in OTHERS) or uid in ELSEWHERE


def accept(proposal: Proposal, services: Collection[str]) -> Accepted:
    """Choose a transfer syntax for each context, None for a refused one; and the roles.

    Parameters
    ----------
    services
        SOP classes that are no storage and that we serve.
    """
    contexts, roles = _choose(
        proposal.contexts, tuple(sorted(proposal.roles.items())), frozenset(services)
    )
    return Accepted(contexts, roles)


# A scanner proposes the same for every image it sends.
@lru_cache(maxsize=256)
def _choose(
    contexts: tuple[Context, ...],
    roles: tuple[tuple[str, tuple[bool, bool]], ...],
    services: frozenset[str],
) -> tuple[dict[int, tuple[str, str | None]], dict[str, tuple[bool, bool]]]:
    chosen = {
        each.number: (each.abstract_syntax, _transfer_syntax(each, services)) for each in contexts
    }
    taken = {abstract for abstract, transfer in chosen.values() if transfer}
    # What was not proposed cannot be granted; we are SCP of everything but what calls back.
    granted = {uid: (scu, scp and uid == COMMITMENT) for uid, (scu, scp) in roles if uid in taken}
    return chosen, granted


def _transfer_syntax(context: Context, services: frozenset[str]) -> str | None:
    if context.abstract_syntax not in services and not is_storage(context.abstract_syntax):
        return None
    proposed = [each for each in context.transfer_syntaxes if is_uid(each)]
    if context.abstract_syntax in services:
        return next((each for each in proposed if each in READ), None)
    return next((each for each in proposed if each not in AVOIDED), next(iter(proposed), None))
