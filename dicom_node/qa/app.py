"""The routes of the QA pages, and what every answer carries: headers, and errors in plain words.

Knows Starlette. A page is shown to a session only; each first look at a study is an event.
"""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dicom_node.errors import LedgerBroken, NodeError
from dicom_node.ledger import Job, Ledger, Study

from . import access, api, views
from .rules import RulesPage, Trial

HERE = Path(__file__).parent
LARGEST_FORM = 16_384
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; img-src 'self';"
    " form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
Endpoint = Callable[[Request, str], Response]


def create_app(
    ledger: Ledger, *, results_dir: Path, api_token: str, trial: Trial | None = None
) -> Starlette:
    """Make the application.

    Parameters
    ----------
    results_dir
        Where each job has its folder of results.
    api_token
        What programs show as their bearer token.
    trial
        Says of an image what would be decided; None: there is no page for it.
    """
    pages = Pages(ledger, results_dir, tried=trial is not None)
    rules = RulesPage(pages, trial).routes() if trial else []
    errors: dict[Any, Any] = {HTTPException: pages.refused, NodeError: pages.failed}
    return Starlette(
        routes=[
            *api.routes(ledger, api_token),
            *pages.routes(),
            *rules,
            Mount("/static", StaticFiles(directory=HERE / "static")),
        ],
        middleware=[Middleware(Headers)],
        exception_handlers=errors,
    )


