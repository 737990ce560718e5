"""Ports that cost nothing, for tests of what stands between them. Each can be told to misbehave."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from farm.errors import Fault
from farm.job import FORMATS, Cause
from farm.ports import (
    Demand,
    Drained,
    Frame,
    GangState,
    GangStatus,
    Lease,
    NodeStatus,
    Outcome,
    Provenance,
    Rendered,
    RenderRequest,
    Rules,
    Signed,
    Stage,
    Step,
    Verdict,
    ignore,
)


@dataclass
class FlatRenderer:
    """A picture of one colour, told by the seed."""

    trouble: Callable[[RenderRequest], Fault | None] = lambda request: None
    calls: int = 0
    drained: Drained = field(default_factory=Drained)

    def render(
        self,
        requests: Sequence[RenderRequest],
        cancelled: Callable[[], bool],
        watch: Callable[[Sequence[Step]], None] = ignore,
    ) -> list[Rendered | Fault]:
        self.calls += 1
        return [self.trouble(request) or self._draw(request) for request in requests]

    def status(self) -> list[GangStatus]:
        return [GangStatus("flat", 0, "flat", "gang-1", GangState.READY, "a job", 0.0)]

    def nodes(self) -> list[NodeStatus]:
        return [NodeStatus("a" * 56, "host/aaaaaaaa", 2.0, 0)]

    def need(self, demand: Mapping[str, Demand], pressed: Mapping[str, str], drained: Drained) -> None:
        self.drained = drained

    def _draw(self, request: RenderRequest) -> Rendered:
        spec = request.spec
        pixel = hashlib.sha256(f"{spec.seed} {spec.prompt}".encode()).digest()[:3]
        return Rendered(Frame(spec.width, spec.height, pixel * (spec.width * spec.height)), "gang-1", "w" * 64)


@dataclass
class WordGate:
    """Blocks, holds or fails on a word of the prompt; frames by what `frame_outcome` says."""

    frame_outcome: Callable[[Frame], Outcome] = lambda frame: Outcome.ALLOW
    fault: Fault | None = None
    policy: str = "p" * 64

    def use(self, rules: Rules) -> None:
        self.policy = hashlib.sha256(rules.policy.encode()).hexdigest()

    def judge_prompts(self, prompts: Sequence[str]) -> list[Verdict | Fault]:
        return [self.fault or self._prompt(prompt) for prompt in prompts]

    def judge_frames(self, frames: Sequence[Frame], stage: Stage) -> list[Verdict | Fault]:
        return [self.fault or self._verdict(stage, frame.sha256, self.frame_outcome(frame)) for frame in frames]

    def _prompt(self, prompt: str) -> Verdict:
        outcome = Outcome.BLOCK if "forbidden" in prompt else Outcome.ALLOW
        return self._verdict(Stage.PROMPT, hashlib.sha256(prompt.encode()).hexdigest(), outcome)

    def _verdict(self, stage: Stage, subject: str, outcome: Outcome) -> Verdict:
        return Verdict(stage, subject, outcome, policy=self.policy, encoder="e" * 64, reason=f"{outcome} by {stage}")


@dataclass
class StampSigner:
    """Signs by writing the job and the frame's hash in front of it."""

    fault: Fault | None = None
    signed: list[int] = field(default_factory=list)

    def sign(self, lease: Lease, frame: Frame) -> Signed:
        if self.fault:
            raise self.fault
        self.signed.append(lease.job_id)
        data = f"{lease.job_id} {frame.sha256}".encode()
        return Signed(data, FORMATS[lease.spec.format], hashlib.sha256(data).hexdigest(), f"urn:{lease.job_id}")

    def sign_preview(self, lease: Lease, frame: Frame) -> Signed:
        return self.sign(lease, frame)

    def sign_blocked(self, lease: Lease, frame: Frame) -> Signed:
        return self.sign(lease, frame)

    def sign_audit_head(self, seq: int, sha256: str) -> str:
        return f"{seq} {sha256}"


@dataclass
class StampVerifier:
    verdict: str = "Trusted"

    def verify(self, data: bytes, mime: str) -> Provenance:
        return Provenance(self.verdict, "as told", manifest_sha256=hashlib.sha256(data).hexdigest())


def away(cause: Cause) -> Fault:
    return Fault(cause, f"{cause} in this test")
