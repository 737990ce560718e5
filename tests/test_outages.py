"""One outage is one line when it begins and one when it is over, and it is seen until then."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from farm.job import Cause
from farm.outages import FARM, Outages
from tests.fakes import away


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def outages(clock: Clock, caplog: pytest.LogCaptureFixture) -> Iterator[Outages]:
    with caplog.at_level("INFO", "farm.outages"):
        yield Outages(clock)


def test_however_many_jobs_meet_it_it_is_told_twice(
    outages: Outages, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(8):
        outages.met(FARM, away(Cause.RAY_GONE), 5.0)
        clock.now += 6.0
    assert outages.words().startswith("ray_gone: ")
    outages.over([FARM])
    assert caplog.messages == ["ray_gone: ray_gone in this test", "ray_gone is over after 48 s"]
    assert outages.words() == ""


def test_nothing_is_tried_before_the_pause_is_over_and_only_where_it_is_away(outages: Outages, clock: Clock) -> None:
    outages.met("tiny", away(Cause.WEIGHTS_MISSING), 5.0)
    assert outages.blocks("tiny")
    assert not outages.blocks(FARM)
    outages.over(["tiny"])
    assert outages.blocks("tiny")
    clock.now += 5.0
    assert not outages.blocks("tiny")
    assert outages.places() == {"tiny"}
    outages.over(["tiny"])
    assert outages.places() == set()


def test_work_that_meets_the_same_cause_again_ends_nothing(outages: Outages, clock: Clock) -> None:
    outages.met(FARM, away(Cause.STORE_FULL), 5.0)
    clock.now += 6.0
    outages.over([FARM], but={Cause.STORE_FULL})
    assert outages.words()


def test_what_some_meet_is_everyones_once_nothing_gets_through(outages: Outages, clock: Clock) -> None:
    for _ in range(9):
        outages.doubt(away(Cause.GATE_DOWN), 5.0)
        clock.now += 3.0
        assert not outages.blocks(FARM)
        outages.through()
    outages.doubt(away(Cause.GATE_DOWN), 5.0)
    clock.now += 5.0
    outages.doubt(away(Cause.GATE_DOWN), 5.0, flying_since=clock.now - 6.0)
    assert outages.words() == "", "what flew already at the first time may yet get through"
    outages.doubt(away(Cause.GATE_DOWN), 5.0, flying_since=clock.now - 1.0)
    assert outages.blocks(FARM)
    assert outages.words().startswith("gate_down: ")


@pytest.mark.parametrize(
    ("met", "probe", "all_of_it"),
    [
        (Cause.STORE_FULL, Cause.STORE_DOWN, True),
        (Cause.SIGNER_FAILED, Cause.SIGNER_DOWN, True),
        (Cause.RAY_GONE, Cause.RAY_GONE, True),
        (Cause.STORE_DOWN, Cause.RAY_GONE, False),
    ],
)
def test_what_some_meet_is_everyones_if_the_probe_of_it_fails_too(
    outages: Outages, met: Cause, probe: Cause, all_of_it: bool
) -> None:
    outages.probed(probe, away(probe))
    outages.doubt(away(met), 5.0)
    assert outages.blocks(FARM) == all_of_it


def test_a_probe_is_believed_both_ways_and_holds_nothing_up(outages: Outages) -> None:
    outages.probed("signer", away(Cause.SIGNER_DOWN))
    outages.probed(Cause.RAY_GONE, away(Cause.RAY_GONE))
    assert outages.words().startswith("signer_down, ray_gone: ")
    assert not outages.blocks(FARM)
    outages.over([FARM])
    assert outages.words().startswith("signer_down, ray_gone: ")
    outages.probed("signer", None)
    assert outages.words().startswith("ray_gone: ")


def test_two_probes_of_one_cause_must_both_be_content(outages: Outages) -> None:
    for name in ("seal", "tidy"):
        outages.probed(name, away(Cause.DATABASE_DOWN))
    outages.probed("seal", None)
    assert outages.words()
    outages.probed("tidy", None)
    assert outages.words() == ""


def test_what_is_seen_again_is_tried_at_once(outages: Outages, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    outages.met("tiny", away(Cause.WEIGHTS_MISSING), 300.0)
    clock.now += 7.0
    outages.come("tiny", Cause.NO_ROOM)
    assert outages.blocks("tiny")
    outages.come("tiny", Cause.WEIGHTS_MISSING)
    assert outages.places() == set()
    assert caplog.messages[-1] == "weights_missing is over after 7 s"


def test_what_work_met_too_is_over_at_once_when_a_probe_sees_it_again(outages: Outages) -> None:
    outages.probed(Cause.RAY_GONE, away(Cause.RAY_GONE))
    outages.doubt(away(Cause.RAY_GONE), 5.0)
    assert outages.blocks(FARM)
    outages.probed(Cause.RAY_GONE, None)
    assert outages.words() == ""
    assert not outages.blocks(FARM)
