"""`farm verify --audit`: the audit log's chain and every signed head, read from the farm's own database, and the last
head that was signed, which lies beside the public key of the heads."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from farm.commands.output import as_json, say
from farm.errors import BadInput

if TYPE_CHECKING:
    from farm.audit import ChainReport
    from farm.config import Settings


def verify_audit(settings: Settings, public: Path | None, json_: bool) -> bool:
    """True if the log is whole."""
    found = check(settings, public)
    if json_:
        as_json(asdict(found) | {"whole": not found.wrong})
        return not found.wrong
    for flaw in found.wrong:
        print(flaw)
    word = f"{len(found.wrong)} wrong" if found.wrong else "whole"
    later = f"; rows after {found.signed_to} are not signed for yet" if found.signed_to < found.rows else ""
    unsealed = f"; {found.unsealed} not sealed yet" if found.unsealed else ""
    say(f"audit log: {word}; rows: {found.rows}, signed heads: {found.heads}{later}{unsealed}")
    return not found.wrong


def check(settings: Settings, public: Path | None) -> ChainReport:
    from farm import audit
    from farm.db import connect, reading
    from provenance import heads

    if public is not None and not public.is_file():
        raise BadInput(f"no file {public}", field="--trust", fix="give the farm's trust/audit.pem")
    pem = heads.trust(settings.home) if public is None else public.read_text()
    is_ours = heads.verifier(pem)
    kept = heads.read(settings.home / "trust" if public is None else public.parent)
    engine = connect(settings.database_url, read_only=True)
    try:
        with reading(engine) as connection:
            return audit.verify_chain(connection, is_ours, kept)
    finally:
        engine.dispose()
