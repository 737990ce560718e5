"""Labelled pictures: a csv of path,label[,category,source,prompt], and each picture as a verdict would keep it.

`label` names the concepts that the picture shows, with `;` between them, or says `none`; `?NAME` means that nobody has
looked for that one.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from farm.errors import BadInput, nearest
from farm.pictures import decode_strangers
from farm.ports import Frame, Stage
from safety.classifier import embeddings, open_classifier
from safety.clip import Encoder
from safety.gate import is_flat
from safety.policy import Policy
from safety.scoring import Stored, fingerprint_of

NEEDED, FURTHER = ("path", "label"), ("category", "source", "prompt")
NONE, UNKNOWN = "none", "?"
AT_ONCE = 64  # pictures in one child, at most
MAX_BYTES = 1 << 27


@dataclass(frozen=True, slots=True)
class Row:
    number: int  # its line in the file
    path: Path
    shows: frozenset[str]
    unknown: frozenset[str]
    category: str
    source: str
    prompt: str


@dataclass(frozen=True, slots=True)
class Bad:
    line: int
    field: str
    reason: str


@dataclass(frozen=True, slots=True)
class Seen:
    """A picture that was opened."""

    row: Row
    stored: Stored
    flat: bool


def read(file: Path, concepts: Sequence[str]) -> tuple[list[Row], list[Bad]]:
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise BadInput(f"cannot read {file}: {error.strerror}", field="--csv", fix="name a file") from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise BadInput(f"line {line} of {file} is not UTF-8", field="--csv", fix="save it as UTF-8") from error
    table = csv.DictReader(io.StringIO(text, newline=""), strict=True, restkey="")
    _check_columns(list(table.fieldnames or ()))
    rows: dict[Path, Row] = {}
    bad: list[Bad] = []
    while True:
        try:
            found = next(table, None)
        except csv.Error as error:
            bad.append(Bad(table.line_num, "row", str(error)))
            break
        if found is None:
            break
        one = _row(table.line_num, found, file.parent, concepts)
        if isinstance(one, Row) and one.path in rows:
            one = Bad(one.number, "path", f"the same picture as in line {rows[one.path].number}")
        if isinstance(one, Bad):
            bad.append(one)
        else:
            rows[one.path] = one
    return list(rows.values()), bad


def embedded(rows: Sequence[Row], encoder: Encoder, policy: Policy, max_pixels: int) -> Iterator[Seen | Bad]:
    """One for each, in order. Pictures are opened in a child, the next ones while these go through the encoder."""
    classifier = open_classifier(policy.classifier, encoder.device) if policy.classifier else None
    fingerprint = fingerprint_of(policy, encoder.fingerprint)
    chunks = _opened(rows, max_pixels)
    with ThreadPoolExecutor(1) as ahead:
        coming = ahead.submit(next, chunks, None)
        while (chunk := coming.result()) is not None:
            coming = ahead.submit(next, chunks, None)
            encoded = iter(embeddings(encoder, classifier, [one for _, one in chunk if isinstance(one, Frame)]))
            for row, one in chunk:
                if isinstance(one, str):
                    yield Bad(row.number, "path", f"{row.path}: {one}")
                    continue
                kept = (one.sha256, one.width, one.height, fingerprint, next(encoded))
                yield Seen(row, Stored(Stage.FRAME, *kept), is_flat(one))


def _opened(rows: Sequence[Row], max_pixels: int) -> Iterator[list[tuple[Row, Frame | str]]]:
    """Some at a time, by the size of files and pictures. What is wrong with a picture stands in its place."""
    rest, held = iter(rows), list[tuple[Row, bytes | str]]()
    while True:
        while len(held) < AT_ONCE and sum(len(file) for _, file in held) < MAX_BYTES and (row := next(rest, None)):
            held.append((row, _bytes(row.path)))
        if not held:
            return
        files = [file for _, file in held if isinstance(file, bytes)]
        decoded = iter(decode_strangers(files, max_pixels) if files else ())
        found: list[tuple[Row, Frame | str]] = []
        for row, file in held:
            one = file if isinstance(file, str) else next(decoded, None)
            if one is None:
                break
            found.append((row, str(one) if isinstance(one, BadInput) else one))
        held = held[len(found) :]
        yield found


def _bytes(path: Path) -> bytes | str:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        return getattr(error, "strerror", None) or str(error)
    return data if len(data) <= MAX_BYTES else f"larger than {MAX_BYTES:,} bytes"


def _check_columns(columns: Sequence[str]) -> None:
    for name in columns:
        if name not in NEEDED + FURTHER:
            raise BadInput(f"unknown column {name!r}", field="--csv", fix=nearest(name, NEEDED + FURTHER))
    for name in NEEDED:
        if name not in columns:
            fix = f"the first line names the columns: {','.join(NEEDED + FURTHER)}"
            raise BadInput(f"no column {name!r}", field="--csv", fix=fix)
    if len(set(columns)) < len(columns):
        raise BadInput("a column is named twice", field="--csv", fix="leave one out")


def _row(number: int, found: dict[str, str | None], folder: Path, concepts: Sequence[str]) -> Row | Bad:
    if "" in found or None in found.values():
        return Bad(number, "row", "it has not as many fields as there are columns")
    given = {name: (value or "").strip() for name, value in found.items()}
    if not given["path"]:
        return Bad(number, "path", "it is empty")
    said = [part.strip() for part in given["label"].split(";")]
    shows = frozenset(part for part in said if not part.startswith(UNKNOWN) and part != NONE)
    unknown = frozenset(part.removeprefix(UNKNOWN) for part in said if part.startswith(UNKNOWN))
    for name in sorted(shows | unknown):
        if name not in concepts:
            fix = f"{nearest(name, concepts)}, or {NONE}"
            return Bad(number, "label", f"no concept {name!r} in the policy ({fix})")
    if (NONE in said and shows) or shows & unknown:
        return Bad(number, "label", f"{given['label']!r} contradicts itself")
    category, source, prompt = (given.get(name, "") for name in FURTHER)
    return Row(number, folder / given["path"], shows, unknown, category, source, prompt)
