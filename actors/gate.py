"""The farm's gate: what it is asked goes to one or several gate actors."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import chain, pairwise
from math import ceil
from typing import Any, TypeVar

from actors import faults
from actors.host import Seat
from farm.config import Settings
from farm.errors import Fault
from farm.job import CAUSES, Cause, Payer
from farm.ports import Frame, Rules, Stage, Verdict

CALL_S, EACH_S = 120.0, 30.0  # for one, and for each beside it
PREVIEW_S = 20.0  # every finished frame waits meanwhile, and nobody misses a preview
TOGETHER = 16  # frames in one call, so that neither its memory nor how long others wait hangs on the group

T = TypeVar("T")
Answers = list[Verdict | Fault]


class RemoteGate:
    """In Ray actors that are not detached: each dispatcher has its own, and judges by its own rules."""

    def __init__(
        self,
        settings: Settings,
        dotted: str,
        args: Sequence[str] = (),
        *,
        call_s: float = CALL_S,
        preview_s: float = PREVIEW_S,
    ) -> None:
        self.call_s, self.preview_s = call_s, preview_s
        self.seats = [Seat(settings, dotted, args) for _ in range(settings.gates)]
        self.idle, self.freed = list(self.seats), threading.Condition()
        self.threads = ThreadPoolExecutor(settings.gates, thread_name_prefix="gate")
        self.rules: Rules | None = None

    def use(self, rules: Rules) -> None:
        self.rules = rules

    def judge_prompts(self, prompts: Sequence[str]) -> Answers:
        return self._asked("judge_prompts", (), self.call_s, prompts)

    def judge_frames(self, frames: Sequence[Frame], stage: Stage) -> Answers:
        limit_s = self.preview_s if stage is Stage.PREVIEW else self.call_s
        ask = partial(self._asked, "judge_frames", (stage,), limit_s)
        some = parts(frames, len(self.seats))
        return ask(frames) if len(some) < 2 else list(chain.from_iterable(self.threads.map(ask, some)))

    def _asked(self, method: str, more: tuple[Any, ...], limit_s: float, subjects: Sequence[Any]) -> Answers:
        """An answer for each. Does one of them end the gate or its call, they are asked one by one: only it pays."""
        fault: Fault
        try:
            with self._seat() as seat:
                args = (list(subjects), *more)
                answers: Answers = seat.ask(method, args, limit_s + EACH_S * (len(subjects) - 1), self.rules)
            if len(answers) == len(subjects) and all(isinstance(answer, Verdict | Fault) for answer in answers):
                return answers
            words = f"{len(subjects)} asked, and the gate gave {len(answers)} answers or no verdicts"
            fault = Fault(Cause.GATE_ERROR, words)
        except faults.RAISED as error:
            fault = faults.fault_of(error, otherwise=Cause.GATE_DOWN)
        if len(subjects) > 1 and CAUSES[fault.cause] is not Payer.ENVIRONMENT:
            return [answer for one in subjects for answer in self._asked(method, more, limit_s, [one])]
        return [fault for _ in subjects]

    @contextmanager
    def _seat(self) -> Iterator[Seat]:
        """One that is free; rather one whose gate is known to be ready."""
        with self.freed:
            self.freed.wait_for(lambda: self.idle)
            seat = next((seat for seat in self.idle if seat.warm), self.idle[0])
            self.idle.remove(seat)
        try:
            yield seat
        finally:
            with self.freed:
                self.idle.append(seat)
                self.freed.notify()


def parts(some: Sequence[T], gates: int) -> list[Sequence[T]]:
    """As many as there are gates, of sizes that differ by one at most; more where one would be too large."""
    count = max(min(gates, len(some)), ceil(len(some) / TOGETHER))
    ends = [len(some) * number // count for number in range(count + 1)] if count else []
    return [some[start:end] for start, end in pairwise(ends)]
