"""One association as acceptor, from its A-ASSOCIATE-RQ to its end (PS3.8 7).

Knows a connection, the services and who decides on a proposal. Every end is an event in the ledger:
released, aborted or lost, with how many instances were stored.
"""

from collections.abc import Callable
from typing import Final

from dicom_node.network import dimse, negotiation
from dicom_node.network.dimse import Answer, Ask, Command
from dicom_node.network.upper_layer import (
    APPLICATION_CONTEXT,
    Aborted,
    Accepted,
    Connection,
    Lost,
    Message,
    Proposal,
    Violation,
)
from dicom_node.spool import IMPLEMENTATION_NAME, IMPLEMENTATION_UID

from .services import Services

Triple = tuple[int, int, int]  # result, source, reason (PS3.8 Table 9-21)
Objection = Callable[[Proposal], Triple | None]
APPLICATION_UNKNOWN: Final[Triple] = (1, 1, 2)
VERSION_UNKNOWN: Final[Triple] = (1, 2, 2)


class Association:
    """Serves one peer; `objection` gives why a proposal is rejected, and tells of it.

    Parameters
    ----------
    peer
        Address and port, for the ledger.
    """

    def __init__(
        self, connection: Connection, services: Services, objection: Objection, peer: str
    ) -> None:
        self._connection, self._services = connection, services
        self._objection, self._peer = objection, peer
        self._stored = 0
        self._asked: Ask | None = None

    def run(self) -> None:
        """Serve until it ends.

        Raises
        ------
        SilentPeer, PeerError
            None came about.
        """
        proposal = self._connection.proposal()
        triple = _unspeakable(proposal) or self._objection(proposal)
        if triple is not None:
            self._connection.reject(*triple)
            return
        accepted = negotiation.accept(proposal, self._services.classes)
        self._connection.accept(
            proposal, accepted, uid=IMPLEMENTATION_UID, name=IMPLEMENTATION_NAME
        )
        told = {"calling_ae": proposal.calling_ae, "peer": self._peer}
        self._services.remember("association.accepted", **told)
        how, why = "aborted", "internal error"
        try:
            how, why = self._serve(proposal, accepted)
        finally:
            told |= {"reason": why} if why else {}
            self._services.remember(f"association.{how}", **told, stored=self._stored)

    def _serve(self, proposal: Proposal, accepted: Accepted) -> tuple[str, str]:
        """Answer each message; say how it ended, and why if not by a release."""
        try:
            for message in self._connection.messages():
                answer = self._answer(message, proposal, accepted)
                if answer is not None:
                    self._asked = answer.ask or self._asked
                    self._connection.respond(message, answer)
        except Aborted:
            return "aborted", ""
        except Lost as error:
            self._connection.abort()  # it was we who end, or the peer hears it no more
            return "lost", str(error)
        except Violation as error:
            self._connection.abort(error.reason)
            return "aborted", str(error)
        except OSError as error:
            return "lost", error.strerror or str(error)
        return "released", ""

    def _answer(self, message: Message, proposal: Proposal, accepted: Accepted) -> Answer | None:
        _, transfer = accepted.contexts.get(message.context, ("", None))
        if transfer is None:
            raise Violation(f"context {message.context} was not accepted")
        command, calling = message.command, proposal.calling_ae
        if command.field & dimse.RESPONSE:
            self._take_response(command)
            return None
        if command.field != dimse.C_STORE_RQ:
            return self._services.answer(
                command.request(bytes(message.data), transfer, calling, self._peer)
            )
        if message.oversize:
            return self._services.oversize(command, transfer, calling)
        answer = self._services.store(command, message.data, transfer, calling)
        self._stored += answer.status == dimse.SUCCESS
        return answer

    def _take_response(self, command: Command) -> None:
        asked, self._asked = self._asked, None
        if asked is not None:
            asked.done(command.number(dimse.STATUS))


def _unspeakable(proposal: Proposal) -> Triple | None:
    if not proposal.version & 1:
        return VERSION_UNKNOWN
    return APPLICATION_UNKNOWN if proposal.application_context != APPLICATION_CONTEXT else None
