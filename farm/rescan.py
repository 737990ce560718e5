"""What was published or is held, judged again by another policy from what is stored of it. No picture is opened.

Each page is one short transaction that writes the new verdicts and makes the moves that follow from them, so whoever
dies in between goes on where it stopped: what has a verdict of the policy in force is done. A picture that a person
approved stands, and one that is held waits for a person, whatever the new policy says; both are told.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from operator import attrgetter
from typing import Any

from sqlalchemy import Connection, Engine, Row, Select, exists, func, select

from farm import aftermath, audit, hash_lists, moves, rules
from farm.db import insert_many, reading, transact
from farm.errors import Conflict, Fault
from farm.job import State
from farm.leasing import VERDICT_KEY, known_verdicts, verdict_row
from farm.moves import Move
from farm.ports import Kept, Outcome, Stage, Verdict
from farm.tables import ARTIFACT, JOB, UPLOAD, VERDICT

PAGE = 1000
WITHDRAWN = (State.REJECTED, State.UNLISTED)  # those who judge may still look; only an illegal list changes anything
SEEN = (State.PUBLISHED, State.HELD, State.APPROVED, *WITHDRAWN)  # of the others nothing is shown: see farm.unseen
GRAVITY = (Outcome.ALLOW, Outcome.REVIEW, Outcome.BLOCK)
FROM_VERDICT = ("stage", "subject", "encoder", "embedding", "pdq", "reason", "outcome")
Judge = Callable[[Sequence[Kept]], Sequence[Verdict | Fault]]


@dataclass(frozen=True, slots=True)
class Picture:
    """One that people see, or are to judge; and what is kept of its prompt, its input and its pixels."""

    artifact_id: int
    job_id: int
    project_id: str
    batch_id: int
    attempt: int
    state: State
    approved: bool  # by a person
    last: tuple[Outcome, ...]  # as each of these was judged last
    kept: tuple[Kept, ...]

    @property
    def before(self) -> Outcome:
        return max(self.last, key=GRAVITY.index)


@dataclass(frozen=True, slots=True)
class Judged:
    """The same by the policy asked about, or why it cannot be said."""

    picture: Picture
    verdicts: tuple[Verdict, ...] = ()
    fault: Fault | None = None

    @property
    def gravest(self) -> Verdict:
        return max(self.verdicts, key=lambda one: (one.illegal, GRAVITY.index(one.outcome)))

    @property
    def flips(self) -> bool:
        changed = self.fault is None and self.gravest.outcome is not self.picture.before
        return changed and (self.gravest.illegal or self.picture.state not in WITHDRAWN)

    @property
    def becomes(self) -> State:
        if self.fault is not None:
            return self.picture.state
        return after(self.picture.state, self.picture.approved, self.gravest)

    @property
    def direction(self) -> str:
        """From what to what, and what follows: a picture that is not moved waits for a person, or had one's word."""
        stays = "stays as a person decided" if self.picture.approved else f"stays {self.picture.state}"
        moves = self.becomes is not self.picture.state
        follows = f"{self.picture.state} -> {self.becomes}" if moves else stays
        return f"{self.picture.before} -> {self.gravest.outcome}, {follows}"

    def told(self) -> dict[str, Any]:
        seen, said = self.picture, self.gravest
        told = {"artifact": seen.artifact_id, "job": seen.job_id, "project": seen.project_id, "state": str(seen.state)}
        told |= {"approved": seen.approved, "from": str(seen.before), "to": str(said.outcome)}
        told |= {"becomes": str(self.becomes), "stage": str(said.stage), "concept": said.concept}
        return told | {"probability": said.probability, "reason": said.reason}


@dataclass(slots=True)
class Tally:
    """What a look at many pictures has found."""

    began: float = field(default_factory=time.monotonic)
    judged: int = 0
    flips: list[dict[str, Any]] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)  # of flips, by direction and what follows
    moved: Counter[str] = field(default_factory=Counter)  # by what they become
    unjudged: Counter[str] = field(default_factory=Counter)  # by the reason
    seconds: float = 0.0

    def add(self, some: Iterable[Judged]) -> None:
        for one in some:
            if one.fault is not None:
                self.unjudged[one.fault.detail] += 1
                continue
            self.judged += 1
            if one.flips or one.becomes is not one.picture.state:
                self.flips.append(one.told())
                self.counts[one.direction] += 1
            if one.becomes is not one.picture.state:
                self.moved[str(one.becomes)] += 1
        self.seconds = time.monotonic() - self.began

    def join(self, more: Tally) -> None:
        self.judged, self.flips = self.judged + more.judged, self.flips + more.flips
        self.counts, self.moved = self.counts + more.counts, self.moved + more.moved
        self.seconds = time.monotonic() - self.began
        self.unjudged = more.unjudged  # whoever comes later sees them all again

    @property
    def per_s(self) -> float:
        return self.judged / self.seconds if self.seconds else 0.0


