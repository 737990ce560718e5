"""One group of leases of one shape key, from prompt to publication.

Each step takes those still alive and returns those that go on. The others have left through the queue: blocked by a
verdict, sent back or failed by a fault, or superseded because their lease was lost; then nothing of them is kept.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import TypeVar

from farm.errors import FarmError, Fault, NotFound
from farm.job import CAUSES, Cause, Payer
from farm.job_queue import Finished, JobQueue
from farm.pictures import decode_own, decode_stranger
from farm.ports import (
    Frame,
    Gate,
    Lease,
    Outcome,
    Rendered,
    Renderer,
    RenderRequest,
    Signed,
    Signer,
    Stage,
    Step,
    Store,
    Verdict,
    Verifier,
    ignore,
)
from farm.quarantine import Quarantine
from farm.scratch import Scratch
from farm.suspects import STRIKES, Suspects, pause_s

log = logging.getLogger("farm.pipeline")
A = TypeVar("A")
B = TypeVar("B")


NOTHING: Mapping[int, Rendered] = {}
LOST = Fault(Cause.LEASE_LOST, "cancelled, or taken back, while it was drawn")


@dataclass(frozen=True, slots=True)
class Ports:
    queue: JobQueue
    renderer: Renderer
    gate: Gate
    signer: Signer
    verifier: Verifier
    store: Store
    retry_s: float = 5.0
    max_pixels_in: int = 50_000_000
    quarantine: Quarantine | None = None  # without one, what is blocked is discarded whatever the policy says
    scratch: Scratch | None = None  # that of the renderer, of which the dispatcher clears what has ended
    probes: Mapping[Cause, Callable[[], object]] = field(default_factory=dict)  # quick; each raises if this is so


@dataclass(frozen=True, slots=True)
class Passed:
    """A frame whose verdict is committed and allows a signature."""

    lease: Lease
    frame: Frame
    verdict_id: int
    outcome: Outcome


@dataclass(slots=True)
class Group:
    """Carries one group through the steps; `faults` and `published` are what the dispatcher learns from."""

    ports: Ports
    gone: Collection[int] = ()  # jobs whose leases are lost, as far as the dispatcher has heard by now
    watch: Callable[[Sequence[Step]], None] = ignore
    suspects: Suspects = field(default_factory=Suspects)
    faults: list[Fault] = field(default_factory=list)
    published: int = 0  # or held: they went the whole way

    def run(self, leases: Sequence[Lease]) -> None:
        judged = self.judge_prompts(leases)
        requests = [request for lease in judged if (request := self.fetch_reference(lease)) is not None]
        rendered = self.render(requests)
        passed = self.judge_frames(rendered)
        finished = [done for item in passed if (done := self.sign_and_store(item)) is not None]
        if finished:
            self.published = sum(self.ports.queue.publish(finished))
            self.suspects.passed(done.lease.job_id for done in finished)

    def judge_prompts(self, leases: Sequence[Lease]) -> list[Lease]:
        """Before any GPU time is spent."""
        prompts = [lease.spec.prompt for lease in leases]
        verdicts = self.ask(leases, prompts, self.ports.gate.judge_prompts)
        return [lease for lease, *_ in self.commit(verdicts)]

    def fetch_reference(self, lease: Lease) -> tuple[Lease, RenderRequest] | None:
        """The picture an edit starts from. A stranger's is judged like any frame; ours was judged when it was made."""
        frame = None
        if lease.spec.edit and lease.reference_key is None:  # never drawn as if there were nothing to edit
            self.fault(lease, Fault(Cause.BAD_INPUT, "the picture it edits is not there any more"))
            return None
        if lease.reference_key is not None:
            try:
                data = self.ports.store.get(lease.reference_key)
                stranger = lease.upload_id is not None
                frame = decode_stranger(data, self.ports.max_pixels_in) if stranger else decode_own(data)
                frame = replace(frame, file_sha256=lease.reference_key) if stranger else frame
            except NotFound as error:  # not mounted, or lost: it may be brought back
                self.fault(lease, Fault(Cause.STORE_DOWN, str(error)))
                return None
            except Exception as error:
                self.fault(lease, fault_of(error, Cause.BAD_INPUT))
                return None
        if frame is not None and lease.upload_id is not None and not self.judge_input(lease, frame):
            return None
        return lease, RenderRequest(lease.job_id, lease.attempt, lease.spec, frame)

    def judge_input(self, lease: Lease, frame: Frame) -> bool:
        verdicts = self.ask([lease], [frame], lambda frames: self.ports.gate.judge_frames(frames, Stage.INPUT))
        return bool(self.commit(verdicts))

    def render(self, ready: Sequence[tuple[Lease, RenderRequest]]) -> list[tuple[Lease, Rendered]]:
        requests = [request for _, request in ready]
        return self.ask([lease for lease, _ in ready], requests, self.draw)

    def draw(self, requests: Sequence[RenderRequest]) -> list[Rendered | Fault]:
        """One that is cancelled stops its group between two steps; the others go on from there without it."""
        answers: dict[int, Rendered | Fault] = {}
        while left := [one for one in requests if one.job_id not in answers]:
            alive = [one for one in left if one.job_id not in self.gone]
            answers |= {one.job_id: LOST for one in left if one not in alive}
            if alive:
                answers |= self._drawn(alive)
        return [answers[one.job_id] for one in requests]

    def _drawn(self, requests: Sequence[RenderRequest]) -> dict[int, Rendered | Fault]:
        """Without those that were only stopped for the sake of another one."""

        def stop() -> bool:
            return any(one.job_id in self.gone for one in requests)

        try:
            answers = self.ports.renderer.render(requests, stop, self.watch)
        except Fault as fault:
            if fault.cause is not Cause.LEASE_LOST:
                raise
            answers = [fault for _ in requests]
        stopped = stop()
        return {
            one.job_id: answer
            for one, answer in zip(requests, answers, strict=True)
            if not (stopped and isinstance(answer, Fault) and answer.cause is Cause.LEASE_LOST)
        }

    def judge_frames(self, rendered: Sequence[tuple[Lease, Rendered]]) -> list[Passed]:
        """The first fenced transaction: the verdict on this very frame. What it blocks ends here."""
        drawn = {lease.job_id: one for lease, one in rendered}
        leases, frames = [lease for lease, _ in rendered], [one.frame for _, one in rendered]
        verdicts = self.ask(leases, frames, lambda some: self.ports.gate.judge_frames(some, Stage.FRAME))

        def maker(pair: tuple[Lease, Verdict]) -> tuple[str, str, str]:
            one = drawn[pair[0].job_id]
            return one.gang, one.weights, one.drawn_with

        return [
            Passed(lease, drawn[lease.job_id].frame, verdict_id, verdict.outcome)
            for made_by, some in groupby(sorted(verdicts, key=maker), maker)  # one, unless it died in between
            for lease, verdict, verdict_id in self.commit(list(some), drawn, *made_by)
        ]

    def sign_and_store(self, item: Passed) -> Finished | None:
        """Signed, stored, read back and verified: only then may the second transaction name the artifact."""
        try:
            signed = self.ports.signer.sign(item.lease, item.frame)
            key = self.ports.store.put(signed.data)
            check_trusted(self.ports.verifier, self.ports.store.get(key), signed)
        except Exception as error:
            self.fault(item.lease, fault_of(error, Cause.STORE_DOWN))
            return None
        return Finished(
            lease=item.lease,
            verdict_id=item.verdict_id,
            outcome=item.outcome,
            key=key,
            frame_sha256=item.frame.sha256,
            manifest_sha256=signed.manifest_sha256,
            label=signed.label,
            mime=signed.mime,
            width=item.frame.width,
            height=item.frame.height,
            bytes=len(signed.data),
            verified_at=time.time(),
        )

    def ask(
        self, leases: Sequence[Lease], subjects: Sequence[B], call: Callable[[Sequence[B]], Sequence[A | Fault]]
    ) -> list[tuple[Lease, A]]:
        """Ask a port about the whole group; those it answers with a fault leave. If the group as a whole fails, and not
        by an outage, each is asked alone: one that kills what it meets is not held against its neighbours."""
        if not leases:
            return []
        try:
            answers = list(zip(leases, call(subjects), strict=True))
        except Exception as error:
            fault = fault_of(error)
            if len(leases) > 1 and CAUSES[fault.cause] is not Payer.ENVIRONMENT:
                pairs = zip(leases, subjects, strict=True)
                return [pair for lease, subject in pairs for pair in self.ask([lease], [subject], call)]
            answers = [(lease, fault) for lease in leases]
        alive = []
        for lease, answer in answers:
            if isinstance(answer, Fault):
                self.fault(lease, answer)
            else:
                alive.append((lease, answer))
        return alive

    def commit(
        self,
        verdicts: Sequence[tuple[Lease, Verdict]],
        drawn: Mapping[int, Rendered] = NOTHING,
        gang: str = "",
        weights: str = "",
        drawn_with: str = "",
    ) -> list[tuple[Lease, Verdict, int]]:
        """Write the verdicts; go on with those that neither block nor came too late. What was drawn and is blocked may
        be kept in quarantine."""
        if not verdicts:
            return []
        ids = self.ports.queue.record(verdicts, gang=gang, weights=weights, drawn_with=drawn_with)
        for (lease, verdict), verdict_id in zip(verdicts, ids, strict=True):
            keeper = self.ports.quarantine if verdict.outcome is Outcome.BLOCK and lease.job_id in drawn else None
            if keeper is not None and verdict_id is not None:
                keeper.keep(lease, drawn[lease.job_id].frame, verdict, verdict_id)
        return [
            (lease, verdict, verdict_id)
            for (lease, verdict), verdict_id in zip(verdicts, ids, strict=True)
            if verdict_id is not None and verdict.outcome is not Outcome.BLOCK
        ]

    def fault(self, lease: Lease, fault: Fault) -> None:
        times = self.suspects.times(lease.job_id, fault.cause)
        self.faults.append(fault)
        # A suspect comes after those that were with it, and not always together with another.
        later = random.uniform(2, 3) if fault.cause in STRIKES else 1  # noqa: S311
        wait_s = pause_s(self.ports.retry_s * later, times)
        self.ports.queue.fault(lease, fault, gang=fault.gang, retry_s=wait_s)


def check_trusted(verifier: Verifier, data: bytes, signed: Signed) -> None:
    """What was read back is what was signed, and anyone who trusts our root trusts it."""
    provenance = verifier.verify(data, signed.mime)
    if provenance.verdict != "Trusted" or provenance.manifest_sha256 != signed.manifest_sha256:
        raise Fault(Cause.UNVERIFIED, f"read back {provenance.verdict}: {provenance.sentence}")


def fault_of(error: Exception, refused: Cause = Cause.RENDER_ERROR) -> Fault:
    """What an error costs. One nobody foresaw counts against the job that met it, so that it cannot loop for ever;
    `refused` is what an error in words means."""
    if isinstance(error, Fault):
        return error
    if isinstance(error, FarmError):
        return Fault(refused, str(error))
    log.error("an error nobody foresaw", exc_info=error)
    return Fault(Cause.RENDER_ERROR, f"{type(error).__name__}: {error}")
