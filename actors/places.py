"""The places a pool has for gangs, and what a gang there is built from."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from actors.bench import Form
from actors.gang import Gang
from actors.health import Pulse
from actors.messages import Post
from actors.room import STARTS_S
from actors.shard import code_of
from actors.stages import WHOLE, Stage
from actors.wanted import Seat
from farm.config import PoolSpec, Settings
from farm.errors import Fault
from farm.lack import Lack
from farm.ports import GangState, GangStatus, ModelCard

LOAD_S = 1800.0
PACE_S = 0.1
ROOM = "room in the cluster"


@dataclass(slots=True)
class Place:
    """Of one gang in a pool, and the lock of whoever uses it."""

    number: int
    post: Post
    spec: PoolSpec
    lock: threading.Lock = field(default_factory=threading.Lock)
    gang: Gang | None = None
    connection: str = ""  # the one the gang's handles belong to
    homes: tuple[str, ...] = ()  # the nodes the gang lies on, or the last one lay
    shunned: frozenset[str] = frozenset()  # nodes where its gangs failed, and have drawn nothing since
    state: GangState = GangState.GONE
    waits_for: str = "a job"
    since: float = field(default_factory=time.time)
    wanted: bool = False
    ends: str = ""  # why its gang takes no further job, and goes
    lack: Lack | None = None  # the room it has not found
    fault: Fault | None = None  # what its last start met
    failed_at: float = 0.0
    ready_at: float = 0.0
    drawn: int = 0  # groups, since then
    load_s: float = STARTS_S  # as guessed, until it is measured
    measured: bool = False
    pace_s: float = PACE_S  # of a megapixel and step: a good GPU's, until it is measured
    form: Form = field(default_factory=Form)
    lacks: str = ""  # what of the model's files is not there, as far as this machine can see
    pulse: Pulse = field(default_factory=Pulse)

    def now(self, state: GangState, waits_for: str = "") -> None:
        self.state, self.waits_for, self.since = state, waits_for, time.time()

    @property
    def kept(self) -> bool:
        """Warm, asked for or not."""
        return self.number < self.spec.min

    @property
    def usable(self) -> bool:
        return self.gang is not None and not self.ends and self.state in (GangState.READY, GangState.BUSY)

    @property
    def unseen(self) -> bool:
        """Its files are not on this machine, and a start has shown that its node lacks them too."""
        return bool(self.lacks) and not self.ready_at and self.failed_at > 0

    @property
    def seeks(self) -> bool:
        """Room, and has none yet."""
        return self.state is GangState.STARTING and self.gang is None

    @property
    def comes(self) -> bool:
        """It has its room, and will be usable."""
        return self.state is GangState.STARTING and self.gang is not None and not self.ends

    def seat(self, now: float) -> Seat:
        return Seat(
            self.post.pool, self.kept, self.usable or self.comes, self.lack is not None, self.form.rests_at(now)
        )

    def status(self, names: dict[str, str]) -> GangStatus:
        """`names` of nodes by id."""
        state, waits_for = self.state, self.waits_for
        if self.ends and state in (GangState.READY, GangState.BUSY):
            state, waits_for = GangState.DRAINING, f"its last job: {self.ends}"
        elif self.lacks and state in (GangState.GONE, GangState.STARTING):
            state, waits_for = GangState.LACKING, self.lacks
        return GangStatus(
            self.post.pool,
            self.number,
            self.post.card.name,
            self.gang.id if self.gang else "",
            state,
            waits_for,
            self.since,
            asked=self.post.asked,
            cause=str(self.fault.cause) if self.fault else "",
            nodes=tuple(names.get(home, home) for home in self.homes) if self.gang else (),
            ready_at=self.ready_at,
            drawn=self.drawn,
            load_s=self.load_s,
            pace_s=self.pace_s,
            lack=None if self.unseen else self.lack,
            kept=self.kept,
        )


def guessed_pace_s(post: Post) -> float:
    """Until it is measured: what is beside the steps takes little."""
    return PACE_S if Stage.DENOISE in post.stages else PACE_S / 20


def post_of(pool: PoolSpec, card: ModelCard, settings: Settings, shard: str, stages: tuple[Stage, ...] = WHOLE) -> Post:
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
        stages,
        code_of(),
    )
