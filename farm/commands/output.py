"""What commands print: tables for people, JSON for programs, progress to standard error."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from rich.console import Console

T = TypeVar("T")
EMPTY: tuple[Any, ...] = (None, "", [], {})
HASH = re.compile(r"[0-9a-f]{64}")
SHOWN_BAD = 20
# A name or reason that somebody else chose must not steer the terminal, or turn its letters round.
CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
KEPT_WHOLE = 13  # characters: columns no wider than that are cut only when nothing else is left to cut
WIDE = 10_000  # without a terminal and without COLUMNS nothing is cut off


def as_json(value: Any) -> None:
    print(json.dumps(value, ensure_ascii=False), flush=True)


def as_json_list(rows: Iterable[Any]) -> None:
    """One JSON document too, written as the rows come: there may be a million."""
    before = "["
    for row in rows:
        print(before, json.dumps(row, ensure_ascii=False), sep="", end="")
        before = ",\n"
    print("[]" if before == "[" else "]", flush=True)


def clean(text: str) -> str:
    return CONTROLS.sub("", text)


def say(text: str) -> None:
    print(clean(text), file=sys.stderr, flush=True)


def counted(count: int, thing: str) -> str:
    return f"{count:,} {thing}{'' if count == 1 else 's'}"


def say_bad_lines(bad: Sequence[Mapping[str, Any]], count: int) -> None:
    """The first bad lines with all that is wrong with each, and how many more there are."""
    shown = bad[:SHOWN_BAD]
    for row in shown:
        say(f"  line {row['line']}: {row['field']}: {row['reason']}")
    more = count - len({row["line"] for row in shown})
    if more > 0:
        say(f"  and {more:,} more")


def moment(seconds: float | None) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds)) if seconds else ""


def lasting(seconds: float) -> str:
    """How long, in the largest unit of which there are two."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def console(stderr: bool = False) -> Console:
    from rich.console import Console

    known = (sys.stderr if stderr else sys.stdout).isatty() or os.environ.get("COLUMNS", "").isdecimal()
    return Console(stderr=stderr, width=None if known else WIDE, highlight=False, soft_wrap=not known)


def progress(items: Iterable[T], total: int, words: str) -> Iterable[T]:
    """A bar on a terminal; nothing elsewhere."""
    from rich.progress import track

    return track(items, words, total, console=console(stderr=True), transient=True, disable=not sys.stderr.isatty())


def table(rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """As wide as the terminal, or COLUMNS: the widest columns are cut; --json has all."""
    from rich.table import Column, Table
    from rich.text import Text

    cells = [[_cell(name, row.get(name)) for name in columns] for row in rows]
    widest = [max(map(len, column), default=0) for column in zip(*cells, strict=True)] or [0] * len(columns)
    heads = [
        Column(name.removesuffix("_at"), no_wrap=width <= KEPT_WHOLE)
        for name, width in zip(columns, widest, strict=True)
    ]
    view = Table(*heads, box=None, pad_edge=False)
    for row in cells:
        view.add_row(*(Text(cell, overflow="ellipsis", no_wrap=True) for cell in row))
    console().print(view)


def facts(row: Mapping[str, Any]) -> None:
    """One thing, a line a fact."""
    width = max(len(name) for name in row)
    for name, value in row.items():
        if said := _cell(name, value):
            print(f"{name:<{width}}  {said}")


def columns_of(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Those that say something."""
    return [name for name in rows[0] if any(row[name] not in EMPTY for row in rows)]


def _cell(name: str, value: Any) -> str:
    if (name.endswith("_at") or name == "not_before") and isinstance(value, float | int):
        return moment(value)
    if isinstance(value, Mapping):
        return ", ".join(f"{count} {name}" for name, count in value.items() if count)
    if isinstance(value, str) and HASH.fullmatch(value):
        return f"{value[:12]}..."
    if isinstance(value, float):
        return f"{value:.3f}".rstrip("0").rstrip(".")
    return clean(" ".join(str("" if value is None else value).split()))
