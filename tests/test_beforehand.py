"""What can be known before a farm starts is told then, by `farm up` and by `farm doctor`."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from actors.gate import RemoteGate
from farm import rules
from farm.cli import build_dispatcher
from farm.commands import doctor, starting
from farm.commands.beforehand import default_model, ready_models
from farm.config import PoolSpec, Settings
from farm.db import connect, migrate, transact
from farm.errors import BadInput, FarmError
from safety import places
from safety.policy import DEMO, load
from tests.chaos.victims import free_port
from tests.flux.test_weights_check import real_comfyui


@pytest.fixture
def kontext(tmp_path: Path) -> str:
    folder = tmp_path / "models"
    real_comfyui(folder, "flux1-dev-kontext_fp8_scaled.safetensors", "F8_E4M3")
    return str(folder)


def meant(settings: Settings) -> str | None:
    return default_model(settings, ready_models(settings))


def test_the_one_real_model_that_is_ready_is_meant_though_the_tiny_one_is_there_too(kontext: str) -> None:
    assert ready_models(Settings(models=kontext)) == ["tiny", "flux1-kontext-dev"]
    assert meant(Settings(models=kontext)) == "flux1-kontext-dev"
    assert meant(Settings(pools=(PoolSpec(model="flux1-kontext-dev", weights=kontext),))) == "flux1-kontext-dev"
    assert meant(Settings(models=kontext, default_model="tiny")) == "tiny"


def test_where_it_is_unclear_a_line_must_say(tmp_path: Path) -> None:
    assert default_model(Settings(models="x"), ["tiny", "flux1-dev", "flux1-schnell"]) is None
    assert meant(Settings(models=str(tmp_path))) is None, "weights were meant to be there"
    assert meant(Settings()) == "tiny"


def test_a_default_model_that_nobody_draws_is_told_before_anything_starts(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "home", port=free_port(), default_model="flux1-shnell")
    with pytest.raises(BadInput, match=r"default_model: 'flux1-shnell' .*did you mean 'flux1-schnell'"):
        starting.prepare(settings)
    assert not settings.home.exists()
    found = doctor._run("models", doctor.CHECKS["models"], settings)
    assert (found.ok, found.fix) == (False, "did you mean 'flux1-schnell'?")


def test_a_farm_that_could_not_judge_does_not_start(tmp_path: Path) -> None:
    clip = tmp_path / "clip"
    clip.mkdir()
    policy = tmp_path / "policy.yaml"
    policy.write_text("name: [")
    cases: list[tuple[dict[str, Any], str]] = [
        ({"policy": "/nope"}, "cannot read the policy /nope: No such file"),
        ({"policy": str(policy)}, "the policy is not plain YAML"),
        ({"encoder": f"local-dir:{clip}"}, f"{clip} needs open_clip_config.json and a safetensors file"),
        ({"encoder": "ViT-L-14@nope.safetensors"}, "no file nope.safetensors"),
        ({"encoder": f"ViT-L-14@{policy}"}, "is not safetensors"),
    ]
    for told, says in cases:
        settings = Settings(home=tmp_path / "home", port=free_port(), **told)
        with pytest.raises(FarmError, match=says):
            starting.prepare(settings)
        found = doctor._run("gate", doctor.CHECKS["gate"], settings)
        assert not found.ok
        assert says in found.detail
        assert not settings.home.exists()
    shutil.copytree(places.TINY, clip, dirs_exist_ok=True)
    settings = Settings(home=tmp_path, encoder=f"local-dir:{clip}", policy=str(DEMO))
    assert doctor._run("gate", doctor.CHECKS["gate"], settings).ok


def test_a_policy_file_that_moved_stops_no_farm_that_has_a_policy_in_force(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = Path(shutil.copy(DEMO, tmp_path / "policy.yaml"))
    settings = Settings(home=tmp_path / "home", port=free_port(), policy=str(file))
    engine = connect(settings.database_url)
    migrate(engine)
    file.rename(tmp_path / "moved.yaml")
    with pytest.raises(BadInput, match="cannot read the policy"):
        build_dispatcher(settings)
    stands = load().document
    transact(engine, lambda one: rules.put(one, rules.ACTIVE, stands, "ann", settings.project, 1.0))
    engine.dispose()
    dispatcher, close = build_dispatcher(settings)
    assert dispatcher.herald.settings == stands
    assert "is not read" in caplog.text
    gate = dispatcher.ports.gate
    assert isinstance(gate, RemoteGate)
    assert str(file) not in [word for seat in gate.seats for word in seat.args]
    close()
    dispatcher.queue.engine.dispose()
    starting.prepare(settings)


def test_whether_a_gate_is_there_is_told_without_torch() -> None:
    program = (
        "import sys; from farm.commands.beforehand import gate; from farm.config import Settings\n"
        "gate(Settings()); print({'torch', 'open_clip'} & sys.modules.keys())"
    )
    assert subprocess.check_output([sys.executable, "-c", program], text=True) == "set()\n"


def test_an_encoder_is_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, whole in (
        ("clip", f"{tmp_path}/clip"),
        ("local-dir:a@b/clip", f"local-dir:{tmp_path}/a@b/clip"),
        ("ViT-L-14@w.safetensors", f"ViT-L-14@{tmp_path}/w.safetensors"),
        ("hf-hub:owner/name", "hf-hub:owner/name"),
        ("", ""),
    ):
        assert places.whole(name) == whole


def test_an_address_that_nothing_here_listens_on_is_not_a_port_that_is_taken(tmp_path: Path) -> None:
    for host in ("256.1.1.1", "192.0.2.1", "x" * 70):
        settings = Settings(home=tmp_path / "home", host=host, port=free_port())
        with pytest.raises(BadInput, match=rf"host: nothing can listen on {host}:.*set FARM_HOST"):
            starting.prepare(settings)
        assert "FARM_HOST" in doctor._run("port", doctor.CHECKS["port"], settings).fix
    assert not settings.home.exists()


def test_a_home_too_deep_for_the_signer_s_socket_is_told(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / ("x" * 100), port=free_port())
    with pytest.raises(BadInput, match="is too long for a Unix socket"):
        starting.prepare(settings)
    assert doctor._run("signer", doctor.CHECKS["signer"], settings).fix == "set FARM_SIGNER to a shorter path"


def test_a_damaged_database_is_named_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "farm.db").write_text("no database " * 99)
    settings = Settings(home=tmp_path, port=free_port())
    with pytest.raises(FarmError, match=r"farm\.db: file is not a database \(put a copy in its place"):
        starting.prepare(settings)
    found = doctor._run("database", doctor.CHECKS["database"], settings)
    assert found.detail == f"sqlite:///{tmp_path}/farm.db: file is not a database"
    assert found.fix.startswith("put a copy in its place")


def test_the_doctor_leaves_a_home_that_is_not_there_to_the_farm(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "home", port=free_port())
    for name in ("home", "disk", "database", "store"):
        doctor._run(name, doctor.CHECKS[name], settings)
    assert not settings.home.exists()
