"""The farm over HTTP, for the CLI and for programs. What it refuses comes back as the same errors it raised."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any, Self

import httpx

from farm.errors import BadInput, Conflict, FarmError, Forbidden, NotFound, TooLarge, TooSlow, Unauthorized, Unavailable

BY_STATUS: dict[int, type[FarmError]] = {
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    408: TooSlow,
    409: Conflict,
    413: TooLarge,
    503: Unavailable,
}
TIMEOUT = httpx.Timeout(30.0, read=60.0)  # the farm itself waits half a minute for its database
BATCH_TIMEOUT = httpx.Timeout(30.0, read=600.0)  # a large batch is checked whole before its answer, or cancelled
PAGE = 500
KEY = re.compile(r"[!-~]+")
ANOTHER = "`farm access add` makes another"
WHERE = "set FARM_URL, or FARM_HOST and FARM_PORT, to where a farm listens"


class FarmClient:
    def __init__(
        self, url: str, key: str = "", transport: httpx.BaseTransport | None = None, key_from: str = ""
    ) -> None:
        self.url, self.key_from = url, key_from
        if key and not KEY.fullmatch(key):  # nor is it told: whatever else it is, it may hold a key
            says = "this is no API key: it holds a space, the end of a line or a letter that no key has"
            raise Unauthorized(says, field=key_from or "key", fix=ANOTHER)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        try:
            self.http = httpx.Client(base_url=url, headers=headers, timeout=TIMEOUT, transport=transport)
        except httpx.InvalidURL as error:
            raise BadInput(f"{url!r} is no address: {error}", field="url", fix=WHERE) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.http.close()

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            answer = self.http.request(method, path, **options)
        except httpx.RequestError as error:
            reason = "does not answer" if isinstance(error, httpx.TimeoutException) else "no farm answers"
            raise Unavailable(f"{reason} at {self.url}: {error}", fix="start one with `farm up`") from error
        if answer.is_error:
            raise self._refused(answer)
        return answer

    def _refused(self, answer: httpx.Response) -> FarmError:
        """Of a key that is not taken it is said where that key was found."""
        error = refused(answer)
        if isinstance(error, Unauthorized) and self.key_from:
            return Unauthorized(error.detail, field=self.key_from, fix=ANOTHER, **error.more)
        return error

    def get(self, path: str, **params: Any) -> Any:
        return _document(self.request("GET", path, params=_given(params)))

    def post(self, path: str, **params: Any) -> Any:
        return _document(self.request("POST", path, params=_given(params), timeout=BATCH_TIMEOUT))

    def ready(self) -> dict[str, Any]:
        """What /readyz says; Unavailable, with what is missing, until everything stands."""
        answer: dict[str, Any] = self.get("/readyz")
        return answer

    def upload(self, name: str, data: bytes) -> dict[str, Any]:
        answer: dict[str, Any] = _document(
            self.request("POST", "/api/uploads", params=_given({"name": name}), content=data)
        )
        return answer

    def submit(self, lines: Iterable[bytes], **options: Any) -> dict[str, Any]:
        """Options: name, priority, skip_bad, again. Who pauses half a minute between two lines is let go."""
        answer: dict[str, Any] = _document(
            self.request("POST", "/api/batches", params=_given(options), content=lines, timeout=BATCH_TIMEOUT)
        )
        return answer

    def batch(self, batch_id: int) -> dict[str, Any]:
        answer: dict[str, Any] = self.get(f"/api/batches/{batch_id}")
        return answer

    def job(self, job_id: int) -> dict[str, Any]:
        answer: dict[str, Any] = self.get(f"/api/jobs/{job_id}")
        return answer

    def image(self, job_id: int) -> bytes:
        """The signed file as it lies in the store."""
        return self.request("GET", f"/api/jobs/{job_id}/image").content

    def pages(
        self, path: str, after: int | None = None, most: int | None = None, **params: Any
    ) -> Iterator[dict[str, Any]]:
        """Every row of a listing, or the first of them, page by page."""
        left = most
        while left is None or left > 0:
            page = self.get(path, after=after, limit=PAGE if left is None else min(PAGE, left), **params)
            yield from page["items"]
            after = page["next"]
            if after is None:
                return
            left = left and left - len(page["items"])


def _document(answer: httpx.Response) -> Any:
    try:
        return answer.json()
    except ValueError as error:
        raise Unavailable(f"what answers at {answer.request.url} is not a farm", fix=WHERE) from error


def refused(answer: httpx.Response) -> FarmError:
    """The error that a problem document tells of."""
    try:
        document = answer.json()
    except ValueError:
        document = None
    if not isinstance(document, dict):
        document = {"fix": WHERE}  # not a farm's way to refuse
    kind = BY_STATUS.get(answer.status_code, BadInput if answer.is_client_error else FarmError)
    known = {"type", "title", "status", "detail", "field", "fix"}
    more = {name: value for name, value in document.items() if name not in known}
    detail = document.get("detail") or f"{answer.request.url} answered {answer.status_code}"
    return kind(detail, field=document.get("field"), fix=document.get("fix"), **more)


def _given(params: dict[str, Any]) -> dict[str, Any]:
    """Text that UTF-8 cannot spell, such as the name of a file may be, goes with question marks."""
    told = {
        name: value.encode(errors="replace").decode() if isinstance(value, str) else value
        for name, value in params.items()
    }
    return {name: value for name, value in told.items() if value is not None}
