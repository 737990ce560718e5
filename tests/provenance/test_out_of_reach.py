"""What code in a Ray worker finds of the signer's key, on a machine where all is one user's, and keys are encrypted."""

from __future__ import annotations

import ctypes
import json
import os
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from farm.cli import _run
from farm.commands import starting
from farm.config import Settings
from farm.supervisor import Supervisor
from provenance.signer import listen
from tests.provenance.conftest import open_farm, start_signer

SECRET = "open sesame, said Ali"
NOBODY = 65534
# As the head does before it starts Ray, from whom its workers have all that they have.
WORKER = """
import json, os, sys
from pathlib import Path
from actors.head import forget_secrets
forget_secrets()
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from farm.errors import FarmError
from provenance import keys
from provenance.client import SignerClient
from tests.provenance.conftest import lease, picture
from farm.tables import Job
home, opened = Path(sys.argv[1]), []
for path in [one for one in home.rglob("*") if one.is_file() and b"PRIVATE KEY" in one.read_bytes()]:
    try:
        load_pem_private_key(path.read_bytes(), None)
    except TypeError:
        opened.append([path.name, "is encrypted"])
    else:
        opened.append([path.name, "opens"])
said = {"files": opened, "environment": [name for name in os.environ if name.startswith("FARM_PASS")]}
try:
    said["keys"] = repr(keys.load(home))
except FarmError as error:
    said["keys"] = str(error)
job = Job(id=1, attempt=1, model="tiny", prompt="p", seed=1, width=48, height=32, steps=1, guidance=1.0, format="png")
try:
    SignerClient(home / "signer.sock").sign(lease(job), picture(1))
    said["signer"] = "signed"
except FarmError as error:
    said["signer"] = str(error)
(home / "said").write_text(json.dumps(said))
"""


def test_code_in_a_worker_does_not_get_at_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FARM_PASSPHRASE", SECRET)
    process, client = start_signer(tmp_path, str(tmp_path / "signer.sock"))
    farm = open_farm(tmp_path, client)
    children = {kept.child.name: kept.child for kept in starting.supervisor(Settings(home=tmp_path)).kept}
    worker = replace(children["ray"], argv=[sys.executable, "-c", WORKER, str(tmp_path)])
    keeper = Supervisor(tmp_path, [worker])
    try:
        keeper.step()
        running = keeper.kept[0].process
        assert running is not None
        assert running.wait(60) == 0, (tmp_path / "log" / "ray.log").read_text()
    finally:
        process.kill()
        process.wait()
        farm.engine.dispose()
    said = json.loads((tmp_path / "said").read_text())
    assert {name for name, _ in said["files"]} >= {"leaf.pem", "issuing.pem", "root.pem", "stamps.pem", "audit.pem"}
    assert {what for _, what in said["files"]} == {"is encrypted"}
    assert said["environment"] == []
    assert "is encrypted" in said["keys"]
    assert "is not leased to this owner" in said["signer"]


def test_the_signer_alone_is_told_the_passphrase(tmp_path: Path) -> None:
    hidden = {kept.child.name: kept.child.without for kept in starting.supervisor(Settings(home=tmp_path)).kept}
    assert hidden.pop("signer") == ()
    assert set(hidden.values()) == {("FARM_PASSPHRASE",)}
    assert len(hidden) == 3


@pytest.mark.parametrize(("folder", "socket"), [(0o700, 0o600), (0o750, 0o600), (0o2750, 0o660)])
def test_the_socket_is_its_users_or_the_group_s_of_a_setgid_folder(tmp_path: Path, folder: int, socket: int) -> None:
    place = tmp_path / "run"
    place.mkdir()
    if os.geteuid() == 0:
        os.chown(place, 0, NOBODY)
    place.chmod(folder)
    with listen(place / "signer.sock"):
        found = (place / "signer.sock").stat()
        assert stat.S_IMODE(found.st_mode) == socket
        assert found.st_gid == place.stat().st_gid or socket == 0o600


@pytest.mark.parametrize("closed", [True, False])
def test_another_process_of_the_same_user_reads_nothing_of_one_that_is_closed(closed: bool) -> None:
    """Not as root, from whom nothing is hidden."""
    common = "import ctypes, os, sys, time\nfrom farm.supervisor import closed_to_others\n"
    common += f"if os.geteuid() == 0: os.setgroups([]), os.setgid({NOBODY}), os.setuid({NOBODY})\n"
    common += "ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)\n"  # as after an exec
    code = common + ("closed_to_others()\n" if closed else "") + "print('there', flush=True); time.sleep(60)"
    environment = os.environ | {"FARM_PASSPHRASE": SECRET}
    held = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment)
    try:
        assert held.stdout is not None
        assert held.stdout.readline() == b"there\n"
        spy = common + "print(open(f'/proc/{sys.argv[1]}/environ').read())"
        command = [sys.executable, "-c", spy, str(held.pid)]
        found = subprocess.run(command, capture_output=True, text=True, check=False)
    finally:
        held.kill()
        held.communicate()
    assert (SECRET in found.stdout) is not closed
    assert ("PermissionError" in found.stderr) is closed


@pytest.mark.parametrize("command", ["signer", "up"])
def test_who_knows_the_passphrase_is_closed(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ask = ctypes.CDLL(None).prctl
    dumpable: list[int] = []

    def look(*_: object) -> int:
        dumpable.append(ask(3, 0, 0, 0, 0))
        return 0

    monkeypatch.setenv("FARM_HOME", str(tmp_path))
    monkeypatch.setattr("provenance.signer.serve", look)
    monkeypatch.setattr(Supervisor, "run", look)
    monkeypatch.setattr(starting, "prepare", lambda _: tmp_path / "key")
    monkeypatch.setattr(starting, "announce", lambda _: None)
    ask(4, 1, 0, 0, 0)
    assert _run([command]) == 0
    ask(4, 1, 0, 0, 0)
    assert dumpable == [0]
