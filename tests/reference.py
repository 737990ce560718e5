"""The tables that documents have of the code, made from it: `python -m tests.reference` writes them."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer.main

from farm.config import GangSpec, PoolSpec, Settings

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"


def settings() -> str:
    rows = ["| setting | default | meaning |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        default = "" if field.default in ("", ()) else f"`{field.default}`"
        rows.append(f"| `FARM_{name.upper()}` | {default} | {field.description} |")
    return "\n".join(rows)


def pools() -> str:
    rows = ["| of a pool | default | meaning |", "|---|---|---|"]
    fields = PoolSpec.model_fields
    for name, field in sorted(fields.items(), key=lambda item: item[0] in GangSpec.model_fields):  # its own first
        default = "" if field.is_required() or field.default in ("", None, {}) else f"`{field.default}`"
        rows.append(f"| `{name}` | {default} | {field.description} |")
    return "\n".join(rows)


def commands() -> str:
    from farm.cli import app

    rows = ["| command | what it does |", "|---|---|"]
    rows += [f"| `farm {name}` | {text} |" for name, text in _walk(typer.main.get_command(app), "")]
    return "\n".join(rows)


def _walk(command: Any, path: str) -> Iterator[tuple[str, str]]:
    inner = getattr(command, "commands", None)
    if inner is None:
        yield path.strip(), _sentence(command.help or "")
        return
    for name, child in inner.items():
        if not child.hidden:
            yield from _walk(child, f"{path} {name}")


def routes() -> str:
    from farm.cli import build_api

    with tempfile.TemporaryDirectory() as home:
        paths = build_api(Settings(home=Path(home))).openapi()["paths"]
    rows = ["| route | what it does |", "|---|---|"]
    for path, methods in sorted(paths.items()):
        for method, about in methods.items():
            rows.append(f"| `{method.upper()} {path}` | {_sentence(about.get('description', ''))} |")
    return "\n".join(rows)


def tiny() -> str:
    """How the tiny model scored, from the kept result."""
    scored = json.loads((ROOT / "benchmarks" / "results" / "tiny-eval.json").read_text())["per_cent"]
    kinds = ("", ", one shape", ", two shapes")
    names = {"ground and colours": "colours of shape and background", "nothing else": "nothing else drawn"}
    rows = ["| | all | one shape | two shapes |", "|---|---|---|---|"]
    for row in ("ground and colours", "shape", "size", "place", "nothing else"):
        rows.append(" | ".join((f"| {names.get(row, row)}", *(f"{scored[row + kind]}%" for kind in kinds))) + " |")
    edits = [row.removeprefix("edit made, ") for row in scored if row.startswith("edit made, ")]
    rows += ["", " | ".join(("| | all edits", *edits)) + " |", "|---" * (len(edits) + 2) + "|"]
    for row, name in (("edit made", "edit made"), ("rest kept", "what was not named kept")):
        shares = (scored[row], *(scored[f"{row}, {kind}"] for kind in edits))
        rows.append(" | ".join((f"| {name}", *(f"{share}%" for share in shares))) + " |")
    return "\n".join(rows)


def _sentence(text: str) -> str:
    return " ".join(text.split("\n\n", maxsplit=1)[0].split()).replace("|", "\\|")


PAGES = {
    README: {"settings": settings, "commands": commands, "routes": routes, "tiny": tiny},
    ROOT / "docs" / "pools.md": {"pools": pools},
}


def filled(page: Path) -> str:
    text = page.read_text()
    for name, table in PAGES[page].items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.S)
        assert pattern.search(text), f"{page.name} has lost its marks <!-- {name} -->"
        text = pattern.sub(lambda match, table=table: f"{match[1]}{table()}\n{match[2]}", text)  # type: ignore[misc]
    return text


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(filled(page))
