"""From claim to publication: what a dispatcher asks of the queue. Every change is guarded by job, attempt and owner.

A guard that no longer holds means the lease was lost: the result is dropped and counted by a `superseded` event.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from sqlalchemy import Connection, Engine, Row, Select, bindparam, func, select, true, update
from sqlalchemy.exc import IntegrityError

from farm import aftermath, events, hash_lists, licences, moves, rules, shadow, suspects, waiting
from farm.db import insert_many, reading, transaction, upsert
from farm.errors import Fault
from farm.job import CAUSES, RELEASES_CHILD, Cause, Payer, Spec, State, has_failed
from farm.moves import Move, is_state
from farm.ports import Lease, Outcome, Stage, Verdict
from farm.tables import ARTIFACT, BATCH, COMPONENT, JOB, JOB_FAULT, LANE, THERE, UPLOAD, VERDICT

MAX_DETAIL = 2000
REJUDGED = "the policy was changed while it was drawn: it is drawn and judged again"
EXPIRE_AT_ONCE = 500
AGEING_S = 600.0  # ten minutes of waiting count as one step of priority, so that nothing starves
LANES_SHOWN = 64  # of each project and model: one batch of many shapes does not slow the choice of the next


@dataclass(frozen=True, slots=True)
class LaneView:
    id: int
    project_id: str
    batch_id: int
    model: str
    shape_key: str
    priority: int  # the batch's and the line's together
    created_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """A signed file that lies in the store and was read back and found Trusted."""

    key: str
    frame_sha256: str
    manifest_sha256: str
    label: str
    mime: str
    width: int
    height: int
    bytes: int
    verified_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished(Stored):
    lease: Lease
    verdict_id: int
    outcome: Outcome


STORED = tuple(Stored.__dataclass_fields__)
SPEC = ("model", "prompt", "seed", "width", "height", "steps", "guidance", "format", "edit")
WANTED = [*moves.LOCKED, JOB.c.upload_id, *(JOB.c[name] for name in SPEC)]
# Built once: what every group asks costs more to put together than to answer.
VERDICT_KEY = ("job_id", "attempt", "stage", "subject", "policy", "lists")
KNOWN = select(*(VERDICT.c[name] for name in (*VERDICT_KEY, "id"))).where(
    VERDICT.c.job_id.in_(bindparam("jobs", expanding=True))
)
CLAIM = (
    select(*WANTED)
    .where(JOB.c.lane_id == bindparam("lane"), is_state(State.QUEUED), JOB.c.not_before <= bindparam("now"))
    .order_by(JOB.c.not_before, JOB.c.id)
    .limit(bindparam("at_most"))
    .with_for_update(skip_locked=True)
)


def _lanes() -> Select[Any]:
    priority = (LANE.c.priority + BATCH.c.priority).label("priority")
    columns = [LANE.c[name] for name in ("id", "project_id", "batch_id", "model", "shape_key", "created_at")]
    aged = (LANE.c.created_at - priority.element * AGEING_S, LANE.c.id)
    place = func.row_number().over(partition_by=(LANE.c.project_id, LANE.c.model), order_by=aged)
    lanes = select(*columns, priority, place.label("place")).join(BATCH, BATCH.c.id == LANE.c.batch_id)
    ranked = lanes.where(LANE.c.open == true(), BATCH.c.state == "open").subquery()
    return select(*(ranked.c[name] for name in LaneView.__dataclass_fields__)).where(ranked.c.place <= LANES_SHOWN)


LANES = _lanes()


class Leasing:
    engine: Engine
    clock: Callable[[], float]
    licences: Mapping[str, str]

    def lanes(self) -> list[LaneView]:
        """Where queued jobs may be had: the first of each project and model, as the scheduler ranks them. A batch that
        is paused, cancelled or still coming in shows none."""
        with reading(self.engine) as connection:
            return [LaneView(**row) for row in connection.execute(LANES).mappings()]

    @transaction
    def claim(
        self,
        connection: Connection,
        lane_id: int,
        owner: str,
        limit: int,
        lease_s: float,
        flying: Collection[int] = (),
    ) -> list[Lease]:
        """The first of this lane; `flying` are the jobs that the owner has in flight already."""
        now = self.clock()
        query = select(BATCH.c.state, LANE.c.model).join(LANE, LANE.c.batch_id == BATCH.c.id)
        lane = connection.execute(query.where(LANE.c.id == lane_id)).first()
        if lane is None or lane.state != "open":
            return []
        rows = connection.execute(CLAIM, {"lane": lane_id, "now": now, "at_most": limit}).all()
        if not rows:
            _close_if_empty(connection, lane_id)
            return []
        if not self._accepted(connection, lane.model):
            reason = f"{Cause.LICENCE_NOT_ACCEPTED}: {licences.why(lane.model, self.licences[lane.model])}"
            unsaid = update(JOB).where(JOB.c.id.in_([row.id for row in rows]), JOB.c.reason != reason)
            connection.execute(unsaid.values(reason=reason))
            return []
        rows = _with_published_parents(connection, _apart(connection, rows, flying), now)
        taken = {"state": State.LEASED, "attempt": JOB.c.attempt + 1, "owner": owner, "lease_expires_at": now + lease_s}
        connection.execute(
            update(JOB).where(JOB.c.id.in_([row.id for row in rows])).values(**taken, reason="", updated_at=now)
        )
        events.append(connection, (_about(row, "leased", now, attempt=row.attempt + 1, owner=owner) for row in rows))
        references = _references(connection, rows)
        return [_lease(row, owner, references.get(row.id)) for row in rows]

    @transaction
    def heartbeat(
        self, connection: Connection, owner: str, job_attempts: Iterable[tuple[int, int]], lease_s: float
    ) -> set[int]:
        """Extend the leases; those not in the answer are lost, and work on them may stop."""
        now, attempts = self.clock(), dict(job_attempts)
        rows = moves.lock(connection, attempts).values()
        held = [row.id for row in rows if _is_held(row, attempts[row.id], owner)]
        for some in moves.chunks(held):
            connection.execute(update(JOB).where(JOB.c.id.in_(some)).values(lease_expires_at=now + lease_s))
        return set(held)

    @transaction
    def record(
        self,
        connection: Connection,
        pairs: Sequence[tuple[Lease, Verdict]],
        *,
        gang: str = "",
        weights: str = "",
        drawn_with: str = "",
    ) -> list[int | None]:
        """The first of the two transactions: the verdicts, and the end of what they block. None: superseded.

        Saying it twice is saying it once, and the first word stands. Nothing follows from what is said of a preview.
        """
        now = self.clock()
        held = self._held(connection, [lease for lease, _ in pairs])
        known = known_verdicts(connection, {lease.job_id for lease, _ in pairs})
        fresh = {_key(*pair): pair for pair in pairs if pair[0].job_id in held and _key(*pair) not in known}
        if fresh:
            made_by = {"gang": gang, "weights": weights, "drawn_with": drawn_with}
            rows = [verdict_row(lease, verdict, now) | made_by for lease, verdict in fresh.values()]
            insert_many(connection, VERDICT, rows)
            hash_lists.report(connection, fresh.values(), now)
            shadow.keep(connection, fresh.values(), now)
            known = known_verdicts(connection, {lease.job_id for lease, _ in pairs})
        blocked = {
            lease.job_id: Move(held[lease.job_id], State.BLOCKED, verdict.reason or "blocked", verdict_id=known[key])
            for key, (lease, verdict) in fresh.items()
            if verdict.outcome is Outcome.BLOCK and verdict.stage is not Stage.PREVIEW
        }
        moves.apply(connection, list(blocked.values()), now)
        if blocked:
            aftermath.follow_blocks(connection, blocked, hash_lists.THE_GATE, aftermath.BLOCKS, now)
        late = [pair for pair in pairs if _key(*pair) not in known and pair[1].stage is not Stage.PREVIEW]
        _superseded(connection, (lease for lease, _ in late), "verdict", now)
        return [known.get(_key(*pair)) for pair in pairs]

    def publish(self, results: Sequence[Finished]) -> list[bool]:
        """The second transaction: the artifacts, and the jobs published or held. False: superseded or refused.

        A group commits together; if the database refuses one of it, each is tried alone.
        """
        try:
            return self._publish(results)
        except IntegrityError as error:
            if len(results) > 1:
                return [done for result in results for done in self.publish([result])]
            reason = str(error.orig).split("\n", maxsplit=1)[0]
            self.fault(results[0].lease, Fault(Cause.UNVERIFIED, f"the database refused to publish it: {reason}"))
            return [False]

    @transaction
    def _publish(self, connection: Connection, results: Sequence[Finished]) -> list[bool]:
        now = self.clock()
        held = self._held(connection, [result.lease for result in results])
        mine = {result.lease.job_id: result for result in results if result.lease.job_id in held}
        said = _said(connection, mine)
        beside = aftermath.doubts_of(connection, mine)
        doubts, again = _doubts(said), _of_another_policy(said, rules.in_force(connection))
        fresh = {id_: one for id_, one in mine.items() if (id_, one.lease.attempt) not in again}
        going = [Move(held[id_], State.QUEUED, REJUDGED, now + rules.HEARD_S) for id_ in mine.keys() - fresh.keys()]
        rows = [artifact_row(one, one.lease.project_id, id_, one.verdict_id, now) for id_, one in fresh.items()]
        made = insert_artifacts(connection, rows)
        for job_id, result in fresh.items():
            attempt = (job_id, result.lease.attempt)
            clear = result.outcome is Outcome.ALLOW and attempt not in doubts and job_id not in beside
            state = State.PUBLISHED if clear else State.HELD
            reason = doubts.get(attempt) or beside.get(job_id, "")
            going.append(Move(held[job_id], state, reason, verdict_id=result.verdict_id, artifact_id=made[job_id]))
        moves.apply(connection, going, now)
        late = [result for result in results if mine.get(result.lease.job_id) is not result]
        before = _published_before(connection, late)
        _superseded(connection, (one.lease for one in late if one.lease.job_id not in before), "publication", now)
        return [fresh.get(one.lease.job_id) is one or (one in late and one.lease.job_id in before) for one in results]

    @transaction
    def fault(
        self, connection: Connection, lease: Lease, fault: Fault, gang: str | None = None, retry_s: float = 5.0
    ) -> State | None:
        """An attempt ended without a verdict. Who pays is the cause's business; the answer is the job's new state."""
        now = self.clock()
        held = self._held(connection, [lease])
        if lease.job_id not in held:
            _superseded(connection, [lease], str(fault.cause), now)
            return None
        job, cause = held[lease.job_id], fault.cause
        detail = fault.detail.replace("\0", "")[:MAX_DETAIL]
        if cause in suspects.STRIKES and (words := suspects.struck(connection, job, cause, detail, now)):
            cause, detail = Cause.POISON, words
        outage = CAUSES[cause] is Payer.ENVIRONMENT
        failed = not outage and _counts(connection, job, cause, detail, gang or fault.gang, now)
        state = State.FAILED if failed else State.QUEUED
        reason = waiting.NO_WEIGHTS if cause is Cause.WEIGHTS_MISSING else f"{cause}: {waiting.public(cause, detail)}"
        moves.apply(connection, [Move(job, state, reason, 0.0 if failed else now + retry_s)], now)
        return state

    def expire(self) -> int:
        """Leases whose owner has not been heard of go back to the queue; nobody pays, unless every owner dies of it."""
        total = 0
        while count := self._expire_some():
            total += count
            if count < EXPIRE_AT_ONCE:
                break
        return total

    @transaction
    def _expire_some(self, connection: Connection) -> int:
        now = self.clock()
        overdue = select(*moves.LOCKED).where(is_state(State.LEASED), JOB.c.lease_expires_at < now)
        rows = connection.execute(
            overdue.order_by(JOB.c.lease_expires_at).limit(EXPIRE_AT_ONCE).with_for_update(skip_locked=True)
        ).all()
        moves.apply(connection, [_given_back(connection, row, now) for row in rows], now)
        return len(rows)

    @transaction
    def beat(self, connection: Connection, name: str, kind: str, state: str, detail: str = "") -> None:
        """A process says that it lives, and what it waits for."""
        said = {"kind": kind, "state": state, "detail": detail[:MAX_DETAIL], "beat_at": self.clock()}
        statement = upsert(connection, COMPONENT).values(name=name, **said)
        connection.execute(statement.on_conflict_do_update(index_elements=["name"], set_=said))

    def _accepted(self, connection: Connection, model: str) -> bool:
        return model not in self.licences or (model, self.licences[model]) in licences.standing(connection)

    def _held(self, connection: Connection, leases: Sequence[Lease]) -> dict[int, Row[Any]]:
        """The rows of those leases that still hold, locked."""
        rows = moves.lock(connection, (lease.job_id for lease in leases))
        return {
            lease.job_id: rows[lease.job_id]
            for lease in leases
            if lease.job_id in rows and _is_held(rows[lease.job_id], lease.attempt, lease.owner)
        }


def _is_held(row: Row[Any], attempt: int, owner: str) -> bool:
    return bool(row.state == State.LEASED and row.attempt == attempt and row.owner == owner)


def _given_back(connection: Connection, row: Row[Any], now: float) -> Move:
    detail = f"{row.owner} was not heard of in time"
    if words := suspects.struck(connection, row, Cause.LEASE_LOST, detail, now):
        _counts(connection, row, Cause.POISON, words, None, now)
        return Move(row, State.FAILED, f"{Cause.POISON}: {words}")
    later = now + suspects.lost_pause_s(suspects.lost_tries(connection, row))
    return Move(row, State.QUEUED, f"{Cause.LEASE_LOST}: {waiting.public(Cause.LEASE_LOST, detail)}", later)


def _apart(connection: Connection, rows: Sequence[Row[Any]], flying: Collection[int]) -> list[Row[Any]]:
    """Who lost its lease is tried alone: if its dispatcher dies of it again, nobody is taken along. Who lost it often
    is not tried beside another such either: it would be failed for what that one does."""
    lost = [row for row in rows if row.reason.startswith(Cause.LEASE_LOST)]
    if rows[0] in lost:
        often = suspects.lonely(connection, [rows[0].id, *flying]) if flying else set()
        if rows[0].id not in often or len(often) == 1:
            return [rows[0]]
    return [row for row in rows if row not in lost]


def _close_if_empty(connection: Connection, lane_id: int) -> None:
    """Whoever puts a job back locks the lane first, so what is not seen under this lock will open it again."""
    connection.execute(select(LANE.c.id).where(LANE.c.id == lane_id).with_for_update())
    waiting = select(JOB.c.id).where(JOB.c.lane_id == lane_id, is_state(State.QUEUED)).limit(1)
    if connection.execute(waiting).first() is None:
        connection.execute(update(LANE).where(LANE.c.id == lane_id).values(open=False))


def _with_published_parents(connection: Connection, rows: Sequence[Row[Any]], now: float) -> list[Row[Any]]:
    """Those that may start. A job that was put back, by a person or an outage, may find its parent withdrawn."""
    wanted = {row.parent_job_id for row in rows if row.parent_job_id is not None}
    states: dict[int, State] = {}
    if wanted:
        found = connection.execute(select(JOB.c.id, JOB.c.state).where(JOB.c.id.in_(wanted)))
        states = {id_: State(state) for id_, state in found if state not in RELEASES_CHILD}
    early = [row for row in rows if row.parent_job_id in states]
    moves.apply(
        connection, [Move(row, *moves.child_of(row.parent_job_id, states[row.parent_job_id])) for row in early], now
    )
    return [row for row in rows if row.parent_job_id not in states]


def _references(connection: Connection, rows: Sequence[Row[Any]]) -> dict[int, tuple[str, str]]:
    """Job id to the store key and type of the picture it edits."""
    parents = {row.parent_job_id for row in rows if row.parent_job_id is not None}
    uploads = {row.upload_id for row in rows if row.upload_id is not None}
    found: dict[int | str, tuple[str, str]] = {}
    if parents:
        query = select(JOB.c.id, ARTIFACT.c.key, ARTIFACT.c.mime).join(ARTIFACT, ARTIFACT.c.id == JOB.c.artifact_id)
        found |= {id_: (key, mime) for id_, key, mime in connection.execute(query.where(JOB.c.id.in_(parents)))}
    if uploads:
        query = select(UPLOAD.c.id, UPLOAD.c.key, UPLOAD.c.mime).where(THERE)
        found |= {id_: (key, mime) for id_, key, mime in connection.execute(query.where(UPLOAD.c.id.in_(uploads)))}
    wanted = {row.id: row.parent_job_id or row.upload_id for row in rows}
    return {job_id: found[source] for job_id, source in wanted.items() if source in found}


def _lease(row: Row[Any], owner: str, reference: tuple[str, str] | None) -> Lease:
    key, mime = reference or (None, None)
    return Lease(
        job_id=row.id,
        attempt=row.attempt + 1,
        owner=owner,
        project_id=row.project_id,
        batch_id=row.batch_id,
        spec=Spec(**{name: getattr(row, name) for name in SPEC}),
        parent_job_id=row.parent_job_id,
        upload_id=row.upload_id,
        reference_key=key,
        reference_mime=mime,
    )


def _key(lease: Lease, verdict: Verdict) -> tuple[object, ...]:
    return lease.job_id, lease.attempt, str(verdict.stage), verdict.subject, verdict.policy, verdict.lists


def known_verdicts(connection: Connection, jobs: Iterable[int]) -> dict[tuple[object, ...], int]:
    known: dict[tuple[object, ...], int] = {}
    for some in moves.chunks(jobs):
        known |= {tuple(key): id_ for *key, id_ in connection.execute(KNOWN, {"jobs": some})}
    return known


class Attempt(Protocol):
    @property
    def project_id(self) -> str: ...
    @property
    def job_id(self) -> int: ...
    @property
    def attempt(self) -> int: ...


def verdict_row(of: Attempt, verdict: Verdict, now: float) -> dict[str, Any]:
    said = {name: getattr(verdict, name) for name in Verdict.__dataclass_fields__ if name != "shadow"}
    said |= {"stage": str(verdict.stage), "outcome": str(verdict.outcome), "gang": "", "weights": "", "drawn_with": ""}
    return said | {"project_id": of.project_id, "job_id": of.job_id, "attempt": of.attempt, "created_at": now}


def artifact_row(
    stored: Stored, project_id: str, job_id: int, verdict_id: int, now: float, decision_id: int | None = None
) -> dict[str, Any]:
    row = {name: getattr(stored, name) for name in STORED}
    made = {"project_id": project_id, "job_id": job_id, "verdict_id": verdict_id, "decision_id": decision_id}
    return row | made | {"created_at": now}


def insert_artifacts(connection: Connection, rows: list[dict[str, Any]]) -> dict[int, int]:
    """One a job, each of which the caller has locked; job id to artifact id."""
    insert_many(connection, ARTIFACT, rows)
    newest = select(ARTIFACT.c.job_id, func.max(ARTIFACT.c.id)).group_by(ARTIFACT.c.job_id)
    made: dict[int, int] = {}
    for some in moves.chunks(row["job_id"] for row in rows):
        made |= {row[0]: row[1] for row in connection.execute(newest.where(ARTIFACT.c.job_id.in_(some)))}
    return made


def _said(connection: Connection, jobs: Iterable[int]) -> list[Row[Any]]:
    """All that was said of these jobs, the first word first; of previews nothing follows."""
    columns = [VERDICT.c[name] for name in ("job_id", "attempt", "stage", "subject", "outcome", "reason")]
    query = select(*columns, VERDICT.c.policy, VERDICT.c.lists).where(VERDICT.c.stage != str(Stage.PREVIEW))
    query = query.order_by(VERDICT.c.id)
    said: list[Row[Any]] = []
    for some in moves.chunks(jobs):
        said += connection.execute(query.where(VERDICT.c.job_id.in_(some)))
    return said


def _doubts(said: Iterable[Row[Any]]) -> dict[tuple[int, int], str]:
    """Attempts of which some verdict, of the prompt, the input or the frame, did not plainly allow; and why."""
    doubts: dict[tuple[int, int], str] = {}
    for row in said:
        if row.outcome != Outcome.ALLOW:
            doubts.setdefault((row.job_id, row.attempt), row.reason)
    return doubts


def _of_another_policy(said: Iterable[Row[Any]], stands: tuple[str, str] | None) -> set[tuple[int, int]]:
    """Attempts of which something was judged by another policy, or other lists, than now, and by these was not. Where
    none was ever put in force nobody asks."""
    if stands is None:
        return set()
    by: dict[bool, set[tuple[int, int, str, str]]] = {False: set(), True: set()}
    for row in said:
        lists = "" if row.stage == Stage.PROMPT else stands[1]
        by[(row.policy, row.lists) == (stands[0], lists)].add((row.job_id, row.attempt, row.stage, row.subject))
    return {(job_id, attempt) for job_id, attempt, *_ in by[False] - by[True]}


def _published_before(connection: Connection, late: Sequence[Finished]) -> set[int]:
    """Those that this very attempt published already: the answer to the first time was lost."""
    if not late:
        return set()
    query = select(JOB.c.id, JOB.c.attempt, ARTIFACT.c.key).join(ARTIFACT, ARTIFACT.c.id == JOB.c.artifact_id)
    query = query.where(
        JOB.c.id.in_([one.lease.job_id for one in late]), JOB.c.state.in_([State.PUBLISHED, State.HELD])
    )
    stands = {tuple(row) for row in connection.execute(query)}
    return {one.lease.job_id for one in late if (one.lease.job_id, one.lease.attempt, one.key) in stands}


def _counts(connection: Connection, job: Row[Any], cause: Cause, detail: str, gang: str | None, now: float) -> bool:
    """Keep the fault; has the job failed for good with it?"""
    suspects.keep(connection, job, cause, detail, gang, now)
    query = select(JOB_FAULT.c.cause, JOB_FAULT.c.gang)
    rows = connection.execute(query.where(JOB_FAULT.c.job_id == job.id, JOB_FAULT.c.attempt > job.forgiven))
    met = [(Cause(cause), gang) for cause, gang in rows]
    return has_failed(met, _guilty(connection, {gang for _, gang in met if gang}))


def _guilty(connection: Connection, gangs: Collection[str]) -> set[str]:
    """Those that have failed for what is their own fault, whichever job it was that met it."""
    if not gangs:
        return set()
    query = select(JOB_FAULT.c.gang).where(JOB_FAULT.c.gang.in_(gangs), JOB_FAULT.c.payer == str(Payer.GANG))
    return set(connection.execute(query).scalars())


def _about(row: Row[Any], kind: str, now: float, **data: Any) -> dict[str, Any]:
    return events.event(row.project_id, kind, now, batch_id=row.batch_id, job_id=row.id, **data)


def _superseded(connection: Connection, leases: Iterable[Lease], what: str, now: float) -> None:
    events.append(
        connection,
        (
            events.event(
                lease.project_id,
                "superseded",
                now,
                batch_id=lease.batch_id,
                job_id=lease.job_id,
                attempt=lease.attempt,
                owner=lease.owner,
                what=what,
            )
            for lease in leases
        ),
    )
