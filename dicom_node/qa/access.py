"""Who may look: one-time links make sessions, a session is a cookie, programs have a token.

Knows the ledger's tokens, of which only digests are kept. There is no password, so none can be a
default one. Forms carry a second secret, made from the session, that no other site can know.
"""

import hashlib
import hmac
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import Response

from dicom_node.ledger import Ledger

LOGIN, SESSION = "login", "session"
COOKIE = "lamed_qa"
LOGIN_S = 24 * 3600.0
SESSION_S = 12 * 3600.0


def login_link(ledger: Ledger, base_url: str) -> str:
    """Make a link that opens the pages once, within a day."""
    token = ledger.issue_token(LOGIN, lifetime_s=LOGIN_S)
    return f"{base_url}/login?{urlencode({'token': token})}"


def open_session(
    ledger: Ledger, token: str, response: Response, *, secure: bool, address: str = ""
) -> bool:
    """Use a one-time token up and put a session into the response; tell whether it was good.

    `address` is where the browser is; it goes into the event.
    """
    if not ledger.redeem_token(LOGIN, token):
        ledger.event("qa.login_refused", address=address)
        return False
    session = ledger.issue_token(SESSION, lifetime_s=SESSION_S)
    ledger.event("qa.login", session=name(session), address=address)
    response.set_cookie(
        COOKIE, session, max_age=int(SESSION_S), httponly=True, secure=secure, samesite="strict"
    )
    return True


def close_session(ledger: Ledger, session: str, response: Response) -> None:
    """End a session: its cookie is good for nothing any more."""
    ledger.redeem_token(SESSION, session)
    ledger.event("qa.logout", session=name(session))
    response.delete_cookie(COOKIE)


def session_of(ledger: Ledger, request: Request) -> str:
    """Give the session of a request; empty if there is none that is good."""
    session = request.cookies.get(COOKIE, "")
    return session if session and ledger.token_is_good(SESSION, session) else ""


def name(session: str) -> str:
    """Name a session in events, without giving it away."""
    return hashlib.sha256(session.encode()).hexdigest()[:12]


def form_token(session: str) -> str:
    """Make the secret that each form of this session carries."""
    return hmac.new(session.encode(), b"form", hashlib.sha256).hexdigest()


def form_is_ours(session: str, token: str) -> bool:
    """Tell whether a form was made for this session."""
    return hmac.compare_digest(form_token(session).encode(), token.encode())


def bearer_is_good(request: Request, api_token: str) -> bool:
    """Tell whether a program has shown the token of the HTTP interface."""
    kind, _, token = request.headers.get("authorization", "").partition(" ")
    shown = hmac.compare_digest(token.strip().encode(), api_token.encode())
    return kind.lower() == "bearer" and bool(api_token) and shown
