"""`farm doctor` agrees with `/readyz`, and gives advice that fits."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from farm.client import FarmClient
from farm.commands import doctor
from farm.config import Settings
from farm.errors import Fault, Unavailable
from farm.job import Cause


def test_what_the_api_misses_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(client: FarmClient) -> None:
        raise Unavailable("answered 503", missing=["dispatcher: signer_down, ray_gone"])

    monkeypatch.setattr(FarmClient, "ready", refuse)
    found = doctor._run("api", doctor._api, Settings(home=tmp_path))
    assert not found.ok
    assert "signer_down, ray_gone" in found.detail


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
