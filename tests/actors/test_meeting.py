"""Over which network the ranks of a gang talk."""

from __future__ import annotations

import os
import socket
from types import SimpleNamespace

import psutil
import pytest

from actors.meeting import interface_of, speak_over

NAMES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


@pytest.mark.parametrize(
    ("address", "interface"),
    [
        ("10.0.0.5", "eth1"),
        ("10.0.0.6", "eth1"),
        ("10.0.0.7", "eth10"),
        ("fd00::5", "eth1"),
        ("fe80::5", "eth10"),
        ("10.0.0.50", ""),
    ],
)
def test_an_interface_is_found_by_any_of_its_addresses(
    address: str, interface: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    has = {
        "eth10": ["10.0.0.7", "fe80::5%eth10"],
        "eth1": ["10.0.0.5", "fd00::5", "02:42:ac:11:00:02"],
        "eth1:0": ["10.0.0.6"],
    }
    found = {name: [SimpleNamespace(address=one) for one in addresses] for name, addresses in has.items()}
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: found)
    assert interface_of(address) == interface


def test_this_machine_s_loopback_is_an_interface() -> None:
    assert interface_of("127.0.0.1") in {name for _, name in socket.if_nameindex()}


def test_what_the_node_s_environment_says_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    speak_over("")
    assert not set(NAMES) & os.environ.keys()
    speak_over("eth1")
    assert [os.environ[name] for name in NAMES] == ["eth1", "=eth1"], "not eth10 too"
    speak_over("ib0")
    assert [os.environ[name] for name in NAMES] == ["eth1", "=eth1"]
