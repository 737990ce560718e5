"""One group from lease to publication, with each port misbehaving in turn; and the dispatcher's loop around it."""

from __future__ import annotations

import io
import itertools
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sqlalchemy import RowMapping, Table, insert, select, update

from farm.access import Access
from farm.db import connect, migrate, reading
from farm.dispatcher import LACKING_S, Dispatcher, InFlight
from farm.errors import BadInput, Fault
from farm.job import CAUSES, Cause, Payer, Spec, State
from farm.job_queue import JobQueue, NewJob
from farm.outages import FARM
from farm.pipeline import Group, Ports
from farm.ports import Demand, Frame, GangState, GangStatus, Lease, Outcome, Rendered, RenderRequest, Stage, Verdict
from farm.store import open_store
from farm.suspects import LONELY, LONGEST_S, SHARED, STRIKES, Suspects, pause_s
from farm.tables import ARTIFACT, COMPONENT, EVENT, GANG, JOB, JOB_FAULT, UPLOAD, VERDICT
from tests.fakes import FlatRenderer, StampSigner, StampVerifier, WordGate, away

NUMBERS = itertools.count(1)


@dataclass(frozen=True)
class FakePorts(Ports):
    renderer: FlatRenderer
    gate: WordGate
    signer: StampSigner
    verifier: StampVerifier


@pytest.fixture
def ports(tmp_path: Path) -> Iterator[FakePorts]:
    yield from fake_ports(tmp_path)


def fake_ports(tmp_path: Path) -> Iterator[FakePorts]:
    engine = connect(f"sqlite:///{tmp_path}/farm.db")
    migrate(engine)
    Access(engine).create_project("p")
    store = open_store(f"file://{tmp_path}/store")
    yield FakePorts(JobQueue(engine), FlatRenderer(), WordGate(), StampSigner(), StampVerifier(), store, retry_s=0.0)
    engine.dispose()


def spec(prompt: str = "a red circle", **more: object) -> Spec:
    return replace(Spec("tiny", prompt, 1, 32, 32, 4, 3.5), **more)  # type: ignore[arg-type]


def submit(ports: FakePorts, *jobs: NewJob) -> int:
    batch = ports.queue.open_batch("p", "test", "tester")
    ports.queue.stage(batch, jobs)
    return ports.queue.accept(batch, None)


def lease_all(ports: FakePorts, owner: str = "worker") -> list[Lease]:
    return [lease for lane in ports.queue.lanes() for lease in ports.queue.claim(lane.id, owner, 50, 30)]


def states(ports: FakePorts) -> Counter[str]:
    with reading(ports.queue.engine) as connection:
        return Counter(connection.execute(select(JOB.c.state)).scalars())


def rows(ports: FakePorts, table: Table) -> list[RowMapping]:
    with reading(ports.queue.engine) as connection:
        return list(connection.execute(select(table)).mappings().all())


def run(ports: FakePorts, suspects: Suspects | None = None) -> list[Fault]:
    """All that can be leased, as one group."""
    group = Group(ports, suspects=suspects or Suspects())
    group.run(lease_all(ports))
    return group.faults


def test_a_job_ends_published_with_its_verdict_and_artifact(ports: FakePorts) -> None:
    submit(ports, NewJob(line=1, spec=spec()))
    assert run(ports) == []
    assert states(ports) == {"published": 1}
    (artifact,) = rows(ports, ARTIFACT)
    assert ports.store.get(artifact["key"]).endswith(artifact["frame_sha256"].encode())
    assert {row["stage"] for row in rows(ports, VERDICT)} == {"prompt", "frame"}


def test_a_blocked_prompt_never_reaches_the_renderer(ports: FakePorts) -> None:
    submit(ports, NewJob(line=1, spec=spec("a forbidden thing")))
    run(ports)
    assert states(ports) == {"blocked": 1}
    assert ports.renderer.calls == 0


@pytest.mark.parametrize(("outcome", "state"), [(Outcome.BLOCK, "blocked"), (Outcome.REVIEW, "held")])
def test_what_the_gate_says_of_the_frame_decides(ports: FakePorts, outcome: Outcome, state: str) -> None:
    ports.gate.frame_outcome = lambda frame: outcome
    submit(ports, NewJob(line=1, spec=spec()))
    run(ports)
    assert states(ports) == {state: 1}
    assert rows(ports, JOB)[0]["reason"] == f"{outcome} by frame"
    assert len(ports.signer.signed) == (outcome is Outcome.REVIEW)


