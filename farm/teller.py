"""What the dispatcher hears of running jobs, on its way to whoever watches. Nothing of it may delay a job or fail it.

Whoever draws only hands it in. The newest step of each job is written once a second. Previews are judged, signed and
read back in a thread of their own: those that come while it is at work, or rests so that gate and signer have time for
what is finished, are dropped; and after trouble with one no more are looked at of its group, for what ends the gate
once may do so again.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from farm.errors import Fault
from farm.pipeline import Ports, check_trusted
from farm.ports import Frame, Lease, Outcome, Stage, Step

log = logging.getLogger("farm.teller")
SHARE = 0.1  # of the time previews may take of the gate and the signer, which every job waits for
Seen = Sequence[tuple[Lease, Step, Frame]]


class Teller:
    def __init__(self, ports: Ports, share: float = SHARE) -> None:
        self.ports, self.share, self.rested = ports, share, 0.0
        self.newest: dict[int, tuple[Lease, Step]] = {}
        self.giving, self.showing = threading.Lock(), threading.Lock()

    def listen(self, leases: Sequence[Lease]) -> Callable[[Sequence[Step]], None]:
        """What a group that is drawn under these leases is watched with."""
        attempts = {(lease.job_id, lease.attempt): lease for lease in leases}
        trouble = threading.Event()

        def hear(steps: Sequence[Step]) -> None:
            known = [(attempts[at], step) for step in steps if (at := (step.job_id, step.attempt)) in attempts]
            with self.giving:
                self.newest |= {lease.job_id: (lease, replace(step, preview=None)) for lease, step in known}
            seen = [(lease, step, step.preview) for lease, step in known if step.preview is not None]
            wanted = seen and not trouble.is_set() and time.monotonic() >= self.rested
            if wanted and self.showing.acquire(blocking=False):
                threading.Thread(target=self._try, args=(seen, trouble), name="preview", daemon=True).start()

        return hear

    def tell(self) -> None:
        with self.giving:
            steps, self.newest = list(self.newest.values()), {}
        if steps:
            self.ports.queue.tell_steps(steps)

    def _try(self, seen: Seen, trouble: threading.Event) -> None:
        began = time.monotonic()
        try:
            self._show(seen)
        except Exception as error:
            trouble.set()
            log.info("no more previews of job %d and those drawn with it: %s", seen[0][0].job_id, error)
        finally:
            ended = time.monotonic()
            self.rested = ended + (ended - began) * (1 / self.share - 1)
            self.showing.release()

    def _show(self, seen: Seen) -> None:
        answers = self.ports.gate.judge_frames([frame for _, _, frame in seen], Stage.PREVIEW)
        for (lease, step, frame), answer in zip(seen, answers, strict=True):
            if isinstance(answer, Fault):
                raise answer
            # Its embedding is of no use, and would be most of what is kept for ever.
            said = [(lease, replace(answer, embedding=None))]
            (verdict_id,) = self.ports.queue.record(said, gang=step.gang, weights=step.weights)
            if answer.outcome is not Outcome.ALLOW:
                self.ports.queue.drop_preview(lease)
            elif verdict_id is not None:
                signed = self.ports.signer.sign_preview(lease, frame)
                check_trusted(self.ports.verifier, signed.data, signed)
                self.ports.queue.keep_preview(lease, verdict_id, signed)
