"""`farm doctor` agrees with `/readyz`, and gives advice that fits."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy.engine import make_url

from farm import rules
from farm.client import FarmClient
from farm.commands import doctor
from farm.commands.beforehand import database_fix
from farm.config import PoolSpec, Settings
from farm.db import connect, migrate, transact
from farm.errors import Fault, Unavailable
from farm.job import Cause
from farm.job_queue import JobQueue
from farm.sealed import make_keys
from safety.policy import DEMO, load


def test_what_the_api_misses_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(client: FarmClient) -> None:
        raise Unavailable("answered 503", missing=["dispatcher: signer_down, ray_gone"])

    monkeypatch.setattr(FarmClient, "ready", refuse)
    found = doctor._run("api", doctor._api, Settings(home=tmp_path))
    assert not found.ok
    assert "answers, but waits for the signer, Ray" in found.detail


@pytest.mark.parametrize(
    ("cause", "starts"), [(Cause.SIGNER_DOWN, True), (Cause.RAY_GONE, True), (Cause.STORE_FULL, False)]
)
def test_a_full_disk_is_not_mended_by_starting_the_farm(tmp_path: Path, cause: Cause, starts: bool) -> None:
    def away(settings: Settings) -> tuple[bool, str, str]:
        raise Fault(cause, "away")

    assert ("farm up" in doctor._run("x", away, Settings(home=tmp_path)).fix) is starts


@pytest.mark.parametrize(("mode", "closed"), [(0o700, True), (0o750, True), (0o755, False), (0o711, False)])
def test_a_home_that_others_can_enter_is_told_with_the_fix(tmp_path: Path, mode: int, closed: bool) -> None:
    home = tmp_path / "my farm"
    assert doctor._run("home", doctor.CHECKS["home"], Settings(home=home)).ok, "it will be made closed"
    home.mkdir()
    home.chmod(mode)
    found = doctor._run("home", doctor.CHECKS["home"], Settings(home=home))
    assert found.ok is closed
    if not closed:
        subprocess.run(found.fix, shell=True, check=True)
        assert doctor._run("home", doctor.CHECKS["home"], Settings(home=home)).ok


def test_a_check_that_breaks_is_a_no_and_the_others_go_on(tmp_path: Path) -> None:
    def breaks(settings: Settings) -> tuple[bool, str, str]:
        raise ZeroDivisionError("by\nnought")

    found = doctor._run("x", breaks, Settings(home=tmp_path))
    assert (found.ok, found.detail) == (False, "ZeroDivisionError: by nought")
    assert found.fix


@pytest.mark.parametrize(
    ("url", "says"), [("s3://bucket/x", "pip install 'renderfarm[s3]'"), ("nothing://x", "FARM_STORE")]
)
def test_a_store_that_nothing_here_opens_is_told(
    url: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    found = doctor._run("store", doctor._store, Settings(home=tmp_path, store=url))
    assert not found.ok
    assert says in found.fix


@pytest.mark.parametrize(
    ("asked", "gpus", "ok"),
    [("auto", 0, True), ("cpu", 0, True), ("cuda", 0, False), ("cuda", 1, True)],
)
def test_a_gpu_that_is_asked_for_and_not_there_is_told(
    asked: str, gpus: int, ok: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(doctor, "_gpus", lambda: gpus)
    for settings in (
        Settings(home=tmp_path, device=asked),
        Settings(home=tmp_path, pools=(PoolSpec(model="tiny", device=asked),)),
    ):
        found = doctor._run("device", doctor._device, settings)
        assert found.ok is ok
        assert asked in found.detail


def test_a_folder_of_models_that_is_not_there_is_told(tmp_path: Path) -> None:
    found = doctor._run("models", doctor._models, Settings(home=tmp_path, models=str(tmp_path / "nope")))
    assert (found.ok, found.detail) == (False, f"FARM_MODELS names no folder {tmp_path}/nope")


@pytest.mark.parametrize(
    ("detail", "fix"),
    [
        ('FATAL:  database "nodb" does not exist', "createdb -h db -p 5433 -U ann nodb"),
        ("connection failed: Connection refused", "start PostgreSQL there"),
        ("password authentication failed", "a user who may use it"),
    ],
)
def test_what_postgresql_says_decides_the_advice(detail: str, fix: str) -> None:
    assert fix in database_fix(make_url("postgresql://ann@db:5433/nodb"), detail)


def test_the_log_that_is_named_is_the_real_one(tmp_path: Path) -> None:
    def away(settings: Settings) -> tuple[bool, str, str]:
        raise Fault(Cause.RAY_GONE, "away")

    assert str(tmp_path / "home" / "log") in doctor._run("ray", away, Settings(home=tmp_path / "home")).fix


def test_a_policy_of_the_settings_that_is_not_in_force_is_told(tmp_path: Path) -> None:
    def found(policy: str = "") -> doctor.Check:
        return doctor._run("policy", doctor.CHECKS["policy"], Settings(home=tmp_path, policy=policy))

    mine = tmp_path / "mine.yaml"
    mine.write_text(DEMO.read_text().replace("name: demo", "name: mine"))
    assert "none is in force yet" in found().detail
    engine = connect(Settings(home=tmp_path).database_url)
    migrate(engine)
    transact(engine, lambda c: rules.put(c, rules.ACTIVE, load(DEMO).document, "ann", "default", 0.0))
    engine.dispose()
    assert (found().ok, found(str(DEMO)).ok, found(str(mine)).ok) == (True, True, False)
    assert "in force is demo" in found(str(mine)).detail
    assert "name the policy mine" in found(str(mine)).detail


def test_a_policy_that_keeps_what_it_blocks_needs_a_key(tmp_path: Path) -> None:
    def found() -> doctor.Check:
        return doctor._run("appeals", doctor.CHECKS["appeals"], Settings(home=tmp_path))

    assert found().ok
    engine = connect(Settings(home=tmp_path).database_url)
    migrate(engine)
    kept = '{"concepts": [{"name": "kept", "pixels": {"quarantine_days": 7}}], "name": "p"}'
    transact(engine, lambda c: rules.put(c, rules.ACTIVE, kept, "ann", "default", 0.0))
    engine.dispose()
    assert not found().ok
    assert "`farm up` makes one" in found().fix
    make_keys(tmp_path)
    assert found().ok


def test_what_holds_the_dispatchers_up_is_told_in_detail(tmp_path: Path) -> None:
    def found() -> doctor.Check:
        return doctor._run("work", doctor.CHECKS["work"], Settings(home=tmp_path))

    assert found().ok
    engine = connect(Settings(home=tmp_path).database_url)
    migrate(engine)
    queue = JobQueue(engine)
    queue.beat("one", "dispatcher", "ready", "2 groups in flight")
    assert found().ok
    queue.beat("one", "dispatcher", "waiting", "gate_down: no file /models/clip")
    engine.dispose()
    assert (found().ok, found().detail) == (False, "gate_down: no file /models/clip")
