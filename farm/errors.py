"""Every error the farm raises on purpose.

FarmError                an error a person reads: what is wrong (detail), where (field), what to do (fix)
├── BadInput        422  the request is wrong; CLI exit code 2
│   └── TooLarge    413
├── Unauthorized    401
├── Forbidden       403
├── NotFound        404
├── TooSlow         408  its sender paused too long
├── Conflict        409  right request, wrong moment
├── Unavailable     503  something the farm needs is not there; try again
└── Fault           500  an attempt did not end; carries the cause that decides who pays (farm.job.CAUSES);
                         503  where that is the environment: an outage, whatever met it
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

from farm.job import CAUSES, Cause, Payer

RETRY_AFTER_S = 5  # what a client is told that meets an outage


class FarmError(Exception):
    status = 500
    title = "The farm failed"

    def __init__(self, detail: str, *, field: str | None = None, fix: str | None = None, **more: Any) -> None:
        super().__init__(detail)
        self.detail, self.field, self.fix, self.more = detail, field, fix, more

    def problem(self) -> dict[str, Any]:
        """The RFC 9457 document; the CLI prints the same in one line."""
        name = type(self).__name__
        document: dict[str, Any] = {"type": f"urn:farm:error:{name.lower()}", "title": self.title}
        document |= {"status": self.status, "detail": self.detail}
        document |= {key: value for key, value in (("field", self.field), ("fix", self.fix)) if value}
        return document | self.more

    def public(self) -> dict[str, Any]:
        """The document for whoever asks over the network, known or not."""
        return self.problem()

    def __str__(self) -> str:
        where = f"{self.field}: " if self.field else ""
        return f"{where}{self.detail}" + (f" ({self.fix})" if self.fix else "")


class BadInput(FarmError):
    status, title = 422, "The request is not right"


class TooLarge(BadInput):
    status, title = 413, "The request is too large"


class Unauthorized(FarmError):
    status, title = 401, "Who are you?"


class Forbidden(FarmError):
    status, title = 403, "Not allowed"


class NotFound(FarmError):
    status, title = 404, "Not found"


class TooSlow(FarmError):
    status, title = 408, "The request did not come in time"


class Conflict(FarmError):
    status, title = 409, "Not possible in this state"


class Unavailable(FarmError):
    status, title = 503, "Not available now"


class Fault(FarmError):
    """An attempt that did not end in a verdict. Pickles by its three arguments, because Ray carries it."""

    title = "An attempt failed"

    def __init__(self, cause: Cause, detail: str, *, gang: str | None = None) -> None:
        super().__init__(detail)
        self.cause, self.gang = cause, gang
        if CAUSES[cause] is Payer.ENVIRONMENT:
            self.status = Unavailable.status

    def public(self) -> dict[str, Any]:
        """Of an outage its kind alone: where the database lies, say, is for the farm's own log."""
        document = self.problem() | {"cause": str(self.cause)}
        if CAUSES[self.cause] is Payer.ENVIRONMENT:
            title = Unavailable.title if self.title == Fault.title else self.title
            told = {"title": title, "detail": f"{self.cause}: the farm's log says more", "fix": "try again later"}
            document |= told
        return document

    def __reduce__(self) -> tuple[Any, ...]:
        return _fault, (self.cause, self.detail, self.gang)


def _fault(cause: Cause, detail: str, gang: str | None) -> Fault:
    return Fault(cause, detail, gang=gang)


def nearest(word: str, known: Iterable[str]) -> str:
    """The `fix` for an unknown name (law 8)."""
    names = sorted(map(str, known))
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(names)}"
