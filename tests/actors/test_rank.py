"""A rank without Ray: grouping, isolation, cancelling, and the watchdog."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from actors.flux.render import Pixels, RenderJob
from actors.gang import require_alike
from actors.messages import Order, Post
from actors.rank import Rank
from actors.shard import Shard, code_of, stamps
from actors.work import Work
from farm.errors import Fault
from farm.job import Cause
from farm.ports import Frame, GangState, Rendered, RenderRequest
from tests.actors.conftest import CARDS, request_of
from tests.actors.fakes import Flat

GREEN = Frame(8, 8, bytes((0, 200, 0)) * 64)
WIDE = Frame(16, 8, bytes((0, 90, 0)) * 128)


def post_of(model: str, shard: str = "tests.actors.fakes:load_flat", tensor: int = 1) -> Post:
    return Post(CARDS[model], shard, model, "", "cpu", "auto", "auto", 60.0, tensor)


def ready(model: str = "flat") -> Rank:
    rank = Rank("g1", post_of(model))
    assert rank.hello().state is GangState.STARTING
    assert rank.load().state is GangState.READY
    return rank


def draw(rank: Rank, *requests: RenderRequest) -> list[Rendered | Fault]:
    answers: list[Rendered | Fault] = rank.render(Order("c1", requests, 60.0))
    return answers


def causes(answers: list[Rendered | Fault]) -> list[Cause | None]:
    return [answer.cause if isinstance(answer, Fault) else None for answer in answers]


def test_a_node_with_other_code_draws_nothing() -> None:
    Rank("g1", replace(post_of("flat"), code=code_of())).load()
    with pytest.raises(Fault, match="other code in") as caught:
        Rank("g1", replace(post_of("flat"), code="0" * 64)).load()
    assert caught.value.cause is Cause.NO_ROOM


def test_a_rank_without_gpus_is_told_so_and_sees_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    post = replace(post_of("flat", "tests.actors.fakes:load_blind"), device="auto")
    assert Rank("g1", post, device="cpu").load().key == post.key
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    with pytest.raises(Fault, match="told 'cuda', and sees '0,1'"):
        Rank("g1", post, device="cuda").load()


def test_ranks_with_different_weights_are_no_gang() -> None:
    hello = ready().load()
    assert hello.weights == "f" * 64
    require_alike([hello, hello])
    with pytest.raises(Fault, match="different weights") as caught:
        require_alike([hello, replace(hello, weights="e" * 64)])
    assert caught.value.cause is Cause.WEIGHTS_MISSING


def test_answers_keep_their_order_and_carry_gang_and_weights() -> None:
    answers = draw(ready(), *(request_of("a", seed) for seed in (9, 3, 7)))
    assert [answer.frame.pixels[0] for answer in answers if isinstance(answer, Rendered)] == [9, 3, 7]
    assert all(isinstance(answer, Rendered) and (answer.gang, answer.weights) == ("g1", "f" * 64) for answer in answers)
    assert isinstance(answers[0], Rendered)
    assert (answers[0].frame.width, answers[0].frame.height) == (32, 16)


def test_references_reach_their_own_job_whatever_their_sizes() -> None:
    requests = [request_of("a", seed, reference=frame) for seed, frame in ((1, GREEN), (2, WIDE), (3, GREEN))]
    answers = draw(ready(), *requests)
    assert [answer.frame.pixels[:2] for answer in answers if isinstance(answer, Rendered)] == [
        bytes((1, 200)),
        bytes((2, 90)),
        bytes((3, 200)),
    ]


class SameSizes(Flat):
    """As the real one: together only what shares the reference's size."""

    def __init__(self) -> None:
        self.together: list[int] = []

    def render(self, jobs: Sequence[RenderJob], *rest: Any, **more: Any) -> list[Pixels]:
        if len({job.reference.size for job in jobs if job.reference}) > 1:
            raise ValueError("jobs rendered together must share the reference's size")
        self.together.append(len(jobs))
        return super().render(jobs, *rest, **more)


def test_only_references_of_one_size_are_drawn_together() -> None:
    rank, renderer = ready(), SameSizes()
    rank.shard = Shard(renderer, "f" * 64)
    frames = (GREEN, GREEN, WIDE, GREEN)
    requests = [request_of("a", seed, reference=frame) for seed, frame in enumerate(frames)]
    assert causes(draw(rank, *requests)) == [None] * 4
    assert renderer.together == [2, 1, 1]


