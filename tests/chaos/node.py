"""One node of a Ray cluster on this machine, on loopback, until it dies: `python -m tests.chaos.node FOLDER PORT NAME`.

The one called head has the cluster's memory and no CPU; a head that starts again knows nothing of what was.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from actors import cluster, head
from farm.errors import Fault

HEAD = "head"
STORE_BYTES = 96 << 20


def main(folder: Path, port: int, name: str) -> int:
    head.forget_secrets()
    os.environ |= cluster.TOKEN_MODE | head.HEAD_ONLY | {"RAY_AUTH_TOKEN_PATH": str(token(folder))}
    from ray._private.node import Node
    from ray._private.parameter import RayParams

    first = name == HEAD
    if not first:
        until_answers(f"127.0.0.1:{port}")
    params = RayParams(
        node_ip_address="127.0.0.1",
        node_name=name,
        gcs_server_port=port if first else None,
        gcs_address=None if first else f"127.0.0.1:{port}",
        num_cpus=0 if first else 1,
        object_store_memory=STORE_BYTES,
        min_worker_port=0,
        max_worker_port=0,
        include_dashboard=False,
        include_log_monitor=False,
        no_monitor=True,
        temp_dir=str(folder / "r"),
    )
    return head.watch(Node(params, head=first, shutdown_at_exit=True, spawn_reaper=True), head.asked_to_stop())


def until_answers(address: str) -> None:
    """A node that starts while there is no head gives up only after half a minute."""
    while True:
        try:
            return cluster._dial(address)
        except Fault:
            time.sleep(0.2)


def token(folder: Path) -> Path:
    return folder / "token"


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]))
