"""What a gang takes of the nodes that Ray has."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from actors import placing
from actors.messages import Post
from actors.nodes import node_of
from actors.placing import Bundle, Node, Room

READS_S = 0.5e9  # bytes a second, where nobody has measured yet how long a gang takes to load
STARTS_S = 5.0  # of Ray's actors and of torch


def rivals(post: Post, homes: Mapping[str, Collection[str]], away: Collection[str]) -> tuple[str, ...]:
    """Those gangs, of these with their nodes, whose room it could use: none where it fits no empty nodes."""
    rows = {row["NodeID"]: row for row in _alive() if row["NodeID"] not in away}
    rooms = {home: Room.of(node_of(row)) for home, row in rows.items()}
    bundle = _bundle(post, gpus_of(post))
    if placing.place(bundle, post.sequence, list(rooms.values())) is None:
        return ()
    useful = {home for home, empty in rooms.items() if placing.take(empty, bundle) is not None}
    return tuple(sorted(one for one, nodes in homes.items() if useful & set(nodes)))


def fits(post: Post) -> bool:
    """On nodes that were empty."""
    return (
        placing.place(_bundle(post, gpus_of(post)), post.sequence, [Room.of(node_of(row)) for row in _alive()])
        is not None
    )


def why_none(post: Post, in_use: Collection[str]) -> str:
    if not fits(post):
        return f"these nodes are too small for {words(post)}: see `farm pool plan`"
    return f"no node has room for {words(post)}; gangs in use: {', '.join(in_use) or 'none'}"


def words(post: Post) -> str:
    labels = "".join(f", {name}={value}" for name, value in post.labels)
    each = f"{post.cpus:g} CPU, {gpus_of(post):g} GPU{labels}"
    return f"a gang of {post.pool} ({post.ranks} rank{'s' * (post.ranks > 1)} of {each})"


def nodes() -> dict[str, Node]:
    """By Ray's own ids."""
    return {row["NodeID"]: node_of(row) for row in _alive()}


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
