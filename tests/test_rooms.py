"""What the other rooms know of `farm/` is its inner ring, as the README names it, and nothing else of it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("actors", "safety", "provenance", "dashboard")


def inner_ring() -> set[str]:
    found = re.search(r"The inner ring: (.*?)\.\n", (ROOT / "README.md").read_text(), re.S)
    assert found is not None
    return set(re.findall(r"`(\w+)`", found[1]))


def imported(room: str) -> Iterator[tuple[str, str]]:
    """Which module of farm, and by whom."""
    for path in sorted((ROOT / room).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [name.name for name in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            if isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{name}" for name in names]
            for name in names:
                if name.startswith("farm."):
                    yield name.split(".")[1], str(path.relative_to(ROOT))


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_the_inner_ring_alone(room: str) -> None:
    assert {use for use in imported(room) if use[0] not in inner_ring()} == set()


def test_the_inner_ring_holds_what_is_needed_and_no_more() -> None:
    assert inner_ring() == {module for room in ROOMS for module, _ in imported(room)}
