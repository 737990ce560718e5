"""What `farm pool plan` says, against every way there is to lay bundles on nodes."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.cards import DEV, TINY
from actors.flux.choice import PartReport
from actors.flux.config import FLUX1_DEV
from actors.flux.shapes import Sizes, T5Sizes, expected
from actors.flux.sizes import Differences
from actors.models import TINY_FOLDER
from actors.placing import UNIT, Node, answers, take_gpus
from actors.plan import divided
from actors.planning import Planned, left_to_the_nodes, on_cpus_now, planned, settled
from actors.weighing import Stored, stored_in
from farm.config import GangSpec, PoolSpec, Settings
from tests.flux.test_weights_check import real_comfyui

NOTHING = Stored("", {})
KEPT = "transformer in fp8 in the files and in memory, widened to bfloat16 for each product"


def pool(name: str = "p", **more: Any) -> PoolSpec:
    """As `settled` leaves it."""
    given: dict[str, Any] = {"device": "cuda" if more.get("gpus") else "cpu", "precision": "bfloat16", "gpus": 0.0}
    return PoolSpec(model="flux1-dev", name=name, **(given | more))


def plan_of(pools: Sequence[PoolSpec], nodes: Sequence[Node], stored: Stored = NOTHING) -> list[Planned]:
    return planned(pools, {one.called: stored for one in pools}, nodes)


def one(spec: PoolSpec, nodes: Sequence[Node], stored: Stored = NOTHING) -> Planned:
    return plan_of([spec], nodes, stored)[0]


def report(part: Any, sizes: Sizes, precision: str = "bfloat16") -> PartReport:
    count = sum(map(math.prod, expected(sizes).values()))
    return PartReport(part, (f"{part}.safetensors",), precision, 2 * count, count, sizes, Differences())


NODES = st.lists(
    st.tuples(st.integers(1, 4), st.integers(0, 2), st.sampled_from([{}, {"zone": "a"}, {"zone": "b"}])), max_size=3
)


def shares_no_gpu(shape: Any) -> bool:
    """Within a gang: settings with such a pool are refused."""
    return not 0 < shape["gpus"] < 1 or bool(shape["tensor"] * shape["sequence"] == 1)


SHAPES = st.fixed_dictionaries(
    {
        "tensor": st.integers(1, 2),
        "sequence": st.integers(1, 3),
        "cpus": st.sampled_from([0.25, 0.5, 1.0, 2.0]),
        "gpus": st.sampled_from([0.0, 0.5, 0.25, 1.0, 2.0]),
        "labels": st.sampled_from([{}, {}, {}, {"zone": "a"}, {"zone": "!a"}, {"zone": "in(a, b)"}]),
        "min": st.integers(0, 2),
        "max": st.just(2),
    }
).filter(shares_no_gpu)


def stands(members: Sequence[PoolSpec], nodes: Sequence[Node], laid: tuple[tuple[PoolSpec, ...], ...] = ()) -> bool:
    """Whether there is any way to lay these members of gangs out on the nodes."""
    laid = laid or ((),) * len(nodes)
    if not members:
        return True
    return any(
        holds(node, (*there, members[0]))
        and stands(members[1:], nodes, (*laid[:at], (*there, members[0]), *laid[at + 1 :]))
        for at, (node, there) in enumerate(zip(nodes, laid, strict=True))
    )


def holds(node: Node, bundles: Sequence[PoolSpec]) -> bool:
    gpus = [one.tensor * (one.gpus or 0.0) for one in bundles]
    whole = sum(each for each in gpus if each >= 1)
    # Halves and quarters fill GPUs without a rest.
    shared = math.ceil(sum(each for each in gpus if each < 1))
    zone = node.labels.get("zone")
    allowed = {"a": zone == "a", "!a": zone != "a", "in(a, b)": zone in ("a", "b"), None: True}
    return (
        sum(one.tensor * one.cpus for one in bundles) <= node.cpus
        and whole + shared <= node.gpus
        and all(allowed[one.labels.get("zone")] for one in bundles)
    )


@settings(max_examples=400)
@given(NODES, st.lists(SHAPES, min_size=1, max_size=3))
def test_it_never_says_that_fits_what_no_way_of_laying_it_out_does(
    drawn: list[tuple[int, int, Mapping[str, str]]], shapes: list[dict[str, Any]]
) -> None:
    nodes = [Node(f"n{number}", cpus, gpus, labels) for number, (cpus, gpus, labels) in enumerate(drawn)]
    pools = [pool(f"p{number}", **shape) for number, shape in enumerate(shapes)]
    rows = plan_of(pools, nodes)
    for spec, row in zip(pools, rows, strict=True):
        assert (row.fits != "no") == stands([spec] * spec.sequence, nodes), row
        assert bool(row.why) == (row.fits != "yes")
        assert all(len(gang) == spec.ranks for gang in row.where)
        members = [gang[at : at + spec.tensor] for gang in row.where for at in range(0, spec.ranks, spec.tensor)]
        assert all(len(set(member)) == 1 for member in members), "tensor ranks lie on one node"
    warm = [
        spec
        for spec, row in zip(pools, rows, strict=True)
        if row.fits == "yes"
        for _ in range(spec.min * spec.sequence)
    ]
    assert stands(warm, nodes), "all that is kept warm stands at the same time"


@given(st.integers(0, 3), st.lists(st.sampled_from([UNIT // 4, UNIT // 2, UNIT, 2 * UNIT]), max_size=6))
def test_no_gpu_is_given_away_twice(count: int, asked: list[int]) -> None:
    left = (UNIT,) * count
    for amount in asked:
        if (less := take_gpus(left, amount)) is not None:
            changed = [pair for pair in zip(left, less, strict=True) if pair[0] != pair[1]]
            assert sum(left) - sum(less) == amount
            assert all(now >= 0 for _, now in changed)
            assert amount < UNIT or set(changed) == {(UNIT, 0)}, "a whole GPU is one that nobody has a part of"
            left = less


@given(st.integers(0, 6), st.integers(1, 2), st.integers(1, 3))
def test_as_many_gangs_are_counted_as_there_is_room_for(cpus: int, tensor: int, sequence: int) -> None:
    row = one(pool(tensor=tensor, sequence=sequence, max=4), [Node("a", cpus), Node("b", 2)])
    members = cpus // tensor + 2 // tensor
    assert row.gangs == min(4, members // sequence)


def test_why_it_does_not_fit_is_said_in_words() -> None:
    two = [Node("a", 8, 2, {"zone": "a"}), Node("b", 8, 1, {"zone": "a"})]
    gpu: dict[str, Any] = {"gpus": 1.0, "device": "cuda"}
    whys = {
        "no node has the labels zone=c": pool(labels={"zone": "c"}),
        "a gang of 4 ranks needs 4 GPUs, and the nodes have 3 in all": pool(sequence=4, **gpu),
        "a gang of 20 ranks needs 20 CPUs, and the nodes with its labels have 16 in all": pool(
            sequence=20, labels={"zone": "a"}
        ),
        "the 3 tensor ranks of a member must lie on one node and need 3 GPUs, "
        "and no one of the nodes has more than 2": pool(tensor=3, **gpu),
        "a rank needs 9 CPUs, and no one of the nodes has more than 8": pool(cpus=9.0),
        "a gang has 3 members of 5 CPUs, 0 GPUs, each on one node; the nodes have room for 2": pool(
            cpus=5.0, sequence=3
        ),
    }
    for why, spec in whys.items():
        row = one(spec, two)
        assert (row.fits, row.why[0], row.where) == ("no", why, []), row
    assert one(pool(), []).why == ["there is no node"]


def test_what_is_kept_warm_must_stand_beside_the_others() -> None:
    node = Node("a", 3)
    first, second = plan_of([pool("first", min=2, max=2), pool("second", min=2, max=2)], [node])
    assert (first.fits, first.where) == ("yes", [["a"], ["a"]])
    assert (second.fits, second.gangs, second.where) == ("fewer", 2, [["a"]])
    assert second.why == [
        "2 gangs are to be kept warm, and beside what is kept warm of first the nodes have room for 1"
    ]


@pytest.mark.parametrize(
    ("asked", "yes", "no"),
    [
        ("a", ["a"], ["b", None]),
        ("!a", ["b", None], ["a"]),
        ("in(a, b)", ["a", "b"], ["c", None]),
        ("!in(a,b)", ["c", None], ["b"]),
    ],
)
def test_labels_are_asked_for_as_ray_does(asked: str, yes: list[str | None], no: list[str | None]) -> None:
    assert all(answers(value, asked) for value in yes)
    assert not any(answers(value, asked) for value in no)


@pytest.mark.parametrize(
    ("dtype", "precision", "eight", "notes"),
    [
        ("BF16", "auto", [], []),
        ("F8_E4M3", "bfloat16", [], ["transformer in fp8 in the files, widened to bfloat16 when read"]),
        ("F8_E4M3", "auto", ["transformer"], [KEPT]),
        ("F8_E4M3", "fp8", ["transformer", "t5"], [KEPT, "t5 rounded to fp8 when read"]),
    ],
)
def test_what_becomes_of_fp8_is_noted(
    tmp_path: Path, dtype: str, precision: str, eight: list[str], notes: list[str]
) -> None:
    stored = stored_in(DEV, str(real_comfyui(tmp_path, dtype=dtype)))
    row = one(pool(tensor=2, gpus=1.0, precision=precision), [Node("a", 8, 8, {}, gpu_bytes=24 * 10**9)], stored)
    assert (row.fits, row.notes) == ("yes", notes)
    assert (row.precision, row.fp8) == ("bfloat16", eight)
    assert row.weight_bytes == sum(row.rank_bytes.values())
    assert set(row.stored) == set(row.rank_bytes) == {"transformer", "vae", "t5", "clip"}


def test_a_card_of_24_gb_draws_from_files_in_fp8_without_streaming(tmp_path: Path) -> None:
    stored = stored_in(DEV, str(real_comfyui(tmp_path, dtype="F8_E4M3", t5="F8_E4M3")))
    node = Node("a", 8, 1, {}, gpu_bytes=24 * 10**9)
    for precision, fits in (("auto", "yes"), ("bfloat16", "no")):
        (row,) = planned([pool(gpus=1.0, precision=precision)], {"p": stored}, [node], "never")
        assert (row.fits, len(row.notes)) == (fits, 1)


def test_a_gpu_too_small_is_a_reason_unless_blocks_may_stream(tmp_path: Path) -> None:
    stored = stored_in(DEV, str(real_comfyui(tmp_path)))
    nodes = [Node("a", 8, 2, {}, gpu_bytes=24 * 10**9)]
    specs = {"whole": pool("whole", gpus=1.0), "shared": pool("shared", gpus=1.0, tensor=2)}
    for offload, fits in (("auto", ["yes", "yes"]), ("never", ["no", "yes"])):
        rows = planned([*specs.values()], dict.fromkeys(specs, stored), nodes, offload)
        assert [row.fits for row in rows] == fits
    assert rows[0].why == ["a rank needs a GPU of 37.0 GB, and the largest has 24.0 GB"]
    (streams, _) = planned([*specs.values()], dict.fromkeys(specs, stored), nodes)
    assert streams.notes == ["blocks stream from the memory of the host: whole, a rank needs 37.0 GB"]
    for offload, says in (("never", "37.0 GB"), ("auto", "6.2 GB, or 37.0 GB for blocks not to stream")):
        (unknown,) = planned([specs["whole"]], {"whole": stored}, [Node("a", 8, 2), Node("b", 8)], offload)
        assert unknown.fits == "yes", "no one can tell"
        assert unknown.notes == [f"the GPU memory of a is not known: a rank needs {says}"]
    half = planned([pool("half", gpus=0.5)], {"half": stored}, [Node("a", 8, 2, {}, 48 * 10**9)], "never")
    assert half[0].why == ["a rank needs a GPU of 73.9 GB, and the largest has 48.0 GB"]


def test_blocks_that_stream_take_memory_of_their_host(tmp_path: Path) -> None:
    stored = {"p": stored_in(DEV, str(real_comfyui(tmp_path)))}
    spec = pool(gpus=1.0, max=4)

    def row(gpu: int, host: int, offload: str = "auto") -> Planned:
        return planned([spec], stored, [Node("a", 8, 4, {}, gpu * 10**9, host * 10**9)], offload)[0]

    assert [row(24, host).gangs for host in (32, 64, 128, 256)] == [0, 1, 3, 4]
    assert row(24, 32).why == [
        "a rank needs 32.9 GB of memory for the blocks that stream, and the largest node has 32.0 GB"
    ]
    assert [row(48, 32, offload).gangs for offload in ("auto", "never", "always")] == [4, 4, 0], "48 GB hold all of it"


def test_threads_left_unused_are_told() -> None:
    row = one(pool(cpus=2.5), [Node("a", 4), Node("b", 64)])
    assert row.notes == ["a rank computes with 2 threads, as many as its cpus, and there is a node of 64 CPUs"]
    assert one(pool(cpus=16.0), [Node("b", 64)]).notes != []
    assert one(pool(cpus=17.0), [Node("b", 64)]).notes == []
    assert one(pool(cpus=17.0), [Node("b", 64)]).notes == one(pool(gpus=1.0), [Node("b", 64, 1)]).notes == []


def test_a_pool_that_takes_what_there_is_is_told_when_that_is_no_gpu() -> None:
    pools = [
        PoolSpec(model="tiny", name="open", encoders=GangSpec(device="cpu")),
        PoolSpec(model="tiny", name="named", device="cuda"),
    ]
    assert left_to_the_nodes(pools, Settings()) == {"open"}
    assert left_to_the_nodes(pools, Settings(device="cuda")) == set()
    for there, told in ((False, True), (True, False)):
        (row,) = plan_of([settled(PoolSpec(model="tiny", name="open"), Settings(), there)], [])
        assert any("device is auto and no node has a GPU now" in note for note in on_cpus_now(row).notes) is told


def test_stages_apart_are_rows_of_their_own_and_their_weights_are_not_with_the_others(tmp_path: Path) -> None:
    stored = stored_in(DEV, str(real_comfyui(tmp_path)))
    apart = {"encoders": GangSpec(min=1, cpus=0.5), "decoders": GangSpec(max=2, gpus=0.25, device="cuda")}
    specs = [PoolSpec(model="flux1-dev", tensor=2, gpus=1.0, **more) for more in ({}, apart)]
    whole, pool = (settled(spec, Settings(), gpus_there=True) for spec in specs)
    nodes = [Node("a", 8, 4, {}, gpu_bytes=24 * 10**9)]
    (together,) = planned([whole], {"flux1-dev": stored}, nodes, "never")
    rows = {row.pool: row for row in planned([pool], {"flux1-dev": stored}, nodes, "never")}
    words, ranks, pictures = rows.values()
    assert list(rows) == ["flux1-dev/encode", "flux1-dev", "flux1-dev/decode"]
    assert (ranks.stages, words.stages, pictures.stages) == (["denoise"], ["encode"], ["decode"])
    assert together.stages == ["encode", "denoise", "decode"]
    assert ranks.rank_bytes == {"transformer": together.rank_bytes["transformer"]}
    assert words.rank_bytes.keys() == {"t5", "clip", "vae"}
    assert words.rank_bytes["t5"] > 9.5e9 > together.rank_bytes["t5"], "whole: it is one rank"
    assert pictures.rank_bytes == {"vae": together.rank_bytes["vae"]}
    assert (words.ranks, words.min, words.device, words.gpus, words.cpus) == (1, 1, "cuda", 1.0, 0.5)
    assert (pictures.max, pictures.gangs, pictures.gpus) == (2, 2, 0.25)
    assert (words.fits, words.where) == ("yes", [["a"]])
    shared = planned([whole.model_copy(update={"min": 2, "max": 2}), pool], {"flux1-dev": stored}, nodes, "never")
    assert [row.fits for row in shared] == ["yes", "fewer", "yes", "yes"]
    assert "beside what is kept warm of flux1-dev" in shared[1].why[0]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_stage_that_names_no_device_runs_on_that_of_its_pool(device: Any) -> None:
    spec = PoolSpec(model="tiny", device=device, encoders=GangSpec(), decoders=GangSpec(device="cpu"))
    one = settled(spec, Settings(), gpus_there=True)
    found = [(each.device, each.gpus) for _, each in divided(one)]
    here = ("cuda", 1.0) if device == "cuda" else ("cpu", 0.0)
    assert found == [here, here, ("cpu", 0.0)]


def test_ranks_on_cpus_share_the_memory_of_their_node(tmp_path: Path) -> None:
    stored = Stored("", {"transformer": report("transformer", FLUX1_DEV)})
    large, small = Node("a", 8, host_bytes=64 * 10**9), Node("b", 8, host_bytes=30 * 10**9)
    assert one(pool(), [large, small], stored).gangs == 1
    assert one(pool(max=4), [large, small], stored).gangs == 3
    assert one(pool(precision="float32"), [small], stored).why == [
        "a rank needs 48.4 GB of memory, and the largest node has 30.0 GB"
    ]


def test_a_shape_that_does_not_divide_is_told_with_those_that_do(tmp_path: Path) -> None:
    stored = Stored("", {"transformer": report("transformer", FLUX1_DEV), "t5": report("t5", T5Sizes())})
    row = one(pool(tensor=5, sequence=2), [Node("a", 10)], stored)
    assert row.why == ["tensor 5 does not divide 24 heads: possible are 1, 2, 3, 4, 6, 8, 12, 24"]
    row = one(pool(tensor=3, sequence=2), [Node("a", 3), Node("b", 3)], stored)
    assert row.where == [["a"] * 3 + ["b"] * 3]
    assert row.notes == ["3 ranks cannot share the 64 heads of T5: each has it whole"]


def test_missing_files_are_named(tmp_path: Path) -> None:
    real_comfyui(tmp_path)
    (tmp_path / "vae" / "ae.safetensors").unlink()
    row = one(pool(), [Node("a", 8)], stored_in(DEV, str(tmp_path)))
    assert row.fits == "no"
    assert "flux1-dev lacks vae: not in" in row.why[0]
    assert set(row.rank_bytes) == {"transformer", "t5", "clip"}


def test_the_tiny_models_pool_is_as_it_says() -> None:
    spec = settled(PoolSpec(model="tiny"), Settings(), gpus_there=False)
    row = planned([spec], {"tiny": stored_in(TINY, spec.weights)}, [Node("a", 2)])[0]
    assert (row.fits, row.precision, row.device, row.weights) == ("yes", "float32", "cpu", str(TINY_FOLDER))
    assert Counter(name for gang in row.where for name in gang) == {"a": 1}
    assert json.loads(json.dumps(row.rank_bytes)).keys() == {"transformer", "vae", "t5", "clip"}


@pytest.mark.parametrize(
    ("given_", "there", "device", "gpus", "precision"),
    [
        ({}, True, "cuda", 1.0, "bfloat16"),
        ({}, False, "cpu", 0.0, "float32"),
        ({"gpus": 0.0}, True, "cpu", 0.0, "float32"),
        ({"device": "cuda"}, False, "cuda", 1.0, "bfloat16"),
        ({"device": "cpu"}, True, "cpu", 0.0, "float32"),
        ({"precision": "float16", "gpus": 0.5}, True, "cuda", 0.5, "float16"),
    ],
)
def test_what_a_pool_leaves_open_is_filled_in_as_ranks_do(
    given_: dict[str, Any], there: bool, device: str, gpus: float, precision: str
) -> None:
    spec = settled(PoolSpec(model="tiny", **given_), Settings(models="/m"), there)
    assert (spec.device, spec.gpus, spec.weights) == (device, gpus, "/m")
    assert planned([spec], {"tiny": NOTHING}, [])[0].precision == precision
