"""One real Ray head for all these tests, started by the farm itself."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from actors import cluster
from farm.config import Settings
from farm.errors import Fault
from farm.job import Spec
from farm.ports import Frame, Licence, ModelCard, RenderRequest

CARD = ModelCard(
    "flat",
    "Flat",
    Licence("none", "", False, True, False),
    True,
    2,
    4,
    1.0,
    5.0,
    16,
    256,
    256,
    65536,
    32,
    200,
    rendered=True,
)
CARDS = {name: replace(CARD, name=name) for name in ("flat", "other", "third", "missing", "broken")}


def head(settings: Settings) -> subprocess.Popen[bytes]:
    env = os.environ | {"FARM_HOME": str(settings.home), "OMP_NUM_THREADS": "1"}
    env.pop("RAY_ADDRESS", None)
    return subprocess.Popen([sys.executable, "-m", "actors.head"], env=env, stderr=subprocess.DEVNULL)


def joined(settings: Settings, seconds: float = 120.0) -> str:
    end = time.monotonic() + seconds
    while True:
        try:
            return cluster.connect(settings)
        except Fault:
            if time.monotonic() > end:
                raise
            time.sleep(0.2)


def until(true: Callable[[], bool], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.05)


@pytest.fixture(scope="session")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    settings = Settings(home=tmp_path_factory.mktemp("farm"), device="cpu")
    process = head(settings)
    try:
        joined(settings)
        yield settings
    finally:
        cluster.disconnect()
        process.terminate()
        process.wait(30)


def request_of(prompt: str, seed: int = 1, model: str = "flat", reference: Frame | None = None) -> RenderRequest:
    spec = Spec(model, prompt, seed, 32, 16, 2, 1.0, edit=reference is not None)
    return RenderRequest(seed, 1, spec, reference)


def session_folder(settings: Settings) -> Path:
    return Path((settings.home / "ray" / "temp").read_text())
