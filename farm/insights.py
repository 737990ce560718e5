"""The one read model: what pages, API, CLI and metrics show. Every answer is of one project; nothing of a batch still
coming in.

Lists are paged by id: the newest first (`before`), or in the order of submission (`after`).
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    Select,
    case,
    exists,
    func,
    literal_column,
    select,
    true,
    union_all,
)

from farm import waiting
from farm.db import reading
from farm.job import UNSETTLED, State
from farm.ports import Outcome, Stage
from farm.progress import doubted
from farm.tables import (
    ARTIFACT,
    BAD_LINE,
    BATCH,
    COMPONENT,
    DECISION,
    DRAIN,
    EVENT,
    GANG,
    JOB,
    JOB_FAULT,
    LANE,
    NODE,
    POLICY,
    PROGRESS,
    VERDICT,
)
from farm.waiting import STALE_S

Record = dict[str, Any]
COUNTED_FOR_S = 5.0
JUDGED_FOR_S = 30.0
SILENT = "silent"  # the state of a gang whose dispatcher is away: what it said is no longer known to be true
RUNNING_SHOWN = 5  # of a batch
HIDDEN = ("staging", "discarded")
# How counts are told: what was made first, what is still to come last.
ENDED_FIRST = sorted(State, key=lambda state: state in UNSETTLED)
VISIBLE = BATCH.c.state.not_in(HIDDEN)


def _forbidden(job_id: ColumnElement[int]) -> ColumnElement[bool]:
    """Is its picture, or what it was made from, on a list of what nobody may see? Then nobody does, in any state."""
    met = VERDICT.alias("met")
    return exists().where(met.c.job_id == job_id, met.c.illegal, met.c.stage != str(Stage.PREVIEW))


TOLD = [column for column in BATCH.c if column.name != "forgiven"]
# Whoever sent what is on an illegal list learns nothing of the list: a block by any hash list is told alike.
BY_LIST = VERDICT.c.view.is_(None) & VERDICT.c.probability.is_(None) & VERDICT.c.margin.is_not(None)
BLOCKED_BY_LIST = (VERDICT.c.outcome == str(Outcome.BLOCK)) & (VERDICT.c.stage != str(Stage.PROMPT)) & BY_LIST
CONCEPT = case((VERDICT.c.illegal | BLOCKED_BY_LIST, "hash_list"), else_=VERDICT.c.concept).label("concept")
UNTOLD = ("embedding", "pdq", "illegal", "concept")
SAID = [*(column for column in VERDICT.c if column.name not in UNTOLD), CONCEPT, POLICY.c.name.label("policy_name")]
JUDGED = select(*SAID).outerjoin(POLICY, POLICY.c.hash == VERDICT.c.policy).order_by(VERDICT.c.id)
# What a list shows of each job; `sha256` is the file's, because the store is content-addressed.
LISTED = [
    *(column for column in JOB.c if column.name not in ("owner", "lane_id", "forgiven", "verdict_id")),
    VERDICT.c.id.label("verdict_id"),
    case((~_forbidden(JOB.c.id), ARTIFACT.c.key)).label("sha256"),
    ARTIFACT.c.mime.label("mime"),
    ARTIFACT.c.bytes.label("bytes"),
    VERDICT.c.outcome.label("verdict"),
    CONCEPT,
]
SEEN = PROGRESS.c.preview.is_not(None) & ~doubted(JOB.c.id)
STEPS: list[ColumnElement[Any]] = [PROGRESS.c.job_id, JOB.c.batch_id, SEEN.label("preview")]
STEPS += (PROGRESS.c[name] for name in ("attempt", "step", "total", "updated_at"))
SHOWN = [
    *ARTIFACT.c,
    *(JOB.c[name] for name in ("batch_id", "line", "index", "name", "state", "model", "prompt", "seed", "format")),
    *(JOB.c[name] for name in ("parent_job_id", "upload_id")),
]


class Insights:
    def __init__(self, engine: Engine, clock: Callable[[], float] = time.time) -> None:
        self.engine, self.clock = engine, clock
        self._counting = threading.Lock()
        self._counted: tuple[float, dict[str, int]] | None = None
        self._judged: tuple[float, list[tuple[str, str, str, int]]] | None = None

    def batches(self, project_id: str, before: int | None = None, limit: int = 50) -> list[Record]:
        query = select(*TOLD).where(BATCH.c.project_id == project_id, VISIBLE).order_by(BATCH.c.id.desc()).limit(limit)
        query = query if before is None else query.where(BATCH.c.id < before)
        with reading(self.engine) as connection:
            batches = _all(connection, query)
            counts = _counts(connection, [batch["id"] for batch in batches])
        return self._warned([_with_counts(batch, counts.get(batch["id"], {})) for batch in batches])

    def batch(self, project_id: str, batch_id: int) -> Record | None:
        """The batch, its counts per state, whether it is settled, what its unsettled jobs wait for, and how far the
        first of those are that are drawn now."""
        query = select(*TOLD).where(BATCH.c.project_id == project_id, BATCH.c.id == batch_id, VISIBLE)
        with reading(self.engine) as connection:
            batch = _one(connection, query)
            if batch is None:
                return None
            counts = _counts(connection, [batch_id]).get(batch_id, {})
            running = _all(connection, self._running(project_id, batch_id).limit(RUNNING_SHOWN))
            found = _with_counts(batch, counts) | {"waits": _all(connection, waits(batch_id)), "running": running}
        return self._warned([found])[0]

    def jobs(
        self,
        project_id: str,
        batch_id: int | None = None,
        state: str | Collection[str] | None = None,
        after: int = 0,
        limit: int = 100,
    ) -> list[Record]:
        states = [state] if isinstance(state, str) or state is None else sorted(state)
        if not states:
            return []
        page = job_page(project_id, batch_id, states, after, limit).subquery()
        query = _listing().where(JOB.c.project_id == project_id, VISIBLE, JOB.c.id.in_(select(page.c.id)))
        with reading(self.engine) as connection:
            jobs = _all(connection, query.order_by(JOB.c.id))
        self._explained(jobs)
        return jobs

    def job(self, project_id: str, job_id: int) -> Record | None:
        """Everything about one job: how far it is while it is drawn, verdicts, faults, artifacts, decisions, its
        neighbours in the chain, and what follows from what it met."""
        with reading(self.engine) as connection:
            job = _one(connection, _listing().where(JOB.c.project_id == project_id, VISIBLE, JOB.c.id == job_id))
            if job is None:
                return None
            found = job | {
                "progress": _one(connection, self._running(project_id).where(JOB.c.id == job_id)),
                "verdicts": _all(connection, JUDGED.where(VERDICT.c.job_id == job_id)),
                "faults": _all(
                    connection, select(JOB_FAULT).where(JOB_FAULT.c.job_id == job_id).order_by(JOB_FAULT.c.id)
                ),
                "artifacts": _all(
                    connection, select(ARTIFACT).where(ARTIFACT.c.job_id == job_id).order_by(ARTIFACT.c.id)
                ),
                "decisions": _all(
                    connection, select(DECISION).where(DECISION.c.job_id == job_id).order_by(DECISION.c.id)
                ),
                "parent": _relatives(connection, project_id, JOB.c.id == job["parent_job_id"]),
                "children": _relatives(connection, project_id, JOB.c.parent_job_id == job_id),
            }
        self._explained([found])
        return found | {"advice": waiting.advice(found)}

    def running(self, project_id: str, limit: int, batch_id: int | None = None) -> list[Record]:
        """How far the jobs are that are drawn now."""
        with reading(self.engine) as connection:
            return _all(connection, self._running(project_id, batch_id).limit(limit))

    def preview(self, project_id: str, job_id: int) -> Record | None:
        """The bytes of a running job's newest preview, and their type."""
        query = self._running(project_id, columns=[PROGRESS.c.preview, PROGRESS.c.mime]).where(JOB.c.id == job_id, SEEN)
        with reading(self.engine) as connection:
            return _one(connection, query)

    def artifacts(
        self, project_id: str, state: str = State.PUBLISHED, after: int = 0, limit: int = 100
    ) -> list[Record]:
        """The artifacts of the jobs in one state, in the order of their jobs; page by `job_id`."""
        query = _shown().where(JOB.c.project_id == project_id, JOB.c.state == str(state), JOB.c.id > after)
        with reading(self.engine) as connection:
            return _all(connection, query.order_by(JOB.c.id).limit(limit))

    def gallery(self, project_id: str, limit: int = 60, before: int | None = None) -> list[Record]:
        """Published artifacts, the newest first; page by their `id`."""
        query = _shown().where(ARTIFACT.c.project_id == project_id, JOB.c.state == str(State.PUBLISHED))
        query = query if before is None else query.where(ARTIFACT.c.id < before)
        with reading(self.engine) as connection:
            return _all(connection, query.order_by(ARTIFACT.c.id.desc()).limit(limit))

    def bad_lines(self, project_id: str, batch_id: int, after: int = 0, limit: int = 100) -> list[Record]:
        query = select(BAD_LINE).join(BATCH, BATCH.c.id == BAD_LINE.c.batch_id).where(VISIBLE)
        query = query.where(BAD_LINE.c.project_id == project_id, BAD_LINE.c.batch_id == batch_id, BAD_LINE.c.id > after)
        with reading(self.engine) as connection:
            return _all(connection, query.order_by(BAD_LINE.c.id).limit(limit))

    def components(self) -> list[Record]:
        """What each process last said, and how many seconds ago."""
        now = self.clock()
        with reading(self.engine) as connection:
            said = _all(connection, select(COMPONENT).order_by(COMPONENT.c.kind, COMPONENT.c.name))
        return [row | {"age_s": max(0.0, now - row["beat_at"])} for row in said]

    def held_up(self) -> list[str]:
        return waiting.held_up(self.components())

    def pool(self) -> list[Record]:
        """Each place for a gang, as its dispatcher last told of it; of one that is away its gangs alone, as silent."""
        now = self.clock()
        known = (GANG.c.beat_at > now - STALE_S) | (GANG.c.gang != literal_column("''"))
        order = (GANG.c.pool, GANG.c.place, GANG.c.beat_at.desc(), GANG.c.dispatcher)
        with reading(self.engine) as connection:
            said = _all(connection, select(GANG).where(known).order_by(*order))
        return [_of_gang(row, now) for row in said]

    def nodes(self) -> list[Record]:
        """The nodes that a dispatcher sees now, and those that are drained, seen or not: `drained` says by whom."""
        fresh = select(NODE).where(NODE.c.beat_at > self.clock() - STALE_S)
        with reading(self.engine) as connection:
            seen = {row["id"]: row for row in _all(connection, fresh.order_by(NODE.c.beat_at))}
            drained = {row["id"]: row for row in _all(connection, select(DRAIN).where(DRAIN.c.kind == "node"))}
        unseen = {id_: row | {"cpus": None, "gpus": None} for id_, row in drained.items() if id_ not in seen}
        shown = [{name: row[name] for name in ("id", "name", "cpus", "gpus")} for row in (seen | unseen).values()]
        for row in shown:
            row["drained"] = drained[row["id"]]["person"] if row["id"] in drained else None
        return sorted(shown, key=lambda row: str(row["name"]))

    def warnings(self, models: Iterable[str]) -> list[str]:
        """What jobs of these models would wait for, however well formed they are."""
        return waiting.warnings(waiting.missing(self.components()), self.pool(), models)

    def _warned(self, batches: list[Record]) -> list[Record]:
        """Those that go on say what all or some of their jobs wait for."""
        models = self._models([batch["id"] for batch in batches if batch["state"] == "open"])
        missing = waiting.missing(self.components()) if models else []
        gangs = self.pool() if models else []
        for batch in batches:
            known = batch["id"] in models
            batch["warnings"] = waiting.warnings(missing, gangs, models[batch["id"]]) if known else []
        return batches

    def _models(self, batches: Collection[int]) -> dict[int, set[str]]:
        """Of the jobs that are still to be drawn."""
        lanes = select(LANE.c.batch_id, LANE.c.model).where(LANE.c.batch_id.in_(batches), LANE.c.open == true())
        models: dict[int, set[str]] = {batch_id: set() for batch_id in batches}
        if models:
            with reading(self.engine) as connection:
                for batch_id, model in connection.execute(lanes.distinct()):
                    models[batch_id].add(model)
        return models

    def _explained(self, jobs: Iterable[Record]) -> None:
        """A job that nobody has tried yet, because it cannot be drawn now, says why as one that was tried does."""
        untold = [job for job in jobs if job["state"] == State.QUEUED and not job["reason"]]
        gangs = self.pool() if untold else []
        lacking, coming = waiting.lacking(gangs), waiting.coming(gangs)
        for job in untold:
            if job["model"] in lacking:
                job["reason"] = waiting.NO_WEIGHTS
            else:
                job["reason"] = coming.get(job["model"], "")

    def _running(
        self, project_id: str, batch_id: int | None = None, columns: Sequence[ColumnElement[Any]] = STEPS
    ) -> Select[Any]:
        """A row that is left over from an attempt that has ended, or whose lease has run out, says nothing any more."""
        alive = (JOB.c.state == State.LEASED) & (JOB.c.lease_expires_at > self.clock())
        ours = (JOB.c.id == PROGRESS.c.job_id) & (JOB.c.attempt == PROGRESS.c.attempt)
        query = select(*columns).select_from(PROGRESS.join(JOB, ours)).order_by(JOB.c.id)
        query = query.where(PROGRESS.c.project_id == project_id, JOB.c.project_id == project_id, alive)
        return query if batch_id is None else query.where(JOB.c.batch_id == batch_id)

    def conservation(self, batch_id: int) -> Record:
        """Law 3, of one batch: what was accepted is the sum over the states."""
        with reading(self.engine) as connection:
            accepted = connection.execute(select(BATCH.c.jobs).where(BATCH.c.id == batch_id, VISIBLE)).scalar() or 0
            counts = _counts(connection, [batch_id]).get(batch_id, {})
        return {"accepted": accepted, "counts": counts, "holds": accepted == sum(counts.values())}

    def counts(self, project_id: str | None = None) -> dict[str, int]:
        """Jobs per state, every state named; of the whole farm where no project is given (metrics)."""
        batches = select(BATCH.c.id).where(VISIBLE)
        batches = batches if project_id is None else batches.where(BATCH.c.project_id == project_id)
        query = select(JOB.c.state, func.count().label("jobs")).where(JOB.c.batch_id.in_(batches))
        with reading(self.engine) as connection:
            found = {row.state: row.jobs for row in connection.execute(query.group_by(JOB.c.state))}
        return {str(state): found.get(state, 0) for state in State}

    def farm_counts(self) -> dict[str, int]:
        """Those of the whole farm, a few seconds old at most: anyone may ask for them, as often as they like."""
        with self._counting:
            if self._counted is None or abs(self.clock() - self._counted[0]) >= COUNTED_FOR_S:
                self._counted = self.clock(), self.counts()
            return self._counted[1]

    def farm_verdicts(self) -> list[tuple[str, str, str, int]]:
        """Stage, outcome, concept, and how many verdicts of the whole farm were so; half a minute old at most. What is
        on an illegal list does not count: anyone may ask."""
        with self._counting:
            if self._judged is None or abs(self.clock() - self._judged[0]) >= JUDGED_FOR_S:
                self._judged = self.clock(), self._verdicts()
            return self._judged[1]

    def _verdicts(self) -> list[tuple[str, str, str, int]]:
        """All of them from the index of these three; the few illegal ones, which it does not tell, from theirs."""
        groups = [VERDICT.c[name] for name in ("stage", "outcome", "concept")]
        query = select(*groups, func.count().label("verdicts")).select_from(VERDICT).group_by(*groups)
        counts: Counter[tuple[str, str, str]] = Counter()
        with reading(self.engine) as connection:
            for row in connection.execute(query):
                counts[row.stage, row.outcome, row.concept or ""] += row.verdicts
            for row in connection.execute(query.where(literal_column("illegal"))):
                counts[row.stage, row.outcome, row.concept or ""] -= row.verdicts
        return [(*said, count) for said, count in sorted(counts.items()) if count]

    def superseded(self, project_id: str | None = None) -> int:
        """How many results came too late and were dropped."""
        query = select(func.count()).select_from(EVENT).where(EVENT.c.kind == literal_column("'superseded'"))
        query = query if project_id is None else query.where(EVENT.c.project_id == project_id)
        with reading(self.engine) as connection:
            return int(connection.execute(query).scalar_one())


