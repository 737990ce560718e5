"""A job's way from stage to stage, and what a rank that does some of them hands on. Without Ray."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from actors import saved
from actors.cards import TINY
from actors.loading import Load, load_renderer
from actors.messages import Order, Post
from actors.plan import divided
from actors.rank import Rank, job_of
from actors.stages import Made, Passed, Stage, along, asked
from farm.config import GangSpec, PoolSpec
from farm.errors import Fault
from farm.job import Cause, Spec
from farm.ports import Frame, Rendered, RenderRequest

PICTURE = Rendered(Frame(1, 1, b"rgb"), "g", "w")
RED = Frame(64, 48, bytes((220, 40, 40)) * 64 * 48)


def request(seed: int, prompt: str = "a red circle on a blue background", edit: bool = False) -> RenderRequest:
    return RenderRequest(seed, 1, Spec("tiny", prompt, seed, 96, 64, 2, 3.5, edit=edit), RED if edit else None)


def test_each_job_goes_on_until_it_is_answered_for_good() -> None:
    odd, late = Fault(Cause.RENDER_ERROR, "odd"), Fault(Cause.NOT_FINITE, "late")
    heard: list[tuple[str, list[int], list[Any]]] = []
    replies = {
        "m/encode": [Passed("a", 1.0), odd, Passed("c", 1.0), Passed("d", 1.0)],
        "m": [Passed("A", 1.0), late, Passed("D", 1.0)],
        "m/decode": [PICTURE, PICTURE],
    }

    def ask(stage: str, requests: Sequence[RenderRequest], given: Sequence[Any]) -> Any:
        heard.append((stage, [one.job_id for one in requests], list(given)))
        return replies[stage]

    assert along(list(replies), [request(seed) for seed in (1, 2, 3, 4)], ask) == [PICTURE, odd, late, PICTURE]
    assert heard == [
        ("m/encode", [1, 2, 3, 4], []),
        ("m", [1, 3, 4], ["a", "c", "d"]),
        ("m/decode", [1, 4], ["A", "D"]),
    ]


def test_where_no_job_is_left_the_later_stages_are_not_asked() -> None:
    odd, heard = Fault(Cause.RENDER_ERROR, "odd"), []

    def ask(stage: str, requests: Sequence[RenderRequest], given: Sequence[Any]) -> Any:
        heard.append(stage)
        return [odd] * len(requests)

    assert along(["m/encode", "m"], [request(1), request(2)], ask) == [odd, odd]
    assert heard == ["m/encode"]


def test_the_path_of_a_job_is_that_of_its_pool() -> None:
    words, pictures = GangSpec(), GangSpec()
    paths = {
        tuple(asked(pool.model, stages) for stages, _ in divided(pool))
        for pool in (
            PoolSpec(model="m"),
            PoolSpec(model="m", encoders=words),
            PoolSpec(model="m", decoders=pictures),
            PoolSpec(model="m", encoders=words, decoders=pictures),
        )
    }
    assert paths == {("m",), ("m/encode", "m"), ("m", "m/decode"), ("m/encode", "m", "m/decode")}


def ready(gang: str, *stages: Stage) -> Rank:
    shard = "actors.shard:load_shard"
    rank = Rank(gang, Post(TINY, shard, "tiny", "", "cpu", "auto", "never", 60.0, stages=stages))
    rank.load()
    return rank


def order(rank: Rank, *requests: RenderRequest) -> Order:
    return Order("c1", requests, 60.0, hands_on=rank.post.hands_on)


def test_ranks_apart_draw_the_bytes_of_one_rank_and_name_the_gang_that_drew() -> None:
    whole = ready("whole", *Stage)
    words, drawing, pictures = (ready(str(stage), stage) for stage in Stage)
    for requests in ([request(5), request(6, "a green square on a white background")], [request(7, edit=True)]):
        told, *encoded = words.render(order(words, *requests))
        assert all(isinstance(seconds, float) for seconds in told)
        _, *latents = drawing.render(order(drawing, *requests), *encoded)
        assert {(made.gang, made.by) for made in latents} == {("denoise", "cpu auto")}
        assert all(made.value.untyped_storage().nbytes() == made.value.nbytes for made in latents), "no more is sent"
        apart = pictures.render(order(pictures, *requests), *latents)
        together = whole.render(order(whole, *requests))
        assert [one.frame for one in apart] == [one.frame for one in together]
        assert {(one.gang, one.weights) for one in apart} == {("denoise", together[0].weights)}
        assert {one.drawn_with for one in apart} == {latents[0].drawn_with} == {together[0].drawn_with}


def test_what_was_made_with_other_files_is_refused_and_the_gang_named() -> None:
    words, rest = ready("words", Stage.ENCODE), ready("rest", Stage.DENOISE, Stage.DECODE)
    _, made = words.render(order(words, request(5)))
    (answer,) = rest.render(order(rest, request(5)), replace(made, weights="other"))
    assert isinstance(answer, Fault)
    assert (answer.cause, answer.gang) == (Cause.WEIGHTS_MISSING, "words")
    (fine,) = rest.render(order(rest, request(5)), made)
    assert (fine.gang, fine.frame.width) == ("rest", 96)


def test_a_job_whose_words_were_encoded_elsewhere_goes_on_from_where_it_stood() -> None:
    words, rest = ready("words", Stage.ENCODE), ready("rest", Stage.DENOISE, Stage.DECODE)
    asked_for = request(5)
    _, made = words.render(order(words, asked_for))
    (whole,) = rest.render(order(rest, asked_for), made)
    renderer: Any = rest.shard and rest.shard.renderer
    stood: list[Any] = []
    renderer.render([job_of(asked_for)], lambda step, total, now: stood.append(now.saved()), given=[made.value])
    assert rest.shard
    digest = saved.digest_of(asked_for, rest.shard.weights, rest.post, "cpu", made.by)
    (kept,) = saved.pack(stood[0], [digest])
    seen: list[int | None] = []
    denoise = renderer.denoiser.denoise

    def counted(*given: Any) -> Any:
        seen.append(given[4] and given[4].step)
        return denoise(*given)

    renderer.denoiser.denoise = counted
    (again,) = rest.render(order(rest, replace(asked_for, resume=kept)), made)
    assert (seen, again.frame) == ([1], whole.frame)
    elsewhere = replace(made, by="cuda auto")  # rounded otherwise: it starts anew
    (anew,) = rest.render(order(rest, replace(asked_for, resume=kept)), elsewhere)
    assert (seen, anew.frame) == ([1, None], whole.frame)


def test_a_job_that_cannot_be_encoded_leaves_its_neighbours_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ready("words", Stage.ENCODE)
    renderer: Any = words.shard and words.shard.renderer
    encode = renderer.encoder.text.encode

    def failing(prompts: list[str], length: int) -> Any:
        if prompts == ["odd"]:
            raise ValueError("an odd prompt")
        return encode(prompts, length)

    monkeypatch.setattr(renderer.encoder.text, "encode", failing)
    told, first, second = words.render(order(words, request(1), request(2, "odd")))
    assert isinstance(first, Made)
    assert isinstance(told[0], float)
    assert isinstance(told[1], Fault)
    assert (told[1].cause, told[1].gang, second) == (Cause.RENDER_ERROR, "words", None)


def test_words_encoded_elsewhere_are_taken_in_another_precision() -> None:
    exact = load_renderer(TINY, None, Load("cpu", torch.float32))
    assert exact.encoder
    assert exact.denoiser
    assert exact.decoder
    job = job_of(request(5))
    encoded = exact.encoder.encode(job)
    rough = replace(encoded, txt_1TD=encoded.txt_1TD.bfloat16(), y_1V=encoded.y_1V.bfloat16())
    (drawn,) = exact.decoder.decode(exact.denoiser.denoise([job], [rough]), job.width, job.height)
    assert 0 < np.abs(drawn.astype(int) - exact.render([job])[0].astype(int)).mean() < 4
