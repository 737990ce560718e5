"""What can be known before a farm starts is told then, by `farm up` and by `farm doctor`."""

from __future__ import annotations

from pathlib import Path

import pytest

from farm.commands import doctor, starting
from farm.commands.beforehand import default_model, ready_models
from farm.config import PoolSpec, Settings
from farm.errors import BadInput
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