def after(state: State, approved: bool, verdict: Verdict) -> State:
    """What a picture in this state becomes by a later verdict. What nobody may see, reviewers do not see either."""
    if verdict.illegal and state in (State.HELD, State.APPROVED):
        return State.REJECTED
    if state is not State.PUBLISHED or (approved and not verdict.illegal):
        return state
    return {Outcome.ALLOW: state, Outcome.REVIEW: State.HELD, Outcome.BLOCK: State.UNLISTED}[verdict.outcome]


def count(engine: Engine, left: tuple[str, str] | None = None) -> int:
    """How many pictures there are, or are left that this policy, with these lists, has not judged."""
    with reading(engine) as connection:
        return int(connection.execute(_pictures(left, func.count())).scalar_one())


def pages(engine: Engine, judge: Judge, left: tuple[str, str] | None = None) -> Iterator[list[Judged]]:
    """All pictures, or those left; in the order of their artifacts."""
    last = 0
    while True:
        with reading(engine) as connection:
            found, last = _page(connection, last, left)
        if not last:
            return
        yield list(_judged(found, judge))


def settle(
    engine: Engine, judged: Sequence[Judged], stands: tuple[str, str], person: str, clock: Callable[[], float]
) -> list[Judged]:
    """Write the verdicts and make the moves; a picture that has changed meanwhile is left for another look."""
    return transact(engine, lambda connection: _settle(connection, judged, stands, person, clock()))


def _settle(
    connection: Connection, judged: Sequence[Judged], stands: tuple[str, str], person: str, now: float
) -> list[Judged]:
    locked = moves.lock(connection, (one.picture.job_id for one in judged))
    if rules.in_force(connection) != stands:
        raise Conflict("another policy was put in force meanwhile", fix="`farm policy rescan` goes on with that one")
    sure = [one for one in judged if one.fault is None and _is_as_it_was(locked.get(one.picture.job_id), one.picture)]
    before = known_verdicts(connection, (one.picture.job_id for one in sure))
    fresh = {_key(row): (one.picture, verdict, row) for one in sure for verdict, row in _rows(one, now)}
    fresh = {key: said for key, said in fresh.items() if key not in before}
    insert_many(connection, VERDICT, [row for *_, row in fresh.values()])
    hash_lists.report(connection, ((picture, verdict) for picture, verdict, _ in fresh.values()), now)
    known = known_verdicts(connection, (one.picture.job_id for one in sure))
    moving = [one for one in sure if one.becomes is not one.picture.state]
    following = []
    for one in moving:
        verdict_id = known[_key(verdict_row(one.picture, one.gravest, now))]
        following.append(Move(locked[one.picture.job_id], one.becomes, one.gravest.reason, verdict_id=verdict_id))
    moves.apply(connection, following, now)
    blocked = {move.job.id for move in following if move.state is State.UNLISTED}
    aftermath.follow_blocks(connection, blocked, person, aftermath.BLOCKS, now)
    for project_id, mine in groupby(sorted(moving, key=_project), _project):
        moved: dict[str, list[int]] = {}
        for one in mine:
            moved.setdefault(str(one.becomes), []).append(one.picture.job_id)
        audit.append(connection, project_id, person, "rescan", f"policy {stands[0]}", now, **moved)
    told = {picture.job_id for picture, *_ in fresh.values()} | {one.picture.job_id for one in moving}
    # What is known already is not told again, or who goes on until nothing is left goes on for ever.
    return [one for one in sure if one.picture.job_id in told]


def _is_as_it_was(job: Row[Any] | None, picture: Picture) -> bool:
    return job is not None and (job.state, job.artifact_id) == (picture.state, picture.artifact_id)


def _rows(judged: Judged, now: float) -> Iterator[tuple[Verdict, dict[str, Any]]]:
    """What is said of the pixels marks the picture as done; beside that only doubts tell anything, and that there is
    one no more. The embedding lies with the first verdict."""
    subjects = ((one.stage, one.subject) for one in judged.picture.kept)
    last = dict(zip(subjects, judged.picture.last, strict=True))
    for verdict in judged.verdicts:
        said = {verdict.outcome, last[verdict.stage, verdict.subject]}
        if verdict.stage is Stage.FRAME or said != {Outcome.ALLOW}:
            yield verdict, verdict_row(judged.picture, replace(verdict, embedding=None, pdq=None), now)


