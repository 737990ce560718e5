"""`farm dispatch` with the noise of `flat.py` in its ranks."""

from __future__ import annotations

import functools

from actors import pool
from farm.cli import main

if __name__ == "__main__":
    pool.Pool = functools.partial(pool.Pool, shard="tests.chaos.flat:load_shard")  # type: ignore[misc,assignment]
    main(["dispatch", "--unkept"])
