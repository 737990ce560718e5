"""What a gang takes of the nodes that Ray has."""

from __future__ import annotations

import socket
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from actors import placing
from actors.gang import PREFIX
from actors.messages import Post
from actors.nodes import node_of
from actors.placing import Bundle, Node, Room
from farm.lack import Amount, Lack

READS_S = 0.5e9  # bytes a second, where nobody has measured yet how long a gang takes to load
ANSWER_S = 2.0  # of a node that lives
STARTS_S = 5.0  # of Ray's actors and of torch


def lack(post: Post, away: Collection[str]) -> Lack:
    """For Ray has found none for it, on nodes that are not drained."""
    import ray

    rooms = {row["NodeID"]: Room.of(node_of(row)) for row in _alive() if row["NodeID"] not in away}
    table = [row for row in ray.util.placement_group_table().values() if row["state"] == "CREATED"]
    taken = {row["name"].removeprefix(PREFIX): _taken(row) for row in table}
    return placing.lacking(_bundle(post, gpus_of(post)), post.sequence, rooms, taken)


def _taken(row: Mapping[str, Any]) -> dict[str, Amount]:
    """By node."""
    some: dict[str, Amount] = {}
    for number, home in row["bundles_to_node_id"].items():
        asked, (cpus, gpus) = row["bundles"][number], some.get(home, (0, 0))
        some[home] = cpus + placing.units(asked.get("CPU", 0.0)), gpus + placing.units(asked.get("GPU", 0.0))
    return some


def would_fit(post: Post, nodes: Mapping[str, Node], away: Collection[str] = ()) -> bool:
    """On those of them that it is not kept away from, were they empty. Pure."""
    bundle = _bundle(post, _gpus(post, any(node.gpus for node in nodes.values())))
    rooms = [Room.of(node) for home, node in nodes.items() if home not in away]
    return placing.place(bundle, post.sequence, rooms) is not None


def why_none(post: Post, in_use: Collection[str], drained: Collection[str] = ()) -> str:
    there = nodes()
    if not would_fit(post, there):
        return f"these nodes are too small for {words(post)}: see `farm pool plan`"
    full = f"no node has room for {words(post)}; gangs in use: {', '.join(in_use) or 'none'}"
    kept = [there[home].name for home in there if home in drained and may_lie(post, [home], there)]
    if not kept:
        return full
    count = f"{len(kept)} nodes that would do are" if len(kept) > 1 else "1 node that would do is"
    return f"{full}; {count} drained: `farm pool undrain {kept[0]}`"


def words(post: Post) -> str:
    labels = "".join(f", {name}={value}" for name, value in post.labels)
    each = f"{post.cpus:g} CPU, {gpus_of(post):g} GPU{labels}"
    return f"a gang of {post.pool} ({post.ranks} rank{'s' * (post.ranks > 1)} of {each})"


def nodes() -> dict[str, Node]:
    """By Ray's own ids."""
    return {row["NodeID"]: node_of(row) for row in _alive()}


def lost(homes: Iterable[str]) -> list[str]:
    """Those nodes of which Ray knows that they are gone, or with which it cannot talk any more."""
    import ray

    rows = {row["NodeID"]: row for row in ray.nodes()}
    return [home for home in homes if home not in rows or not (rows[home]["Alive"] and _answers(rows[home]))]


def _answers(row: Mapping[str, Any]) -> bool:
    try:
        socket.create_connection((row["NodeManagerAddress"], row["NodeManagerPort"]), timeout=ANSWER_S).close()
    except OSError:
        return False
    return True


def may_lie(post: Post, homes: Collection[str], nodes: Mapping[str, Node]) -> bool:
    """On one of its homes, were they empty; where no nodes are known, who can tell? Pure."""
    bundle = _bundle(post, _gpus(post, any(node.gpus for node in nodes.values())))
    there = [Room.of(nodes[home]) for home in homes if home in nodes]
    return not nodes or any(placing.take(one, bundle) is not None for one in there)


def gpus_of(post: Post) -> float:
    """Of one rank."""
    import ray

    return _gpus(post, "GPU" in ray.cluster_resources()) if post.gpus is None else post.gpus


def _gpus(post: Post, there: bool) -> float:
    if post.gpus is not None:
        return post.gpus
    return float(post.device.startswith("cuda") or (post.device == "auto" and there))


def loading_s(post: Post) -> float:
    """A guess, from the size of its files."""
    from actors.models import parts_there

    parts = parts_there(post.card, Path(post.models) if post.models else None)
    files = {path for part in parts.values() for path in part.files}
    return STARTS_S + sum(path.stat().st_size for path in files) / READS_S


def _bundle(post: Post, gpus: float) -> Bundle:
    units = placing.units
    return Bundle(units(post.tensor * post.cpus), units(post.tensor * gpus), dict(post.labels))


def _alive() -> list[dict[str, Any]]:
    import ray

    return [row for row in ray.nodes() if row["Alive"]]
