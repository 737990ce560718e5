"""A gang on its way: it waits in Ray for its room, for as long as it is wanted."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Sequence

from actors import gang, room
from actors.gang import Gang, Site
from actors.messages import Post
from farm.lack import Lack

log = logging.getLogger("farm.pool")
LOOK_S = 1.0


def build(
    post: Post,
    still: Callable[[], bool],
    away: Callable[[], frozenset[str]],
    lacks: Callable[[Lack], None],
    room_s: float,
) -> Gang | None:
    """Not loaded yet; None once it is not wanted any more. `lacks` is told
    every `room_s` that there is no room and nothing to be cleared away."""
    gpus = room.gpus_of(post)
    while still():
        site = gang.seek(post, gpus, away())
        try:
            if _has_room(site, post, still, away, lacks, room_s):
                return gang.settle(site, post, gpus)
        except BaseException:
            with contextlib.suppress(Exception):  # Ray may be gone; what is left is swept
                gang.abandon(site)
            raise
        gang.abandon(site)
    return None


def _has_room(
    site: Site,
    post: Post,
    still: Callable[[], bool],
    away: Callable[[], frozenset[str]],
    lacks: Callable[[Lack], None],
    room_s: float,
) -> bool:
    """False where it is to be sought anew or no longer."""
    import ray

    since = time.monotonic()
    while still() and site.away == away():
        if ray.wait([site.ready], timeout=LOOK_S)[0]:
            ray.get(site.ready)
            return still()  # the room of a gang that has just gone may be another's, who needs it more
        late = time.monotonic() - since > room_s and site.away == away()
        if late and still():  # which has just seen the head: another one must not be asked
            since = time.monotonic()
            lack = room.lack(post, site.away)
            unused = sorted(gang.unused(), key=gang.born)
            if not (clear() or _removed(lack.least(unused))):  # what nobody uses makes room
                lacks(lack.without(unused))
    return False


def _removed(unused: Sequence[str]) -> bool:
    """As a dispatcher leaves them that does not come back."""
    removed = [gang.remove_unused(gang_id, "its room is needed") for gang_id in unused]
    return any(removed)


def clear() -> bool:
    """Was there anything left of gangs that never came to be?"""
    swept = gang.sweep()
    for gang_id in swept:
        log.warning("removed what was left of gang %s", gang_id)
    return bool(swept)