def _of_gang(row: Record, now: float) -> Record:
    told = {name: row[name] for name in ("pool", "place", "model", "gang", "nodes", "state", "waits_for", "dispatcher")}
    age_s, for_s = (max(0.0, now - row[name]) for name in ("beat_at", "since"))
    if age_s >= STALE_S:
        was = f"{row['state']} ({row['waits_for']})" if row["waits_for"] else row["state"]
        told |= {"state": SILENT, "waits_for": f"its dispatcher, which last said: {was}"}
        for_s = age_s
    return told | {"for_s": for_s, "age_s": age_s}


def job_page(
    project_id: str, batch_id: int | None, states: Sequence[str | None], after: int, limit: int
) -> Select[Any]:
    """The ids of one page, each state's read from an index in their order, so that no page sorts what it does not
    show. None is any state."""
    hidden = select(BATCH.c.id).where(_spelled(BATCH.c.state, HIDDEN))
    mine = [JOB.c.id > after, JOB.c.batch_id.not_in(hidden)]
    mine.append(JOB.c.project_id == project_id if batch_id is None else JOB.c.batch_id == batch_id)
    ids = select(JOB.c.id).where(*mine).order_by(JOB.c.id).limit(limit)
    each = [ids if state is None else ids.where(JOB.c.state == state) for state in states]
    if len(each) == 1:
        return each[0]
    together = union_all(*(select(some.subquery().c.id) for some in each)).subquery()
    return select(together.c.id).order_by(together.c.id).limit(limit)


