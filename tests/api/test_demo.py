"""The whole demo but for Ray and weights: real queue, dispatcher, prompt rules, signer, verifier, API and CLI."""

from __future__ import annotations

import io
import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import pytest
from PIL import Image

from actors.models import catalogue
from farm.api.callers import Farm
from farm.commands import demo
from farm.config import Settings
from farm.dispatcher import Dispatcher
from farm.errors import Fault
from farm.intake import Rules, judge, survey
from farm.job_queue import JobQueue
from farm.lines import Line
from farm.pipeline import Ports
from farm.ports import Frame, Lease, Outcome, Rendered, RenderRequest, Signed, Stage, Verdict
from provenance.notary import Notary
from provenance.verify import LocalVerifier
from safety.policy import load
from safety.prompt import judge_prompt
from tests.api.conftest import Shell, World
from tests.fakes import FlatRenderer, WordGate

BATCH = resources.files("farm.demo").joinpath("batch.jsonl").read_bytes()


def lines(world: World) -> list[Line]:
    rules = Rules("ours", catalogue(), None)  # whatever else is installed
    chunks = list(judge(io.BytesIO(BATCH), rules, world.farm.queue.engine))
    assert survey(chunks).bad_lines == 0
    return [line for chunk in chunks for line in chunk if isinstance(line, Line)]


def test_the_bundled_batch_shows_what_the_farm_can_do(world: World) -> None:
    found = lines(world)
    assert len(found) >= 14
    plain = [line.spec for line in found if not line.spec.edit]
    assert {spec.format for spec in plain} == {"png", "jpeg", "webp"}
    assert len({round(spec.width / spec.height, 1) for spec in plain}) == 3
    by_id = {line.id: line for line in found}
    depths = [1 + bool(by_id[line.line].line) for line in found if line.line]
    assert max(depths) == 2
    policy = load(None)
    outcomes = Counter(judge_prompt(policy, line.spec.prompt).outcome for line in found)
    assert (outcomes[Outcome.BLOCK], outcomes[Outcome.REVIEW]) == (1, 1)


@dataclass
class OwnSigner:
    """The signer's own work, without its process."""

    notary: Notary

    def sign(self, lease: Lease, frame: Frame) -> Signed:
        return self.notary.sign(lease.job_id, lease.attempt, lease.owner, frame)

    def sign_preview(self, lease: Lease, frame: Frame) -> Signed:
        return self.notary.sign_preview(lease.job_id, lease.attempt, lease.owner, frame)

    def sign_blocked(self, lease: Lease, frame: Frame) -> Signed:
        return self.notary.sign_blocked(lease.job_id, lease.attempt, frame)

    def sign_audit_head(self, seq: int, sha256: str) -> str:
        return self.notary.sign_audit_head(seq, sha256)


class DemoGate(WordGate):
    """The bundled policy's rules for prompts; for pixels, the one colour that stands for what is not allowed."""

    def judge_prompts(self, prompts: Sequence[str]) -> list[Verdict | Fault]:
        return [judge_prompt(load(None), prompt) for prompt in prompts]

    def judge_frames(self, frames: Sequence[Frame], stage: Stage) -> list[Verdict | Fault]:
        return [self._verdict(stage, frame.sha256, self._outcome(frame)) for frame in frames]

    @staticmethod
    def _outcome(frame: Frame) -> Outcome:
        return Outcome.BLOCK if frame.pixels[:3] == bytes((255, 0, 0)) else Outcome.ALLOW


class TriangleRenderer(FlatRenderer):
    def _draw(self, request: RenderRequest) -> Rendered:
        drawn = super()._draw(request)
        if "red triangle" not in request.spec.prompt:
            return drawn
        red = Frame(request.spec.width, request.spec.height, bytes((255, 0, 0)) * (len(drawn.frame.pixels) // 3))
        return Rendered(red, drawn.gang, drawn.weights)


@pytest.fixture
def working(world: World, tmp_path: Path) -> Iterator[Farm]:
    """A dispatcher that works in a thread."""
    farm = world.farm
    notary = Notary(Settings(home=tmp_path), farm.queue.engine, farm.store)
    ports = Ports(
        JobQueue(farm.queue.engine),
        TriangleRenderer(),
        DemoGate(),
        OwnSigner(notary),
        LocalVerifier(notary.signing.keys.root),
        farm.store,
        retry_s=0.1,
    )
    dispatcher = Dispatcher(ports)
    thread = threading.Thread(target=dispatcher.run)
    thread.start()
    yield farm
    dispatcher.stop()
    thread.join()
    notary.close()


def test_the_demo_ends_with_every_image_verified(
    world: World, working: Farm, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shell: Shell
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in {"URL": address, "KEY": world.keys["ours/operator"], "HOME": str(tmp_path)}.items():
        monkeypatch.setenv(f"FARM_{name}", value)
    began = time.monotonic()
    assert shell("demo", "--json") == 0, shell.err
    assert "16 lines, 17 jobs" in shell.err
    result = json.loads(shell.out.splitlines()[-1])
    assert result["jobs"] == {"published": 14, "blocked": 2, "held": 1}
    assert 0 < result["seconds"] <= time.monotonic() - began + 0.1  # it is rounded
    assert len(result["artifacts"]) == 14
    for artifact in result["artifacts"]:
        assert artifact["provenance"] == "Trusted"
        with Image.open(artifact["path"]) as image:
            image.verify()
    index = (tmp_path / "demo-out" / "index.jsonl").read_text().splitlines()
    assert len(index) == 17
    assert shell("verify", "demo-out") == 0
    assert "14 of 14 are Trusted" in shell.err
    first = tmp_path / result["artifacts"][0]["path"]
    first.write_bytes(first.read_bytes()[:-3] + b"xxx")
    assert shell("verify", "demo-out", "--json") == 1
    assert [json.loads(line)["verdict"] for line in shell.out.splitlines()].count("Trusted") == 13


def test_the_demo_names_the_command_as_it_can_be_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    binaries = tmp_path / ".venv" / "bin"
    binaries.mkdir(parents=True)
    for name in ("python", "farm"):
        (binaries / name).write_text("#!/bin/sh\n")
        (binaries / name).chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", str(binaries / "python"))
    for path, command in (("/nowhere", ".venv/bin/farm"), (str(binaries), "farm")):
        monkeypatch.setenv("PATH", path)
        demo._where_next(Settings(), Path("my images"))
        steps = capsys.readouterr().out.splitlines()[2:]
        assert steps[0].startswith(f"  {command} verify 'my images'")
        assert all(step.startswith(f"  {command} ") for step in steps)


def test_what_is_published_is_verified_without_a_running_farm(
    world: World, working: Farm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shell: Shell
) -> None:
    world.submit({"n": 3, "seed": 1, "width": 96})
    world.submit({"seed": 4, "width": 96}, who="theirs/submitter")
    while sum(world.farm.insights.counts().values()) != world.farm.insights.counts()["published"]:
        time.sleep(0.05)
    monkeypatch.setenv("FARM_HOME", str(tmp_path))
    assert shell("verify", "--published", "--json") == 0
    assert len(shell.out.splitlines()) == 4
    world.farm.store.delete(world.get("/api/artifacts").json()["items"][0]["key"])
    assert shell("verify", "--published") == 1
    assert "3 of 4 are Trusted" in shell.err
