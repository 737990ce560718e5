"""What a rank keeps of a running job, and goes on from only where the picture is the very same."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from actors import saved, work
from actors.flux.render import Renderer, renderer_of
from actors.flux.sampler import SavedLatent
from actors.messages import Mark, Order, Post
from actors.rank import Rank, job_of
from actors.shard import Shard
from actors.watching import Watching
from actors.work import Work
from farm.errors import Fault
from farm.job import Cause, Spec
from farm.ports import Frame, Rendered, RenderRequest, Step
from tests.actors.conftest import CARDS
from tests.actors.fakes import Walks, preview_of
from tests.flux.small import small_flux, small_text, small_vae

POST = Post(CARDS["flat"], "tests.actors.fakes:load_flat", "flat", "", "cpu", "auto", "auto", 60.0)
WEIGHTS = "f" * 64
RED = Frame(8, 8, bytes((200, 0, 0)) * 64)


def request_of(seed: int = 5, reference: Frame | None = None, **spec: object) -> RenderRequest:
    asked = replace(Spec("flat", "a red circle", seed, 32, 16, 6, 3.5, edit=reference is not None), **spec)  # type: ignore[arg-type]
    return RenderRequest(seed, 1, asked, reference)


def digest(request: RenderRequest, weights: str = WEIGHTS, post: Post = POST) -> str:
    return saved.digest_of(request, weights, post, "cpu")


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Small sums on a busy machine: more of them would wait for one another."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def data(rank: Rank) -> bytes:
    """Kept of `request_of()` after four of its six steps."""
    return kept(rank, request_of(), every=2)[0]


@pytest.fixture(scope="module")
def rank() -> Rank:
    rank = Rank("g1", POST)
    renderer = renderer_of(small_flux(), small_vae(), small_text(), "cpu", torch.float32, max_text=16)
    rank.shard = Shard(renderer, WEIGHTS)
    return rank


def draw(rank: Rank, *requests: RenderRequest) -> list[Frame]:
    answers = rank.render(Order("c1", requests, 60.0))
    assert all(isinstance(answer, Rendered) for answer in answers), answers
    return [answer.frame for answer in answers if isinstance(answer, Rendered)]


def kept(rank: Rank, *requests: RenderRequest, every: int) -> list[bytes]:
    """What was kept last of these, drawn together."""
    assert rank.shard is not None
    running = Work("c1", every)
    on_step = running.seen(requests, [digest(request) for request in requests])
    rank.shard.renderer.render([job_of(request) for request in requests], on_step)
    latents = running.mark(True).saved
    assert [job for job, _ in latents] == [request.job_id for request in requests]
    return [data for _, data in latents]


@pytest.mark.parametrize("reference", [None, RED])
@pytest.mark.parametrize("every", [1, 4])
def test_a_picture_that_is_gone_on_with_is_the_one_drawn_at_once(
    rank: Rank, reference: Frame | None, every: int, caplog: pytest.LogCaptureFixture
) -> None:
    request = request_of(reference=reference)
    (data,) = kept(rank, request, every=every)
    assert saved.unpack(data, digest(request)).step == {1: 5, 4: 4}[every]
    with caplog.at_level(logging.INFO, "farm.rank"):
        assert draw(rank, replace(request, resume=data)) == draw(rank, request)
    assert "goes on from step" in caplog.text


def test_of_a_group_each_goes_on_from_where_it_stood_itself(rank: Rank) -> None:
    requests = [request_of(seed) for seed in (5, 6, 7, 8)]
    alone = [draw(rank, request)[0] for request in requests]
    (five,) = kept(rank, requests[0], every=2)
    six, seven = kept(rank, *requests[1:3], every=5)
    begun = [replace(one, resume=data) for one, data in zip(requests, (five, six, seven, None), strict=True)]
    steps: list[tuple[int, int]] = []
    renderer = rank.shard.renderer if rank.shard else None
    assert isinstance(renderer, Renderer)
    render = renderer.render

    def counting(jobs: object, on_step: object, cancelled: object, resume: SavedLatent | None) -> object:
        steps.append((len(jobs), resume.step if resume else 0))  # type: ignore[arg-type]
        return render(jobs, on_step, cancelled, resume)  # type: ignore[arg-type]

    rank.shard = Shard(type("Counting", (), {"render": staticmethod(counting)})(), WEIGHTS)
    try:
        together = draw(rank, *begun)
    finally:
        rank.shard = Shard(renderer, WEIGHTS)
    assert steps == [(1, 4), (2, 5), (1, 0)]
    assert together[0] == alone[0]
    for one, other in zip(together, alone, strict=True):
        values = [np.frombuffer(frame.pixels, np.uint8).astype(int) for frame in (one, other)]
        assert np.abs(values[0] - values[1]).max() <= 1


def test_of_a_call_that_is_cancelled_the_others_go_on_from_the_very_step(rank: Rank) -> None:
    requests = [request_of(seed) for seed in (5, 6)]
    alone = draw(rank, requests[1])[0]
    renderer = rank.shard.renderer if rank.shard else None
    assert isinstance(renderer, Renderer)

    def stopping(jobs: object, on_step: Callable[..., None], cancelled: object, resume: object) -> object:
        def seen(step: int, *more: object) -> None:
            on_step(step, *more)
            if step == 3:
                rank.cancel("c1")

        return renderer.render(jobs, seen, cancelled, resume)  # type: ignore[arg-type]

    rank.shard = Shard(type("Stopping", (), {"render": staticmethod(stopping)})(), WEIGHTS)
    try:
        answers = rank.render(Order("c1", tuple(requests), 60.0))
    finally:
        rank.shard = Shard(renderer, WEIGHTS)
    assert [answer.cause for answer in answers if isinstance(answer, Fault)] == [Cause.LEASE_LOST] * 2
    assert rank.stopped_at("c2") == []
    left = dict(rank.stopped_at("c1"))
    assert {job: start_of(rank, request, left[job]) for job, request in zip((5, 6), requests, strict=True)} == {
        5: 3,
        6: 3,
    }
    values = [
        np.frombuffer(frame.pixels, np.uint8).astype(int)
        for frame in (alone, draw(rank, replace(requests[1], resume=left[6]))[0])
    ]
    assert np.abs(values[0] - values[1]).max() <= 1
    assert rank.stopped_at("c1") == []


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 6},
        {"prompt": "a blue circle"},
        {"guidance": 3.0},
        {"steps": 7},
        {"width": 16, "height": 32},
        {"model": "other"},
        {"reference": RED},
    ],
    ids=str,
)
def test_another_picture_never_goes_on_from_it(
    rank: Rank, data: bytes, other: dict[str, object], caplog: pytest.LogCaptureFixture
) -> None:
    assert start_of(rank, request_of(), data) == 4
    assert start_of(rank, request_of(**other), data) is None  # type: ignore[arg-type]
    assert "starts anew" in caplog.text


def test_another_reference_is_another_picture(rank: Rank) -> None:
    request, other = request_of(reference=RED), request_of(reference=Frame(8, 8, bytes((0, 200, 0)) * 64))
    (data,) = kept(rank, request, every=2)
    assert (start_of(rank, request, data), start_of(rank, other, data)) == (4, None)


def start_of(rank: Rank, request: RenderRequest, data: bytes) -> int | None:
    assert rank.shard is not None
    start = rank._begun(rank.shard, replace(request, resume=data)).start
    return start.step if start else None


@pytest.mark.parametrize(
    "post",
    [
        replace(POST, precision="bfloat16"),
        replace(POST, precision="fp8"),
        replace(POST, tensor=2),
        replace(POST, sequence=2),
        replace(POST, code="another"),
    ],
    ids=["bfloat16", "fp8", "tensor", "sequence", "code"],
)
def test_another_kind_of_gang_does_not_go_on_from_it(post: Post) -> None:
    request = request_of()
    assert digest(request, post=post) != digest(request)
    assert digest(request, weights="e" * 64) != digest(request)
    assert saved.digest_of(request, WEIGHTS, POST, "cuda") != digest(request)
    assert saved.digest_of(request, WEIGHTS, POST, "cpu", "cuda auto") != digest(request), "words encoded elsewhere"
    assert digest(request, post=replace(POST, pool="elsewhere", labels=(("zone", "b"),))) == digest(request)


def test_a_damaged_file_is_told_from_a_whole_one(data: bytes) -> None:
    request = request_of()
    whole = saved.unpack(data, digest(request))
    damaged = [b"", b"x", data[:7], data[:40], data[:-1], data + b"\0", bytes(len(data))]
    for at in range(0, len(data), 13):
        damaged.append(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    for one in damaged:
        try:
            found = saved.unpack(one, digest(request))
        except ValueError:
            continue
        assert torch.equal(found.latent_BLC, whole.latent_BLC), "what was damaged does not count"
        assert (found.step, found.total, found.size) == (whole.step, whole.total, whole.size)


def test_a_rank_starts_anew_where_the_file_is_damaged(
    rank: Rank, data: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    request = request_of()
    with caplog.at_level(logging.INFO, "farm.rank"):
        assert draw(rank, replace(request, resume=data[:-1] + bytes([data[-1] ^ 1]))) == draw(rank, request)
    assert "damaged" in caplog.text


def test_nobody_is_given_latents_that_are_not_finite() -> None:
    latents = torch.ones(2, 4, 2)
    assert len(saved.pack(SavedLatent(3, 6, latents, (32, 16)), ["a", "b"])) == 2
    latents[1, 2, 1] = float("nan")
    assert saved.pack(SavedLatent(3, 6, latents, (32, 16)), ["a", "b"]) == []


def test_what_is_kept_is_given_once_and_only_if_it_is_asked_for() -> None:
    running, requests = Work("c1", 5), [request_of(seed) for seed in (1, 2)]
    on_step = running.seen(requests, ["a", "b"])
    for step in range(1, 9):
        on_step(step, 10, preview_of(requests_as_jobs(requests), step))
    assert running.mark(False).saved == ()
    (first, second) = running.mark(True).saved
    assert (first[0], second[0]) == (1, 2)
    assert saved.unpack(first[1], "a").step == saved.unpack(second[1], "b").step == 5
    assert running.mark(True).saved == ()
    assert [(one.job_id, one.step, one.total) for one in running.mark(True).steps] == [(1, 8, 10), (2, 8, 10)]


def requests_as_jobs(requests: list[RenderRequest]) -> list[object]:
    return [job_of(request) for request in requests]


@pytest.mark.parametrize("every", [0, 10, 20])
def test_nothing_is_kept_of_the_last_step_or_where_nothing_is_to_be(every: int) -> None:
    running, requests = Work("c1", every), [request_of()]
    on_step = running.seen(requests, ["a"])
    for step in range(1, 11):
        on_step(step, 10, preview_of(requests_as_jobs(requests), step))
    assert running.mark(True).saved == ()


def test_previews_come_seldom_and_not_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("actors.work.time.monotonic", lambda: now[0])
    running, requests = Work("c1", 0, "g1", WEIGHTS), [request_of(seed) for seed in (1, 2)]
    on_step = running.seen(requests, ["a", "b"])
    made: list[float] = []
    for step in range(1, 101):
        now[0] += 0.5
        on_step(step, 100, preview_of(requests_as_jobs(requests), step))
        steps = running.mark(False).steps
        if steps[0].preview:
            assert all(one.preview == Frame(4, 4, bytes([step]) * 48) for one in steps)
            assert {(one.gang, one.weights) for one in steps} == {("g1", WEIGHTS)}
            made.append(now[0] - 100)
    assert made[:6] == [2.0, 4.0, 6.0, 8.0, 10.0, 12.5], "two seconds between them, and more as the job grows long"
    gaps = [later - one for one, later in pairwise(made)]
    assert gaps == sorted(gaps)
    assert made[-1] < 50, "none of the last step"


def test_a_preview_that_cannot_be_drawn_fails_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work, "PREVIEW_S", 0.0)
    running, requests = Work("c1"), [request_of()]

    class Bad:
        def pictures(self) -> list[object]:
            raise MemoryError("no room for a preview")

    running.seen(requests, ["a"])(1, 10, Bad())  # type: ignore[arg-type]
    assert [one.preview for one in running.mark(False).steps] == [None]


def test_a_rank_tells_how_far_the_running_call_is_and_of_no_other() -> None:
    rank = Rank("g1", POST)
    rank.shard = Shard(Walks(), WEIGHTS)
    request = request_of(steps=30)
    thread = threading.Thread(target=draw, args=(rank, request))
    thread.start()
    seen: list[Step] = []
    while thread.is_alive():
        mark = rank.progress("c1", False)
        seen += mark.steps if mark else ()
        assert rank.progress("c2", False) is None
        time.sleep(0.01)
    thread.join()
    assert rank.progress("c1", False) is None
    assert len({one.step for one in seen}) > 5
    assert {(one.job_id, one.attempt, one.total) for one in seen} == {(5, 1, 30)}


class Answers:
    """In place of Ray: the answer to each question, there at once or never."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, answer: Callable[[bool], Mark | Exception | None]) -> None:
        self.asked: list[bool] = []
        self.now, self.there = [0.0], True
        self.answer = answer
        monkeypatch.setattr("ray.wait", lambda refs, timeout: (refs if self.there else [], []))
        monkeypatch.setattr("ray.get", self.get)
        monkeypatch.setattr("actors.watching.time.monotonic", lambda: self.now[0])

    def ask(self, save: bool) -> bool:
        self.asked.append(save)
        return save

    def get(self, save: bool) -> Mark | None:
        answer = self.answer(save)
        if isinstance(answer, Exception):
            raise answer
        return answer


