"""`farm pool`: what the pools would take, and what stands."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from farm.commands.output import as_json, lasting, say, table

if TYPE_CHECKING:
    from actors.placing import Node
    from actors.planning import Planned

pool = typer.Typer(help="The gangs: what the pools would take, and what stands.")
Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")]


@pool.command("plan")
def plan(json_: Json = False) -> None:
    """Say what each pool would place where, what it takes, and why it does not fit; nothing is started. Exit code 1 if
    a pool of farm.toml does not fit."""
    from actors.cluster import foreign_address
    from actors.models import catalogue
    from actors.nodes import nodes_of
    from actors.plan import divided, pools_of
    from actors.planning import left_to_the_nodes, on_cpus_now, planned, settled
    from actors.weighing import stored_in
    from farm import config

    settings, cards = config.load(), catalogue()
    pools = pools_of(settings, cards)
    seen, nodes = nodes_of(settings)
    auto = left_to_the_nodes(pools, settings) if foreign_address(settings) else set()
    pools = tuple(settled(one, settings, any(node.gpus for node in nodes)) for one in pools)
    stored = {one.called: stored_in(cards[one.model], one.weights) for one in pools}
    rows = [on_cpus_now(row) if row.pool in auto else row for row in planned(pools, stored, nodes, settings.offload)]
    if json_:
        as_json({"seen": seen, "nodes": [asdict(node) for node in nodes], "pools": [asdict(row) for row in rows]})
    else:
        _print_plan(seen, nodes, rows)
    declared = {crew.called for one in settings.pools for _, crew in divided(one)}
    if any(row.fits != "yes" for row in rows if row.pool in declared):
        raise typer.Exit(1)


def _print_plan(seen: str, nodes: list[Node], rows: list[Planned]) -> None:
    print(f"nodes: {seen}")
    table([_node(node) for node in nodes], ["node", "CPUs", "GPUs", "GPU memory", "memory", "labels"])
    print()
    shown = [_planned(row) for row in rows]
    table(
        shown,
        ["pool", "does", "model", "shape", "gangs", "precision", "weights", "room", "CPUs", "GPUs", "fits", "where"],
    )
    print("shape: tensor x sequence ranks; weights and room to work: of one rank; CPUs and GPUs: of one gang")
    for row in rows:
        for said in (*row.why, *row.notes):
            print(f"{row.pool}: {said}")


def _node(node: Node) -> dict[str, Any]:
    from actors.weighing import gigabytes

    labels = ", ".join(f"{name}={value}" for name, value in node.labels.items() if name != "ray.io/node-id")
    return {
        "node": node.name,
        "CPUs": node.cpus,
        "GPUs": node.gpus,
        "GPU memory": gigabytes(node.gpu_bytes) if node.gpu_bytes else "",
        "memory": gigabytes(node.host_bytes) if node.host_bytes else "",
        "labels": labels,
    }


def _planned(row: Planned) -> dict[str, Any]:
    from actors.stages import Stage
    from actors.weighing import gigabytes

    known = len(row.rank_bytes) == len(row.stored) and row.rank_bytes
    return {
        "pool": row.pool,
        "does": "all" if len(row.stages) == len(Stage) else ", ".join(row.stages),
        "model": row.model,
        "shape": f"{row.tensor}x{row.sequence}",
        "gangs": f"{row.min} to {row.max}",
        "precision": f"{row.precision} + fp8" if row.fp8 else row.precision,
        "weights": gigabytes(row.weight_bytes) if known else "?",
        "room": gigabytes(row.room_bytes) if known else "?",
        "CPUs": row.cpus,
        "GPUs": row.gpus,
        "fits": row.fits,
        "where": _where(row),
    }


def _where(row: Planned) -> str:
    """How many ranks on which node."""
    ranks = Counter(name for gang in row.where for name in gang)
    return ", ".join(f"{count} on {name}" for name, count in ranks.items())


@pool.command("ls")
def ls(json_: Json = False) -> None:
    """List each place for a gang: its state, what it waits for and for how long, and which dispatcher said so when; and
    the nodes, with who drained them."""
    from farm.commands.session import open_client

    with open_client() as client:
        told: dict[str, Any] = client.get("/api/pool")
    if json_:
        as_json({"gangs": told["items"], "nodes": told["nodes"]})
        return
    if told["items"]:
        table([_place(row) for row in told["items"]], PLACE)
    else:
        say("farm: no dispatcher tells of any gang; is one running?")
    if told["nodes"]:
        print()
        table([_seen(node) for node in told["nodes"]], ["node", "CPUs", "GPUs", "drained by"])


PLACE = ["pool", "place", "model", "gang", "on", "state", "waits for", "for", "dispatcher", "said"]


def _place(row: dict[str, Any]) -> dict[str, Any]:
    said = {"waits for": row["waits_for"], "for": lasting(row["for_s"]), "said": f"{lasting(row['age_s'])} ago"}
    return row | said | {"on": ", ".join(row["nodes"])}


def _seen(row: dict[str, Any]) -> dict[str, Any]:
    return {"node": row["name"], "CPUs": row["cpus"], "GPUs": row["gpus"], "drained by": row["drained"]}


Name = Annotated[str, typer.Argument(metavar="NODE|GANG", help="As `farm pool ls` shows it, or a node's host.")]


@pool.command("drain")
def drain(name: Name, reason: Annotated[str, typer.Option(help="Kept on the record.")] = "") -> None:
    """Let a gang, or every gang of a node, end with the job it has; none is placed on that node until `undrain`."""
    from farm.commands.session import open_client

    with open_client() as client:
        kind = client.post("/api/pool/drain", name=name, reason=reason or None)["kind"]
    say(f"farm: {kind} {name} is drained: it takes no further job")


@pool.command("undrain")
def undrain(name: Name) -> None:
    """Take a drain back. A gang that has not ended yet goes on."""
    from farm.commands.session import open_client

    with open_client() as client:
        kind = client.post("/api/pool/undrain", name=name)["kind"]
    say(f"farm: {kind} {name} is drained no longer")
