"""A body of multipart/related (RFC 2387), cut into its parts while it comes.

Knows python-multipart's parser, which knows boundaries. No more than one part is in memory, and
what came with it; a part that is larger than the limit ends it.
"""

from collections.abc import Callable
from email.message import Message
from typing import Any, Final

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser

from dicom_node.errors import BadInput

RELATED: Final = "multipart/related"


class TooLarge(BadInput):
    """A part is larger than the limit."""

    status = 0xA700
    http_status = 413


class WrongType(BadInput):
    """The body is not of the type that is taken."""

    http_status = 415


class Parts:
    """Takes a body piece by piece, and gives parts when they are whole.

    Parameters
    ----------
    boundary
        Of the Content-Type; see `boundary`.
    most
        Bytes that a part may have.
    """

    def __init__(self, boundary: bytes, *, most: int) -> None:
        self._most = most
        self._name, self._value = bytearray(), bytearray()
        self._types: str = ""
        self._part = bytearray()
        self._whole: list[tuple[str, bytearray]] = []
        self._ended = False
        calls: dict[str, Callable[..., Any]] = {
            "on_part_begin": self._begin,
            "on_header_field": self._field,
            "on_header_value": self._content,
            "on_header_end": self._header,
            "on_part_data": self._data,
            "on_part_end": self._end,
            "on_end": self._last,
        }
        try:
            self._parser = MultipartParser(boundary, calls)  # type: ignore[arg-type]
        except FormParserError as error:
            raise BadInput(f"the boundary cannot be used: {error}") from error

    def feed(self, piece: bytes) -> list[tuple[str, bytearray]]:
        """Take a piece of the body; give content type and content of each part that is whole now.

        Raises
        ------
        TooLarge
            A part is larger than the limit; those before it were given.
        BadInput
            It is no such body.
        """
        self._whole = []
        try:
            if piece and not self._ended:  # what follows the last boundary is no part (RFC 2046)
                self._parser.write(piece)
        except FormParserError as error:
            raise BadInput(f"not {RELATED}: {error}") from error
        return self._whole

    def close(self) -> None:
        """Say that the body is over; `BadInput` if its last boundary has not come."""
        if not self._ended:
            raise BadInput(f"the {RELATED} body ends before its last boundary")

    def _begin(self) -> None:
        self._part, self._types = bytearray(), ""

    def _field(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _content(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header(self) -> None:
        if self._name.lower() == b"content-type":
            self._types = self._value.decode("latin-1")
        self._name, self._value = bytearray(), bytearray()

    def _data(self, data: bytes, start: int, end: int) -> None:
        if len(self._part) + end - start > self._most:
            raise TooLarge(f"a part of more than {self._most} bytes")
        self._part += memoryview(data)[start:end]

    def _end(self) -> None:
        self._whole.append((self._types, self._part))
        self._part = bytearray()

    def _last(self) -> None:
        self._ended = True


def media_type(text: str) -> tuple[str, dict[str, str]]:
    """Give type/subtype in small letters, and the parameters (RFC 9110 8.3.1)."""
    read = Message()
    read["Content-Type"] = text
    found = read.get_params(failobj=[])
    if not text.strip() or not found:
        return "", {}
    return found[0][0].lower(), {key.lower(): value for key, value in found[1:]}


def boundary(content_type: str, *, of: str) -> bytes:
    """Give the boundary of a multipart/related body whose root is of this type.

    Raises
    ------
    WrongType
        It is another type.
    BadInput
        It names no boundary.
    """
    found, parameters = media_type(content_type)
    if found != RELATED or parameters.get("type", of).lower() != of:
        raise WrongType(f'expected Content-Type {RELATED}; type="{of}", got {content_type!r}')
    said = parameters.get("boundary", "")
    if not said or not said.isascii():
        raise BadInput(f"Content-Type {RELATED} without a boundary")
    return said.encode()
