"""Ports that cost nothing, so that what is measured is the farm's own work between them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence

from farm.errors import Fault
from farm.job import FORMATS
from farm.job_queue import JobQueue
from farm.pipeline import Ports
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


def ports(queue: JobQueue) -> Ports:
    return Ports(queue, Renderer(), Gate(), Signer(), Verifier(), Memory())


class Renderer:
    """One pixel, another for each job."""

    def render(
        self,
        requests: Sequence[RenderRequest],
        cancelled: Callable[[], bool],
        watch: Callable[[Sequence[Step]], None] = ignore,
    ) -> list[Rendered | Fault]:
        frames = (Frame(1, 1, (request.job_id % 2**24).to_bytes(3)) for request in requests)
        return [Rendered(frame, "gang-1", "0" * 64) for frame in frames]

    def status(self) -> list[GangStatus]:
        return [GangStatus("tiny", 0, "tiny", "gang-1", GangState.READY, "", 0.0)]

    def nodes(self) -> list[NodeStatus]:
        return []

    def need(self, demand: Mapping[str, Demand], pressed: Mapping[str, str], drained: Drained) -> None:
        pass


class Gate:
    """Allows everything, and says as much of each frame as the real one."""

    def use(self, rules: Rules) -> None:
        """It has none."""

    def judge_prompts(self, prompts: Sequence[str]) -> list[Verdict | Fault]:
        subjects = (hashlib.sha256(prompt.encode()).hexdigest() for prompt in prompts)
        return [Verdict(Stage.PROMPT, subject, Outcome.ALLOW, "policy", "") for subject in subjects]

    def judge_frames(self, frames: Sequence[Frame], stage: Stage) -> list[Verdict | Fault]:
        said = ("policy", "encoder", "violence", 0.4, 0.01, "whole", "", b"\0" * 1024)
        return [Verdict(stage, frame.sha256, Outcome.ALLOW, *said) for frame in frames]


class Signer:
    def sign(self, lease: Lease, frame: Frame) -> Signed:
        data = f"{lease.job_id}/{lease.attempt}".encode()
        return Signed(data, FORMATS[lease.spec.format], hashlib.sha256(data).hexdigest(), "urn:c2pa:bench")

    def sign_preview(self, lease: Lease, frame: Frame) -> Signed:
        return self.sign(lease, frame)

    def sign_blocked(self, lease: Lease, frame: Frame) -> Signed:
        return self.sign(lease, frame)

    def sign_audit_head(self, seq: int, sha256: str) -> str:
        return sha256


class Verifier:
    def verify(self, data: bytes, mime: str) -> Provenance:
        return Provenance("Trusted", "", manifest_sha256=hashlib.sha256(data).hexdigest())


class Memory:
    """A store."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}

    def put(self, data: bytes) -> str:
        key = hashlib.sha256(data).hexdigest()
        self.files[key] = data
        return key

    def get(self, key: str) -> bytes:
        return self.files[key]

    def has(self, key: str) -> bool:
        return key in self.files

    def delete(self, key: str) -> None:
        self.files.pop(key, None)