def _spelled(column: ColumnElement[str], words: Collection[str]) -> ColumnElement[bool]:
    """One of these words, spelled out: bound, they would keep SQLite from the index of such rows."""
    return column.in_([literal_column(f"'{word}'") for word in words])


def _listing() -> Select[Any]:
    rows = JOB.join(BATCH, BATCH.c.id == JOB.c.batch_id)
    rows = rows.outerjoin(ARTIFACT, ARTIFACT.c.id == JOB.c.artifact_id).outerjoin(VERDICT, VERDICT.c.id == _decisive())
    return select(*LISTED).select_from(rows)


def _decisive() -> ColumnElement[Any]:
    """The verdict that made the job what it is: the first doubt, about the prompt, say, though the frame was allowed;
    else the one on the frame, or the one that blocked."""
    doubt = VERDICT.alias("doubt")
    mine = (doubt.c.job_id == JOB.c.id, doubt.c.attempt == JOB.c.attempt, doubt.c.outcome == str(Outcome.REVIEW))
    counts = doubt.c.stage != str(Stage.PREVIEW)
    first = select(func.min(doubt.c.id)).where(*mine, counts, JOB.c.state != str(State.BLOCKED)).scalar_subquery()
    return case((JOB.c.verdict_id.is_not(None), func.coalesce(first, JOB.c.verdict_id)))


