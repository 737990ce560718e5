"""One gang: its ranks as named, detached Ray actors in one placement group.

Detached, so that a restarted dispatcher finds the warm gang by its name. Never restarted by Ray: its retries run work
twice. When a rank is lost the whole gang goes, placement group included, and another one is built.

A gang is used, and removed, by one dispatcher at a time: the one that has its holder, an actor whose name exists once.
A holder ends with its dispatcher, however that ends, and then the gang may be had by another one. It is there
before the placement group, which waits in Ray for its room, where the autoscaler sees it.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from actors.messages import Hello, Order, Post
from actors.plan import device_of
from actors.rank import CONTROL, RENDER, Rank
from actors.stages import Passed
from actors.watching import Watching
from farm.errors import Fault
from farm.job import Cause
from farm.ports import GangState, Rendered, Step, ignore

log = logging.getLogger("farm.gang")
PREFIX, HOLDER = "gang/", "holder/"
POLL_S = 0.2
ANSWER_S = 60.0  # for a question; it may find the rank at work that its last dispatcher gave it, on a busy machine
FREED_S = 5.0  # Ray takes a moment to end what a dead dispatcher has left
GRACE_S = 10.0  # the rank's own watchdog comes first
NODE = "ray.io/node-id"  # Ray's own label of each node


class Holder:
    """While it stands, the gang it is named after is in use."""


def forget(_job_id: int, _data: bytes) -> None:
    """For whoever keeps no latents."""


@dataclass(slots=True)
class Gang:
    id: str
    ranks: list[Any]
    group: Any
    holder: Any

    def ask(self) -> list[Any]:
        """The hello of each rank, to come."""
        return [_ask(rank, "hello").remote() for rank in self.ranks]

    def hello(self) -> Hello:
        import ray

        return _one(ray.get(self.ask(), timeout=ANSWER_S))

    def homes(self) -> tuple[str, ...]:
        """The ids of the nodes it lies on."""
        import ray

        return tuple(sorted(set(ray.util.placement_group_table(self.group)["bundles_to_node_id"].values())))

    def load(self, limit_s: float) -> None:
        import ray

        meeting = ray.get(self.ranks[0].meet.remote(), timeout=limit_s) if len(self.ranks) > 1 else ""
        loads = [rank.load.options(concurrency_group=RENDER).remote(meeting) for rank in self.ranks]
        require_alike(ray.get(loads, timeout=limit_s))

    def render(
        self,
        order: Order,
        cancelled: Callable[[], bool],
        watch: Callable[[Sequence[Step]], None] = ignore,
        keep: Callable[[int, bytes], None] = forget,
        given: Sequence[Any] = (),
    ) -> list[Rendered | Passed | Fault]:
        """Every rank runs the whole loop; the first answers. A rank that fails is heard at once. Meanwhile `watch`
        hears how far the jobs are, and `keep` is given what each could go on from. `given`, of the stage before, and
        what is made for the next one are references: ranks get it from each other."""
        import ray

        asked = ray.put(order) if len(self.ranks) > 1 else order
        answering = {"concurrency_group": RENDER, "num_returns": 1 + len(order.requests) * order.hands_on}
        replies = [rank.render.options(**answering).remote(asked, *given) for rank in self.ranks]
        calls = [reply[0] if order.hands_on else reply for reply in replies]
        waiting, told, end = list(calls), False, time.monotonic() + order.limit_s + GRACE_S
        watching = Watching(lambda save: _ask(self.ranks[0], "progress").remote(order.call, save), watch, keep)
        while waiting:
            done, waiting = ray.wait(waiting, timeout=POLL_S)
            try:
                ray.get(done)
            except ray.exceptions.RayActorError as error:
                if time.monotonic() < end - GRACE_S:
                    raise
                raise Fault(Cause.GANG_HUNG, f"ended after {order.limit_s:.0f} s in one call", gang=self.id) from error
            if waiting and (told or cancelled()):
                told = True  # again at each look: what comes before the call has begun is not heard
                for rank in self.ranks:
                    _ask(rank, "cancel").remote(order.call)
            if waiting and time.monotonic() > end:
                raise Fault(Cause.GANG_HUNG, f"no answer within {order.limit_s:.0f} s", gang=self.id)
            watching.look()
        answers: list[Any] = ray.get(calls[0])
        if told:
            self._keep_left(order.call, keep)
        if order.hands_on:
            pairs = zip(answers, replies[0][1:], strict=True)
            return [answer if isinstance(answer, Fault) else Passed(made, answer) for answer, made in pairs]
        return answers

    def _keep_left(self, call: str, keep: Callable[[int, bytes], None]) -> None:
        import ray

        try:
            for job_id, data in ray.get(_ask(self.ranks[0], "stopped_at").remote(call), timeout=ANSWER_S):
                keep(job_id, data)
        except Exception as error:  # they start anew, or from what was kept before
            log.info("nothing was left of a cancelled call: %s", error)

    def remove(self) -> None:
        import ray

        try:
            for rank in self.ranks:
                ray.kill(rank, no_restart=True)
            # Killing the actors alone would leave their room taken.
            ray.util.remove_placement_group(self.group)
        finally:  # what is left of it is swept, unless somebody holds it
            ray.kill(self.holder, no_restart=True)


@dataclass(frozen=True, slots=True)
class Site:
    """A gang to be, that waits for its room."""

    id: str
    group: Any
    holder: Any
    ready: Any  # the answer, once there is room
    away: frozenset[str]  # nodes it must not lie on


def seek(post: Post, gpus: float, away: frozenset[str]) -> Site:
    """Tensor ranks talk all the time: they are one bundle, which lies on one node. Bundles lie on as few as can be."""
    import ray

    gang_id = f"{post.pool}.{int(time.time())}.{os.urandom(3).hex()}"
    bundle = {"CPU": post.tensor * post.cpus} | ({"GPU": post.tensor * gpus} if gpus else {})
    asked = selector(post, away)
    holder = hold(gang_id)
    try:
        group = ray.util.placement_group(
            [dict(bundle) for _ in range(post.sequence)],
            "PACK",
            name=PREFIX + gang_id,
            lifetime="detached",
            bundle_label_selector=[dict(asked) for _ in range(post.sequence)] if asked else None,
        )
        return Site(gang_id, group, holder, group.ready(), away)
    except BaseException:
        ray.kill(holder, no_restart=True)
        raise


def selector(post: Post, away: Collection[str]) -> dict[str, str]:
    """Ray takes one condition a label: a pool that names its nodes itself is only told from those that are drained."""
    asked = dict(post.labels)
    return asked | {NODE: f"!in({','.join(sorted(away))})"} if away and NODE not in asked else asked


def settle(site: Site, post: Post, gpus: float) -> Gang:
    """Its ranks, in the room that was found; they have nothing loaded yet."""
    ranks = [_rank(site.id, post, gpus, site.group, number) for number in range(post.ranks)]
    return Gang(site.id, ranks, site.group, site.holder)


def abandon(site: Site) -> None:
    import ray

    ray.util.remove_placement_group(site.group)
    ray.kill(site.holder, no_restart=True)


def _rank(gang_id: str, post: Post, gpus: float, group: Any, number: int) -> Any:
    import ray
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    made = ray.remote(concurrency_groups={RENDER: 1, CONTROL: 2}, max_restarts=0, max_task_retries=0)(Rank)
    place = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=number // post.tensor)
    name = f"{PREFIX}{gang_id}/{number:03d}"
    actor = made.options(name=name, lifetime="detached", num_cpus=post.cpus, num_gpus=gpus, scheduling_strategy=place)
    return actor.remote(gang_id, post, number, device_of(post.device, gpus))


def hold(gang_id: str, patience_s: float = 0.0) -> Any | None:
    """The right to use this gang and to remove it; None while another dispatcher has it."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)  # it falls with us
    made = ray.remote(num_cpus=0, max_restarts=0, scheduling_strategy=here)(Holder).options(name=HOLDER + gang_id)
    end = time.monotonic() + patience_s
    while True:
        try:
            return made.remote()
        except ValueError:  # the name is taken
            if time.monotonic() >= end:
                return None
            time.sleep(POLL_S)


