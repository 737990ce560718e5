"""Who looks at a page: the cookie holds an API key, checked against the database at every request, so revoking it ends the visit."""

from __future__ import annotations

from urllib.parse import urlsplit

from fastapi import Request
from sqlalchemy import Engine

from farm.access import Caller, find_key
from farm.errors import Forbidden, Unauthorized

COOKIE = "farm_key"


def person(request: Request) -> Caller:
    """The signed-in person; Unauthorized sends the browser to the sign-in page."""
    engine: Engine = request.app.state.engine
    key = request.cookies.get(COOKIE)
    if not key:
        raise Unauthorized("sign in first")
    return find_key(engine, key)


def same_site(request: Request) -> None:
    """Forms are taken from our own pages alone; the cookie is SameSite=Strict besides."""
    origin = request.headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != request.headers.get("host"):
        raise Forbidden("this form was sent from another site")


def local_path(path: str) -> str:
    """Where to go after signing in: a path of ours, never another site."""
    return path if path.startswith("/") and not path.startswith(("//", "/\\")) else "/"
