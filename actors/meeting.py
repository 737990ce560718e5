"""How the ranks of a gang find each other: the first one opens a door, and all form one process group.

A port is never fixed, and nothing listens beyond the address that the node has in its cluster.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import sys
from datetime import timedelta
from typing import Any

import torch.distributed as dist

TCPStore: Any = dist.TCPStore  # type: ignore[attr-defined]
JOIN = timedelta(seconds=120)
TALK = timedelta(seconds=300)  # between two ranks; a member that is gone is noticed at once
SIOCGIFADDR = 0x8915


class Door:
    def __init__(self) -> None:
        host = own_address()
        listener = socket.create_server((host, 0))
        port = listener.getsockname()[1]
        self.address = f"{host}:{port}"
        self.store = TCPStore(
            host, port, is_master=True, timeout=JOIN, wait_for_workers=False, master_listen_fd=listener.detach()
        )


def join(rank: int, ranks: int, door: Door | str, device: str) -> None:
    """Become one of a group; pictures on GPUs go by NCCL, what CPUs tell each other by gloo."""
    own = own_address()
    os.environ["GLOO_SOCKET_IFNAME"] = os.environ["NCCL_SOCKET_IFNAME"] = interface_of(own)
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


def interface_of(address: str) -> str:
    """The network interface that has this IPv4 address."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        for _, name in socket.if_nameindex():
            try:
                found = fcntl.ioctl(asking, SIOCGIFADDR, struct.pack("256s", name.encode()))
            except OSError:  # it has none
                continue
            if socket.inet_ntoa(found[20:24]) == address:
                return name
    raise LookupError(f"no network interface has the address {address}")
