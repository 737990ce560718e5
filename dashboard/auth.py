"""Who looks at a page. The cookie holds an API key, checked at every request, so revoking the key ends the visit."""

from __future__ import annotations

from fastapi import Request

from farm.access import Access, KeyView
from farm.errors import Forbidden, Unauthorized

COOKIE = "farm_key"


class SignInFirst(Unauthorized):
    """Sends the browser to the sign-in page."""


def person(request: Request, access: Access) -> KeyView:
    key = request.cookies.get(COOKIE)
    found = access.find_key(key) if key else None
    if found is None:
        raise SignInFirst(
            "sign in first", fix="/signin in a browser; programs ask /api, with Authorization: Bearer KEY"
        )
    return found


def same_site(request: Request) -> None:
    """Forms are taken from our own pages alone; the cookie is SameSite=Strict besides."""
    origin = request.headers.get("origin")
    if origin is not None and origin.partition("://")[2] != request.headers.get("host"):
        raise Forbidden("this form was sent from another site")


def local_path(path: str) -> str:
    """Where to go after signing in: a path of ours, never another site."""
    plain = path.startswith("/") and not path.startswith("//") and "\\" not in path and path.isprintable()
    return path if plain else "/"
