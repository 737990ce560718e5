"""What two policies say differently, clause by clause. Pure: it compares the documents, so nothing can be missed."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from safety.policy import Policy

NAMES = ("name", "concept")  # by which the clauses of a list are told apart
WORDS = 4  # a text longer than that is compared word by word


@dataclass(frozen=True, slots=True)
class Change:
    """`where` is a path through the document; `before` or `after` is None where nothing stands."""

    where: str
    kind: str  # added, removed, changed, order
    before: Any = None
    after: Any = None

    @property
    def words(self) -> str:
        if self.kind == "order":
            return f"{self.where}: the same in another order: {', '.join(map(str, self.after))}"
        if self.kind != "changed":
            value = self.after if self.kind == "added" else self.before
            return f"{self.where}: {self.kind}: {said(value)}"
        if isinstance(self.before, str) and isinstance(self.after, str) and len(self.before.split()) > WORDS:
            return f"{self.where}: {word_by_word(self.before, self.after)}"
        return f"{self.where}: {said(self.before)} -> {said(self.after)}"


def changes(before: Policy, after: Policy) -> list[Change]:
    return list(_between("", json.loads(before.document), json.loads(after.document)))


def said(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def word_by_word(before: str, after: str) -> str:
    """As `git diff --word-diff` writes it: [-what went-] {+what came+}."""
    old, new = before.split(), after.split()
    parts = []
    for tag, i, j, k, m in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if tag == "equal":
            parts.append(" ".join(old[i:j]))
            continue
        parts += [f"[-{' '.join(old[i:j])}-]"] if i < j else []
        parts += [f"{{+{' '.join(new[k:m])}+}}"] if k < m else []
    return " ".join(parts)


def _between(where: str, before: Any, after: Any) -> Iterator[Change]:
    if isinstance(before, dict) and isinstance(after, dict):
        yield from _keys(where, before, after)
    elif isinstance(before, list) and isinstance(after, list):
        yield from _items(where, before, after)
    elif json.dumps(before) != json.dumps(after):  # 1 and 1.0 are equal and not the same
        yield Change(where, "changed", before, after)


def _keys(where: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[Change]:
    for key in dict.fromkeys((*before, *after)):
        path = f"{where}.{key}" if where else key
        if key not in after:
            yield Change(path, "removed", before=before[key])
        elif key not in before:
            yield Change(path, "added", after=after[key])
        else:
            yield from _between(path, before[key], after[key])


def _items(where: str, before: Sequence[Any], after: Sequence[Any]) -> Iterator[Change]:
    """Clauses by their names, wherever they stand; texts by what they say."""
    old, new = _named(before), _named(after)
    yield from _keys(where, old, new)
    if set(old) == set(new) and list(old) != list(new):
        yield Change(where, "order", list(old), list(new))


def _named(items: Sequence[Any]) -> dict[str, Any]:
    named: dict[str, Any] = {}
    for item in items:
        key = next((item[key] for key in NAMES if key in item), said(item)) if isinstance(item, dict) else said(item)
        while key in named:  # a text that stands there twice
            key += "'"
        named[key] = item
    return named
