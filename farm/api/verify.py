"""Any file's provenance: who signed it, and was it changed since? Without a key, where the operator allows it."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Depends, Request

from farm.api.bodies import room_for, spool
from farm.api.callers import TheFarm, caller
from farm.errors import BadInput

router = APIRouter(tags=["provenance"])


def allowed(request: Request, farm: TheFarm) -> None:
    if not farm.checker.public:
        caller(request)


@router.post("/verify", dependencies=[Depends(allowed)])
async def verify_file(request: Request, farm: TheFarm) -> dict[str, Any]:
    """Verify any picture: the body is the file itself. It is kept nowhere.

    Answers with one word (`verdict`), one sentence, what each code means, the chain of certificates, and every
    ancestor; `state` is what became of the file on this farm, null where the farm does not know it.
    """
    async with farm.checker.place():
        with room_for("the file") as body:
            await spool(request, body, farm.checker.max_bytes, "the file")
            if not body.tell():
                raise BadInput("the body is empty", fix="send the picture's bytes as the body")
            return await farm.checker.check(body)
