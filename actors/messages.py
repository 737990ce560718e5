"""Everything that crosses between the dispatcher and an actor, besides the values of `farm.ports`."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import StrEnum

from farm.ports import ModelCard, RenderRequest


class GangState(StrEnum):
    STARTING = "starting"  # waits for room or for its weights
    READY = "ready"
    BUSY = "busy"
    GONE = "gone"


@dataclass(frozen=True, slots=True)
class Post:
    """What a gang is built from. Two gangs of one key are interchangeable."""

    card: ModelCard
    shard: str  # dotted factory: (card, models folder or None, device, offload) -> Shard
    models: str
    device: str
    offload: str
    load_s: float

    @property
    def key(self) -> str:
        return hashlib.sha256(repr(self).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Hello:
    """A rank's answer to "who are you?"."""

    gang: str
    key: str
    state: GangState
    pid: int


@dataclass(frozen=True, slots=True)
class Order:
    """One group to draw; past `limit_s` the rank ends itself."""

    call: str
    requests: tuple[RenderRequest, ...]
    limit_s: float


@dataclass(frozen=True, slots=True)
class GangStatus:
    gang: str
    model: str
    state: GangState
    waits_for: str
    since: float  # seconds in this state