def attach(post: Post, ours: Collection[str] = ()) -> Gang | None:
    """A warm gang of this post that an earlier dispatcher has built and nobody uses; `ours` are in use by us."""

    for gang_id in standing():
        if gang_id in ours or pool_of(gang_id) != post.pool or (gang := _find(gang_id, FREED_S)) is None:
            continue
        try:
            if len(gang.ranks) == post.ranks:
                hello = gang.hello()
                if hello.key == post.key and not hello.changed:
                    return gang
        except Exception as error:  # dead, hung, or of other code than ours
            log.warning("gang %s is not taken over: %s", gang_id, error)
        gang.remove()
    return None


def remove_unused(gang_id: str, why: str) -> bool:
    if (gang := _find(gang_id)) is None:
        return False
    log.warning("gang %s removed: nobody uses it, and %s", gang_id, why)
    gang.remove()
    return True


def standing() -> list[str]:
    """The ids of every gang with a living rank."""
    import ray

    return _with_ranks(ray.util.list_named_actors())


def unused() -> list[str]:
    """Those of them that no dispatcher has."""
    import ray

    names = ray.util.list_named_actors()
    return [gang_id for gang_id in _with_ranks(names) if HOLDER + gang_id not in names]


def _with_ranks(names: Iterable[str]) -> list[str]:
    return sorted({name.removeprefix(PREFIX).rpartition("/")[0] for name in names if name.startswith(PREFIX)})