def test_a_bad_job_fails_alone() -> None:
    answers = draw(ready(), request_of("a"), request_of("odd"), request_of("nan"), request_of("b"))
    assert causes(answers) == [None, Cause.RENDER_ERROR, Cause.NOT_FINITE, None]


def test_memory_that_suffices_for_one_draws_all_one_by_one() -> None:
    assert causes(draw(ready(), request_of("a"), request_of("memory"))) == [None, Cause.OUT_OF_MEMORY]


def test_cancelling_reaches_the_running_call_and_no_other() -> None:
    rank = ready()
    rank.cancel("c1")  # nothing runs yet
    began = time.monotonic()
    timer = threading.Timer(0.3, rank.cancel, ["c1"])
    timer.start()
    assert causes(draw(rank, request_of("slow"), request_of("slow"))) == [Cause.LEASE_LOST] * 2
    assert time.monotonic() - began < 10
    timer.join()
    assert causes(draw(rank, request_of("a"))) == [None]


def test_a_cancel_that_comes_as_its_call_ends_leaves_the_next_one_alone() -> None:
    rank = ready()
    rank.work = old = Work("c1")
    set_now = old.stop.set

    def late() -> None:
        rank.work = Work("c2")  # c1 has ended meanwhile
        set_now()

    old.stop.set = late  # type: ignore[method-assign]
    rank.cancel("c1")
    assert not rank.work.stop.is_set()


def test_a_rank_tells_when_its_files_are_no_longer_those_it_loaded(tmp_path: Path) -> None:
    file = tmp_path / "weights"
    file.write_bytes(b"one")
    rank = Rank("g1", post_of("flat"))
    rank.load()
    rank.shard, rank.loaded = Shard(Flat(), "f" * 64, (file,)), stamps([file])
    assert not rank.hello().changed
    file.write_bytes(b"another")
    assert rank.hello().changed
    file.unlink()
    assert rank.hello().changed


@pytest.mark.parametrize("ranks", [1, 2])
def test_what_one_rank_alone_may_meet_ends_a_gang_of_several(ranks: int) -> None:
    rank = Rank("g1", post_of("flat", tensor=ranks))
    rank.shard = Shard(Flat(), "f" * 64)
    assert causes(draw(rank, request_of("a"), request_of("nan"))) == [None, Cause.NOT_FINITE]
    if ranks == 1:
        assert causes(draw(rank, request_of("odd"))) == [Cause.RENDER_ERROR]
        return
    for prompt, cause in (("odd", Cause.GANG_DIED), ("memory", Cause.OUT_OF_MEMORY)):
        with pytest.raises(Fault) as caught:
            draw(rank, request_of("a"), request_of(prompt))
        assert caught.value.cause is cause


@pytest.mark.parametrize(("model", "cause"), [("missing", Cause.WEIGHTS_MISSING), ("broken", Cause.GANG_DIED)])
def test_what_does_not_load_says_whose_fault_it_is(model: str, cause: Cause) -> None:
    rank = Rank("g1", post_of(model))
    with pytest.raises(Fault) as caught:
        rank.load()
    assert (caught.value.cause, caught.value.gang) == (cause, "g1")


def test_the_watchdog_ends_a_process_that_holds_the_interpreter() -> None:
    hangs = "import re\nfrom actors.rank import watchdog\nwith watchdog(1.0):\n    re.match('(a*)*$', 'a' * 60 + 'b')\n"
    began = time.monotonic()
    ended = subprocess.run([sys.executable, "-c", hangs], check=False, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    assert "Timeout" in ended.stderr
    assert "re/__init__.py" in ended.stderr
    assert time.monotonic() - began < 30


def test_what_else_drew_a_picture_is_told_for_its_manifest() -> None:
    rank = Rank("g1", replace(post_of("flat"), precision="float32"))
    rank.load()
    (drawn,) = draw(rank, request_of("a red circle"))
    assert isinstance(drawn, Rendered)
    told = json.loads(drawn.drawn_with)
    software = {name: version(name) for name in ("renderfarm", "torch")}
    assert told == {"device": "cpu", "precision": "float32", "tensor": 1, "sequence": 1} | software
