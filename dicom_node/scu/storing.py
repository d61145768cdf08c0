"""A batch of C-STOREs: what of it is under way, and what the peer refused for good (PS3.4 B.2.3).

Knows responses. Must not know associations.
"""

import logging
from collections.abc import Callable

from dicom_node.config.destinations import Destination
from dicom_node.errors import NotTaken, PeerError
from dicom_node.network import dimse, outgoing
from dicom_node.network.part10 import Part10
from dicom_node.network.upper_layer import Message, Violation

log = logging.getLogger(__name__)


class Storing:
    """The requests that wait for a response, by their message ID, and the refusals.

    `on_stored` is called with each file that the peer has stored.
    """

    def __init__(
        self, destination: Destination, on_stored: Callable[[Part10], None] | None
    ) -> None:
        self._destination, self._on_stored = destination, on_stored
        self.waiting: dict[int, Part10] = {}
        self._refused: list[str] = []

    def refuse(self, reason: str) -> None:
        """Note what is refused for good; the rest goes on."""
        if reason not in self._refused:
            self._refused.append(reason)

    def settle(self, response: Message) -> None:
        """Take a response to a C-STORE.

        Raises
        ------
        Violation
            It answers nothing that waits.
        PeerError
            The peer cannot take it now.
        """
        number, status = (
            response.command.number(each) for each in (dimse.RESPONDED_TO, dimse.STATUS)
        )
        file = self.waiting.pop(number, None)
        if file is None:
            raise Violation(f"a response to message {number}, which waits for none")
        if not outgoing.is_stored(status):
            reason = f"refused {file.path.name}: {outgoing.meaning(response.command)}"
            if not outgoing.is_permanent(status):
                raise PeerError(f"{self._destination} {reason}")
            self.refuse(reason)
            return
        if status not in {dimse.SUCCESS, outgoing.STORED_ALREADY}:
            log.warning("store.warning", extra={"status": status, "to": str(self._destination)})
        if self._on_stored is not None:
            self._on_stored(file)

    def end(self) -> None:
        """Raise `NotTaken` if anything was refused, and say what."""
        if self._refused:
            raise NotTaken(f"{self._destination} {'; '.join(self._refused)}")
