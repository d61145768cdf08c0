"""The QA web application: what the node did with each study, for the one who reviews it.

    app       routes, headers, errors        access   one-time links, sessions, the API's token
    views     what each page shows           api      the HTTP interface for programs
    server    uvicorn on a socket of ours    pages/ static/   templates and style

Knows the ledger and the folder of results. Server-rendered, without a line of script.
"""

from .access import login_link
from .app import create_app
from .server import Server

__all__ = ["Server", "create_app", "login_link"]
