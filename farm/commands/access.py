"""`farm access`: API keys and projects, for whoever holds the database."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from farm.commands.output import as_json, columns_of, say, table

if TYPE_CHECKING:
    from farm.access import Access

access = typer.Typer(help="API keys: each belongs to a project and a role.")
Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")]
Project = Annotated[str, typer.Option(help="The project; left out: the first key's.")]


@access.command("add")
def add(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Whose key it is.")],
    role: Annotated[str, typer.Option(help="submitter, reviewer or operator.")] = "submitter",
    project: Project = "",
) -> None:
    """Make a key, and its project if that is new. The key is shown once."""
    there, project = _open(project)
    there.create_project(project)
    print(there.create_key(project, name, role, by="farm access"))
    say(f"farm: a {role}'s key of project {project}; it cannot be shown again")


@access.command("ls")
def ls(project: Project = "", json_: Json = False) -> None:
    """List a project's keys, the revoked ones too; never the keys themselves."""
    there, project = _open(project)
    rows: list[dict[str, Any]] = [
        {"id": key.id, "name": key.name, "role": key.role, "created_at": key.created_at, "revoked_at": key.revoked_at}
        for key in there.keys(project)
    ]
    if json_:
        as_json(rows)
    elif rows:
        table(rows, columns_of(rows))
    else:
        say(f"farm: project {project} has no keys")


@access.command("revoke")
def revoke(key_id: Annotated[str, typer.Argument(metavar="ID")], project: Project = "") -> None:
    """End a key: it and every visit that rests on it stop working at once."""
    from farm.errors import NotFound

    there, project = _open(project)
    try:
        there.revoke_key(project, key_id, by="farm access")
    except NotFound as error:
        raise NotFound(error.detail, fix="give the id that `farm access ls` shows") from error
    say(f"farm: {key_id} is revoked")


def _open(project: str) -> tuple[Access, str]:
    from farm import config
    from farm.access import Access
    from farm.db import connect, migrate

    settings = config.load()
    engine = connect(settings.database_url)
    migrate(engine)
    return Access(engine), project or settings.project
