"""The nodes that gangs may lie on: those of the Ray that answers, or else this machine."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from typing import Any

import psutil

from actors import cluster
from actors.placing import Node
from farm.config import Settings
from farm.errors import Fault

GPU_LABEL = "ray.io/accelerator-type"
# Of other nodes Ray tells no more than what their GPUs are called: these are made with one size of memory alone.
GPU_BYTES = {"T4": 16, "L4": 24, "A10G": 24, "L40S": 48, "H20": 96, "H200": 141}  # in units of 10**9


def nodes_of(settings: Settings) -> tuple[str, list[Node]]:
    """Where they were seen, in words, and the nodes."""
    try:
        address = cluster.reach(settings)
        cluster.connect(settings)
    except Fault as fault:
        return f"this machine; {fault.detail}", [this_machine()]
    import ray

    try:
        return f"Ray at {address}", [node_of(row) for row in ray.nodes() if row["Alive"]]
    finally:
        cluster.disconnect()


def node_of(row: Mapping[str, Any]) -> Node:
    """One node as Ray tells of it; more is known of those on this machine."""
    amounts, labels, host = row["Resources"], row["Labels"], row["NodeManagerHostname"]
    here, gpus = host == socket.gethostname(), int(amounts.get("GPU", 0))
    memory = GPU_BYTES[labels[GPU_LABEL]] * 10**9 if labels.get(GPU_LABEL) in GPU_BYTES else None
    if here and gpus:
        memory = min(gpu_memories(), default=memory)
    name = f"{host}/{row['NodeID'][:8]}"
    return Node(name, amounts.get("CPU", 0.0), gpus, labels, memory, host_memory() if here else None)


def this_machine() -> Node:
    gpus = gpu_memories()
    return Node(socket.gethostname(), float(os.cpu_count() or 1), len(gpus), {}, min(gpus, default=None), host_memory())


def gpu_memories() -> list[int]:
    import torch

    return [torch.cuda.get_device_properties(index).total_memory for index in range(torch.cuda.device_count())]


def host_memory() -> int:
    return int(psutil.virtual_memory().total)
