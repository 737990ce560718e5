"""Law 4 on the way that a job takes, with the farm's own gate in actors: whatever is wrong with it, nothing is shown
that was not judged, and the job waits, or fails with the cause."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from actors.gate import RemoteGate
from farm.access import Access
from farm.config import Settings
from farm.db import connect, migrate
from farm.errors import Fault
from farm.insights import Insights
from farm.job import MAX_OWN_FAULTS, Cause, Spec
from farm.job_queue import JobQueue, NewJob
from farm.pipeline import Group, Ports
from farm.ports import Rendered, RenderRequest
from farm.store import open_store
from safety.gate import FLAT_WORDS
from safety.places import TINY
from tests.actors.fragile import BROKEN, DEADLY, ENDLESS, ODD
from tests.fakes import FlatRenderer, StampSigner, StampVerifier
from tests.safety.conftest import flat, shape_at

FRAGILE, OWN = "tests.actors.fragile:load_fragile", "safety.gate:load_gate"
WEIGHTS = "open_clip_model.safetensors"
SOUND = 128


class Shapes(FlatRenderer):
    """A green star, or for the prompt "nothing" a flat picture."""

    def _draw(self, request: RenderRequest) -> Rendered:
        size = request.spec.width, request.spec.height
        middle = size[0] / 2, size[1] / 2, min(size) / 2
        picture = (
            flat((9, 9, 9), size) if request.spec.prompt == "nothing" else shape_at("green", "star", *middle, size)
        )
        return Rendered(picture, "gang-1", "w" * 64)


@dataclass
class Farm:
    ports: Ports

    def submit(self, *widths: int, prompt: str = "a green star") -> list[int]:
        queue = self.ports.queue
        batch = queue.open_batch("p", "test", "tester")
        specs = [Spec("tiny", prompt, line, width, 64, 4, 3.5) for line, width in enumerate(widths, 1)]
        queue.stage(batch, [NewJob(line=line, spec=spec) for line, spec in enumerate(specs, 1)])
        queue.accept(batch, None)
        return [job["id"] for job in Insights(queue.engine).jobs("p", batch)]

    def turn(self, gate: RemoteGate) -> list[Fault]:
        """All that can be leased, as one group."""
        queue = self.ports.queue
        group = Group(replace(self.ports, gate=gate))
        group.run([lease for lane in queue.lanes() for lease in queue.claim(lane.id, "worker", 50, 300)])
        return group.faults

    def job(self, job_id: int) -> dict[str, Any]:
        found = Insights(self.ports.queue.engine).job("p", job_id)
        assert found is not None
        return found


@pytest.fixture
def farm(tmp_path: Path) -> Iterator[Farm]:
    engine = connect(f"sqlite:///{tmp_path}/farm.db")
    migrate(engine)
    Access(engine).create_project("p")
    store = open_store(f"file://{tmp_path}/store")
    yield Farm(Ports(JobQueue(engine), Shapes(), None, StampSigner(), StampVerifier(), store, retry_s=0.0))  # type: ignore[arg-type]
    engine.dispose()


@pytest.fixture(scope="module")
def fragile(settings: Settings) -> RemoteGate:
    return RemoteGate(settings, FRAGILE, call_s=5.0)


def test_an_error_at_one_picture_is_that_job_s_and_its_neighbours_are_published(
    farm: Farm, fragile: RemoteGate
) -> None:
    odd, sound = farm.submit(ODD, SOUND)
    for _ in range(MAX_OWN_FAULTS):
        farm.turn(fragile)
    assert farm.job(sound)["state"] == "published"
    told = farm.job(odd)
    assert told["state"] == "failed"
    assert told["reason"] == "gate_error: the gate could not judge the frame: ArithmeticError: an odd picture"
    assert [fault["cause"] for fault in told["faults"]] == [Cause.GATE_ERROR] * MAX_OWN_FAULTS


def test_an_embedding_that_is_not_finite_is_no_verdict(farm: Farm, fragile: RemoteGate) -> None:
    (broken,) = farm.submit(BROKEN)
    farm.turn(fragile)
    told = farm.job(broken)
    assert told["state"] == "queued"
    assert "is not finite" in told["reason"]
    assert [verdict["stage"] for verdict in told["verdicts"]] == ["prompt"]


def test_a_constant_picture_goes_to_a_person(farm: Farm, fragile: RemoteGate) -> None:
    (constant,) = farm.submit(SOUND, prompt="nothing")
    farm.turn(fragile)
    told = farm.job(constant)
    assert (told["state"], told["reason"]) == ("held", FLAT_WORDS)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("width", "says"), [(DEADLY, "its process ended while it judged this"), (ENDLESS, "no answer within 5 s")]
)
def test_what_ends_the_gate_fails_with_the_cause_and_the_others_are_published(
    farm: Farm, fragile: RemoteGate, width: int, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same as when somebody ends it meanwhile, but that this happens again and again."""
    monkeypatch.setattr("actors.gate.EACH_S", 1.0)
    deadly, sound = farm.submit(width, SOUND)
    farm.turn(fragile)
    assert farm.job(deadly)["state"] == "queued"
    assert farm.job(sound)["state"] == "published"
    for _ in range(MAX_OWN_FAULTS - 1):
        farm.turn(fragile)
    told = farm.job(deadly)
    assert told["state"] == "failed"
    assert told["reason"].startswith(f"gate_error: the gate gave no verdict: {says}")


def spoil(folder: Path) -> None:
    weights = load_file(folder / WEIGHTS)
    weights["visual.conv1.weight"].view(-1)[7] = float("nan")
    save_file(weights, folder / WEIGHTS)


def zero(folder: Path) -> None:
    """No part of it is broken, but what it makes of any picture is."""
    weights = load_file(folder / WEIGHTS)
    save_file({name: value * 0 for name, value in weights.items()}, folder / WEIGHTS)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (spoil, "the gate's encoder is broken: visual.conv1.weight"),
        (zero, "the gate fails at a harmless picture, too"),
        (lambda folder: (folder / WEIGHTS).unlink(), "the gate's encoder is missing"),
    ],
)
def test_a_gate_that_can_judge_nothing_makes_every_job_wait_until_it_is_mended(
    settings: Settings, farm: Farm, tmp_path: Path, damage: Callable[[Path], None], says: str
) -> None:
    folder = Path(shutil.copytree(TINY, tmp_path / "clip"))
    damage(folder)
    gate = RemoteGate(settings, OWN, [str(folder)])
    (job,) = farm.submit(SOUND)
    for _ in range(2):
        (fault,) = farm.turn(gate)
        assert fault.cause is Cause.GATE_DOWN
        assert says in fault.detail
    told = farm.job(job)
    assert told["state"] == "queued"
    assert told["reason"] == "gate_down: waits for the gate"
    assert told["faults"] == [], "nobody pays"
    shutil.copy(TINY / WEIGHTS, folder / WEIGHTS)
    until_published(farm, gate, job)


def until_published(farm: Farm, gate: RemoteGate, job: int) -> None:
    end = time.monotonic() + 60.0
    while farm.job(job)["state"] != "published":
        assert time.monotonic() < end, farm.job(job)["reason"]
        farm.turn(gate)
