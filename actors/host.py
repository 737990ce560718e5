"""An object of another room in an actor of its own: the gate, in a process that may die without taking others along."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any

from actors import cluster, faults
from actors.rank import factory, watchdog
from farm.config import Settings
from farm.errors import Fault
from farm.job import Cause
from farm.ports import Frame, Stage, Verdict

log = logging.getLogger("farm.gate")
METHODS = ("judge_prompts", "judge_frames")
CALL_S = 120.0
LOAD_S = 600.0


class Host:
    """Makes the object when it is first needed, and calls the methods it was told to allow."""

    def __init__(self, dotted: str, args: tuple[str, ...], methods: tuple[str, ...], call_s: float) -> None:
        self.dotted, self.args, self.methods, self.call_s = dotted, args, methods, call_s
        self.inner: Any = None

    def call(self, method: str, args: tuple[Any, ...]) -> Any:
        if method not in self.methods:
            raise PermissionError(f"{method!r} may not be called")
        if self.inner is None:
            self.inner = self._limited(LOAD_S, Cause.GATE_DOWN, lambda: factory(self.dotted)(*self.args))
        return self._limited(self.call_s, Cause.GATE_ERROR, lambda: getattr(self.inner, method)(*args))

    def _limited(self, limit_s: float, otherwise: Cause, work: Callable[[], Any]) -> Any:
        try:
            with watchdog(limit_s):
                return work()
        except Exception as error:
            raise faults.fault_of(error, otherwise=otherwise) from None  # the cause may not pickle


class RemoteGate:
    """The farm's gate, in a Ray actor. Not detached: each dispatcher reads the policy anew."""

    def __init__(self, settings: Settings, dotted: str, args: Sequence[str] = (), *, call_s: float = CALL_S) -> None:
        self.settings, self.dotted, self.args, self.call_s = settings, dotted, tuple(args), call_s
        self.lock = threading.Lock()
        self.actor: Any = None
        self.connection = ""  # the one the handle belongs to

    def judge_prompts(self, prompts: Sequence[str]) -> list[Verdict | Fault]:
        return self._answers("judge_prompts", len(prompts), list(prompts))

    def judge_frames(self, frames: Sequence[Frame], stage: Stage) -> list[Verdict | Fault]:
        return self._answers("judge_frames", len(frames), list(frames), stage)

    def _answers(self, method: str, count: int, *args: Any) -> list[Verdict | Fault]:
        answers = self._call(method, args)
        if len(answers) != count or not all(isinstance(answer, Verdict | Fault) for answer in answers):
            raise Fault(Cause.GATE_ERROR, f"{count} asked, and the gate gave {len(answers)} answers or no verdicts")
        return answers

    def _call(self, method: str, args: tuple[Any, ...]) -> list[Verdict | Fault]:
        import ray

        actor = self._host(cluster.connect(self.settings))
        try:
            answers: list[Verdict | Fault] = ray.get(actor.call.remote(method, args), timeout=LOAD_S + self.call_s)
        except Exception as error:
            fault = faults.fault_of(error, otherwise=Cause.GATE_DOWN)
            if fault.cause is Cause.GATE_ERROR:
                raise fault from error
            self._forget(actor)
            raise Fault(Cause.GATE_DOWN, f"the gate did not answer: {fault.detail}") from error
        return answers

    def _host(self, connection: str) -> Any:
        import ray

        with self.lock:
            if self.actor is None or self.connection != connection:
                made = ray.remote(Host).options(num_cpus=0, max_restarts=0, max_task_retries=0)
                self.actor = made.remote(self.dotted, self.args, METHODS, self.call_s)
                self.connection = connection
            return self.actor

    def _forget(self, actor: Any) -> None:
        """The next call makes a new one."""
        import ray

        with self.lock:
            if self.actor is actor:
                self.actor = None
        try:
            ray.kill(actor)
        except Exception as error:
            log.info("the lost gate could not be ended: %s", error)
