"""`farm models` and `farm bench`."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from farm.commands.output import as_json, table
from farm.errors import BadInput, nearest

models = typer.Typer(help="The models the farm knows, and the files they need.")
BENCHES = {"queue": "benchmarks.queue", "denoise": "benchmarks.denoise"}
Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")]


@models.command("ls")
def models_ls(json_: Json = False) -> None:
    """List the models: licence, whether their files are there, what is missing."""
    from actors.models import models_table
    from farm import config

    folder = config.load().models
    rows = models_table(Path(folder) if folder else None)
    if json_:
        as_json(rows)
        return
    shown = [
        row | {"state": _state(row), "edits": "yes" if row["edits"] else "", "missing": ", ".join(row["missing"])}
        for row in rows
    ]
    table(shown, ["name", "title", "state", "edits", "licence", "missing"])


def _state(row: dict[str, object]) -> str:
    if not row["rendered"]:
        return "not rendered yet"
    return "ready" if row["ready"] else "files missing"


@models.command("check")
def models_check(path: Annotated[Path, typer.Argument(metavar="PATH")], json_: Json = False) -> None:
    """Say what a file or folder of weights holds, without loading it. Exit code 1 if parts are missing."""
    from actors.models import check_report

    if not path.exists():
        raise BadInput(f"no file or folder {path}", field="PATH")
    report = check_report(path)
    if json_:
        as_json(report)
    else:
        _print_report(report)
    if not report["complete"]:
        raise typer.Exit(1)


def _print_report(report: dict[str, Any]) -> None:
    """What it is, part by part, what is wrong with it, and the memory it needs."""
    print(
        f"{report['path']}: {report['model']}, {report['container']}, {report['precision']}, {_size(report['nbytes'])}"
    )
    table([_part(part) for part in report["parts"]], ["part", "precision", "size", "loads", "files"])
    for part in report["parts"]:
        for kind, names in part["differences"].items():
            if names:
                print(f"{part['part']}: {len(names)} {kind.replace('_', ' ')}: {', '.join(map(str, names[:5]))}")
    for word in ("problems", "absent", "known"):
        for said in report[word]:
            print(f"{word.removesuffix('s')}: {said}")
    gpus = ", ".join(f"{count}: {_size(needed)}" for count, needed in report["memory_per_gpu"].items())
    print(f"memory of the first of so many GPUs: {gpus}; with blocks streamed: {_size(report['memory_streamed'])}")
    print(f"would load: {'yes' if report['loads'] else 'no'}; all parts there: {'yes' if report['complete'] else 'no'}")


def _part(part: dict[str, Any]) -> dict[str, str]:
    files = ", ".join(Path(file).name for file in part["files"])
    loads = "yes" if part["loads"] else part["problem"] or "no"
    said = {"part": part["part"], "precision": part["precision"], "size": _size(part["nbytes"])}
    return said | {"loads": loads, "files": files}


def _size(nbytes: int) -> str:
    return f"{nbytes / 1e9:.1f} GB" if nbytes >= 1e9 else f"{nbytes / 1e6:.1f} MB"


def bench(context: typer.Context, name: Annotated[str, typer.Argument(metavar="queue|denoise")]) -> None:
    """Measure. `farm bench NAME --help` shows the options of each."""
    if name not in BENCHES:
        raise BadInput(f"no benchmark {name!r}", field="NAME", fix=nearest(name, BENCHES))
    raise typer.Exit(import_module(BENCHES[name]).main(context.args))
