"""Pictures to edit. They are kept as received, with whatever manifest they bring, and are never listed or shown."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, BinaryIO

from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from fastapi import APIRouter, Request

from farm import pictures
from farm.api.bodies import room_for, spool
from farm.api.callers import Farm, Runner, TheFarm
from farm.errors import BadInput

router = APIRouter(tags=["uploads"])


@router.post("/uploads", status_code=201)
async def create_upload(request: Request, farm: TheFarm, who: Runner, name: str = "") -> dict[str, Any]:
    """Take in a picture to edit: the body is the PNG, JPEG or WebP itself.

    The answer's `id` is what a line's `image` names.
    """
    openers: CapacityLimiter = request.app.state.openers
    with room_for("the picture") as body:
        await spool(request, body, farm.settings.max_upload_mb << 20, "the picture")
        return await run_sync(_keep, farm, who.project_id, name[:200], body, limiter=openers)


def _keep(farm: Farm, project: str, name: str, body: BinaryIO) -> dict[str, Any]:
    body.seek(0)
    data = body.read()  # into memory only here, where few are opened at a time
    if not data:
        raise BadInput("the body is empty", fix="send the picture's bytes as the body")
    picture = pictures.inspect(data, farm.settings.max_pixels_in)
    if farm.examiner is not None:  # here, not only where the signer would refuse what was drawn from it
        farm.examiner.examine(data, picture.mime)
    key = farm.store.put(data)
    id_ = farm.access.add_upload(project, name, key, picture.mime, picture.width, picture.height, len(data))
    return {"id": id_, "name": name, "bytes": len(data), "sha256": key} | asdict(picture)
