"""What work waits for beyond itself: told from what processes last said."""

from __future__ import annotations

from typing import Any

import pytest

from farm.job import CAUSES, FINAL, Cause, Payer
from farm.waiting import STALE_S, UNJUDGED, advice, coming, held_up, in_words, lacking, missing, public, warnings


def component(state: str = "ready", detail: str = "", age_s: float = 0.0) -> dict[str, Any]:
    return {"kind": "dispatcher", "name": "one", "state": state, "detail": detail, "age_s": age_s}


def place(model: str, state: str, age_s: float = 0.0) -> dict[str, Any]:
    return {"model": model, "pool": model, "state": state, "waits_for": f"{model} lacks vae", "age_s": age_s}


@pytest.mark.parametrize(
    ("components", "code", "words"),
    [
        ([component(), component("waiting", "ray_gone: no")], [], ""),
        ([], ["dispatcher: none is running"], "the dispatcher"),
        (
            [component("waiting", "signer_down, ray_gone: /a/b; no")],
            ["dispatcher: signer_down, ray_gone"],
            "the signer, Ray",
        ),
        (
            [component(age_s=40.0), component(age_s=STALE_S)],
            ["dispatcher: none is running, or it cannot say so: last heard of 15 s ago"],
            "the dispatcher (last heard of 15 s ago)",
        ),
    ],
)
def test_one_dispatcher_that_is_ready_is_enough(components: list[dict[str, Any]], code: list[str], words: str) -> None:
    assert missing(components) == code
    assert in_words(code) == words


def test_a_model_lacks_files_where_nobody_who_is_heard_of_has_them() -> None:
    assert lacking([place("dev", "lacking"), place("tiny", "gone")]) == {"dev": "dev lacks vae"}
    assert lacking([place("dev", "lacking"), place("dev", "benched")]) == {}
    assert lacking([place("dev", "lacking"), place("dev", "silent", STALE_S)]) == {"dev": "dev lacks vae"}
    assert lacking([place("dev", "silent", STALE_S)]) == {}


def test_only_what_concerns_these_models_is_told() -> None:
    gangs = [place("dev", "lacking"), place("slow", "starting")]
    assert warnings([], gangs, ["tiny"]) == []
    absent, on_its_way = warnings([], gangs, ["tiny", "slow", "dev", "dev"])
    assert absent.startswith("dev: its files are not on this farm")
    assert on_its_way == "a gang of slow is starting and waits for slow lacks vae"
    assert warnings(["dispatcher: signer_down"], [], []) == ["no image is made now: the farm waits for the signer"]


def test_what_is_waited_for_is_told_in_words() -> None:
    codes = ["dispatcher: none is running", "dispatcher: store_full", "dispatcher: some_new_cause", "database: away"]
    assert in_words(codes) == "the dispatcher, room in the store, dispatcher: some new cause, the database"


def test_a_model_whose_gang_is_on_its_way_says_so_and_one_with_a_ready_gang_says_nothing() -> None:
    def told(model: str, state: str, words: str = "") -> dict[str, str]:
        return {"model": model, "pool": model, "state": state, "waits_for": words}

    on_its_way = told("flux1-dev", "starting", "room in the cluster")
    words = "a gang of flux1-dev is starting and waits for room in the cluster"
    assert coming([on_its_way, told("tiny", "busy")]) == {"flux1-dev": words}
    assert coming([on_its_way, told("flux1-dev", "busy")]) == {}
    assert coming([on_its_way, told("flux1-dev", "ready") | {"pool": "flux1-dev/encode"}]) == {"flux1-dev": words}
    assert coming([told("tiny", "draining", "words of a job")]) == {"tiny": "the gang of tiny is draining"}
    assert coming([told("tiny", "gone", "words of a job")]) == {}


@pytest.mark.parametrize("cause", Cause)
def test_every_outage_is_told_without_where_and_a_jobs_own_trouble_as_it_came(cause: Cause) -> None:
    words = public(cause, "/secret/place")
    assert words.startswith("waits for ") if CAUSES[cause] is Payer.ENVIRONMENT else words == "/secret/place"


def test_details_of_what_holds_the_farm_up_are_those_of_dispatchers_that_are_heard_of() -> None:
    told = [component("waiting", "gate_down: no file x"), component("waiting", "gate_down: no file x")]
    told += [component(detail="2 groups in flight"), component("waiting", "ray_gone: y", age_s=STALE_S)]
    assert held_up(told) == ["gate_down: no file x"]


@pytest.mark.parametrize("cause", list(Cause))
@pytest.mark.parametrize("state", ["queued", "failed"])
def test_a_job_says_what_follows_from_what_it_met(cause: Cause, state: str) -> None:
    words = advice({"id": 7, "state": state, "reason": f"{cause}: what happened: in detail"})
    assert ("by itself" in words) is (state == "queued")
    assert ("farm retry job:7" in words) is (state == "failed" and cause not in FINAL)
    assert ("does not count" in words) is (state == "queued" and CAUSES[cause] is Payer.ENVIRONMENT)
    assert words.startswith(UNJUDGED) is (cause is Cause.GATE_ERROR)


@pytest.mark.parametrize(
    ("state", "reason"), [("held", "gate_error: x"), ("queued", ""), ("queued", "waits for 3"), ("blocked", "no")]
)
def test_where_nothing_was_met_nothing_is_advised(state: str, reason: str) -> None:
    assert advice({"id": 7, "state": state, "reason": reason}) == ""
