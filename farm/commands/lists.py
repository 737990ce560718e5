"""`farm policy lists`: the hashes of known pictures by which the gate finds them again."""

from __future__ import annotations

import getpass
import time
from pathlib import Path
from typing import Annotated

import typer

from farm.commands.output import as_json, counted, say, table
from farm.commands.session import open_database
from farm.errors import BadInput

lists = typer.Typer(help="Lists of hashes of known pictures, which a policy names.")
Name = Annotated[str, typer.Argument(metavar="NAME", help="As policies name it.")]
By = Annotated[str, typer.Option(metavar="NAME", help="Who answers for it; left out: the user of this machine.")]
SHOWN = ("name", "kind", "entries", "named_by", "found", "illegal", "person", "updated_at")


@lists.command("ls")
def ls(json_: Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")] = False) -> None:
    """List the hash lists: which policies name them, and how many pictures, sent or made, each found; those that a
    policy names and nobody imported too."""
    from farm import config, hash_lists
    from farm.db import reading

    with open_database(config.load()) as engine, reading(engine) as connection:
        rows = hash_lists.shown(connection)
    if json_:
        as_json(rows)
        return
    for row in rows:
        row["named_by"] = " and ".join(row["named_by"]) or "nobody"
        row["entries"] = row["entries"] or "NOT IMPORTED"
    if rows:
        table(rows, SHOWN)
    else:
        say("farm: no hash list is there, and no policy in force names one")


@lists.command("import")
def import_(
    name: Name,
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="A digest a line; of PDQ also rows of digest and quality.")
    ],
    kind: Annotated[str, typer.Option(help="sha256 (of files, or of a frame's pixels) or pdq.")],
    replace: Annotated[bool, typer.Option("--replace", help="Put it in the place of the one of that name.")] = False,
    by: By = "",
) -> None:
    """Take in a list of hashes, on the record; whole, or not at all with every bad line named. The gate judges by it
    from the next second on."""
    from farm import config, digests, hash_lists
    from farm.db import transact

    if not file.is_file():
        raise BadInput(f"no file {file}", field="FILE", fix="name one")
    with file.open(encoding="utf-8-sig", errors="replace") as lines:
        found = digests.read(lines, kind)
    for bad in found.bad:
        say(f"  line {bad.line}: {bad.reason}")
    settings, person, now = config.load(), by or getpass.getuser(), time.time()
    with open_database(settings) as engine:
        transact(
            engine,
            lambda connection: hash_lists.put(
                connection, name, kind, found, person=person, project_id=settings.project, now=now, replace=replace
            ),
        )
    left_out = {"given twice": found.doubles, f"of a quality of {digests.LOW_QUALITY} or less": found.low}
    more = "".join(f"; left out: {count:,} {why}" for why, count in left_out.items() if count)
    say(f"farm: {name} holds {counted(found.entries, 'digest')} ({kind}){more}")
    say("farm: `farm policy rescan --by NAME` looks for it in what is published or held")


@lists.command("remove")
def remove(name: Name, by: By = "") -> None:
    """End a list, on the record. What a policy applies it to goes to review, until it names it no more."""
    from farm import config, hash_lists
    from farm.db import transact

    settings, person, now = config.load(), by or getpass.getuser(), time.time()
    with open_database(settings) as engine:
        transact(
            engine,
            lambda connection: hash_lists.remove(connection, name, person=person, project_id=settings.project, now=now),
        )
    say(f"farm: {name} is gone")