def sweep() -> list[str]:
    """Remove placement groups without a living rank that nobody holds, as a dispatcher leaves them that was killed
    while it built a gang."""
    import ray

    living = set(standing())
    left = [
        row["name"].removeprefix(PREFIX)
        for row in ray.util.placement_group_table().values()
        if row["name"].startswith(PREFIX) and row["state"] != "REMOVED"
    ]
    swept = []
    for gang_id in left:
        if gang_id not in living and (holder := hold(gang_id)) is not None:
            ray.util.remove_placement_group(ray.util.get_placement_group(PREFIX + gang_id))
            ray.kill(holder, no_restart=True)
            swept.append(gang_id)
    return swept


def pool_of(gang_id: str) -> str:
    return gang_id.rsplit(".", 2)[0]


def born(gang_id: str) -> float:
    return float(gang_id.rsplit(".", 2)[1])


def _find(gang_id: str, patience_s: float = 0.0) -> Gang | None:
    """A standing gang, now held by us; None where it is in use, or gone meanwhile."""
    import ray

    if (holder := hold(gang_id, patience_s)) is None:
        return None
    try:
        names = [name for name in ray.util.list_named_actors() if name.startswith(f"{PREFIX}{gang_id}/")]
        ranks = [ray.get_actor(name) for name in sorted(names)]
        return Gang(gang_id, ranks, ray.util.get_placement_group(PREFIX + gang_id), holder)
    except ValueError:  # no such name any more; what is left of it is swept
        ray.kill(holder, no_restart=True)
        return None


def _ask(rank: Any, method: str) -> Any:
    return getattr(rank, method).options(concurrency_group=CONTROL)


def require_alike(hellos: Iterable[Hello]) -> None:
    """Each node reads its own copy of the files; shards of different ones would make a picture of neither."""
    weights = sorted({hello.weights for hello in hellos})
    if len(weights) > 1:
        what = f"the nodes of a gang have different weights ({', '.join(name[:12] for name in weights)})"
        raise Fault(Cause.WEIGHTS_MISSING, f"{what}: copy the same files to each")


def _one(hellos: Iterable[Hello]) -> Hello:
    """The gang is as far as its last rank."""
    order = (GangState.STARTING, GangState.BUSY, GangState.READY, GangState.GONE)
    found = list(hellos)
    last = min(found, key=lambda hello: order.index(hello.state))
    return replace(last, changed=any(hello.changed for hello in found))