def test_one_that_fails_does_not_take_its_group_along(ports: FakePorts) -> None:
    ports.renderer.trouble = lambda request: away(Cause.RENDER_ERROR) if request.spec.seed == 2 else None
    submit(ports, *(NewJob(line=seed, spec=spec(seed=seed)) for seed in (1, 2, 3)))
    faults = run(ports)
    assert [fault.cause for fault in faults] == [Cause.RENDER_ERROR]
    assert states(ports) == {"published": 2, "queued": 1}


def kills(subjects: Sequence[RenderRequest] | Sequence[Frame], poison: Callable[[Any], bool], cause: Cause) -> None:
    """What an actor that died is heard as: the whole call fails."""
    if any(poison(subject) for subject in subjects):
        raise Fault(
            cause, f"died of {len(subjects)}", gang=f"gang-{next(NUMBERS)}" if cause is Cause.GANG_DIED else None
        )


@pytest.mark.parametrize("victim", ["gate", "gang"])
def test_a_job_that_kills_what_it_meets_fails_with_its_errors_and_takes_no_neighbour_along(
    ports: FakePorts, monkeypatch: pytest.MonkeyPatch, victim: str
) -> None:
    judge, render = ports.gate.judge_frames, ports.renderer.render

    def judging(frames: Sequence[Frame], stage: Stage) -> list[Verdict | Fault]:
        if victim == "gate":
            kills(frames, lambda frame: frame.width == 48, Cause.GATE_ERROR)
        return judge(frames, stage)

    def rendering(requests: Sequence[RenderRequest], *rest: Any) -> list[Rendered | Fault]:
        if victim == "gang":
            kills(requests, lambda request: request.spec.width == 48, Cause.GANG_DIED)
        return render(requests, *rest)

    monkeypatch.setattr(ports.gate, "judge_frames", judging)
    monkeypatch.setattr(ports.renderer, "render", rendering)
    submit(ports, *(NewJob(line=seed, spec=spec(seed=seed, width=48 if seed == 2 else 32)) for seed in (1, 2, 3)))
    for _ in range(9):
        run(ports)
    assert states(ports) == {"published": 2, "failed": 1}
    met = rows(ports, JOB_FAULT)
    assert [row["detail"] for row in met] == ["died of 1"] * 3


@pytest.mark.parametrize("victim", ["gate", "renderer", "signer", "verifier", "few"])
def test_an_error_nobody_foresaw_burns_only_the_job_that_brings_it_about(
    ports: FakePorts, monkeypatch: pytest.MonkeyPatch, victim: str
) -> None:
    """`few`: fewer answers than were asked for."""
    render, judge, sign, verify = (
        ports.renderer.render,
        ports.gate.judge_frames,
        ports.signer.sign,
        ports.verifier.verify,
    )
    bad: set[bytes] = set()

    def surprise(here: str, met: bool) -> None:
        if met and here == victim:
            raise ZeroDivisionError(f"of the {here}")

    def rendering(requests: Sequence[RenderRequest], *rest: Any) -> list[Rendered | Fault]:
        met = any(request.spec.seed == 2 for request in requests)
        surprise("renderer", met)
        answers = render(requests, *rest)
        bad.update(
            one.frame.pixels
            for one, request in zip(answers, requests, strict=True)
            if request.spec.seed == 2 and isinstance(one, Rendered)
        )
        return answers[1:] if victim == "few" and met else answers

    def judging(frames: Sequence[Frame], stage: Stage) -> list[Verdict | Fault]:
        surprise("gate", any(frame.pixels in bad for frame in frames))
        return judge(frames, stage)

    def signing(lease: Lease, frame: Frame) -> Any:
        surprise("signer", frame.pixels in bad)
        return sign(lease, frame)

    def verifying(data: bytes, mime: str) -> Any:
        surprise("verifier", data.startswith(b"2 "))
        return verify(data, mime)

    monkeypatch.setattr(ports.renderer, "render", rendering)
    monkeypatch.setattr(ports.gate, "judge_frames", judging)
    monkeypatch.setattr(ports.signer, "sign", signing)
    monkeypatch.setattr(ports.verifier, "verify", verifying)
    submit(ports, *(NewJob(line=seed, spec=spec(seed=seed)) for seed in (1, 2, 3, 4)))
    for _ in range(3):
        run(ports)
    assert states(ports) == {"published": 3, "failed": 1}
    met = rows(ports, JOB_FAULT)
    assert {row["job_id"] for row in met} == {2}
    assert [row["cause"] for row in met] == ["render_error"] * 3
    assert all("Error: " in row["detail"] for row in met)


