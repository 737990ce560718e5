"""The CLI by itself: quick, kind, and with exit codes that scripts can trust."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import psutil
import pytest

from farm.cli import main
from farm.commands import doctor, starting
from farm.config import Settings
from farm.errors import Conflict, FarmError, Unavailable
from farm.sealed import private_path
from farm.supervisor import alone

HEAVY = {"torch", "ray", "transformers", "open_clip", "c2pa"}


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    out, err = capsys.readouterr()
    assert isinstance(ended.value.code, int)
    return ended.value.code, out, err


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("FARM_")]:
        monkeypatch.delenv(name)


@pytest.mark.parametrize("command", ["up", "dispatch"])
def test_a_cluster_that_can_never_be_joined_is_told_at_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "ray://head:10001")
    monkeypatch.setattr(starting, "prepare", lambda settings: pytest.fail("it went on"))
    code, _, said = run(capsys, command)
    assert code == 2
    assert "'ray://head:10001' is a Ray Client address (give the head's host:port)" in said


@pytest.mark.parametrize("command", [["--help"], ["ls"], ["submit", "x"], ["doctor"], ["models", "ls"], ["show", "1"]])
def test_light_commands_load_nothing_heavy(command: list[str], tmp_path: Path) -> None:
    program = (
        "import sys; from farm.cli import main\n"
        f"try: main({command!r})\n"
        f"finally: print('loaded:', *({HEAVY!r} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1] == "loaded:"


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["shwo"], "show"),
        (["ls", "--jsn"], "--json"),
        (["submit"], "FILE"),
        (["submit"], "farm submit --help"),
        (["models", "accept", "tiny"], "farm models accept --help"),
        (["submit", "nothing.jsonl"], "nothing.jsonl is not there"),
        (["priority", "1", "1000"], "100"),
        (["show", "twelve"], "job:12"),
        (["bench", "quueue"], "'queue'"),
        (["verify"], "--published"),
        (["verify", "--published", "a.png"], "not files and --published at once"),
        (["verify", "--audit", "a.png"], "not files and --audit at once"),
        (["models", "check", "nothing"], "no file or folder"),
    ],
)
def test_wrong_usage_is_two_and_one_line_that_helps(
    arguments: list[str], word: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FARM_KEY", "farm_x")
    code, out, err = run(capsys, *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert word in err


def test_an_unknown_setting_names_the_nearest(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FARM_PROT", "1")
    code, _, err = run(capsys, "ls")
    assert code == 2
    assert "'port'" in err


def test_without_a_command_it_says_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys)
    assert code == 0
    for name in ("up", "demo", "submit", "ls", "show", "watch", "cancel", "retry", "download", "verify", "doctor"):
        assert f"\n  {name} " in out


def test_the_first_key_is_made_once_and_is_ours_alone(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "home", port=_free())
    path = starting.prepare(settings)
    key = path.read_text()
    assert path.stat().st_mode & 0o777 == 0o600
    assert settings.home.stat().st_mode & 0o777 == 0o700
    assert starting.prepare(settings).read_text() == key
    for damaged in (b"farm_old\n", b"\xff\xfe"):
        path.write_bytes(damaged)
        assert starting.prepare(settings).read_bytes() != damaged


def test_the_database_of_a_newer_farm_is_told_and_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = Settings(home=tmp_path / ".farm", port=_free())
    monkeypatch.setenv("FARM_PORT", str(settings.port))
    starting.prepare(settings)
    with closing(sqlite3.connect(settings.home / "farm.db")) as newer, newer:
        newer.execute("UPDATE alembic_version SET version_num = 'v9999'")
    code, _, said = run(capsys, "up")
    assert (code, said.count("\n")) == (1, 1)
    assert said.startswith("farm: database: this database was made by a newer Farm: its version v9999 ")
    found = doctor._run("database", doctor.CHECKS["database"], settings)
    assert (found.ok, found.fix) == (False, "run that Farm, or set FARM_DATABASE to another")


def test_what_nobody_foresaw_is_one_line_and_a_file_that_says_where(tmp_path: Path) -> None:
    program = (
        "from farm import cli\nfrom farm.commands import session\n"
        "def broken(): raise KeyError('a\\nb')\n"
        "session.open_client = broken; cli.main(['ls'])"
    )
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    (file,) = tmp_path.glob("farm-*.log")
    assert done.returncode == 1
    assert done.stderr == f"farm: KeyError: 'a\\nb' (a fault of Farm's own: {file} says where)\n"
    assert "in broken" in file.read_text()


def test_whichever_process_is_first_makes_a_home_that_is_ours_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    monkeypatch.setenv("FARM_HOME", str(home))
    monkeypatch.setattr("actors.head.serve", lambda settings: (settings.home / "ray").mkdir(parents=True) or 0)
    assert run(capsys, "ray")[0] == 0
    assert home.stat().st_mode & 0o777 == 0o700


def test_a_second_farm_of_one_home_says_nothing_of_its_pages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FARM_PORT", str(_free()))
    (tmp_path / ".farm" / "run").mkdir(parents=True)
    with (tmp_path / ".farm" / "run" / "up.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write("12\n")
        lock.flush()
        code, _, said = run(capsys, "up")
    assert code == 1
    assert said.startswith("farm: a farm runs in")
    assert said.count("\n") == 1


def test_whoever_interrupts_at_once_sees_no_traceback() -> None:
    program = (
        "import sys, types\n"
        "def stop(name): raise KeyboardInterrupt\n"
        "cli = sys.modules['farm.cli'] = types.ModuleType('farm.cli'); cli.__getattr__ = stop\n"
        "from farm.__main__ import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "")


def test_a_port_that_is_taken_is_told_before_anything_starts(tmp_path: Path) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as other:
        settings = Settings(home=tmp_path / "home", port=other.getsockname()[1])
        with pytest.raises(Conflict, match="is taken"):
            starting.prepare(settings)
    assert not settings.home.exists()


def test_a_second_start_in_one_home_makes_no_keys(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "home", port=_free())
    with alone(settings.home), pytest.raises(Conflict, match="runs in"):
        starting.prepare(settings)
    assert not private_path(settings.home).exists()


def test_doctor_names_a_fix_for_whatever_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "doctor", "--json")
    checks = {check["name"]: check for check in json.loads(out)}
    assert code == 1
    assert checks["python"]["ok"]
    assert not checks["signer"]["ok"]
    assert all(check["fix"] for check in checks.values() if not check["ok"])


def test_verify_says_no_of_a_picture_without_a_manifest(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from provenance import keys
    from tests.api.conftest import picture

    keys.init(tmp_path / ".farm")
    (tmp_path / "plain.png").write_bytes(picture())
    (tmp_path / "text.webp").write_bytes(b"no picture")
    code, out, err = run(capsys, "verify", ".", "--json")
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 1
    assert [(row["path"], row["verdict"]) for row in rows] == [("plain.png", "NoManifest"), ("text.webp", "Unreadable")]
    assert err == "0 of 2 are Trusted\n"


FARM_AROUND_A_BLOCK = """
import sys, time
from pathlib import Path
from farm.commands import starting
from farm.config import Settings

