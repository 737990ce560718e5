"""Everything that crosses between the dispatcher and an actor, besides the values of `farm.ports`."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from actors.stages import WHOLE, Stage, asked
from farm.ports import GangState, ModelCard, RenderRequest, Step


@dataclass(frozen=True, slots=True)
class Post:
    """What a gang is built from. Two gangs of one key are interchangeable."""

    card: ModelCard
    shard: str  # dotted factory: Post -> Shard, called in each rank once the ranks have met
    pool: str
    models: str  # folder, or ""
    device: str
    precision: str
    offload: str
    load_s: float
    tensor: int = 1
    sequence: int = 1
    cpus: float = 1.0
    gpus: float | None = None  # of a rank; None: 1 where the cluster has any
    labels: tuple[tuple[str, str], ...] = ()
    embeddings_mb: int = 256
    stages: tuple[Stage, ...] = WHOLE
    code: str = ""  # fingerprint of what its ranks run

    @property
    def asked(self) -> str:
        """What a job asks for that comes here."""
        return asked(self.card.name, self.stages)

    @property
    def hands_on(self) -> bool:
        """Its ranks make no pictures, but what others make them of."""
        return Stage.DECODE not in self.stages

    @property
    def ranks(self) -> int:
        return self.tensor * self.sequence

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
    changed: bool = False  # its files are others than those that it loaded
    weights: str = ""  # once loaded: SHA-256 over all files of the model


@dataclass(frozen=True, slots=True)
class Order:
    """One group to draw; past `limit_s` the rank ends itself."""

    call: str
    requests: tuple[RenderRequest, ...]
    limit_s: float
    save_every: int = 0  # steps; 0: never
    hands_on: bool = False  # as the post of whoever is asked


@dataclass(frozen=True, slots=True)
class Mark:
    """How far a call is: the jobs of it that are drawn just now, and latents that they could go on from."""

    steps: tuple[Step, ...]
    saved: tuple[tuple[int, bytes], ...] = ()  # by job
