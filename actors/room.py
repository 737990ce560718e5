"""What a gang takes of the nodes that Ray has."""

from __future__ import annotations

from actors import placing
from actors.messages import Post
from actors.nodes import node_of
from actors.placing import Bundle, Room


def ever_fits(post: Post) -> bool:
    """On nodes that were empty: where not, others would make room for nothing."""
    import ray

    units = placing.units
    bundle = Bundle(units(post.tensor * post.cpus), units(post.tensor * gpus_of(post)), dict(post.labels))
    rooms = [Room.of(node_of(row)) for row in ray.nodes() if row["Alive"]]
    return placing.place(bundle, post.sequence, rooms) is not None


def words(post: Post) -> str:
    labels = "".join(f", {name}={value}" for name, value in post.labels)
    each = f"{post.cpus:g} CPU, {gpus_of(post):g} GPU{labels}"
    return f"a gang of {post.pool} ({post.ranks} rank{'s' * (post.ranks > 1)} of {each})"


def gpus_of(post: Post) -> float:
    """Of one rank."""
    import ray

    if post.gpus is not None:
        return post.gpus
    return float(post.device.startswith("cuda") or (post.device == "auto" and "GPU" in ray.cluster_resources()))
