"""`farm policy quarantine`: blocked frames that a policy keeps for a time, for whoever holds their key."""

from __future__ import annotations

import getpass
import os
import time
from pathlib import Path
from typing import Annotated

import typer

from farm.commands.output import as_json, say, table
from farm.commands.session import open_database, open_store
from farm.errors import BadInput

quarantine = typer.Typer(help="Blocked pictures that a policy keeps, encrypted, for appeals.")
SHOWN = ("id", "project_id", "job_id", "concept", "created_at", "expires_at")


@quarantine.command("ls")
def ls(json_: Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")] = False) -> None:
    """List what is kept, and until when."""
    from farm import config
    from farm import quarantine as kept
    from farm.db import reading

    with open_database(config.load()) as engine, reading(engine) as connection:
        rows = kept.shown(connection)
    if json_:
        as_json(rows)
    elif rows:
        table(rows, SHOWN)
    else:
        say("farm: nothing is in quarantine")


@quarantine.command("open")
def open_(
    kept_id: Annotated[int, typer.Argument(metavar="ID", help="As `ls` shows it.")],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A new file, for you alone.")],
    key: Annotated[str, typer.Option(help="The private key, in PEM; left out: the one under the farm's home.")] = "",
    by: Annotated[str, typer.Option(metavar="NAME", help="Who looks; left out: the user of this machine.")] = "",
    reason: Annotated[str, typer.Option(help="Why, for the record; needed.")] = "",
) -> None:
    """Decrypt one into a file, on the record. The picture is signed, and its manifest says that it was blocked."""
    from farm import config, sealed
    from farm import quarantine as kept
    from farm.db import transact
    from provenance.keyfiles import passphrase_of

    settings, person = config.load(), (by or getpass.getuser()).strip()
    path = Path(key) if key else sealed.private_path(settings.home)
    if not path.is_file():
        raise BadInput(f"no file {path}", field="--key", fix="give the private half of the quarantine's key")
    if file.exists():
        raise BadInput(f"{file} is there already", field="FILE", fix="name a new file")
    if not person or not reason.strip():
        raise BadInput("who looks, and why?", field="--reason", fix="say both, for the record")
    private = sealed.read_private(path, passphrase_of(settings))
    with open_database(settings) as engine:
        row = transact(engine, lambda connection: kept.opened(connection, kept_id, person, reason, time.time()))
    data = sealed.unseal(private, open_store(settings).get(row["key"]), kept.about(row["job_id"], row["subject"]))
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as made:
        made.write(data)
    told = f"the frame of job {row['job_id']} that {row['concept']} blocked"
    say(f"farm: {file} is {told}; {person} opened it, on the record")
