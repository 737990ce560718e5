"""A batch as it comes in: read once to find everything that is wrong with it, and once more to stage it in chunks.

The file lies on the disk and is read line by line; all that is remembered of a line is its id, and whether its shape is
new.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import BinaryIO, NamedTuple

from sqlalchemy import Engine, null, select

from farm import licences
from farm.db import reading
from farm.errors import BadInput, Conflict, FarmError, TooLarge
from farm.job_queue import JobQueue, NewJob
from farm.lines import BadLine, Line, parse_line
from farm.ports import ModelCard
from farm.sizes import of_parent, of_ratio
from farm.tables import BATCH, JOB, THERE, UPLOAD

MAX_LINE = 64 * 1024
CHUNK = 1000
MAX_SHOWN = 100
MAX_SHAPES = 1000  # of a batch: each is a lane, and every lease chooses from all lanes that are open

Judged = Line | list[BadLine]


@dataclass(frozen=True, slots=True)
class Rules:
    """What the lines of a batch may ask for."""

    project: str
    catalogue: Mapping[str, ModelCard]
    default_model: str | None = None
    max_lines: int = 1_000_000


@dataclass(frozen=True, slots=True)
class Submission:
    name: str
    by: str
    priority: int = 0  # added to that of each line
    skip_bad: bool = False
    again: bool = False  # make it once more, though the project has it already


@dataclass(slots=True)
class Survey:
    """What the first reading finds."""

    lines: int = 0
    jobs: int = 0
    bad_lines: int = 0
    shown: list[BadLine] = field(default_factory=list)  # what is wrong, the first of it
    models: set[str] = field(default_factory=set)
    sha256: str = ""  # of what the good lines ask for, defaults filled in: the spelling of the file does not matter


class Made(NamedTuple):
    """What a line makes."""

    n: int
    width: int
    height: int


class Input(NamedTuple):
    """An upload or a job that a line edits."""

    key: str | None  # in the store, of an upload
    width: int
    height: int


@dataclass(slots=True)
class Seen:
    """Of the good lines so far."""

    ids: dict[str, Made] = field(default_factory=dict)
    made: dict[Made, Made] = field(default_factory=dict)  # one of each kind, or a million ids would hold a million
    shapes: set[tuple[str, int]] = field(default_factory=set)  # shape key and priority


@dataclass(frozen=True, slots=True)
class Receipt:
    batch_id: int
    found: Survey
    repeated: bool  # the project had the same content already: this is that batch


def take(file: BinaryIO, submission: Submission, rules: Rules, queue: JobQueue) -> Receipt:
    """All of a batch is accepted, or nothing; with skip_bad, all that is good."""
    found = survey(judge(file, rules, queue.engine))
    problem = refusal(found)
    if problem is not None and not (submission.skip_bad and found.jobs):
        raise problem
    sha256 = None if submission.again else found.sha256
    first = _same_content(queue.engine, rules.project, sha256)
    if first is not None:
        return Receipt(first, found, repeated=True)
    staged = queue.open_batch(rules.project, submission.name, submission.by, submission.priority)
    try:
        _stage(file, rules, queue, staged, found)
        accepted = queue.accept(staged, sha256, lines=found.lines)
    except BaseException:
        # Out of reach as well? Then it is collected later: nobody sees what is only staged.
        with contextlib.suppress(FarmError):
            queue.discard(staged)
        raise
    return Receipt(accepted, found, repeated=accepted != staged)


def _same_content(engine: Engine, project: str, sha256: str | None) -> int | None:
    same = select(BATCH.c.id).where(BATCH.c.project_id == project, BATCH.c.content_sha256 == sha256)
    with reading(engine) as connection:
        return connection.execute(same).scalar() if sha256 else None


def _stage(file: BinaryIO, rules: Rules, queue: JobQueue, batch_id: int, found: Survey) -> None:
    staged = 0
    for chunk in judge(file, rules, queue.engine):
        staged += queue.stage(batch_id, (job for line in chunk if isinstance(line, Line) for job in jobs_of(line)))
        queue.stage_bad(batch_id, (bad for line in chunk if not isinstance(line, Line) for bad in line))
    if staged != found.jobs:
        raise Conflict("something the batch refers to was removed meanwhile", fix="submit it again")


def jobs_of(line: Line) -> Iterator[NewJob]:
    for index in range(line.n):
        yield NewJob(
            line=line.number,
            spec=replace(line.spec, seed=line.spec.seed + index),
            index=index,
            name=line.id,
            priority=line.priority,
            parent_job_id=line.job,
            parent_name=line.line,
            upload_id=line.upload,
        )


def survey(chunks: Iterable[list[Judged]]) -> Survey:
    found, digest = Survey(), hashlib.sha256()
    for line in itertools.chain.from_iterable(chunks):
        found.lines += 1
        if isinstance(line, Line):
            found.jobs += line.n
            found.models.add(line.spec.model)
            asked = (line.spec, line.n, line.id, line.priority, line.picture, line.job, line.line)
            digest.update(repr(asked).encode())
        else:
            found.bad_lines += 1
            found.shown += line[: MAX_SHOWN - len(found.shown)]
    found.sha256 = digest.hexdigest()
    return found


def judge(file: BinaryIO, rules: Rules, engine: Engine) -> Iterator[list[Judged]]:
    """The lines in chunks, each good or with all that is wrong with it. Two readings of one file judge it alike."""
    seen = Seen()
    lines = _parsed(file, rules, licences.refused(engine, rules.catalogue))
    count = 0
    while chunk := list(itertools.islice(lines, CHUNK)):
        count += len(chunk)
        if count > rules.max_lines:
            raise TooLarge(f"the batch has more than {rules.max_lines:,} lines", fix="split it into several")
        inputs = _inputs(chunk, rules.project, engine)
        yield [_linked(line, seen, inputs, rules.catalogue) if isinstance(line, Line) else line for line in chunk]


def read_lines(file: BinaryIO) -> Iterator[tuple[int, bytes | None]]:
    """Numbered lines that are not blank; None stands for one that is too long, which is never held whole."""
    file.seek(0)
    for number in itertools.count(1):
        text = file.readline(MAX_LINE)
        if not text:
            return
        too_long = len(text) == MAX_LINE and not text.endswith(b"\n")
        rest = text if too_long else b""
        while rest and not rest.endswith(b"\n"):
            rest = file.readline(MAX_LINE)
        if number == 1:
            text = text.removeprefix(b"\xef\xbb\xbf")
        if too_long or text.strip():
            yield number, None if too_long else text.strip()


def _parsed(file: BinaryIO, rules: Rules, refused: Mapping[str, str]) -> Iterator[Judged]:
    for number, text in read_lines(file):
        if text is None:
            yield [BadLine(number, "line", f"is longer than {MAX_LINE:,} bytes")]
        else:
            yield parse_line(number, text, rules.catalogue, rules.default_model, refused)


def _inputs(chunk: list[Judged], project: str, engine: Engine) -> dict[str | int, Input]:
    """The uploads and jobs that are there. Another project's are as unknown as those that never were (law 11)."""
    lines = [line for line in chunk if isinstance(line, Line)]
    uploads = {line.upload for line in lines if line.upload}
    jobs = {line.job for line in lines if line.job}
    if not uploads and not jobs:
        return {}
    upload = select(*(UPLOAD.c[name] for name in ("id", "key", "width", "height")))
    upload = upload.where(UPLOAD.c.project_id == project, UPLOAD.c.id.in_(uploads), THERE)
    job = select(JOB.c.id, null(), JOB.c.width, JOB.c.height).where(JOB.c.project_id == project, JOB.c.id.in_(jobs))
    with reading(engine) as connection:
        return {id_: Input(*about) for query in (upload, job) for id_, *about in connection.execute(query)}


