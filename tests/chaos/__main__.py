"""`python -m tests.chaos --kills 100`: the last line is one JSON object; exit code 1 where something was wrong."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from tests.chaos.cluster import run_cluster
from tests.chaos.run import run


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--cluster", action="store_true", help="on four nodes of Ray, with --jobs; implies --flat")
    parser.add_argument("--jobs", type=int, default=200, help="of --cluster: the batch that is to end")
    parser.add_argument("--seed", type=int, default=1, help="of the lots that are drawn")
    parser.add_argument("--flat", action="store_true", help="noise instead of the tiny model")
    parser.add_argument("--keep", action="store_true", help="keep the farm's folder")
    given = parser.parse_args()
    home = Path(tempfile.mkdtemp(prefix="farm-chaos-"))
    print(f"seed {given.seed}", flush=True)
    if given.cluster:
        report = run_cluster(home, given.jobs, given.kills, given.seed, say=say)
    else:
        report = run(home, given.kills, given.seed, flat=given.flat, say=say)
    if report.wrong or given.keep:
        print(f"its folder: {home}")
    else:
        import shutil

        shutil.rmtree(home)
    print(json.dumps(report.document()))
    return 1 if report.wrong else 0


def say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
