"""How a gang's dispatcher hears how far the gang is: one question at a time to its first rank, never waited for."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from actors import faults
from actors.messages import Mark
from farm.ports import Step

log = logging.getLogger("farm.gang")
ASK_S = 1.0  # a job of less than that tells nothing
SAVE_S = 5.0  # of work that may be lost; a latent is 1 MB at 1024x1024


@dataclass(slots=True)
class Watching:
    ask: Callable[[bool], Any]  # whether latents are to come with the answer
    watch: Callable[[Sequence[Step]], None]
    keep: Callable[[int, bytes], None]
    asked: Any = None
    due: float = field(default_factory=lambda: time.monotonic() + ASK_S)
    save_due: float = field(default_factory=lambda: time.monotonic() + SAVE_S)

    def look(self) -> None:
        """Between two looks at whether the work is done. Trouble here is no trouble of the work's."""
        try:
            self._look(time.monotonic())
        except faults.RAISED as error:  # a rank that died is heard of by its work
            log.info("nothing was heard of a gang at work: %s", error)

    def _look(self, now: float) -> None:
        import ray

        if self.asked is None and now >= self.due:
            self.due = now + ASK_S
            self.asked = self.ask(now >= self.save_due)
        if self.asked is None or not ray.wait([self.asked], timeout=0)[0]:
            return
        answer, self.asked = self.asked, None
        mark: Mark | None = ray.get(answer)
        if mark is None:  # the work has ended
            return
        self.watch(mark.steps)
        for job_id, data in mark.saved:
            self.keep(job_id, data)
            self.save_due = time.monotonic() + SAVE_S