def _key(row: Mapping[str, Any]) -> tuple[object, ...]:
    return tuple(row[name] for name in VERDICT_KEY)


def _project(judged: Judged) -> str:
    return judged.picture.project_id


def _page(connection: Connection, last: int, left: tuple[str, str] | None) -> tuple[list[Picture], int]:
    columns: list[Any] = [*(JOB.c[name] for name in ("project_id", "batch_id", "state", "prompt")), VERDICT.c.attempt]
    columns += [ARTIFACT.c[name] for name in ("id", "job_id", "decision_id", "width", "height")]
    columns += [UPLOAD.c[name].label(f"upload_{name}") for name in ("key", "width", "height")]
    query = _pictures(left, *columns).where(ARTIFACT.c.id > last).order_by(ARTIFACT.c.id).limit(PAGE)
    rows = connection.execute(query).all()
    if not rows:
        return [], 0
    said = [VERDICT.c[name] for name in ("job_id", "attempt", *FROM_VERDICT)]
    spoken = select(*said).where(VERDICT.c.job_id.in_([row.job_id for row in rows]))
    spoken = spoken.where(VERDICT.c.stage != str(Stage.PREVIEW)).order_by(VERDICT.c.job_id, VERDICT.c.id)
    by_job = {job: list(some) for job, some in groupby(connection.execute(spoken), attrgetter("job_id"))}
    return [_picture(row, by_job[row.job_id]) for row in rows], rows[-1].id


def _pictures(left: tuple[str, str] | None, *columns: Any) -> Select[Any]:
    shown = ARTIFACT.join(JOB, (JOB.c.artifact_id == ARTIFACT.c.id) & (JOB.c.id == ARTIFACT.c.job_id))
    shown = shown.join(VERDICT, VERDICT.c.id == ARTIFACT.c.verdict_id).outerjoin(UPLOAD, UPLOAD.c.id == JOB.c.upload_id)
    query = select(*columns).select_from(shown).where(JOB.c.state.in_(SEEN))
    if left is None:
        return query
    again = VERDICT.alias("again")
    same = [again.c[name] == VERDICT.c[name] for name in ("job_id", "attempt", "stage", "subject")]
    return query.where(~exists().where(*same, again.c.policy == left[0], again.c.lists == left[1]))


def _picture(row: Row[Any], said: Sequence[Row[Any]]) -> Picture:
    """Of each thing that was judged the last outcome counts, and the embedding is where the first one left it."""
    mine = [one for one in said if one.attempt == row.attempt]
    subjects = list(dict.fromkeys((one.stage, one.subject) for one in mine))
    kept, last = [], []
    for subject in subjects:
        of_one = [one for one in mine if (one.stage, one.subject) == subject]
        kept.append(_kept(row, of_one[0]))
        last.append(Outcome(of_one[-1].outcome))
    approved = row.decision_id is not None or row.state == State.APPROVED
    state, ours = State(row.state), (row.id, row.job_id, row.project_id, row.batch_id, row.attempt)
    return Picture(*ours, state, approved, tuple(last), tuple(kept))


def _kept(row: Row[Any], first: Row[Any]) -> Kept:
    said: dict[str, Any] = {name: getattr(first, name) for name in FROM_VERDICT}
    said |= {"stage": Stage(first.stage), "outcome": Outcome(first.outcome)}
    if first.stage == Stage.PROMPT:
        return Kept(**said, prompt=row.prompt)
    if first.stage == Stage.INPUT:
        width, height = row.upload_width or 0, row.upload_height or 0
        return Kept(**said, width=width, height=height, file_sha256=row.upload_key or "")
    return Kept(**said, width=row.width, height=row.height)


def _judged(pictures: Sequence[Picture], judge: Judge) -> Iterator[Judged]:
    """A picture of which one part cannot be judged is not judged, unless it must go for another part's sake."""
    answers = iter(judge([one for picture in pictures for one in picture.kept]))
    for picture in pictures:
        said = [next(answers) for _ in picture.kept]
        fault = next((one for one in said if isinstance(one, Fault)), None)
        verdicts = tuple(one for one in said if isinstance(one, Verdict))
        known = Judged(picture, verdicts) if verdicts else None
        goes = known is not None and (known.gravest.illegal or known.becomes is not picture.state)
        yield Judged(picture, fault=fault) if fault and not goes else Judged(picture, verdicts)
