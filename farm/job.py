"""The life of a job: its states, the legal moves between them, and who pays for a failure. Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum


class State(StrEnum):
    WAITING = "waiting"  # for the job it edits
    QUEUED = "queued"
    LEASED = "leased"
    PUBLISHED = "published"
    HELD = "held"  # an artifact waits for a person
    APPROVED = "approved"  # decided, undo still open, signature to come
    REJECTED = "rejected"  # a person said no
    BLOCKED = "blocked"  # the gate said no: a judgement about content
    FAILED = "failed"  # an error, with its cause
    CANCELLED = "cancelled"
    UNLISTED = "unlisted"  # published once, withdrawn by a rescan


S = State
# A job goes back to waiting when the one it edits is withdrawn, or tried again after this one was cancelled with it.
TRANSITIONS: dict[State, frozenset[State]] = {
    S.WAITING: frozenset({S.QUEUED, S.CANCELLED}),
    S.QUEUED: frozenset({S.WAITING, S.LEASED, S.CANCELLED}),
    S.LEASED: frozenset({S.WAITING, S.QUEUED, S.PUBLISHED, S.HELD, S.BLOCKED, S.FAILED, S.CANCELLED}),
    S.HELD: frozenset({S.APPROVED, S.REJECTED}),
    S.APPROVED: frozenset({S.PUBLISHED, S.HELD, S.REJECTED}),  # rejected: on a list of what nobody may see
    S.REJECTED: frozenset({S.HELD}),
    S.BLOCKED: frozenset({S.HELD}),
    S.FAILED: frozenset({S.QUEUED}),
    S.PUBLISHED: frozenset({S.HELD, S.UNLISTED}),
    S.CANCELLED: frozenset({S.WAITING}),
    S.UNLISTED: frozenset(),
}
UNSETTLED = frozenset({S.WAITING, S.QUEUED, S.LEASED, S.APPROVED})
SETTLED = frozenset(State) - UNSETTLED
# What becomes of the child of a job in this state: it goes on, waits, or is cancelled, saying this of its parent.
RELEASES_CHILD = frozenset({S.PUBLISHED})
CANCELS_CHILD = {
    S.REJECTED: "was rejected",
    S.BLOCKED: "was blocked",
    S.FAILED: "has failed",
    S.CANCELLED: "was cancelled",
    S.UNLISTED: "was unlisted",
}
REVIVES_CHILD = frozenset({(S.FAILED, S.QUEUED), (S.CANCELLED, S.WAITING)})  # this move of a job undoes that


def may_move(old: State, new: State) -> bool:
    return new in TRANSITIONS[old]


class Payer(StrEnum):
    JOB = "job"  # counts against the job: three of its own and it has failed; unless its gang turns out to be guilty
    GANG = "gang"  # counts against the gang; a job that fails on three different gangs is poison
    ENVIRONMENT = "environment"  # nobody's fault: the job waits and says why


class Cause(StrEnum):
    BAD_INPUT = "bad_input"
    RENDER_ERROR = "render_error"
    GATE_ERROR = "gate_error"
    SIGN_REFUSED = "sign_refused"
    UNVERIFIED = "unverified"
    POISON = "poison"  # it alone met, again and again, what else is an outage (farm.suspects)
    NOT_FINITE = "not_finite"
    OUT_OF_MEMORY = "out_of_memory"
    GANG_DIED = "gang_died"
    GANG_HUNG = "gang_hung"
    LEASE_LOST = "lease_lost"
    NODE_FAILED = "node_failed"  # preempted, switched off, cut off; or it ends one gang after the other
    OVERLOADED = "overloaded"
    RAY_GONE = "ray_gone"
    NO_ROOM = "no_room"  # for a gang of its model
    GATE_DOWN = "gate_down"
    SIGNER_DOWN = "signer_down"
    SIGNER_FAILED = "signer_failed"  # it took the work, and died or failed over it
    TIMESTAMP_DOWN = "timestamp_down"
    STORE_FULL = "store_full"
    STORE_DOWN = "store_down"
    DATABASE_DOWN = "database_down"
    WEIGHTS_MISSING = "weights_missing"
    LICENCE_NOT_ACCEPTED = "licence_not_accepted"


# The one table of who pays (law 9).
CAUSES: dict[Cause, Payer] = {
    Cause.BAD_INPUT: Payer.JOB,
    Cause.RENDER_ERROR: Payer.JOB,
    Cause.GATE_ERROR: Payer.JOB,
    Cause.SIGN_REFUSED: Payer.JOB,
    Cause.UNVERIFIED: Payer.JOB,
    Cause.POISON: Payer.JOB,
    Cause.NOT_FINITE: Payer.GANG,
    Cause.OUT_OF_MEMORY: Payer.GANG,
    Cause.GANG_DIED: Payer.GANG,
    Cause.GANG_HUNG: Payer.GANG,
    Cause.LEASE_LOST: Payer.ENVIRONMENT,
    Cause.NODE_FAILED: Payer.ENVIRONMENT,
    Cause.OVERLOADED: Payer.ENVIRONMENT,
    Cause.RAY_GONE: Payer.ENVIRONMENT,
    Cause.NO_ROOM: Payer.ENVIRONMENT,
    Cause.GATE_DOWN: Payer.ENVIRONMENT,
    Cause.SIGNER_DOWN: Payer.ENVIRONMENT,
    Cause.SIGNER_FAILED: Payer.ENVIRONMENT,
    Cause.TIMESTAMP_DOWN: Payer.ENVIRONMENT,
    Cause.STORE_FULL: Payer.ENVIRONMENT,
    Cause.STORE_DOWN: Payer.ENVIRONMENT,
    Cause.DATABASE_DOWN: Payer.ENVIRONMENT,
    Cause.WEIGHTS_MISSING: Payer.ENVIRONMENT,
    Cause.LICENCE_NOT_ACCEPTED: Payer.ENVIRONMENT,
}
OF_MODEL = frozenset({Cause.WEIGHTS_MISSING, Cause.NO_ROOM})  # these hold up the jobs of one model alone
FINAL = frozenset({Cause.BAD_INPUT, Cause.POISON})  # the same file and words would fare no better another time
MAX_OWN_FAULTS = 3
MAX_GANGS = 3
MAX_GANG_FAULTS = 9  # where gangs have no name, or one is met again and again


def has_failed(faults: Sequence[tuple[Cause, str | None]], guilty: Collection[str | None] = ()) -> bool:
    """Given every (cause, gang) a job has met: is it failed for good, or does it go back to the queue? A gang that is
    guilty of what others met pays for whatever was met there."""
    if any(cause in FINAL for cause, _ in faults):
        return True
    paid = [(CAUSES[cause], gang) for cause, gang in faults]
    own = [gang for payer, gang in paid if payer is Payer.JOB and gang not in guilty]
    gangs = [gang for payer, gang in paid if payer is Payer.GANG or (payer is Payer.JOB and gang in guilty)]
    return len(own) >= MAX_OWN_FAULTS or len(set(gangs)) >= MAX_GANGS or len(gangs) >= MAX_GANG_FAULTS


@dataclass(frozen=True, slots=True)
class Spec:
    """What one job asks for; immutable once accepted."""

    model: str
    prompt: str
    seed: int
    width: int
    height: int
    steps: int
    guidance: float
    format: str = "png"
    edit: bool = False

    @property
    def shape_key(self) -> str:
        """Jobs with one shape key may run together. Guidance is each job's own, so a sweep of it is one lane."""
        mode = "edit" if self.edit else "text"
        return f"{self.model}/{self.width}x{self.height}/{self.steps}/{mode}"


def megapixel_steps(shape_key: str) -> float:
    """How much denoising one job of this shape asks for."""
    _, size, steps, *_ = shape_key.split("/")
    width, height = size.split("x")
    return int(width) * int(height) * int(steps) / 1e6


FORMATS = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}