class Headers:
    """Puts the headers on every answer, errors included."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        await self.app(scope, receive, with_headers)


class Pages:
    """The pages, over one ledger and one folder of results."""

    def __init__(self, ledger: Ledger, results_dir: Path, *, tried: bool = False) -> None:
        self._ledger, self._results_dir = ledger, results_dir
        self._looked: set[tuple[str, str]] = set()  # sessions and the studies that they have seen
        self._templates = Environment(
            loader=FileSystemLoader(HERE / "pages"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.globals.update(states=views.STATES, links=views.LINKS, tried=tried)
        self._templates.filters.update(told=views.told, person=views.person)

    def routes(self) -> list[Route]:
        """Give the routes of the pages."""
        study = "/studies/{study_uid:path}"  # path: a scanner may send a UID that is none
        return [
            Route("/login", self.login),
            Route("/login", self._posted(self.enter), methods=["POST"]),
            Route("/logout", self._posted(self.leave), methods=["POST"]),
            Route("/", self._guarded(self.studies)),
            Route(study + "/complete", self._posted(self.complete), methods=["POST"]),
            Route(study + "/jobs/{job_id}/overlay.png", self._guarded(self.picture)),
            Route(study + "/jobs/{job_id}/{label}.dcm", self._guarded(self.download)),
            Route(study, self._guarded(self.study)),
            Route("/ledger", self._guarded(self.log)),
            Route("/ledger/verify", self._guarded(self.verify)),
        ]

    # --- pages --------------------------------------------------------------------------------

    def studies(self, request: Request, session: str) -> Response:
        """List the studies."""
        query = request.query_params
        page = _number(query.get("page", "")) or 0
        listing = views.listing(self._ledger, query.get("state", ""), query.get("text", ""), page)
        return self.page("studies.html", session, listing=listing)

    def study(self, request: Request, session: str) -> Response:
        """Show the card of a study; that it was looked at is remembered once for a session."""
        study = self._study(request)
        self._remember_look(session, study)
        job_id = request.query_params.get("job", "")
        card = views.card(self._ledger, self._results_dir, study, job_id)
        return self.page("study.html", session, card=card)

    def picture(self, request: Request, _: str) -> Response:
        """Give the picture of a job."""
        return _file(self._results_dir / self._job(request).id / views.PICTURE, "image/png")

    def download(self, request: Request, session: str) -> Response:
        """Give an object of a job; that it left the node is remembered."""
        job, label = self._job(request), request.path_params["label"]
        for each in self._ledger.results(job.id):
            if each.label == label:
                found = _file(each.path, "application/dicom", f"{each.sop_uid}.dcm")
                self._ledger.event(
                    "qa.downloaded",
                    study_uid=job.study_uid,
                    job_id=job.id,
                    label=label,
                    session=access.name(session),
                )
                return found
        raise HTTPException(404, "the job made no such object")

    def log(self, request: Request, session: str) -> Response:
        """Show the event log; that it was looked at is remembered once for a session."""
        query = request.query_params
        if (session, "") not in self._looked:
            self._looked.add((session, ""))
            self._ledger.event("ledger.read", session=access.name(session), how="pages")
        study_uid = query.get("study") or None
        log = views.log(self._ledger, study_uid, _number(query.get("after", "")))
        return self.page("ledger.html", session, log=log, study_uid=study_uid)

    def verify(self, _: Request, session: str) -> Response:
        """Check the hash chain and say so."""
        try:
            count, broken = self._ledger.verify(), ""
        except LedgerBroken as error:
            count, broken = 0, str(error)
        return self.page(
            "verify.html",
            session,
            count=count,
            broken=broken,
            head=self._ledger.head(),
            erased=self._ledger.erased_events(),
        )

    # --- forms --------------------------------------------------------------------------------

    def login(self, request: Request) -> Response:
        """Ask for one click: a link that is merely fetched, by a mail scanner, is not used up."""
        return self.page("login.html", "", token=request.query_params.get("token", ""), bad=False)

    def enter(self, request: Request, form: dict[str, str]) -> Response:
        """Use a one-time link."""
        response = RedirectResponse("/", 303)
        secure = request.url.scheme == "https"
        address = request.client.host if request.client else ""
        token = form.get("token", "")
        if access.open_session(self._ledger, token, response, secure=secure, address=address):
            return response
        return self.page("login.html", "", token="", bad=True, status=403)

    def leave(self, request: Request, form: dict[str, str]) -> Response:
        """End the session."""
        response = RedirectResponse("/login", 303)
        access.close_session(self._ledger, self._asked(request, form), response)
        return response

    def complete(self, request: Request, form: dict[str, str]) -> Response:
        """Take a study as complete now."""
        session, study = self._asked(request, form), self._study(request)
        self._ledger.request_completion(study.study_uid, by=f"session {access.name(session)}")
        return RedirectResponse(f"/studies/{quote(study.study_uid)}", 303)

    # --- errors -------------------------------------------------------------------------------

    async def refused(self, request: Request, error: Exception) -> Response:
        """Answer what cannot be done."""
        assert isinstance(error, HTTPException)  # noqa: S101 - registered for this class
        return self._error(request, error.status_code, error.detail)

    async def failed(self, request: Request, error: Exception) -> Response:
        """Answer what went wrong inside."""
        assert isinstance(error, NodeError)  # noqa: S101 - registered for this class
        return self._error(request, error.http_status, str(error))

    def _error(self, request: Request, status: int, detail: str) -> Response:
        if request.url.path.startswith("/api/"):
            return JSONResponse({"error": detail}, status)
        return self.page("error.html", "", status=status, code=status, detail=detail)

    def session(self, request: Request) -> str:
        """Give the session of a request; empty if there is none that is good."""
        return access.session_of(self._ledger, request)

    # --- how ----------------------------------------------------------------------------------

    def page(self, template: str, session: str, *, status: int = 200, **values: object) -> Response:
        """Show a page to a session; empty: to nobody who is known."""
        form = access.form_token(session) if session else ""
        shown = self._templates.get_template(template).render(form=form, **values)
        return HTMLResponse(shown, status)

    def _guarded(self, endpoint: Endpoint) -> Callable[[Request], Response]:
        def guard(request: Request) -> Response:
            session = access.session_of(self._ledger, request)
            return endpoint(request, session) if session else RedirectResponse("/login", 303)

        return guard

    def _posted(
        self, endpoint: Callable[[Request, dict[str, str]], Response]
    ) -> Callable[[Request], Awaitable[Response]]:
        async def post(request: Request) -> Response:
            form = await _form(request)
            return await run_in_threadpool(endpoint, request, form)

        return post

    def _asked(self, request: Request, form: dict[str, str]) -> str:
        """Give the session that sent a form of ours."""
        session = access.session_of(self._ledger, request)
        if not session or not access.form_is_ours(session, form.get("form", "")):
            raise HTTPException(403, "this form was not made for your session; open the page again")
        return session

    def _study(self, request: Request) -> Study:
        study = self._ledger.study(request.path_params["study_uid"])
        if study is None:
            raise HTTPException(404, "no study has this Study Instance UID")
        return study

    def _job(self, request: Request) -> Job:
        job = self._ledger.job(request.path_params["job_id"])
        if job is None or job.study_uid != request.path_params["study_uid"]:
            raise HTTPException(404, "the study has no such job")
        return job

    def _remember_look(self, session: str, study: Study) -> None:
        look = (session, study.study_uid)
        if look not in self._looked:
            self._looked.add(look)
            self._ledger.event("qa.viewed", study_uid=study.study_uid, session=access.name(session))


async def _form(request: Request) -> dict[str, str]:
    """Read a small form (application/x-www-form-urlencoded); of repeated fields the first."""
    body = b""
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > LARGEST_FORM:
                raise HTTPException(413, f"a form has at most {LARGEST_FORM} bytes")
    except ClientDisconnect as error:
        raise HTTPException(400, "the form is cut short") from error
    return {key: each[0] for key, each in parse_qs(body.decode("utf-8", "replace")).items()}


def _file(path: Path, kind: str, filename: str | None = None) -> Response:
    if not path.is_file():
        raise HTTPException(404, "the file is not there any more")
    return FileResponse(path, media_type=kind, filename=filename)


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 16 else None  # noqa: PLR2004 - digits of a sensible number
