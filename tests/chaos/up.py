"""`farm up`, with another dispatcher; `FOLDER PORT COUNT`: beside a Ray cluster of a head and so many other nodes."""

from __future__ import annotations

import logging
import sys
from dataclasses import replace

from farm import config
from farm.commands import starting
from farm.supervisor import Child, Kept
from tests.chaos.node import HEAD

DISPATCH = (sys.executable, "-m", "tests.chaos.dispatch")


def nodes(folder: str, port: str, count: str) -> list[Child]:
    names = [HEAD, *(f"node{number + 1}" for number in range(int(count)))]
    return [Child(name, [sys.executable, "-m", "tests.chaos.node", folder, port, name]) for name in names]


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    settings = config.load()
    starting.prepare(settings)
    keeper = starting.supervisor(settings)
    for kept in keeper.kept:
        if kept.child.name == "dispatch":
            kept.child = replace(kept.child, argv=DISPATCH)
    if sys.argv[1:]:
        keeper.kept[:0] = [Kept(node) for node in nodes(*sys.argv[1:])]
    sys.exit(keeper.run())
