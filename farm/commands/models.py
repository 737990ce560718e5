"""`farm models` and `farm bench`."""

from __future__ import annotations

from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from farm.commands.output import as_json, clean, moment, say, table
from farm.commands.session import open_database
from farm.errors import BadInput, nearest

if TYPE_CHECKING:
    from farm.config import Settings

models = typer.Typer(help="The models the farm knows, and the files they need.")
BENCHES = {
    "queue": "benchmarks.queue",
    "sign": "benchmarks.sign",
    "denoise": "benchmarks.denoise",
    "pool": "benchmarks.pool",
    "safety": "benchmarks.safety",
}
Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")]


@models.command("ls")
def models_ls(json_: Json = False) -> None:
    """List the models: licence, who accepted it, whether their files are there, what is missing."""
    from actors.flux.containers import places
    from actors.models import models_table
    from farm import config

    settings = config.load()
    if settings.models and not Path(settings.models).is_dir():
        say(f"farm: FARM_MODELS names no folder {settings.models}")
    accepted = _accepted(settings)
    rows = models_table(Path(settings.models) if settings.models else None)
    rows = [row | {"accepted": accepted.get((row["name"], row["licence"]))} for row in rows]
    if json_:
        as_json(rows)
        return
    shown = [
        row
        | {"state": _state(row), "edits": "yes" if row["edits"] else "", "missing": ", ".join(row["missing"])}
        | {"accepted": _acceptance(row)}
        for row in rows
    ]
    table(shown, ["name", "state", "edits", "licence", "accepted", "missing"])
    for row in rows:
        if row["ready"]:
            print(clean(f"{row['name']} draws with {_called(row['taken'])}"))
        elif row["lacks"]:
            print(clean(row["lacks"]))
    for found in places(Path(settings.models)) if settings.models else ():
        for why in found.refused:
            say(f"farm: not used: {why}")


@models.command("accept")
def models_accept(
    model: Annotated[str, typer.Argument(metavar="MODEL")],
    by: Annotated[str, typer.Option(metavar="NAME", help="Who answers for it.")],
    holds: Annotated[str, typer.Option(help="What you hold: non-commercial or commercial (an agreement of your own).")],
) -> None:
    """Accept a model's licence, on the record: until then no job of it is taken or drawn."""
    from actors.models import card_of
    from farm import config, licences

    settings, card = config.load(), card_of(model)
    with open_database(settings) as engine:
        licences.accept(engine, card, holds, by, settings.project)
    say(f"farm: {by} accepted the {card.licence.name} for {model} ({holds}); its text: {card.licence.url}")


def _accepted(settings: Settings) -> dict[tuple[str, str], dict[str, Any]]:
    """A farm that was never started has accepted nothing."""
    from farm import licences
    from farm.db import reading

    if not settings.database and not (settings.home / "farm.db").exists():
        return {}
    with open_database(settings) as engine, reading(engine) as connection:
        found = licences.standing(connection)
    return {key: asdict(one) for key, one in found.items()}


def _acceptance(row: dict[str, Any]) -> str:
    if not row["asks_acceptance"]:
        return "not asked"
    said = row["accepted"]
    return f"{said['holds']}, by {said['person']}, {moment(said['created_at'])[:10]}" if said else "NO"


def _state(row: dict[str, object]) -> str:
    if not row["rendered"]:
        return "not rendered yet"
    return "ready" if row["ready"] else "files missing"


@models.command("check")
def models_check(path: Annotated[Path, typer.Argument(metavar="PATH")], json_: Json = False) -> None:
    """Say what a file or folder of weights holds, without loading it. Exit code 1 if the file would not load, or the
    folder lacks parts."""
    from actors.models import check_report

    if not path.exists():
        raise BadInput(f"no file or folder {path}", field="PATH")
    report = check_report(path)
    if json_:
        as_json(report)
    else:
        _print_report(report)
    if not report["loads" if path.is_file() else "complete"]:
        raise typer.Exit(1)


def _print_report(report: dict[str, Any]) -> None:
    """What it is, part by part, what is wrong with it, and the memory it needs."""
    known = [report["model"], report["container"], report["precision"], _size(report["nbytes"])]
    if report["parts"]:
        print(f"{report['path']}: {', '.join(word for word in known if word)}")
        table([_part(part) for part in report["parts"]], ["part", "precision", "size", "loads", "files"])
    elif report["known"] or report["problems"]:
        print(f"{report['path']}: nothing of it can be drawn with")
    else:
        print(f"no weights found in {report['path']}; expected diffusion_models/, text_encoders/, vae/")
    for part in report["parts"]:
        for kind, names in part["differences"].items():
            if names:
                print(f"{part['part']}: {len(names)} {kind.replace('_', ' ')}: {', '.join(map(str, names[:5]))}")
    for word in ("problems", "absent", "known"):
        for said in report[word]:
            print(f"{word.removesuffix('s')}: {said}")
    if len(report["parts"]) > len(report["taken"]) and report["taken"]:
        print(clean(f"of these it would draw with {_called(report['taken'])}"))
    if any(part["loads"] for part in report["parts"]):
        room = f"{_size(report['room_bytes'])} of it to work in"
        print(clean(f"memory needed per GPU for {_called(report['taken'])}, {room}, by precision and number of GPUs:"))
        rows = [_memory(asked, report) for asked in report["memory_per_gpu"]]
        table(rows, list(rows[0]))
    if report["parts"]:
        loads, complete = ("yes" if report[word] else "no" for word in ("loads", "complete"))
        print(f"would load: {loads}; all parts there: {complete}")


def _called(taken: dict[str, list[str]]) -> str:
    """Files by their folder and name; of several shards the folder."""
    firsts = {Path(files[0]): len(files) for files in taken.values()}
    return ", ".join(f"{one.parent.name}/{one.name if count == 1 else ''}" for one, count in firsts.items())


def _memory(asked: str, report: dict[str, Any]) -> dict[str, str]:
    each = {f"{n} GPU{'s' * (n != '1')}": _size(nbytes) for n, nbytes in report["memory_per_gpu"][asked].items()}
    return {"precision": asked} | each | {"blocks streamed": _size(report["memory_streamed"][asked])}


def _part(part: dict[str, Any]) -> dict[str, str]:
    files = ", ".join(Path(file).name for file in part["files"])
    loads = "yes" if part["loads"] else part["problem"] or "no"
    said = {"part": part["part"], "precision": part["precision"], "size": _size(part["nbytes"])}
    return said | {"loads": loads, "files": files}


def _size(nbytes: int) -> str:
    return f"{nbytes / 1e9:.1f} GB" if nbytes >= 1e9 else f"{nbytes / 1e6:.1f} MB"


def bench(
    context: typer.Context, name: Annotated[str, typer.Argument(metavar="queue|denoise|pool|safety|sign")]
) -> None:
    """Measure. `farm bench NAME --help` shows the options of each. Without the farm: `python -m benchmarks.denoise`."""
    if name not in BENCHES:
        raise BadInput(f"no benchmark {name!r}", field="NAME", fix=nearest(name, BENCHES))
    raise typer.Exit(import_module(BENCHES[name]).main(context.args))
