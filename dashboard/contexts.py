"""What each page is given, made from the read model. Pure.

gallery   images (records of Insights.gallery), older (the id to page on from, or None), newest (the first page?),
          warnings (what keeps the farm from making images)
batches   batches (BatchView), older, warnings (of all that are shown)
batch     batch (BatchView), runs (may this person steer it), jobs (records of Insights.jobs), only (the state shown, or
          None), more (to page on from)
job       job (the record of Insights.job), verdict (of its frame or prompt), again (verdicts of later policies on what
          was judged before), picture (may this person see it), scores (and the gate's figures), held_up (what the
          dispatchers wait for, in detail, for operators)
verify    found (the report of the file that was sent, or None), name (what it is called), steps (its ancestors)
signin    wrong (why the last try failed, or None), after (where to go then)
error     problem (an RFC 9457 document)
Each also gets verify_public (may anyone verify files here); all but signin and error get person (who looks; on the
page verify maybe None) and here (which page, for the menu)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from farm.job import State

# The order in which states stand in a bar: what is done first, what is still to come last.
BAR = (
    State.PUBLISHED,
    State.UNLISTED,
    State.HELD,
    State.APPROVED,
    State.BLOCKED,
    State.REJECTED,
    State.FAILED,
    State.CANCELLED,
    State.LEASED,
    State.QUEUED,
    State.WAITING,
)

DEEPEST = 5  # step to the right in a tree of ancestors


@dataclass(frozen=True, slots=True)
class Part:
    state: str
    count: int
    start: float  # in hundredths of the bar
    width: float


@dataclass(frozen=True, slots=True)
class BatchView:
    record: Mapping[str, Any]
    parts: list[Part]
    summary: str

    def __getattr__(self, name: str) -> Any:
        return self.record[name]


def parts(counts: Mapping[str, int]) -> list[Part]:
    """The bar of a batch: one part a state that has jobs, side by side, together 100 wide."""
    total = sum(counts.values())
    done, made = 0, []
    for state in BAR:
        count = counts.get(state, 0)
        if count:
            made.append(Part(state.value, count, 100 * done / total, 100 * count / total))
            done += count
    return made


def batch_view(record: Mapping[str, Any]) -> BatchView:
    made = parts(record["counts"])
    summary = ", ".join(f"{part.count} {part.state}" for part in made) or "no jobs"
    return BatchView(record, made, summary)


def page_on(records: list[dict[str, Any]], limit: int) -> tuple[list[dict[str, Any]], int | None]:
    """One more than a page was asked for: what the page shows, and where the next one starts, if there is one."""
    shown = records[:limit]
    return shown, shown[-1]["id"] if len(records) > limit else None


def steps(ancestors: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The ancestors of a file, with how far each stands in from the left: on a phone there is not much room."""
    return [{**one, "indent": min(one["depth"], DEEPEST)} for one in ancestors]


def judged_again(verdicts: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Those on what an earlier one spoke of already: a later policy's."""
    seen: set[tuple[object, ...]] = set()
    again = []
    for verdict in verdicts:
        subject = tuple(verdict[name] for name in ("attempt", "stage", "subject"))
        if subject in seen:
            again.append(verdict)
        seen.add(subject)
    return again
