"""The page on which the rules are tried on an image: it is looked at and thrown away.

Knows Starlette. What is decided, `Trial` says; a file is held in memory, and of limited size.
"""

from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Any, Final, Protocol

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from dicom_node.errors import BadInput

from . import access

Trial = Callable[[bytes], Mapping[str, Any]]

LARGEST_FILE: Final = 32 * 1024 * 1024
LARGEST_FIELD: Final = 1024
TOO_LARGE: Final = f"a file has at most {LARGEST_FILE} bytes"


class _TooLarge(MultiPartException):
    """The parser knows this kind, and closes the file that it has begun."""


class Pages(Protocol):
    """What shows a page, and knows to whom."""

    def session(self, request: Request) -> str:
        """Give the session of a request; empty if there is none that is good."""

    def page(self, template: str, session: str, *, status: int = 200, **values: object) -> Response:
        """Show a page to a session."""


class RulesPage:
    """The page, beside the others."""

    def __init__(self, pages: Pages, trial: Trial) -> None:
        self._pages, self._trial = pages, trial

    def routes(self) -> list[Route]:
        """Give the routes of the page."""
        return [
            Route("/rules", self.show),
            Route("/rules", self.try_one, methods=["POST"]),
        ]

    def show(self, request: Request) -> Response:
        """Ask for a file."""
        session = self._pages.session(request)
        return self._page(session) if session else RedirectResponse("/login", 303)

    async def try_one(self, request: Request) -> Response:
        """Say what would be decided about the file."""
        # Before a byte of the file is read.
        session = await run_in_threadpool(self._pages.session, request)
        if not session:
            raise HTTPException(403, "sign in first; open the page again")
        form = await _form(request)
        token, file = form.get("form"), form.get("file")
        data = await file.read() if isinstance(file, UploadFile) else b""
        name = file.filename or "" if isinstance(file, UploadFile) else ""
        await form.close()
        if not access.form_is_ours(session, token if isinstance(token, str) else ""):
            raise HTTPException(403, "this form was not made for your session; open the page again")
        return await run_in_threadpool(self._answer, session, name, data)

    def _answer(self, session: str, name: str, data: bytes) -> Response:
        if not data:
            return self._page(session, fault="choose a file first", status=400)
        try:
            return self._page(session, name=name, told=self._trial(data))
        except BadInput as error:
            return self._page(session, name=name, fault=str(error), status=400)

    def _page(
        self,
        session: str,
        *,
        name: str = "",
        told: Mapping[str, Any] | None = None,
        fault: str = "",
        status: int = 200,
    ) -> Response:
        most = LARGEST_FILE // (1024 * 1024)
        shown = {"name": name[:200], "told": told, "fault": fault, "most": most}
        return self._pages.page("rules.html", session, status=status, **shown)


async def _form(request: Request) -> FormData:
    """Read a form with one file (multipart/form-data, RFC 7578) in memory."""
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise HTTPException(415, "expected multipart/form-data")
    parser = MultiPartParser(
        request.headers, _limited(request), max_files=1, max_fields=4, max_part_size=LARGEST_FIELD
    )
    # Nothing of a file that is only shown is written to a disk.
    parser.spool_max_size = LARGEST_FILE
    try:
        return await parser.parse()
    except _TooLarge as error:
        raise HTTPException(413, error.message) from error
    except MultiPartException as error:
        raise HTTPException(400, f"the form cannot be read: {error.message}") from error


async def _limited(request: Request) -> AsyncGenerator[bytes, None]:
    """Give the body as far as it may be read."""
    told, read = request.headers.get("content-length", ""), 0
    if told.isdigit() and int(told[:16]) > LARGEST_FILE:
        raise _TooLarge(TOO_LARGE)
    try:
        async for chunk in request.stream():
            read += len(chunk)
            if read > LARGEST_FILE:
                raise _TooLarge(TOO_LARGE)
            yield chunk
    except ClientDisconnect as error:
        raise MultiPartException("it has no end") from error