@pytest.mark.parametrize("cause", [Cause.OVERLOADED, Cause.SIGNER_FAILED])
def test_what_one_job_alone_meets_again_and_again_while_others_get_through_is_its_own(
    ports: FakePorts, monkeypatch: pytest.MonkeyPatch, cause: Cause
) -> None:
    """Whatever dispatcher meets it: each time here it is another."""
    sign, strikes = ports.signer.sign, STRIKES[cause]

    def signing(lease: Lease, frame: Frame) -> Any:
        if lease.spec.seed == 1:
            raise away(cause)
        return sign(lease, frame)

    monkeypatch.setattr(ports.signer, "sign", signing)
    submit(ports, NewJob(line=1, spec=spec(seed=1)))
    for _ in range(3 * strikes):
        run(ports)
    assert states(ports) == {"queued": 1}, "nobody got through: it may well be an outage"
    assert len(rows(ports, JOB_FAULT)) == 1
    for seed in range(2, strikes + 1):
        assert states(ports) == {"queued": 1} | ({"published": seed - 2} if seed > 2 else {})
        submit(ports, NewJob(line=1, spec=spec(seed=seed)))
        run(ports)
    run(ports)
    assert states(ports) == {"failed": 1, "published": strikes - 1}
    met = rows(ports, JOB_FAULT)
    assert [(row["cause"], row["payer"]) for row in met] == [(cause, "environment")] * strikes + [("poison", "job")]
    assert [row["detail"] for row in met[:-1]] == [f"{cause} in this test"] * strikes


def test_how_long_a_job_waits_grows_only_while_others_get_through() -> None:
    suspects = Suspects()
    for times in range(1, 20):
        for cause in Cause:
            counted = times if cause in SHARED else 1
            assert suspects.times(1, cause) == counted
            assert suspects.times(1, cause) == counted, "nobody got through meanwhile"
        suspects.passed([2])
    suspects.passed([1])
    assert suspects.times(1, Cause.STORE_DOWN) == 1


@given(st.just(0.0) | st.floats(0.01, 1e4), st.integers(1, 10_000))
def test_the_pause_of_a_job_doubles_and_has_an_end(retry_s: float, times: int) -> None:
    first, now, later = (pause_s(retry_s, each) for each in (1, times, times + 1))
    assert first == retry_s <= now <= later <= max(retry_s, LONGEST_S)
    assert later == 2 * now or later == max(retry_s, LONGEST_S) or retry_s == 0


