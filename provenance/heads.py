"""The last head of the audit chain that the signer signed, kept outside the database, in `keys/` for the signer and in
`trust/` for everybody: a log that was cut, and its heads with it, looks whole in the database alone.

Several signers of one log that share one `keys/` folder know it together, whichever signed; with a copy of the keys
each knows what it signed itself, so that of a log that was cut the one tells that signed a head behind the cut.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TextIO

from farm.audit import Head
from farm.errors import Unavailable
from provenance.keys import write_whole

NAME = "audit.head"
PATIENCE_S = 10.0


@contextmanager
def alone(home: Path) -> Iterator[None]:
    """One signer at a time: none signs an earlier head after a later one. The lock goes with the process."""
    path = home / "keys" / f"{NAME}.lock"
    with open(path, "w", opener=partial(os.open, mode=0o600)) as lock:
        _wait_for(lock, path)
        yield


def _wait_for(lock: TextIO, path: Path) -> None:
    """Not for ever: a signer that was stopped in the middle must not hold up the others."""
    until = time.monotonic() + PATIENCE_S
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() > until:
                raise Unavailable(f"another signer holds {path}", fix="see why it hangs") from error
            time.sleep(0.01)
        else:
            return


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
