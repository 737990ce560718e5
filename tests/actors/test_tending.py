"""What each place is to have, told without Ray."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from actors import gang, room
from actors.building import build
from actors.cards import TINY
from actors.gang import Gang, Site, selector
from actors.places import ROOM, Place, post_of
from actors.placing import Node
from actors.pool import Pool
from actors.tending import HELP_S
from farm.config import GangSpec, PoolSpec, Settings
from farm.errors import Fault
from farm.job import CAUSES, Cause, Payer
from farm.lack import Lack
from farm.ports import Demand, Drained, Frame, GangState, Rendered
from tests.actors.conftest import CARDS, request_of

NONE = Lack((0, 1), 1, {}, {})


@pytest.fixture
def pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pool:
    """No gang is built or ended: what would be is written down."""
    specs = (PoolSpec(model="flat", max=3, min=1), PoolSpec(model="other"))
    made = Pool(Settings(home=tmp_path, pools=specs), CARDS, shard="tests.actors.fakes:load_flat")
    monkeypatch.setattr(made, "_start", lambda place: None)
    monkeypatch.setattr(Gang, "remove", lambda gang: None)
    return made


def stand(place: Place, state: GangState = GangState.READY) -> str:
    nothing: Any = None
    place.gang = Gang(f"{place.post.pool}.{place.number}", [], nothing, nothing)
    place.homes = (f"node-{place.number}",)
    place.pulse.at = time.time()
    place.now(state, "a job")
    return place.gang.id


def states(pool: Pool, model: str) -> list[str]:
    return [str(row.state) for row in pool.status() if row.model == model]


def test_a_pool_grows_by_its_backlog_and_shrinks_only_where_nothing_was_done_for_long(pool: Pool) -> None:
    pool.tend()
    assert states(pool, "flat") == ["starting", "gone", "gone"]  # the one that is kept
    pool.need({"flat": Demand(100, 1e6)}, {}, Drained())
    pool.tend()
    assert states(pool, "flat") == ["starting"] * 3
    for place in pool.places["flat"]:
        stand(place)
        place.lock.release()
    pool.need({}, {}, Drained())
    pool.tend()
    assert states(pool, "flat") == ["ready"] * 3
    for place in pool.places["flat"]:
        place.since -= place.spec.idle_s + 1
    pool.places["flat"][1].lock.acquire()  # somebody draws there
    pool.tend()
    assert states(pool, "flat") == ["ready", "ready", "gone"]


def test_what_has_work_waiting_stays_however_long_it_idles(pool: Pool) -> None:
    """A signer that is away for an hour, say, must not have weights loaded again and again."""
    pool.need({"flat": Demand(2, 1e6)}, {}, Drained())
    for place in pool.places["flat"]:
        stand(place)
        place.since -= place.spec.idle_s + 1
    pool.tend()
    assert states(pool, "flat") == ["ready", "gone", "ready"]
    pool.tend()
    assert states(pool, "flat") == ["ready", "gone", "ready"]
    pool.need({}, {}, Drained())
    pool.tend()
    assert states(pool, "flat") == ["ready", "gone", "gone"]


def test_a_gang_that_no_dispatcher_has_idles_no_longer_than_others(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    left, removed = ["flat.1.ab", "unheard.1.cd"], list[str]()
    for place in pool.places["flat"]:
        place.spec = place.spec.model_copy(update={"idle_s": 60.0})
    monkeypatch.setattr(gang, "unused", lambda: left)
    monkeypatch.setattr("actors.tending.clear", lambda: False)
    monkeypatch.setattr(gang, "remove_unused", lambda gang_id, why: removed.append(gang_id))
    for now in (0.0, 60.0):
        pool._let_go(now)
    assert removed == []
    left.remove("flat.1.ab")  # a dispatcher takes it over, and leaves it again
    pool._let_go(61.0)
    left.append("flat.1.ab")
    for now in (62.0, 122.0):
        pool._let_go(now)
    assert removed == []
    pool._let_go(123.0)
    assert removed == ["flat.1.ab"]
    pool._let_go(601.0)
    assert removed[1:] == ["unheard.1.cd", "flat.1.ab"]


def test_a_drained_gang_ends_with_its_job_and_an_idle_one_at_once(pool: Pool) -> None:
    busy, idle, far = pool.places["flat"]
    names = [stand(busy, GangState.BUSY), stand(idle), stand(far)]
    busy.lock.acquire()
    pool.need({}, {}, Drained(frozenset({"node-1"}), frozenset(names[:1])))
    assert states(pool, "flat") == ["draining", "draining", "ready"]
    assert pool.status()[0].waits_for == "its last job: it is drained"
    pool.tend()
    assert states(pool, "flat") == ["draining", "gone", "ready"]
    busy.now(GangState.READY)
    pool._leave(busy)
    assert states(pool, "flat")[0] == "gone"


def test_a_drain_that_is_taken_back_in_time_is_none(pool: Pool) -> None:
    busy = pool.places["flat"][0]
    name = stand(busy, GangState.BUSY)
    busy.lock.acquire()
    pool.need({}, {}, Drained(gangs=frozenset({name})))
    pool.need({}, {}, Drained())
    pool._leave(busy)
    assert states(pool, "flat")[0] == "busy"


def test_who_made_room_seeks_none_before_the_other_has_it(pool: Pool) -> None:
    flat, other = pool.places["flat"][0], pool.places["other"][0]
    name, needs = stand(flat), {"flat": Demand(9, 1e6), "other": Demand(1, 1.0)}
    pool.need(needs, {}, Drained())
    pool.tend()
    assert (other.seeks, states(pool, "flat")) == (True, ["ready", "starting", "starting"])
    pool.need(needs, {name: "other"}, Drained())
    pool.tend()
    pool.need(needs, {}, Drained())
    pool.tend()
    assert states(pool, "flat")[0] == "gone"  # though there is work for it, and it is kept
    stand(other)
    pool.tend()
    assert states(pool, "flat")[0] == "starting"


def test_only_those_give_way_who_could_take_the_room_that_was_made(tmp_path: Path) -> None:
    specs = (
        PoolSpec(model="flat"),
        PoolSpec(model="other"),
        PoolSpec(model="third", labels={"kind": "small"}),
        PoolSpec(model="missing", cpus=3.0),
        PoolSpec(model="broken"),
    )
    made = Pool(Settings(home=tmp_path, pools=specs), CARDS, shard="tests.actors.fakes:load_flat")
    flat, rival, small, wide, other = (made.places[spec.model][0] for spec in specs)
    made.seen = {"node-0": Node("one", 2.0), "node-1": Node("two", 4.0, 0, {"kind": "small"})}
    name = stand(rival)
    flat.now(GangState.STARTING, ROOM)
    made.need({}, {name: "flat"}, Drained())
    rival.gang = None
    made.need({}, {}, Drained())  # it has gone, and its room is remembered
    assert [made._gives_way(place.post) for place in (flat, small, wide, rival, other)] == [False] * 3 + [True] * 2
    made.seen = {}
    assert made._gives_way(small.post), "who can tell?"


def test_of_those_who_are_helped_on_one_node_the_first_gives_way_to_none_of_the_others(pool: Pool) -> None:
    """Or neither would seek the room that was made for both."""
    (other,), (first, second, _) = pool.places["other"], pool.places["flat"]
    names = stand(first), stand(second)
    second.homes = first.homes
    pool.need({}, {names[0]: "other"}, Drained())
    pool.need({}, {names[0]: "other", names[1]: "third"}, Drained())
    for model in ("other", "third"):
        pool.places[model][0].now(GangState.STARTING, ROOM)
    gives_way = [pool._gives_way(pool.places[model][0].post) for model in ("other", "third", "flat")]
    assert gives_way == [False, True, True]
    stand(other)
    assert not pool._gives_way(pool.places["third"][0].post)


def test_room_that_was_made_is_kept_until_it_is_taken_but_not_for_ever(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Comes(Gang):
        def homes(self) -> tuple[str, ...]:
            return ("node-0",)

        def load(self, limit_s: float) -> None:
            assert "other" not in pool.helped

    flat, other = pool.places["flat"][0], pool.places["other"][0]
    name = stand(flat)
    other.now(GangState.STARTING, ROOM)
    pool._help({name: "other"}, time.time() - HELP_S / 2)
    assert pool._gives_way(flat.post)
    pool._help({}, time.time() + HELP_S)
    assert not pool._gives_way(flat.post), "a gang that does not come"
    pool._help({name: "other"}, time.time())
    nothing: Any = None
    pool._load(other, Comes("other.1", [], nothing, nothing), fresh=True)
    assert not pool._gives_way(flat.post)


def test_nobody_waits_inside_for_a_gang_that_does_not_come(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actors.room.why_none", lambda post, standing, drained: f"no room for {post.pool}")
    monkeypatch.setattr("actors.gang.standing", lambda: [])
    (place,) = pool.places["other"]
    began = time.time() - pool.room_s - 1
    place.now(GangState.STARTING)
    pool._give_up([place], began)
    place.lack = NONE
    with pytest.raises(Fault, match="Ray is not running"):  # the old one is not asked what it has room for
        pool._give_up([place], began)
    monkeypatch.setattr("actors.cluster.connect", lambda settings: "joined")
    with pytest.raises(Fault, match="no room for other") as caught:
        pool._give_up([place], began)
    assert caught.value.cause is Cause.NO_ROOM
    pool._give_up([place], time.time())
    place.fault, place.failed_at = Fault(Cause.GANG_DIED, "it died", gang="other.1"), time.time()
    with pytest.raises(Fault, match="a gang of other did not start: it died") as caught:
        pool._give_up([place], began)
    assert caught.value.cause is Cause.NO_ROOM, "the job has met no gang"
    place.fault, place.failed_at = Fault(Cause.WEIGHTS_MISSING, "no files"), time.time()
    with pytest.raises(Fault, match="no files") as caught:
        pool._give_up([place], began)
    assert caught.value.cause is Cause.WEIGHTS_MISSING
    stand(place, GangState.BUSY)
    pool._give_up([place], began)


def test_a_place_that_finds_no_room_says_why(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "actors.room.why_none", lambda post, standing, _: f"too small for {post.pool}, beside {standing}"
    )
    monkeypatch.setattr("actors.gang.standing", lambda: ["flat.0"])
    monkeypatch.setattr("actors.tending.build", lambda post, still, away, lacks, room_s: lacks(NONE))
    (place,) = pool.places["other"]
    place.now(GangState.STARTING, ROOM)
    pool._built(place)
    assert place.status({}).lack is NONE
    assert place.status({}).waits_for == "room in the cluster: too small for other, beside ['flat.0']"


def test_a_start_that_failed_is_tried_again_later_or_where_a_job_asks(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "_join", lambda place: None)
    (place,) = pool.places["other"]
    pool._failed(place, Fault(Cause.WEIGHTS_MISSING, "no files"))
    now = time.time()
    assert not pool._may_start(place, now)
    assert pool._may_start(place, now + 31)
    place.lacks, place.lack = "no files here", NONE
    assert place.status({}).lack is None  # nobody is to make room for it
    assert not pool._may_start(place, now + 31)
    pool.asking[1] = ("other", Demand(1, 1.0))
    assert pool._may_start(place, now)
    pool._failed(place, Fault(Cause.RAY_GONE, "away"))
    del pool.asking[1]
    assert pool._may_start(place, now)  # which may be back any moment


def test_three_starts_that_failed_rest_the_place_and_say_no_more_than_the_cause(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "_join", lambda place: None)
    (place,) = pool.places["other"]
    for _ in range(3):
        time.sleep(0.002)
        pool._failed(place, Fault(Cause.GANG_DIED, "the words of somebody's job"))
    assert place.state is GangState.BENCHED
    with pytest.raises(Fault, match="every gang of other rests") as caught:
        pool._give_up([place], time.time())
    assert "gang_died" in caught.value.detail
    assert "somebody" not in caught.value.detail


def test_a_gang_that_fails_three_different_jobs_goes_and_pays_for_them(pool: Pool) -> None:
    def met(job: int, *answers: Fault | Rendered) -> list[Cause | None]:
        told = pool._judge(place, range(job, job + len(answers)), answers)
        return [answer.cause if isinstance(answer, Fault) else None for answer in told]

    (place,) = pool.places["other"]
    name, drew = stand(place), Rendered(Frame(1, 1, b"rgb"), "other.0", "w")
    odd = Fault(Cause.RENDER_ERROR, "what nobody foresaw", gang=name)
    for _ in range(9):
        assert met(1, odd) == [Cause.RENDER_ERROR], "it may be the job's own"
    assert met(2, odd, drew) == [Cause.RENDER_ERROR, None]
    assert met(1, odd, odd) == [Cause.RENDER_ERROR] * 2
    assert (place.state, place.gang is None) == (GangState.READY, False)
    assert met(3, odd, odd) == [Cause.GANG_DIED] * 2
    assert (place.state, place.gang) == (GangState.BENCHED, None)
    assert place.waits_for == "rested for 30 s after 3 jobs in a row failed there: render_error"


def test_a_gang_that_ended_under_a_group_has_failed_once(pool: Pool) -> None:
    (place,) = pool.places["other"]
    pool._judge(place, [1, 2, 3, 4], [Fault(Cause.GANG_DIED, "its device is lost", gang="g")] * 4)
    assert place.form.lost == (1,)


@pytest.mark.parametrize("dies", ["Ray knows", "Ray does not know yet", "not at all"])
def test_a_gang_that_went_with_its_node_is_not_the_jobs_nor_its_own_doing(
    pool: Pool, monkeypatch: pytest.MonkeyPatch, dies: str
) -> None:
    (place,) = pool.places["other"]
    stand(place)
    with socket.create_server(("127.0.0.1", 0)) as raylet:
        host, port = raylet.getsockname()
        said = {"NodeID": "node-0", "Alive": dies != "Ray knows", "NodeManagerAddress": host, "NodeManagerPort": port}
        monkeypatch.setattr("ray.nodes", lambda: [said])
        monkeypatch.setattr(pool, "_join", lambda place: None)
        if dies == "Ray does not know yet":
            raylet.close()
        fault = pool._lost(place, RuntimeError("NCCL error: the other rank does not answer"))
    assert fault.cause is (Cause.GANG_DIED if dies == "not at all" else Cause.NODE_FAILED)
    assert place.gang is None


def away_while_it_seeks(pool: Pool, place: Place, monkeypatch: pytest.MonkeyPatch) -> list[frozenset[str]]:
    """At first, and once it has found no room for a while."""
    told: list[frozenset[str]] = []

    def seeking(_post: object, _still: object, away: Callable[[], frozenset[str]], *_: object) -> None:
        told.append(away())
        time.sleep(0.05)
        told.append(away())

    monkeypatch.setattr("actors.tending.build", seeking)
    pool.room_s = 0.04
    pool._built(place)
    return told


def test_a_gang_is_built_elsewhere_than_the_last_one_failed_if_it_can_be(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place,) = pool.places["other"]
    died, drew = Fault(Cause.GANG_DIED, "it died", gang="g"), Rendered(Frame(1, 1, b"rgb"), "other.0", "w")
    here, there = frozenset({"node-0"}), frozenset({"node-1"})
    pool.seen = {"node-0": Node("one", 2.0), "node-1": Node("two", 2.0)}
    place.homes = ("node-0",)
    assert pool._judge(place, [1], [died]) == [died]
    assert away_while_it_seeks(pool, place, monkeypatch) == [here, frozenset()]
    pool.drained = Drained(nodes=there)
    assert away_while_it_seeks(pool, place, monkeypatch) == [there, there], "no other is left"
    pool.drained = Drained()
    pool.seen = {"node-0": Node("one", 2.0), "node-1": Node("two", 0.5)}
    assert away_while_it_seeks(pool, place, monkeypatch) == [frozenset()] * 2, "the other would not do"
    pool.seen = {"node-0": Node("one", 2.0)}
    assert away_while_it_seeks(pool, place, monkeypatch) == [frozenset()] * 2
    assert pool._judge(place, [1], [died]) == [died], "the only node: who can tell?"
    pool.seen = {"node-0": Node("one", 2.0), "node-1": Node("two", 2.0)}
    (fault,) = pool._judge(place, [1], [died])
    assert (fault.cause, CAUSES[fault.cause]) == (Cause.NODE_FAILED, Payer.ENVIRONMENT), "the other one was full"
    assert pool._judge(place, [1, 2], [drew, drew]) == [drew, drew]
    assert away_while_it_seeks(pool, place, monkeypatch) == [frozenset()] * 2, "forgiven"


@pytest.mark.parametrize("trouble", [OSError(24, "too many open files"), AssertionError("no raylet"), SystemExit(1)])
def test_trouble_while_a_job_waits_is_an_outage_and_leaves_no_place_locked(
    pool: Pool, monkeypatch: pytest.MonkeyPatch, trouble: BaseException
) -> None:
    def troubled(*_: object) -> None:
        raise trouble

    (place,) = pool.places["other"]
    stand(place)
    monkeypatch.setattr("actors.cluster.connect", troubled)
    with pytest.raises(Fault) as caught:
        pool.render([request_of("a", model="other")], lambda: False)
    assert caught.value.cause is Cause.RAY_GONE
    assert not place.lock.locked()


def test_a_gang_that_another_thread_removes_meanwhile_has_no_reason_to_end(pool: Pool) -> None:
    class Removed:
        """Of the gangs that are drained: who asks for it is overtaken."""

        def __contains__(self, _: object) -> bool:
            place.gang = None
            return False

    (place,) = pool.places["other"]
    stand(place)
    pool.drained = Drained(gangs=cast("frozenset[str]", Removed()))
    assert pool._why_ends(place) == ""


def test_a_drained_node_is_told_to_ray_beside_the_labels_of_the_pool(tmp_path: Path) -> None:
    def asked(**labels: str) -> dict[str, str]:
        spec = PoolSpec(model="flat", labels={name.replace("_", "-"): value for name, value in labels.items()})
        return selector(post_of(spec, CARDS["flat"], Settings(home=tmp_path), "a:b"), frozenset({"b" * 4, "a" * 4}))

    assert asked() == {"ray.io/node-id": "!in(aaaa,bbbb)"}
    assert asked(zone="!in(a, b)") == {"zone": "!in(a, b)", "ray.io/node-id": "!in(aaaa,bbbb)"}


def test_loading_is_guessed_from_the_files_until_it_is_measured(tmp_path: Path) -> None:
    made = Pool(Settings(home=tmp_path, pools=(PoolSpec(model="tiny", max=2),)), {"tiny": TINY})
    first, second = made.places["tiny"]
    assert first.load_s == room.STARTS_S
    made.look()
    assert room.STARTS_S < first.load_s == second.load_s < room.STARTS_S + 1.0  # a few megabytes
    first.load_s, first.measured = room.STARTS_S, True
    made.look()
    assert first.load_s == room.STARTS_S


def test_a_job_that_went_on_from_its_middle_tells_nothing_of_the_pace(pool: Pool) -> None:
    place, asked = pool.places["flat"][0], request_of("a")
    before, drew = place.pace_s, Rendered(Frame(1, 1, b"rgb"), "flat.0", "w", 0.001)
    pool._learn(place, [replace(asked, resume=b"latent")], [drew])
    assert place.pace_s == before
    pool._learn(place, [asked], [drew])
    assert place.pace_s != before


def test_gangs_beyond_the_first_wait_for_no_room_while_another_stage_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that wait would take the room of the only encoder, and draw nothing."""
    settings = Settings(home=tmp_path, pools=(PoolSpec(model="flat", max=3, min=3, encoders=GangSpec()),))
    pool = Pool(settings, CARDS, shard="tests.actors.fakes:load_staged")
    monkeypatch.setattr(pool, "_start", lambda place: None)
    (words,), (first, *further) = pool.places["flat/encode"], pool.places["flat"]
    stand(words)
    stand(first)
    pool.need({"flat": Demand(100, 1e6)}, {}, Drained())
    pool.tend()
    assert all(place.wanted and place.seeks for place in further)
    words.gang = None
    pool.tend()
    assert (words.wanted, first.wanted, [place.wanted for place in further]) == (True, True, [False, False])
    first.gang = None
    pool.tend()
    assert [place.wanted for place in (words, first, *further)] == [True, True, False, False]