def _shown() -> Select[Any]:
    return (
        select(*SHOWN)
        .select_from(ARTIFACT.join(JOB, JOB.c.artifact_id == ARTIFACT.c.id))
        .where(JOB.c.id == ARTIFACT.c.job_id)
    )


def _all(connection: Connection, query: Select[Any]) -> list[Record]:
    return [dict(row) for row in connection.execute(query).mappings()]


def _one(connection: Connection, query: Select[Any]) -> Record | None:
    row = connection.execute(query).mappings().first()
    return dict(row) if row else None


def _counts(connection: Connection, batches: Collection[int]) -> dict[int, dict[str, int]]:
    query = select(JOB.c.batch_id, JOB.c.state, func.count()).where(JOB.c.batch_id.in_(batches))
    counts: dict[int, dict[str, int]] = {}
    for batch_id, state, count in connection.execute(query.group_by(JOB.c.batch_id, JOB.c.state)):
        counts.setdefault(batch_id, {})[state] = count
    return counts


def _with_counts(batch: Record, counts: dict[str, int]) -> Record:
    """A batch that is not cancelled, and of which nothing is to come any more, is shown as settled."""
    settled = not any(counts.get(state) for state in UNSETTLED)
    counts = {state.value: counts[state] for state in ENDED_FIRST if state in counts}
    state = "settled" if settled and batch["state"] in ("open", "paused") else batch["state"]
    return batch | {"state": state, "counts": counts, "settled": settled}


def waits(batch_id: int) -> Select[Any]:
    """The commonest reasons, with how many jobs each keeps."""
    count = func.count().label("jobs")
    waiting = (_spelled(JOB.c.state, (State.WAITING, State.QUEUED)), JOB.c.reason != literal_column("''"))
    query = select(JOB.c.state, JOB.c.reason, count).where(JOB.c.batch_id == batch_id, *waiting)
    query = query.group_by(JOB.c.state, JOB.c.reason)
    return query.order_by(count.desc(), JOB.c.reason).limit(10)


def _relatives(connection: Connection, project_id: str, which: Any) -> list[Record]:
    columns = [JOB.c[name] for name in ("id", "batch_id", "state", "prompt", "artifact_id")]
    query = (
        select(*columns).join(BATCH, BATCH.c.id == JOB.c.batch_id).where(JOB.c.project_id == project_id, VISIBLE, which)
    )
    return _all(connection, query.order_by(JOB.c.id).limit(100))
