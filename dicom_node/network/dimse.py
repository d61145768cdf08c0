"""DIMSE messages: command sets as bytes, and what they ask and answer (PS3.7 6.3, 9 and 10).

Knows the command set, which is always Implicit VR Little Endian. Must not know sockets or PDUs, nor
what a data set holds: it goes through as the bytes it came in.
"""

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from dicom_node.errors import BadInput

C_STORE_RQ: Final = 0x0001
C_ECHO_RQ: Final = 0x0030
C_CANCEL_RQ: Final = 0x0FFF
N_EVENT_REPORT_RQ: Final = 0x0100
N_GET_RQ: Final = 0x0110
N_SET_RQ: Final = 0x0120
N_ACTION_RQ: Final = 0x0130
N_CREATE_RQ: Final = 0x0140
N_DELETE_RQ: Final = 0x0150
RESPONSE: Final = 0x8000  # bit of the command field (PS3.7 E.1)

SUCCESS: Final = 0x0000
SOP_CLASS_NOT_SUPPORTED: Final = 0x0122
UNRECOGNIZED_OPERATION: Final = 0x0211

NO_DATA_SET: Final = 0x0101
A_DATA_SET: Final = 0x0001
COMMENT_LENGTH: Final = 64  # ErrorComment (0000,0902) is LO
MOST_ELEMENTS: Final = 64  # a command set has a dozen

AFFECTED_CLASS: Final = 0x0002
REQUESTED_CLASS: Final = 0x0003
COMMAND_FIELD: Final = 0x0100
MESSAGE_ID: Final = 0x0110
RESPONDED_TO: Final = 0x0120
DATA_SET_TYPE: Final = 0x0800
STATUS: Final = 0x0900
ERROR_COMMENT: Final = 0x0902
AFFECTED_INSTANCE: Final = 0x1000
REQUESTED_INSTANCE: Final = 0x1001
EVENT_TYPE: Final = 0x1002
ACTION_TYPE: Final = 0x1008


@dataclass(frozen=True)
class Request:
    """One request as it was received.

    `sop_class_uid` and `sop_uid` are those affected or requested; `type_id` is the Action Type ID
    or the Event Type ID; `data` is the data set as it came, empty if there is none.
    """

    field: int
    sop_class_uid: str
    sop_uid: str
    type_id: int = 0
    data: bytes = b""
    transfer_syntax_uid: str = ""
    calling_ae: str = ""
    address: str = ""


@dataclass(frozen=True)
class Ask:
    """What is asked of the peer on its own association, after it has its answer.

    `command` is a whole command set; `done` is called with the status of the response, if it comes.
    """

    command: bytes
    data: bytes
    done: Callable[[int], None]


@dataclass(frozen=True)
class Answer:
    """What a request is answered: status (PS3.7 Annex C), a comment on it, and perhaps a data set.

    `sop_uid` is the instance that an N-CREATE-RQ without one has made; `ask` is what follows.
    """

    status: int = SUCCESS
    comment: str = ""
    data: bytes = b""
    sop_uid: str = ""
    ask: Ask | None = None


@dataclass(frozen=True)
class Command:
    """A command set, decoded: the values by element number of group 0000, without padding."""

    values: Mapping[int, bytes]

    @classmethod
    def decode(cls, content: bytes | bytearray) -> "Command":
        """Read a command set.

        Raises
        ------
        BadInput
            It is cut short, has elements of another group, or has no command field.
        """
        values: dict[int, bytes] = {}
        position = 0
        while position < len(content):
            try:
                group, element, length = struct.unpack_from("<HHI", content, position)
            except struct.error as error:
                raise BadInput("a command set is cut short") from error
            position += 8 + length
            if group or position > len(content) or len(values) >= MOST_ELEMENTS:
                raise BadInput(f"no command set: element ({group:04X},{element:04X}) of {length}")
            values[element] = bytes(content[position - length : position])
        if len(values.get(COMMAND_FIELD, b"")) != 2:  # noqa: PLR2004 - US
            raise BadInput("a command set without CommandField")
        return cls(values)

    def number(self, element: int) -> int:
        """Give a value of VR US; 0 if there is none."""
        value = self.values.get(element, b"")
        return int.from_bytes(value[:2], "little")

    def uid(self, *elements: int) -> str:
        """Give the first of these elements that has a value."""
        found = next((self.values[each] for each in elements if self.values.get(each)), b"")
        return found.rstrip(b"\x00 ").decode("ascii", "replace")

    @property
    def field(self) -> int:
        """The command field (PS3.7 E.1)."""
        return self.number(COMMAND_FIELD)

    @property
    def has_data(self) -> bool:
        """Whether a data set follows."""
        return self.number(DATA_SET_TYPE) != NO_DATA_SET

    def request(
        self, data: bytes, transfer_syntax_uid: str, calling_ae: str, address: str
    ) -> Request:
        """Give what is asked, of whom it came from."""
        return Request(
            field=self.field,
            sop_class_uid=self.uid(AFFECTED_CLASS, REQUESTED_CLASS),
            sop_uid=self.uid(AFFECTED_INSTANCE, REQUESTED_INSTANCE),
            type_id=self.number(ACTION_TYPE) or self.number(EVENT_TYPE),
            data=data,
            transfer_syntax_uid=transfer_syntax_uid,
            calling_ae=calling_ae,
            address=address,
        )


def response(asked: Command, answer: Answer) -> bytes:
    """Write the command set of the response to a request (PS3.7 9.3 and 10.3)."""
    elements = [
        _text(AFFECTED_CLASS, asked.uid(AFFECTED_CLASS, REQUESTED_CLASS)),
        _number(COMMAND_FIELD, asked.field | RESPONSE),
        _number(RESPONDED_TO, asked.number(MESSAGE_ID)),
        _number(DATA_SET_TYPE, A_DATA_SET if answer.data else NO_DATA_SET),
        _number(STATUS, answer.status),
    ]
    if answer.comment:
        elements.append(_text(ERROR_COMMENT, _plain(answer.comment), b" "))
    instance = answer.sop_uid or asked.uid(AFFECTED_INSTANCE, REQUESTED_INSTANCE)
    if instance:
        elements.append(_text(AFFECTED_INSTANCE, instance))
    elements += [
        _number(each, asked.number(each))
        for each in (EVENT_TYPE, ACTION_TYPE)
        if each in asked.values
    ]
    content = b"".join(elements)
    return _element(0x0000, struct.pack("<I", len(content))) + content


def _plain(comment: str) -> str:
    ascii_only = comment.encode("ascii", "replace").decode().replace("\\", "/")
    return "".join(filter(str.isprintable, ascii_only))[:COMMENT_LENGTH]


def _text(element: int, value: str, padding: bytes = b"\x00") -> bytes:
    encoded = value.encode("ascii", "replace")
    return _element(element, encoded + padding * (len(encoded) % 2))


def _number(element: int, value: int) -> bytes:
    return _element(element, struct.pack("<H", value))


def _element(element: int, value: bytes) -> bytes:
    return struct.pack("<HHI", 0, element, len(value)) + value
