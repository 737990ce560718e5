"""Law 10: a model whose licence asks to be accepted draws nothing until an operator has accepted it, on the record.

An acceptance is of one model and one text, named with its version: where the catalogue names a newer one, it is asked
for again. The newest row of a model and a text counts, so a commercial agreement is entered by accepting once more.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from sqlalchemy import Connection, Engine, insert, select

from farm import audit
from farm.db import reading, transact
from farm.errors import BadInput, nearest
from farm.ports import ModelCard
from farm.tables import ACCEPTANCE, HOLDINGS


@dataclass(frozen=True, slots=True)
class Acceptance:
    model: str
    licence: str
    holds: str  # what the operator holds of its maker: the non-commercial licence itself, or a commercial agreement
    person: str
    created_at: float


COLUMNS = [ACCEPTANCE.c[name] for name in Acceptance.__dataclass_fields__]


def asked(catalogue: Mapping[str, ModelCard]) -> dict[str, str]:
    """Model to the licence that somebody must accept first."""
    return {name: card.licence.name for name, card in catalogue.items() if card.licence.asks_acceptance}


def accept(
    engine: Engine,
    card: ModelCard,
    holds: str,
    person: str,
    project_id: str,
    clock: Callable[[], float] = time.time,
) -> Acceptance:
    """`project_id` is whose audit rows tell of it; the acceptance counts for the whole farm."""
    if not card.licence.asks_acceptance:
        raise BadInput(f"{card.name} comes under {card.licence.name}, which asks for no acceptance", field="MODEL")
    if holds not in HOLDINGS:
        raise BadInput(f"unknown kind {holds!r}", field="holds", fix=nearest(holds, HOLDINGS))
    if not person.strip() or "\0" in person:
        raise BadInput("who accepts it?", field="by", fix="give the name of whoever answers for it")
    row = Acceptance(card.name, card.licence.name, holds, person.strip(), clock())

    def write(connection: Connection) -> None:
        values = {name: getattr(row, name) for name in Acceptance.__dataclass_fields__}
        connection.execute(insert(ACCEPTANCE), [values])
        said = {"licence": row.licence, "holds": row.holds}
        audit.append(connection, project_id, row.person, "accept licence", f"model {row.model}", row.created_at, **said)

    transact(engine, write)
    return row


def standing(connection: Connection) -> dict[tuple[str, str], Acceptance]:
    """By model and licence, the newest of each."""
    rows = connection.execute(select(*COLUMNS).order_by(ACCEPTANCE.c.id)).mappings()
    return {(row["model"], row["licence"]): Acceptance(**row) for row in rows}


def refused(engine: Engine, catalogue: Mapping[str, ModelCard]) -> dict[str, str]:
    """Model to the reason why no job of it is taken or drawn now."""
    wanted = asked(catalogue)
    if not wanted:
        return {}
    with reading(engine) as connection:
        accepted = standing(connection)
    return {model: why(model, licence) for model, licence in wanted.items() if (model, licence) not in accepted}


def why(model: str, licence: str) -> str:
    return (
        f"{model} comes under the {licence}, which nobody has accepted for this farm:"
        f" an operator runs `farm models accept {model} --by NAME --holds non-commercial` (or commercial)"
    )
