"""`farm up`, with another dispatcher."""

from __future__ import annotations

import logging
import sys
from dataclasses import replace

from farm import config
from farm.commands import starting

DISPATCH = (sys.executable, "-m", "tests.chaos.dispatch")

if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    settings = config.load()
    starting.prepare(settings)
    keeper = starting.supervisor(settings)
    for kept in keeper.kept:
        if kept.child.name == "dispatch":
            kept.child = replace(kept.child, argv=DISPATCH)
    sys.exit(keeper.run())
