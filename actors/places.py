"""The places a pool has for gangs, and what a gang there is built from."""

from __future__ import annotations

import hashlib
import threading
import time
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from actors.bench import Form
from actors.gang import Gang
from actors.messages import Post
from farm.config import PoolSpec, Settings
from farm.ports import GangState, GangStatus, ModelCard

LOAD_S = 1800.0


@dataclass(slots=True)
class Place:
    """Of one gang in a pool, and the lock of whoever uses it."""

    number: int
    post: Post
    spec: PoolSpec
    lock: threading.Lock = field(default_factory=threading.Lock)
    gang: Gang | None = None
    connection: str = ""  # the one the gang's handles belong to
    state: GangState = GangState.GONE
    waits_for: str = "a job"
    since: float = field(default_factory=time.time)
    full: float = 0.0  # when it last found no room
    form: Form = field(default_factory=Form)
    lacks: str = ""  # what of the model's files is not there, as far as this machine can see

    def now(self, state: GangState, waits_for: str = "") -> None:
        self.state, self.waits_for, self.since = state, waits_for, time.time()

    def status(self) -> GangStatus:
        lacks = bool(self.lacks) and self.state in (GangState.GONE, GangState.STARTING)
        return GangStatus(
            self.post.pool,
            self.number,
            self.post.card.name,
            self.gang.id if self.gang else "",
            GangState.LACKING if lacks else self.state,
            self.lacks if lacks else self.waits_for,
            self.since,
        )


def post_of(pool: PoolSpec, card: ModelCard, settings: Settings, shard: str) -> Post:
    folder = pool.weights or settings.models
    return Post(
        card,
        shard,
        pool.called,
        str(Path(folder).absolute()) if folder else "",
        pool.device or settings.device,
        pool.precision,
        settings.offload,
        LOAD_S,
        pool.tensor,
        pool.sequence,
        pool.cpus,
        pool.gpus,
        tuple(sorted(pool.labels.items())),
        settings.embeddings_mb,
        code_of(),
    )


@cache
def code_of() -> str:
    """A gang of other code than ours is not taken over: the same seed might not be the same picture."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