def test_room_that_comes_once_it_is_not_wanted_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    given_back: list[Site] = []
    answers = [True, True, False, False]  # there is room now, and meanwhile another one needs it
    site = Site("flat.1.ab", None, None, "ready", frozenset())
    monkeypatch.setattr("ray.wait", lambda *_, **__: (["ready"], []))
    monkeypatch.setattr("ray.get", lambda _: None)
    monkeypatch.setattr(gang, "seek", lambda *_: site)
    monkeypatch.setattr(gang, "abandon", given_back.append)
    post: Any = SimpleNamespace(gpus=0.0)
    assert build(post, lambda: answers.pop(0), frozenset, lambda lack: None, 1.0) is None
    assert given_back == [site]


def test_a_stage_apart_is_built_as_its_models_backlog_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(home=tmp_path, pools=(PoolSpec(model="flat", max=3, encoders=GangSpec(max=3)),))
    pool = Pool(settings, CARDS, shard="tests.actors.fakes:load_staged")
    monkeypatch.setattr(pool, "_start", lambda place: None)
    stand(pool.places["flat"][0])
    stand(pool.places["flat/encode"][0])
    pool.need({"flat": Demand(100, 1000.0)}, {}, Drained())
    pool.tend()
    wanted = {name: sum(place.wanted for place in places) for name, places in pool.places.items()}
    assert (wanted["flat"], wanted["flat/encode"]) == (3, 1)