starting.UP = [sys.executable, "-c", "import time; time.sleep(60)"]
starting.wait_ready = lambda *_, **__: None
with starting.running(Settings(home=Path("home"), port=int(sys.argv[1]))):
    print("running", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)])
def test_a_farm_of_our_own_ends_with_us_however_we_end(number: signal.Signals, code: int) -> None:
    command = [sys.executable, "-c", FARM_AROUND_A_BLOCK, str(_free())]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as demo:
        assert demo.stdout is not None
        assert demo.stdout.readline() == b"running\n"
        (farm,) = psutil.Process(demo.pid).children()
        demo.send_signal(number)
        try:
            assert demo.wait(10) == code
            farm.wait(10)
        finally:
            if farm.is_running():
                farm.kill()


@contextmanager
def another(status: int, body: bytes) -> Iterator[int]:
    """Something else that listens, and answers everything so."""

    class Other(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Other) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield server.server_port
        server.shutdown()


@pytest.mark.parametrize(
    ("status", "body"), [(200, b"<html>"), (404, b"nothing"), (200, b"{}"), (500, b"[]"), (302, b"")]
)
def test_what_listens_and_is_no_farm_is_not_ours(
    status: int, body: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class StartedHere(Exception):
        pass

    def start(settings: Settings) -> None:
        raise StartedHere(settings.port)

    monkeypatch.setattr(starting, "_start", start)
    with another(status, body) as port:
        with pytest.raises(StartedHere) as started, starting.running(Settings(home=tmp_path, port=port, key="farm_x")):
            pass
        assert started.value.args[0] != port


def test_an_answer_that_is_no_document_is_told_in_words() -> None:
    from farm.client import FarmClient

    with (
        another(200, b"<html>") as port,
        FarmClient(f"http://127.0.0.1:{port}") as client,
        pytest.raises(Unavailable, match="is not a farm"),
    ):
        client.get("/api/batches")
    with (
        another(500, b"[]") as port,
        FarmClient(f"http://127.0.0.1:{port}") as client,
        pytest.raises(FarmError, match="answered 500"),
    ):
        client.get("/api/batches")


def _free() -> int:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])
