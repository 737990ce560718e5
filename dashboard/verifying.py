"""The page Verify: drop any picture, read one word and one sentence, and where it comes from."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from starlette.datastructures import UploadFile
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from dashboard import contexts
from dashboard.auth import SignInFirst, person, same_site
from dashboard.pages import ThePages, render
from farm.access import KeyView
from farm.checking import refuse_large
from farm.errors import BadInput

router = APIRouter()
AROUND = 64 << 10  # bytes of the form around the file


def the_visitor(request: Request, the: ThePages) -> KeyView | None:
    """Nobody in particular, where the operator lets anyone verify."""
    try:
        return person(request, the.access)
    except SignInFirst:
        if the.checker.public:
            return None
        raise


Visitor = Annotated[KeyView | None, Depends(the_visitor)]


@router.get("/verify")
def verify_page(request: Request, who: Visitor) -> Response:
    return render(request, "verify.html", person=who, here="verify", found=None)


@router.post("/verify", dependencies=[Depends(same_site)])
async def verify_file(request: Request, the: ThePages, who: Visitor) -> Response:
    length = request.headers.get("content-length")
    if length is None:
        raise BadInput("the form does not say how long it is", fix="send the file to /api/verify instead")
    refuse_large(length, the.checker.max_bytes + AROUND, "the file")
    async with the.checker.place():
        name, found = await _verified(request, the)
    context: dict[str, Any] = {"found": found, "name": name, "steps": contexts.steps(found["ancestors"])}
    return render(request, "verify.html", person=who, here="verify", **context)


async def _verified(request: Request, the: ThePages) -> tuple[str, dict[str, Any]]:
    try:
        async with request.form(max_files=1, max_fields=1) as form:
            file = form.get("file")
            if not isinstance(file, UploadFile) or not file.size:
                raise BadInput("no file was chosen, or it is empty", field="file", fix="choose a picture")
            return file.filename or "the file", await the.checker.check(file.file)
    except ClientDisconnect as error:
        raise BadInput("the sender left before the end of the file", fix="send it again") from error
