"""The gate in an actor of its own: in a process that may die without taking others along; and the seat that it has in
the dispatcher, where another one takes its place."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

from actors import cluster, faults
from actors.models import catalogue
from actors.plan import spare_gpus
from actors.rank import watchdog
from actors.shard import factory, hide_gpus
from farm.config import Settings
from farm.errors import Fault
from farm.job import Cause
from farm.ports import Frame, Rules, Stage

log = logging.getLogger("farm.gate")
METHODS = ("judge_prompts", "judge_frames")
LOAD_S = 600.0
ROOM_S = 120.0  # for a GPU to be had, and a process to begin there
TRIED_S = 60.0
GRACE_S = 10.0  # the host's own watchdog comes first
HARMLESS = ([Frame(64, 64, bytes(range(192)) * 64)], Stage.FRAME)
# What an actor may die of that is not what it was asked. Ray ends who is there when a node's memory runs out.
NOT_ASKED = {Cause.NODE_FAILED: Cause.NODE_FAILED, Cause.OUT_OF_MEMORY: Cause.OVERLOADED}


class Died(Exception):
    """The actor is gone, or does not answer any more."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.detail)
        self.cause = NOT_ASKED.get(fault.cause, Cause.GATE_ERROR)


class Host:
    """Makes the gate when it is first needed, and calls the methods that it is asked by."""

    def __init__(self, dotted: str, args: tuple[str, ...], device: str, rules: Rules | None) -> None:
        if device == "cpu":
            hide_gpus()
        self.dotted, self.args, self.rules = dotted, (*args, device), rules
        self.inner: Any = None

    def here(self) -> None:
        """It has its room, and a process."""

    def load(self, rules: Rules | None = None) -> None:
        """Make it, or have it judge by these rules from now on, and then something harmless: what ends it here is not
        the next caller's doing."""
        if self.inner is None or rules is not None:
            self.inner = _limited(LOAD_S, Cause.GATE_DOWN, lambda: self._ready(rules or self.rules))
            self.rules = rules or self.rules

    def call(self, method: str, args: tuple[Any, ...], limit_s: float) -> Any:
        if method not in METHODS:
            raise PermissionError(f"{method!r} may not be called")
        try:
            answers = _limited(limit_s, Cause.GATE_ERROR, lambda: getattr(self.inner, method)(*args))
        except Fault:
            self._harmless()
            raise
        if any(isinstance(answer, Fault) and answer.cause is Cause.GATE_ERROR for answer in answers):
            self._harmless()
        return answers

    def _ready(self, rules: Rules | None) -> Any:
        inner = factory(self.dotted)(*self.args) if self.inner is None else self.inner
        if rules is not None:
            inner.use(rules)
        inner.judge_frames(*HARMLESS)
        return inner

    def _harmless(self) -> None:
        """Raises where the gate would fail at any picture: then nobody who asked it is to pay."""
        answers = _limited(TRIED_S, Cause.GATE_DOWN, lambda: self.inner.judge_frames(*HARMLESS))
        for answer in answers:
            if isinstance(answer, Fault):
                raise Fault(Cause.GATE_DOWN, f"the gate fails at a harmless picture, too: {answer.detail}")


def _limited(limit_s: float, otherwise: Cause, work: Callable[[], Any]) -> Any:
    """A gate is no gang: whatever it raises that is no fault is its own, or that of what it was asked."""
    try:
        with watchdog(limit_s):
            return work()
    except Fault:
        raise
    except Exception as error:
        raise Fault(otherwise, faults.fault_of(error).detail) from None  # the cause may not pickle


