"""Our own head: loopback alone, token on, gone when killed, joined again when it is back."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil
import pytest
import ray

from actors import cluster
from actors.head import forget_secrets, serve
from actors.nodes import nodes_of
from actors.pool import Pool
from farm.config import Settings
from farm.errors import BadInput, Conflict, Fault
from farm.job import Cause
from farm.ports import Rendered
from tests.actors.conftest import CARDS, head, joined, request_of, session_folder, until
from tests.chaos.node import HEAD, token
from tests.chaos.victims import free_port

LONGEST_SOCKET = 107
STRANGER = """
import sys, ray
ray.init(address=sys.argv[1], log_to_driver=False)
print("joined", ray.cluster_resources())
"""

ORPHAN = """
import sys, time
from pathlib import Path
import ray
from actors import cluster
from actors.head import forget_secrets, serve
from farm.config import Settings
from farm.errors import Fault
settings, note = Settings(home=Path(sys.argv[1])), Path(sys.argv[2])
try:
    while cluster.connect(settings):
        note.write_text("joined")
        time.sleep(0.2)
except Fault:
    note.write_text("outlived it")
"""


def processes(settings: Settings) -> list[psutil.Process]:
    """Every process of this home's Ray, told by its session folder."""
    mark = str(session_folder(settings))
    return [process for process in psutil.process_iter() if mark in " ".join(command(process))]


def said(note: Path) -> str:
    return note.read_text() if note.exists() else ""


def command(process: psutil.Process) -> list[str]:
    try:
        return [*process.cmdline(), *process.environ().values()]
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return []


def test_whatever_stands_in_the_way_of_ray_is_an_outage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**_: object) -> None:
        raise AssertionError("no raylet")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(Fault, match="no raylet") as caught:
        cluster._join("127.0.0.1:6379")
    assert caught.value.cause is Cause.RAY_GONE
    (tmp_path / "ray" / "address").mkdir(parents=True)  # an address that cannot be read
    with pytest.raises(Fault, match="cannot be read") as caught:
        cluster.reach(Settings(home=tmp_path))
    assert caught.value.cause is Cause.RAY_GONE


def test_every_port_is_on_loopback(settings: Settings) -> None:
    seen = 0
    for process in processes(settings):
        for connection in process.net_connections("inet"):
            if connection.status == psutil.CONN_LISTEN:
                assert connection.laddr.ip in {"127.0.0.1", "::ffff:127.0.0.1", "::1"}, process.cmdline()
                seen += 1
    assert seen >= 3


def test_its_files_are_its_owner_s_and_its_sockets_fit(settings: Settings) -> None:
    folder = settings.home / "ray"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    for name in ("token", "address"):
        assert stat.S_IMODE((folder / name).stat().st_mode) == 0o600
    assert stat.S_IMODE(session_folder(settings).stat().st_mode) == 0o700
    sockets = list(session_folder(settings).glob("r/session_*/sockets/*"))
    assert sockets
    assert max(len(str(path)) for path in sockets) <= LONGEST_SOCKET


