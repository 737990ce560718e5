"""An object of another room in an actor of its own: the gate, in a process that may die without taking others along."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any

from actors import cluster, faults
from actors.rank import watchdog
from actors.shard import factory, hide_gpus
from farm.config import Settings
from farm.errors import Fault
from farm.job import Cause
from farm.ports import Frame, Rules, Stage, Verdict

log = logging.getLogger("farm.gate")
METHODS = ("judge_prompts", "judge_frames", "use")
CALL_S = 120.0
PREVIEW_S = 20.0  # every finished frame waits meanwhile, and nobody misses a preview
LOAD_S = 600.0
GRACE_S = 10.0  # the host's own watchdog comes first
HARMLESS = ("judge_frames", ([Frame(64, 64, bytes(range(192)) * 64)], Stage.FRAME))


class Died(Exception):
    """The actor is gone, or does not answer any more."""


class Host:
    """Makes the object when it is first needed, and calls the methods it was told to allow."""

    def __init__(self, dotted: str, args: tuple[str, ...], methods: tuple[str, ...]) -> None:
        hide_gpus()
        self.dotted, self.args, self.methods = dotted, args, methods
        self.inner: Any = None

    def load(self, method: str, args: tuple[Any, ...]) -> None:
        """Make it and have it do something harmless first: what ends it here is not the next caller's doing."""
        if self.inner is None:
            self.inner = self._limited(LOAD_S, Cause.GATE_DOWN, lambda: self._tried(method, args))

    def call(self, method: str, args: tuple[Any, ...], limit_s: float) -> Any:
        if method not in self.methods:
            raise PermissionError(f"{method!r} may not be called")
        return self._limited(limit_s, Cause.GATE_ERROR, lambda: getattr(self.inner, method)(*args))

    def _tried(self, method: str, args: tuple[Any, ...]) -> Any:
        inner = factory(self.dotted)(*self.args)
        getattr(inner, method)(*args)
        return inner

    def _limited(self, limit_s: float, otherwise: Cause, work: Callable[[], Any]) -> Any:
        try:
            with watchdog(limit_s):
                return work()
        except Exception as error:
            raise faults.fault_of(error, otherwise=otherwise) from None  # the cause may not pickle


class RemoteGate:
    """The farm's gate, in a Ray actor. Not detached: each dispatcher reads the policy anew.

    One call at a time, as the actor works anyway: so what was asked when it died is what it died of, and pays.
    """

    def __init__(
        self,
        settings: Settings,
        dotted: str,
        args: Sequence[str] = (),
        *,
        call_s: float = CALL_S,
        preview_s: float = PREVIEW_S,
    ) -> None:
        self.settings, self.dotted, self.args = settings, dotted, tuple(args)
        self.call_s, self.preview_s = call_s, preview_s
        self.lock = threading.Lock()
        self.actor: Any = None
        self.connection = ""  # the one the handle belongs to
        self.rules: Rules | None = None
        self.told: Rules | None = None  # what the actor there is judges by

    def use(self, rules: Rules) -> None:
        self.rules = rules

    def judge_prompts(self, prompts: Sequence[str]) -> list[Verdict | Fault]:
        return self._answers(self.call_s, "judge_prompts", len(prompts), list(prompts))

    def judge_frames(self, frames: Sequence[Frame], stage: Stage) -> list[Verdict | Fault]:
        limit_s = self.preview_s if stage is Stage.PREVIEW else self.call_s
        return self._answers(limit_s, "judge_frames", len(frames), list(frames), stage)

    def _answers(self, limit_s: float, method: str, count: int, *args: Any) -> list[Verdict | Fault]:
        with self.lock:
            try:
                answers = self._call(limit_s, method, args)
            except faults.RAISED as error:
                raise faults.fault_of(error, otherwise=Cause.GATE_DOWN) from error
        if len(answers) != count or not all(isinstance(answer, Verdict | Fault) for answer in answers):
            raise Fault(Cause.GATE_ERROR, f"{count} asked, and the gate gave {len(answers)} answers or no verdicts")
        return answers

    def _call(self, limit_s: float, method: str, args: tuple[Any, ...]) -> list[Verdict | Fault]:
        actor = self._host(cluster.connect(self.settings))
        try:
            self._get(actor, actor.load.remote(*HARMLESS), LOAD_S)
            if (rules := self.rules) is not self.told:
                self._get(actor, actor.call.remote("use", (rules,), limit_s), limit_s)
                self.told = rules
        except Died as died:
            raise Fault(Cause.GATE_DOWN, f"the gate died while it was made ready: {died}") from died
        try:
            answers: list[Verdict | Fault] = self._get(actor, actor.call.remote(method, args, limit_s), limit_s)
        except Died as died:
            if cluster.connect(self.settings) != self.connection:
                raise Fault(Cause.RAY_GONE, f"Ray was restarted: {died}") from died
            raise Fault(Cause.GATE_ERROR, f"the gate died of what it was asked: {died}") from died
        return answers

    def _get(self, actor: Any, answer: Any, limit_s: float) -> Any:
        import ray

        try:
            return ray.get(answer, timeout=limit_s + GRACE_S)
        except ray.exceptions.RayTaskError as error:  # it lives, and says what is wrong
            raise faults.fault_of(error, otherwise=Cause.GATE_DOWN) from error
        except faults.RAISED as error:
            self._forget(actor)
            raise Died(faults.fault_of(error).detail) from error

    def _host(self, connection: str) -> Any:
        import ray

        if self.actor is None or self.connection != connection:
            made = ray.remote(Host).options(num_cpus=0, max_restarts=0, max_task_retries=0)
            self.actor = made.remote(self.dotted, self.args, METHODS)
            self.connection, self.told = connection, None
        return self.actor

    def _forget(self, actor: Any) -> None:
        """The next call makes a new one."""
        import ray

        self.actor = None
        try:
            ray.kill(actor)
        except faults.RAISED as error:
            log.info("the lost gate could not be ended: %s", error)
