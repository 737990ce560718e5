"""The last head of the audit chain that the signer signed, kept outside the database, in `keys/` for the signer and in
`trust/` for everybody: a log that was cut, and its heads with it, looks whole in the database alone.

Each signer knows what it signed itself; several that share one log would have to share this as well.
"""

from __future__ import annotations

import json
from pathlib import Path

from farm.audit import Head
from farm.errors import Unavailable
from provenance.keys import write_whole

NAME = "audit.head"


def read(folder: Path) -> Head | None:
    path = folder / NAME
    if not path.exists():
        return None
    try:
        said = json.loads(path.read_text())
        return Head(int(said["seq"]), str(said["sha256"]), str(said["signature"]))
    except (ValueError, KeyError, TypeError) as error:
        raise Unavailable(f"{path} is damaged: {error}", fix="put back the one that was there") from error


def write(home: Path, head: Head) -> None:
    """The signer's own first: the other one may lag behind, never run ahead."""
    said = json.dumps(head._asdict()).encode()
    write_whole(home / "keys" / NAME, said, 0o600)
    write_whole(home / "trust" / NAME, said, 0o644)
