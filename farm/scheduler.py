"""Which lane is served next. Pure: given what waits and what runs, it always answers the same."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from farm.job import megapixel_steps
from farm.leasing import AGEING_S, LaneView

STEP_S_PER_MEGAPIXEL = 4.0  # a slow device's denoising step; leases are extended by heartbeats anyway


def order(lanes: Sequence[LaneView], running: Mapping[str, int], warm: Collection[str], now: float) -> list[LaneView]:
    """Highest priority first, aged; then the project with fewest jobs running; then a warm model; then the oldest."""

    def rank(lane: LaneView) -> tuple[int, int, bool, float, int]:
        waited = max(0.0, now - lane.created_at)
        aged = lane.priority + int(waited / AGEING_S)
        return -aged, running.get(lane.project_id, 0), lane.model not in warm, lane.created_at, lane.id

    return sorted(lanes, key=rank)


def lease_seconds(shortest: float, shape_key: str, jobs: int) -> float:
    """An expiry sized to the work: a lease outlasts drawing the whole group, were every heartbeat late."""
    return shortest + jobs * megapixel_steps(shape_key) * STEP_S_PER_MEGAPIXEL