def _linked(line: Line, seen: Seen, inputs: Mapping[str | int, Input], catalogue: Mapping[str, ModelCard]) -> Judged:
    """Only an earlier line can be edited, so no circle can be written."""
    ids, problems = seen.ids, []
    if line.upload and line.upload not in inputs:
        problems.append(("image", f"no upload {line.upload} in this project: upload the file first"))
    if line.job and line.job not in inputs:
        problems.append(("image", f"no job {line.job} in this project"))
    if line.line and line.line not in ids:
        problems.append(("image", f"no good line before this one has the id {line.line!r}"))
    elif line.line and (n := ids[line.line].n) > 1:
        problems.append(("image", f"the line {line.line!r} makes {n} images: give each a line of its own"))
    if line.id in ids:
        problems.append(("id", f"an earlier line has the id {line.id!r} already"))
    line = line if line.sized or problems else _sized(line, seen, inputs, catalogue[line.spec.model])
    shape = line.spec.shape_key, line.priority
    if shape not in seen.shapes and len(seen.shapes) >= MAX_SHAPES:
        kinds = f"{MAX_SHAPES:,} different combinations of model, size, steps, editing and priority"
        problems.append(("line", f"is one more than the {kinds} that a batch may hold: split the batch"))
    if problems:
        return [BadLine(line.number, *problem) for problem in problems]
    if line.id:
        made = Made(line.n, line.spec.width, line.spec.height)
        ids[line.id] = seen.made.setdefault(made, made)
    seen.shapes.add(shape)
    return replace(line, picture=inputs[line.upload].key) if line.upload else line


def _sized(line: Line, seen: Seen, inputs: Mapping[str | int, Input], card: ModelCard) -> Line:
    """With the size of the picture it edits; of a stranger's, which may be of any size, it keeps the shape."""
    if line.upload:
        picture = inputs[line.upload]
        width, height, _ = of_ratio(picture.width / picture.height, card)
    else:
        parent = seen.ids[line.line] if line.line else inputs[line.job or 0]
        width, height = of_parent(parent.width, parent.height, card)
    return replace(line, spec=replace(line.spec, width=width, height=height), sized=True)


def refusal(found: Survey) -> BadInput | None:
    """Why nothing of this batch can be accepted as it is."""
    if not found.lines:
        return BadInput(
            "the batch has no lines", fix='write one JSON object a line, such as {"prompt": "a red circle"}'
        )
    if not found.bad_lines:
        return None
    first = found.shown[0]
    shown = [{"line": bad.line, "field": bad.field, "reason": bad.reason} for bad in found.shown]
    return BadInput(
        f"{found.bad_lines:,} of {found.lines:,} lines are bad; line {first.line}: {first.field} {first.reason}",
        field="lines",
        fix="correct them, or skip them (skip_bad)",
        bad_lines=shown,
        bad_line_count=found.bad_lines,
    )
