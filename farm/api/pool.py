"""The gangs of the whole farm. They belong to no project: operators alone see them."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from farm.api.callers import Operator, TheFarm

router = APIRouter(tags=["pool"])


@router.get("/pool")
def list_gangs(farm: TheFarm, who: Operator) -> dict[str, Any]:
    """List each place for a gang: its state, what it waits for and for how long, and which dispatcher said so."""
    return {"items": farm.insights.pool(), "next": None}
