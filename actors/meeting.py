"""How the ranks of a gang find each other: the first one opens a door, and all form one process group.

A port is never fixed, and nothing listens beyond the address that the node has in its cluster.
"""

from __future__ import annotations

import os
import socket
import sys
from datetime import timedelta
from typing import Any

import psutil
import torch.distributed as dist

TCPStore: Any = dist.TCPStore  # type: ignore[attr-defined]
JOIN = timedelta(seconds=120)
TALK = timedelta(seconds=300)  # between two ranks; a member that is gone is noticed at once


class Door:
    def __init__(self) -> None:
        host = own_address()
        listener = socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
        port = listener.getsockname()[1]
        self.address = f"{host}:{port}"
        self.store = TCPStore(
            host, port, is_master=True, timeout=JOIN, wait_for_workers=False, master_listen_fd=listener.detach()
        )


def join(rank: int, ranks: int, door: Door | str, device: str) -> None:
    """Become one of a group; pictures on GPUs go by NCCL, what CPUs tell each other by gloo."""
    speak_over(interface_of(own_address()))
    backend = "cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo"
    dist.init_process_group(backend, store=store_of(door), rank=rank, world_size=ranks, timeout=TALK)


def store_of(door: Door | str) -> Any:
    if isinstance(door, Door):
        return door.store
    host, _, port = door.rpartition(":")
    return TCPStore(host, int(port), is_master=False, timeout=JOIN)


def own_address() -> str:
    """This node's, as its cluster knows it; outside Ray, loopback."""
    ray = sys.modules.get("ray")
    return str(ray.util.get_node_ip_address()) if ray is not None and ray.is_initialized() else "127.0.0.1"


def speak_over(interface: str) -> None:
    """Unless the node's own environment says over which: NCCL takes a bare name for the beginning of one."""
    if interface:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
        os.environ.setdefault("NCCL_SOCKET_IFNAME", f"={interface}")


def interface_of(address: str) -> str:
    """The network interface that has this address; "" where none has, as behind a translation of addresses: then the
    libraries choose."""
    for name, has in psutil.net_if_addrs().items():
        if any(one.address.partition("%")[0] == address for one in has):
            return name.partition(":")[0]  # a second address may be listed under a name of its own
    return ""
