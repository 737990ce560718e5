"""The gangs of the whole farm. They belong to no project: operators alone see and drain them."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query

from farm import drains
from farm.api.callers import Operator, TheFarm

router = APIRouter(prefix="/pool", tags=["pool"])
Name = Annotated[str, Query(min_length=1, max_length=500)]
Reason = Annotated[str, Query(max_length=500)]


@router.get("")
def list_gangs(farm: TheFarm, who: Operator) -> dict[str, Any]:
    """List each place for a gang: its state, what it waits for and for how long, and which dispatcher said so; and the
    nodes."""
    return {"items": farm.insights.pool(), "nodes": farm.insights.nodes(), "next": None}


@router.post("/drain")
def drain(farm: TheFarm, who: Operator, name: Name, reason: Reason = "") -> dict[str, Any]:
    """Let a gang, or every gang of a node, end with the job it has; none is placed on that node until `undrain`."""
    return {"name": name, "kind": drains.drain(farm.queue.engine, name, who, reason), "drained": True}


@router.post("/undrain")
def undrain(farm: TheFarm, who: Operator, name: Name) -> dict[str, Any]:
    """Take a drain back. A gang that has not ended yet goes on."""
    return {"name": name, "kind": drains.undrain(farm.queue.engine, name, who), "drained": False}