def test_a_job_of_which_the_signer_dies_fails_and_takes_no_neighbour_along(
    ports: FakePorts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others of its group find no signer, because it comes first."""
    sign, back = ports.signer.sign, [0.0]

    def signing(lease: Lease, frame: Frame) -> Any:
        if time.monotonic() < back[0]:
            raise away(Cause.SIGNER_DOWN)
        if lease.spec.seed == 1:
            back[0] = time.monotonic() + 0.05
            raise away(Cause.SIGNER_FAILED)
        return sign(lease, frame)

    monkeypatch.setattr(ports.signer, "sign", signing)
    seeds = itertools.count(1)

    def over() -> bool:
        now = states(ports)
        if not now["failed"] and now["queued"] + now["leased"] <= 1:
            submit(ports, *(NewJob(line=line, spec=spec(seed=next(seeds))) for line in (1, 2, 3)))
        return now.keys() == {"failed", "published"}

    dispatch_until(Dispatcher(replace(ports, retry_s=0.1), group=3, workers=1), over)
    (failed,) = (row for row in rows(ports, JOB) if row["state"] == "failed")
    assert failed["seed"] == 1
    met = [row["cause"] for row in rows(ports, JOB_FAULT) if row["job_id"] == failed["id"]]
    assert Counter(met) == {"signer_failed": STRIKES[Cause.SIGNER_FAILED], "poison": 1}


@pytest.mark.parametrize("cause", [cause for cause in Cause if CAUSES[cause] is Payer.ENVIRONMENT])
def test_an_outage_anywhere_delays_and_burns_nothing(ports: FakePorts, cause: Cause) -> None:
    submit(ports, NewJob(line=1, spec=spec()))
    ports.signer.fault = away(cause)
    for _ in range(5):
        run(ports)
    assert states(ports) == {"queued": 1}
    assert [row["payer"] for row in rows(ports, JOB_FAULT)] == ["environment"] * (cause in STRIKES)
    assert cause in rows(ports, JOB)[0]["reason"]
    ports.signer.fault = None
    run(ports)
    assert states(ports) == {"published": 1}


def test_three_faults_of_its_own_and_it_has_failed_with_all_three_kept(ports: FakePorts) -> None:
    ports.gate.fault = away(Cause.GATE_ERROR)
    submit(ports, NewJob(line=1, spec=spec()))
    for _ in range(3):
        run(ports)
    assert states(ports) == {"failed": 1}
    assert len(rows(ports, JOB_FAULT)) == 3


def test_nothing_is_published_that_does_not_read_back_trusted(ports: FakePorts) -> None:
    submit(ports, NewJob(line=1, spec=spec()))
    ports.verifier.verdict = "Valid"
    faults = run(ports)
    assert faults[0].cause is Cause.UNVERIFIED
    assert states(ports) == {"queued": 1}
    assert rows(ports, ARTIFACT) == []


def test_a_worker_that_lost_its_lease_leaves_no_trace(ports: FakePorts) -> None:
    submit(ports, NewJob(line=1, spec=spec()))
    (late,) = lease_all(ports, "late")
    ports.queue.clock = lambda: time.time() + 3600
    assert ports.queue.expire() == 1
    group = Group(ports)
    group.run([late])
    assert states(ports) == {"queued": 1}
    assert rows(ports, VERDICT) == rows(ports, ARTIFACT) == []


def upload(ports: FakePorts) -> str:
    out = io.BytesIO()
    Image.new("RGB", (32, 32), "red").save(out, "PNG")
    key = ports.store.put(out.getvalue())
    access = Access(ports.queue.engine)
    return str(access.add_upload("p", "red.png", key, "image/png", 32, 32, len(out.getvalue())))


def test_a_strangers_picture_is_judged_before_it_is_used(ports: FakePorts) -> None:
    ports.gate.frame_outcome = lambda frame: Outcome.BLOCK if frame.pixels[:3] == b"\xff\0\0" else Outcome.ALLOW
    submit(ports, NewJob(line=1, spec=spec("make it green", edit=True), upload_id=upload(ports)))
    run(ports)
    assert states(ports) == {"blocked": 1}
    assert ports.renderer.calls == 0


def test_the_gate_learns_the_hash_of_a_strangers_file(ports: FakePorts) -> None:
    met: list[str] = []
    ports.gate.frame_outcome = lambda frame: met.append(frame.file_sha256) or Outcome.ALLOW  # type: ignore[func-returns-value]
    submit(ports, NewJob(line=1, spec=spec("make it green", edit=True), upload_id=upload(ports)))
    run(ports)
    assert met == [rows(ports, UPLOAD)[0]["key"], ""]


def test_an_edit_whose_picture_is_gone_is_not_drawn_from_nothing(ports: FakePorts) -> None:
    submit(ports, NewJob(line=1, spec=spec("make it green", edit=True), upload_id=upload(ports)))
    (lease,) = lease_all(ports)
    group = Group(ports)
    group.run([replace(lease, reference_key=None)])
    assert [fault.cause for fault in group.faults] == [Cause.BAD_INPUT]
    assert ports.renderer.calls == 0


def test_an_edit_waits_while_the_store_that_holds_its_picture_is_not_mounted(ports: FakePorts, tmp_path: Path) -> None:
    picture = upload(ports)
    submit(
        ports,
        NewJob(line=1, spec=spec("make it green", edit=True), upload_id=picture, name="first"),
        NewJob(line=2, spec=spec("make it blue", edit=True), parent_name="first"),
        NewJob(line=3, spec=spec(seed=3)),
    )
    store = (tmp_path / "store").rename(tmp_path / "elsewhere")
    (tmp_path / "store").mkdir()
    suspects = Suspects()
    for _ in range(10):
        run(ports, suspects)
    assert states(ports) == {"queued": 1, "waiting": 1, "published": 1}
    assert rows(ports, JOB)[0]["reason"] == "store_down: waits for the store"
    assert rows(ports, JOB_FAULT) == []
    shutil.copytree(store, tmp_path / "store", dirs_exist_ok=True)
    run(ports, suspects)
    assert states(ports)["published"] == 2


def test_each_verdict_names_the_gang_the_weights_and_the_plan_that_drew_its_own_frame(
    ports: FakePorts, monkeypatch: pytest.MonkeyPatch
) -> None:
    render = ports.renderer.render

    def by_two(requests: Sequence[RenderRequest], *rest: Any) -> list[Rendered | Fault]:
        answers = [answer for answer in render(requests, *rest) if isinstance(answer, Rendered)]
        names = [f"{request.spec.seed % 2}" for request in requests]
        return [
            replace(one, gang=f"gang-{name}", weights=name, drawn_with=f"plan {name}")
            for one, name in zip(answers, names, strict=True)
        ]

    monkeypatch.setattr(ports.renderer, "render", by_two)
    submit(ports, *(NewJob(line=seed, spec=spec(seed=seed)) for seed in range(1, 5)))
    run(ports)
    assert states(ports) == {"published": 4}
    seeds = {row["id"]: row["seed"] for row in rows(ports, JOB)}
    drawn = {
        seeds[row["job_id"]]: (row["gang"], row["weights"], row["drawn_with"])
        for row in rows(ports, VERDICT)
        if row["stage"] == "frame"
    }
    assert drawn == {seed: (f"gang-{seed % 2}", f"{seed % 2}", f"plan {seed % 2}") for seed in range(1, 5)}


def dispatch_until(dispatcher: Dispatcher, done: Callable[[], bool], seconds: float = 20) -> None:
    thread = threading.Thread(target=dispatcher.run)
    thread.start()
    until = time.monotonic() + seconds
    while not done() and time.monotonic() < until:
        time.sleep(0.02)
    dispatcher.stop()
    thread.join(timeout=10)
    assert not thread.is_alive()
    assert done()


def test_the_dispatcher_runs_everything_it_can_and_waits_out_an_outage(ports: FakePorts) -> None:
    submit(ports, *(NewJob(line=seed, spec=spec(seed=seed)) for seed in range(20)))
    ports.signer.fault = away(Cause.SIGNER_DOWN)
    dispatcher = Dispatcher(replace(ports, retry_s=0.2), group=3, workers=2)
    threading.Timer(0.6, lambda: setattr(ports.signer, "fault", None)).start()
    dispatch_until(dispatcher, lambda: states(ports) == {"published": 20})
    assert len(set(ports.signer.signed)) == len(ports.signer.signed) == 20
    assert rows(ports, JOB_FAULT) == []


@pytest.mark.parametrize("strikes", [LONELY - 1, LONELY])
def test_two_that_may_be_what_ends_dispatchers_are_not_drawn_beside_each_other(
    ports: FakePorts, monkeypatch: pytest.MonkeyPatch, strikes: int
) -> None:
    submit(ports, NewJob(line=1, spec=spec(seed=1)), NewJob(line=2, spec=spec(seed=2)))
    said = {"project_id": "p", "cause": "lease_lost", "payer": "environment", "detail": "", "created_at": 0.0}
    with ports.queue.engine.begin() as connection:
        connection.execute(update(JOB).values(attempt=strikes, reason=Cause.LEASE_LOST))
        met = [{"job_id": id_, "attempt": n + 1} | said for id_ in (1, 2) for n in range(strikes)]
        connection.execute(insert(JOB_FAULT), met)
    go, drawn = threading.Event(), ports.renderer.render

    def render(requests: Sequence[RenderRequest], *rest: Any) -> list[Rendered | Fault]:
        assert go.wait(20)
        return drawn(requests, *rest)

    monkeypatch.setattr(ports.renderer, "render", render)
    dispatcher = Dispatcher(ports)
    with ThreadPoolExecutor(2) as pool:
        assert dispatcher.step(pool)
        assert dispatcher.step(pool) is (strikes < LONELY)
        go.set()
        wait(dispatcher.flights)
        assert dispatcher.step(pool) is (strikes == LONELY), "the other one's turn"
    assert states(ports) == {"published": 2}


def test_an_error_nobody_foresaw_is_kept_with_the_job_and_does_not_loop(ports: FakePorts) -> None:
    def surprise(request: object) -> Fault:
        raise ZeroDivisionError("nobody foresaw this")

    ports.renderer.trouble = surprise
    submit(ports, NewJob(line=1, spec=spec()))
    dispatch_until(Dispatcher(ports, group=1, workers=1), lambda: states(ports) == {State.FAILED.value: 1})
    assert all("nobody foresaw this" in row["detail"] for row in rows(ports, JOB_FAULT))


def test_a_deed_that_fails_in_the_background_is_tried_again_and_leases_stay_alive(
    ports: FakePorts, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures: list[int] = []

    def refuse(seq: int, sha256: str) -> str:
        failures.append(seq)
        raise away(Cause.SIGN_REFUSED)

    monkeypatch.setattr("farm.dispatcher.TIDY_S", 0.05)
    monkeypatch.setattr("farm.dispatcher.PROBE_S", 0.05)
    monkeypatch.setattr("farm.dispatcher.SIGN_HEAD_S", 0.0)
    monkeypatch.setattr(ports.signer, "sign_audit_head", refuse)
    dispatcher = Dispatcher(ports, group=1, workers=1)
    submit(ports, NewJob(line=1, spec=spec()))
    dispatch_until(dispatcher, lambda: states(ports) == {"published": 1} and len(failures) > 2)


def test_the_keeper_forgets_processes_that_died_yesterday(ports: FakePorts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("farm.dispatcher.TIDY_S", 0.05)
    ports.queue.beat("dispatcher-of-yesterday", "dispatcher", "ready")
    with ports.queue.engine.begin() as connection:
        connection.execute(update(COMPONENT).values(beat_at=time.time() - 25 * 3600))
    dispatcher = Dispatcher(ports)
    dispatch_until(dispatcher, lambda: [row["name"] for row in rows(ports, COMPONENT)] == [dispatcher.owner])


def test_the_gangs_are_told_every_beat_and_not_at_all_once_their_renderer_cannot(
    ports: FakePorts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("farm.dispatcher.TIDY_S", 0.05)
    dispatcher = Dispatcher(ports)

    seen: set[float] = set()

    def told_again() -> bool:
        seen.update(row["beat_at"] for row in rows(ports, GANG))
        return len(seen) > 2

    dispatch_until(dispatcher, told_again)
    (told,) = rows(ports, GANG)
    assert (told["dispatcher"], told["gang"], told["state"]) == (dispatcher.owner, "gang-1", "ready")
    monkeypatch.setattr(ports.renderer, "status", lambda: 1 / 0)
    second = Dispatcher(ports)
    dispatch_until(second, lambda: second.owner in [row["name"] for row in rows(ports, COMPONENT)])
    assert [row["dispatcher"] for row in rows(ports, GANG)] == [dispatcher.owner]


def test_trouble_with_what_gangs_are_told_ends_no_loop(ports: FakePorts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports.renderer, "need", lambda demand, pressed, drained: 1 / 0)
    submit(ports, NewJob(line=1, spec=spec()))
    dispatch_until(Dispatcher(ports), lambda: states(ports) == {"published": 1})


def test_an_outage_leases_nothing_and_takes_no_demand_back(ports: FakePorts, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Mapping[str, Demand]] = []
    monkeypatch.setattr(ports.renderer, "need", lambda demand, pressed, drained: told.append(demand))
    submit(ports, NewJob(line=1, spec=spec()))
    dispatcher = Dispatcher(ports)
    for place, cause in ((FARM, Cause.SIGNER_DOWN), ("tiny", Cause.WEIGHTS_MISSING)):
        dispatcher.outages.met(place, away(cause), 60.0)
        dispatcher._steer()
    assert [demand["tiny"].jobs for demand in told] == [1, 1]
    assert dispatcher._lease() == []


def test_a_large_cancellation_stops_neither_expiry_nor_sealing_nor_the_beat(
    ports: FakePorts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("farm.dispatcher.TIDY_S", 0.05)
    started, over, expired = threading.Event(), threading.Event(), threading.Event()

    def endless() -> int:
        started.set()
        over.wait(30)
        return 0

    def expire() -> int:
        if started.is_set():
            expired.set()
        return 0

    monkeypatch.setattr(ports.queue, "finish_cancelled", endless)
    monkeypatch.setattr(ports.queue, "expire", expire)
    dispatcher = Dispatcher(ports)

    def goes_on() -> bool:
        if not started.is_set():
            return False
        if not rows(ports, EVENT):  # only now is there something to seal
            submit(ports, NewJob(line=1, spec=spec()))
        beats = [row["name"] for row in rows(ports, COMPONENT)]
        sealed = any(row["seq"] is not None for row in rows(ports, EVENT))
        return expired.is_set() and sealed and beats == [dispatcher.owner]

    dispatch_until(dispatcher, goes_on)
    over.set()


def test_one_projects_cancelled_job_holds_nobody_else_up(ports: FakePorts) -> None:
    dispatcher = Dispatcher(ports)
    dispatcher._learn("tiny", Group(ports, faults=[away(Cause.LEASE_LOST)]))
    assert dispatcher.outages.places() == set()
    dispatcher._learn("tiny", Group(ports, faults=[away(Cause.WEIGHTS_MISSING)]))
    assert dispatcher.outages.places() == {"tiny"}


def test_a_model_without_files_is_tried_rarely_and_at_once_when_they_come(
    ports: FakePorts, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = GangStatus("flat", 0, "tiny", "", GangState.LACKING, "no vae", 0.0)
    monkeypatch.setattr(ports.renderer, "status", lambda: [place])
    now = [1000.0]
    dispatcher = Dispatcher(ports, clock=lambda: now[0])
    dispatcher._see_files()
    dispatcher._learn("tiny", Group(ports, faults=[away(Cause.WEIGHTS_MISSING)]))
    now[0] += LACKING_S - 1
    dispatcher._see_files()
    assert dispatcher.outages.blocks("tiny")
    monkeypatch.setattr(ports.renderer, "status", lambda: [replace(place, state=GangState.GONE)])
    dispatcher._see_files()
    assert not dispatcher.outages.blocks("tiny")


@pytest.mark.parametrize("trouble", ["corrupt upload", "model without room", "ray_gone of one model"])
def test_one_jobs_trouble_holds_nobody_else_up_and_waits_longer_each_time(
    ports: FakePorts, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, trouble: str
) -> None:
    waits: list[float] = []
    fault, render = ports.queue.fault, ports.renderer.render

    def faulting(lease: Lease, met: Fault, gang: str | None = None, retry_s: float = 5.0) -> State | None:
        waits.append(retry_s)
        return fault(lease, met, gang, retry_s / 50)

    def rendering(requests: Sequence[RenderRequest], *rest: Any) -> list[Rendered | Fault]:
        if requests[0].spec.model == "big":
            raise away(Cause.NO_ROOM if "room" in trouble else Cause.RAY_GONE)
        time.sleep(0.02)
        return render(requests, *rest)

    monkeypatch.setattr(ports.queue, "fault", faulting)
    monkeypatch.setattr(ports.renderer, "render", rendering)
    if trouble == "corrupt upload":
        submit(ports, NewJob(line=1, spec=spec("make it green", edit=True), upload_id=upload(ports)))
        (path,) = (path for path in tmp_path.rglob("*") if path.name == rows(ports, UPLOAD)[0]["key"])
        path.write_bytes(b"rot")
    else:
        submit(ports, NewJob(line=1, spec=spec(model="big")))
    submit(ports, *(NewJob(line=seed, spec=spec(seed=seed)) for seed in range(1, 81)))
    probes = {Cause.STORE_DOWN: lambda: None, Cause.RAY_GONE: lambda: None}
    dispatcher = Dispatcher(replace(ports, retry_s=5.0, probes=probes), group=2, workers=2)
    dispatch_until(dispatcher, lambda: states(ports) == {"published": 80, "queued": 1}, seconds=40)
    assert dispatcher.outages.words() == ""
    assert rows(ports, JOB_FAULT) == []
    if trouble == "corrupt upload":  # else it waits behind a model that is warm
        assert len(waits) > 2
        assert waits == sorted(waits)
        assert waits[:2] == [5.0, 10.0]


def test_a_real_outage_stops_the_farm_at_once_where_a_probe_sees_it(ports: FakePorts) -> None:
    dispatcher = Dispatcher(replace(ports, retry_s=5.0))
    dispatcher._learn("tiny", Group(ports, faults=[away(Cause.SIGNER_FAILED)]))
    assert not dispatcher.outages.blocks(FARM)
    ports.signer.fault = away(Cause.SIGNER_DOWN)
    submit(ports, NewJob(line=1, spec=spec()))

    def gone() -> None:
        raise away(Cause.SIGNER_DOWN)

    dispatcher.ports = replace(dispatcher.ports, probes={Cause.SIGNER_DOWN: gone})
    (lease,) = lease_all(ports)
    dispatcher._learn("tiny", dispatcher._fly(InFlight([lease], time.time())))
    assert dispatcher.outages.blocks(FARM)


def said(ports: FakePorts) -> tuple[str, str] | None:
    """State and causes, as `/readyz` reads them."""
    found = rows(ports, COMPONENT)
    return (found[0]["state"], found[0]["detail"].split(":")[0]) if found else None


def test_a_free_place_is_filled_at_once_and_a_stop_is_heard_at_once(
    ports: FakePorts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("farm.dispatcher.IDLE_S", 60.0)
    submit(ports, *(NewJob(line=seed, spec=spec(seed=seed)) for seed in range(4)))
    dispatch_until(Dispatcher(ports, group=1, workers=1), lambda: states(ports) == {"published": 4})


def test_an_idle_farm_says_what_is_away_and_when_it_is_back(
    ports: FakePorts, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("farm.dispatcher.TIDY_S", 0.02)
    monkeypatch.setattr("farm.dispatcher.PROBE_S", 0.02)
    seen: list[tuple[str, str]] = []
    trouble: list[Fault] = [away(Cause.SIGNER_DOWN)]

    def signer() -> None:
        for fault in trouble:
            raise fault

    def ready() -> bool:
        if (now := said(ports)) and now not in seen:
            seen.append(now)
        if seen == [("waiting", "signer_down")]:
            trouble.clear()
        return len(seen) == 2

    with caplog.at_level("INFO", "farm.outages"):
        dispatch_until(Dispatcher(replace(ports, probes={Cause.SIGNER_DOWN: signer})), ready)
    assert seen == [("waiting", "signer_down"), ("ready", "0 groups in flight")]
    assert [message.split(" ")[0] for message in caplog.messages] == ["signer_down:", "signer_down"]


def test_a_probe_that_fails_in_its_own_way_is_an_outage_and_the_others_are_asked(
    ports: FakePorts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("farm.dispatcher.TIDY_S", 0.02)

    def ray() -> None:
        raise BadInput("'ray://head' is a Ray Client address")

    def signer() -> None:
        raise away(Cause.SIGNER_FAILED)

    dispatcher = Dispatcher(replace(ports, probes={Cause.RAY_GONE: ray, Cause.SIGNER_DOWN: signer}))
    dispatch_until(dispatcher, lambda: said(ports) == ("waiting", "ray_gone, signer_failed"))


def test_a_deed_that_meets_no_outage_any_more_says_so_even_if_it_fails(
    ports: FakePorts, monkeypatch: pytest.MonkeyPatch
) -> None:
    dispatcher, trouble = Dispatcher(ports), iter([away(Cause.SIGNER_DOWN), away(Cause.SIGN_REFUSED), KeyError("seq")])

    def deed() -> None:
        raise next(trouble)

    dispatcher._look("sign", deed)
    assert dispatcher.outages.words().startswith("signer_down")
    with pytest.raises(Fault, match="sign_refused"):
        dispatcher._look("sign", deed)
    assert dispatcher.outages.words() == ""
    with pytest.raises(KeyError):
        dispatcher._look("sign", deed)


def test_an_outage_is_seen_until_work_gets_through_and_is_told_once(
    ports: FakePorts, caplog: pytest.LogCaptureFixture
) -> None:
    submit(ports, *(NewJob(line=seed, spec=spec(seed=seed)) for seed in range(9)))
    ports.signer.fault = away(Cause.SIGNER_DOWN)
    # One after the other: a group that still met it when another got through would tell of it anew, and be right.
    dispatcher = Dispatcher(replace(ports, retry_s=0.05), group=3, workers=1)
    threading.Timer(0.8, lambda: setattr(ports.signer, "fault", None)).start()
    with caplog.at_level("INFO", "farm.outages"):
        dispatch_until(dispatcher, lambda: states(ports) == {"published": 9})
    assert caplog.messages[0] == "signer_down is met by a job: signer_down in this test"
    told = [message.split(" ")[0] for message in caplog.messages[1:]]
    assert told == ["signer_down:", "signer_down"]