def test_questions_come_once_a_second_one_at_a_time_and_nobody_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    step = Step(1, 1, 3, 8)
    ray = Answers(monkeypatch, lambda save: Mark((step,), ((1, b"latent"),) if save else ()))
    heard: list[Step] = []
    got: list[float] = []
    watching = Watching(ray.ask, heard.extend, lambda job, data: got.append(ray.now[0]))
    for _ in range(80):
        ray.now[0] += 0.25
        watching.look()
    assert len(ray.asked) == 20
    assert heard == [step] * 20
    assert [round(at) for at in got] == [5, 10, 15, 20]
    ray.there = False
    for _ in range(80):
        ray.now[0] += 0.25
        watching.look()
    assert len(ray.asked) == 21, "the one before is not answered"


@pytest.mark.parametrize("trouble", ["rank", "watch", "keep", "over", "wait"])
def test_trouble_with_the_answer_is_no_trouble_of_the_work_s(monkeypatch: pytest.MonkeyPatch, trouble: str) -> None:
    def failing(*_: object) -> None:
        raise ZeroDivisionError(trouble)

    answers = {"rank": Fault(Cause.GANG_DIED, "gone"), "over": None}
    mark = Mark((Step(1, 1, 3, 8),), ((1, b"latent"),))
    ray = Answers(monkeypatch, lambda save: answers.get(trouble, mark))
    if trouble == "wait":
        monkeypatch.setattr("ray.wait", failing)
    watch, keep = (failing if trouble == name else lambda *_: None for name in ("watch", "keep"))
    watching = Watching(ray.ask, watch, keep)
    for _ in range(20):
        ray.now[0] += 1.0
        watching.look()
    assert len(ray.asked) == (1 if trouble == "wait" else 20)


def test_a_job_of_less_than_a_second_is_asked_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = Answers(monkeypatch, lambda save: Mark(()))
    watching = Watching(ray.ask, lambda _: None, lambda *_: None)
    for _ in range(4):
        ray.now[0] += 0.2
        watching.look()
    assert ray.asked == []