def test_without_the_token_nobody_joins(settings: Settings) -> None:
    address = cluster._literal((settings.home / "ray" / "address").read_text())
    bare = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    bare |= {"HOME": str(settings.home)}
    wrong = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "f" * 64}
    argv = ["timeout", "-k1", "40", sys.executable, "-c", STRANGER, address]
    strangers = [
        subprocess.Popen(argv, env=bare | more, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for more in ({}, wrong)
    ]
    for stranger in strangers:
        said, complained = stranger.communicate(timeout=60)
        assert stranger.returncode != 0
        assert "joined" not in said
        assert "oken" in complained


def test_joining_twice_is_joining_once(settings: Settings) -> None:
    assert cluster.connect(settings) == cluster.connect(settings)


def test_a_head_that_greets_is_not_asked_again_until_the_line_breaks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's server speaks first, as HTTP/2 has it."""
    asked, left = list[str](), threading.Event()

    def stands(address: str) -> bool:
        asked.append(address)
        return len(asked) < 3

    monkeypatch.setattr(cluster, "_joined", lambda connection: True)
    monkeypatch.setattr(cluster, "_stands", stands)
    monkeypatch.setattr(cluster, "_leave", left.set)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        threading.Thread(target=cluster._hold_on, args=(address, "ours"), daemon=True).start()
        for broken in range(3):
            line, _ = server.accept()
            with line:
                line.sendall(b"settings and more")
                time.sleep(0.2)
                assert len(asked) == broken
        assert left.wait(5)
        assert len(asked) == 3


def test_what_is_called_while_nobody_is_joined_starts_no_ray(settings: Settings) -> None:
    """As by a thread that waits for its gang when another finds that Ray is gone."""
    joined(settings)
    cluster.disconnect()
    try:
        with pytest.raises(ray.exceptions.RaySystemError):
            ray.put(1)
        assert not ray.is_initialized()
    finally:
        joined(settings)


def test_a_second_head_in_one_home_is_refused(settings: Settings) -> None:
    with pytest.raises(Conflict, match="locked"):
        serve(settings)


def test_no_ray_is_an_outage_that_says_what_to_do(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(Fault, match="farm up") as caught:
        cluster._own_address(settings.model_copy(update={"home": tmp_path}))
    assert caught.value.cause is Cause.RAY_GONE
    with pytest.raises(Fault, match="does not answer") as caught:
        cluster._dial("127.0.0.1:1")
    assert caught.value.cause is Cause.RAY_GONE


def test_the_client_protocol_is_not_ours(settings: Settings) -> None:
    with pytest.raises(BadInput, match="Ray Client"):
        cluster.connect(settings.model_copy(update={"ray_address": "ray://127.0.0.1:10001"}))


def test_a_lost_head_is_an_outage_and_the_next_one_is_joined(settings: Settings, tmp_path: Path) -> None:
    """The last test of this file: it leaves the session's own head, and comes back to it."""
    own = settings.model_copy(update={"home": tmp_path})
    process = head(own)
    again: subprocess.Popen[bytes] | None = None
    try:
        joined(own)
        orphan = tmp_path / "orphan"
        argv = [sys.executable, "-c", ORPHAN, str(own.home), str(orphan)]
        subprocess.run(["sh", "-c", '"$@" &', "sh", *argv], check=True)  # its parent is init, as under systemd
        until(lambda: said(orphan) == "joined", 60.0)
        pool = Pool(own, CARDS, shard="tests.actors.fakes:load_flat")
        (first,) = pool.render([request_of("a")], lambda: False)
        assert isinstance(first, Rendered)
        family = [child for child in psutil.Process(process.pid).children() if child.is_running()]
        assert len(family) >= 2
        process.kill()
        process.wait()
        _, alive = psutil.wait_procs(family, timeout=30)
        assert not alive
        with pytest.raises(Fault) as caught:
            pool.render([request_of("a")], lambda: False)
        assert caught.value.cause is Cause.RAY_GONE
        until(lambda: said(orphan) == "outlived it", 90.0)
        again = head(own)
        joined(own)
        (second,) = pool.render([request_of("a")], lambda: False)
        assert isinstance(second, Rendered)
        assert second.gang != first.gang
    finally:
        cluster.disconnect()
        for each in (process, again):
            if each is not None:
                each.terminate()
                each.wait(30)
        joined(settings)


@pytest.mark.slow
def test_a_lost_head_is_left_at_once_and_another_one_at_its_address_is_joined(settings: Settings) -> None:
    """What still waited for the lost one would end this process when the other one answers."""
    folder, port = Path(tempfile.mkdtemp(prefix="farm-", dir="/tmp")), free_port()
    shutil.copy(settings.home / "ray" / "token", token(folder))
    foreign = settings.model_copy(update={"ray_address": f"127.0.0.1:{port}"})
    argv = [sys.executable, "-m", "tests.chaos.node", str(folder), str(port), HEAD]
    process = subprocess.Popen(argv, stderr=subprocess.DEVNULL)
    try:
        first = joined(foreign)
        group = ray.util.placement_group([{"CPU": 1}])  # a head that has none
        waits = threading.Thread(target=group.wait, args=(60,))
        waits.start()
        process.kill()
        process.wait()
        until(lambda: not ray.is_initialized())
        waits.join(30)
        process = subprocess.Popen(argv, stderr=subprocess.DEVNULL)
        until(lambda: answers(foreign), 60.0)
        assert joined(foreign) != first
        assert ray.get(ray.put(5)) == 5
    finally:
        cluster.disconnect()
        process.terminate()
        process.wait(30)
        shutil.rmtree(folder)
        joined(settings)


def answers(settings: Settings) -> bool:
    try:
        return bool(cluster.reach(settings))
    except Fault:
        return False


def test_ranks_inherit_no_login_and_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {
        "FARM_DATABASE": "postgresql://u:p@h/d",
        "PGPASSWORD": "p",
        "AWS_SECRET_ACCESS_KEY": "s",
        "HOME": "/h",
    }
    monkeypatch.setattr(os, "environ", environment)
    forget_secrets()
    assert environment == {"HOME": "/h"}


def test_the_nodes_to_plan_with_are_those_of_the_ray_that_answers(settings: Settings, tmp_path: Path) -> None:
    joined(settings)
    try:
        seen, (node,) = nodes_of(settings)
        assert seen.startswith("Ray at 127.0.0.1:")
        assert (node.cpus, node.gpus, node.gpu_bytes) == (os.cpu_count(), 0, None)
        assert node.name.startswith(socket.gethostname())
        assert node.host_bytes
    finally:
        joined(settings)  # the tests that follow find it joined, as this one did
    seen, (here,) = nodes_of(Settings(home=tmp_path))
    assert seen.startswith("this machine; Ray is not running")
    assert here.cpus == node.cpus