class Seat:
    """One gate at a time. It is asked one thing at a time, as an actor works anyway: so what was asked when it died is
    what it died of, and pays."""

    def __init__(self, settings: Settings, dotted: str, args: Sequence[str]) -> None:
        self.settings, self.dotted, self.args = settings, dotted, tuple(args)
        self.actor: Any = None
        self.connection = ""  # the one the handle belongs to
        self.told: Rules | None = None  # what the actor there judges by
        self.warm = False

    def ask(self, method: str, args: tuple[Any, ...], limit_s: float, rules: Rules | None) -> Any:
        connection = cluster.connect(self.settings)
        if self.actor is None or self.connection != connection:
            self._make(connection, rules)
        try:
            self._get(self.actor.load.remote(None if self.told is rules else rules), LOAD_S)
        except Died as died:
            self._replace(rules)
            raise Fault(Cause.GATE_DOWN, f"the gate died while it was made ready: {died}") from died
        self.told, self.warm = rules, True
        began = time.monotonic()
        try:
            return self._get(self.actor.call.remote(method, args, limit_s), limit_s + TRIED_S)
        except Died as died:
            if cluster.connect(self.settings) != self.connection:
                raise Fault(Cause.RAY_GONE, f"Ray was restarted: {died}") from died
            self._replace(rules)
            hung = died.cause is Cause.GATE_ERROR and time.monotonic() - began >= limit_s
            words = f"no answer within {limit_s:.0f} s" if hung else "its process ended while it judged this"
            log.warning("a gate is lost: %s", died)
            raise Fault(died.cause, f"the gate gave no verdict: {words}") from died
        except Fault as fault:
            if fault.cause is Cause.GATE_DOWN:
                self._replace(rules)
            raise

    def _get(self, answer: Any, limit_s: float) -> Any:
        import ray

        try:
            return ray.get(answer, timeout=limit_s + GRACE_S)
        except ray.exceptions.RayTaskError as error:  # it lives, and says what is wrong
            raise faults.fault_of(error, otherwise=Cause.GATE_DOWN) from error
        except faults.RAISED as error:
            raise Died(faults.fault_of(error)) from error

    def _make(self, connection: str, rules: Rules | None) -> None:
        import ray

        there = ray.cluster_resources().get("GPU", 0.0)
        device = device_of(self.settings, there, ray.available_resources().get("GPU", 0.0))
        gpus = self.settings.gate_gpus if device == "cuda" else 0
        made = ray.remote(Host).options(num_cpus=0, num_gpus=gpus, max_restarts=0, max_task_retries=0)
        self.actor = made.remote(self.dotted, self.args, device, rules)
        self.connection, self.told, self.warm = connection, rules, False
        if gpus:
            self._seated(gpus)

    def _seated(self, gpus: float) -> None:
        try:
            self._get(self.actor.here.remote(), ROOM_S)
        except Died as died:
            self._end()
            fix = "set FARM_GATE_DEVICE=cpu, or leave it so much of a GPU: see gate_gpus"
            raise Fault(Cause.GATE_DOWN, f"no node has {gpus:g} of a GPU for the gate: {fix}") from died

    def _replace(self, rules: Rules | None) -> None:
        """Another one is made ready while others are asked. Whether Ray is still there is asked first, by the client
        that raises: of a lost head `_make` would wait for a minute, and then Ray would end this process."""
        try:
            connection = cluster.connect(self.settings)
            self._end()
            self._make(connection, rules)
            self.actor.load.remote()
        except faults.RAISED as error:  # the next call says so
            self.actor, self.warm = None, False
            log.info("no other gate yet: %s", error)

    def _end(self) -> None:
        import ray

        lost, self.actor, self.warm = self.actor, None, False
        try:
            ray.kill(lost)
        except faults.RAISED as error:
            log.info("the lost gate could not be ended: %s", error)


def device_of(settings: Settings, there: float, free: float) -> str:
    """Of one gate, where the cluster has so many GPUs. Left to itself it takes none that a gang might need."""
    if settings.gate_device == "cuda" and not there:
        raise Fault(Cause.GATE_DOWN, "gate_device is cuda, and no node has a GPU: set FARM_GATE_DEVICE to cpu or auto")
    if settings.gate_device != "auto":
        return settings.gate_device
    spare = min(free, spare_gpus(settings, catalogue(), there))
    return "cuda" if spare >= settings.gate_gpus * settings.gates else "cpu"
