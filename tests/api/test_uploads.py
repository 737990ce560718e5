"""A picture whose content credentials are broken is refused where it comes in, not after it was drawn from."""

from __future__ import annotations

from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from farm.access import Access
from farm.cli import build_api
from farm.config import Settings
from farm.db import connect, migrate
from farm.ports import Frame
from provenance import keys, labels, manifest
from provenance.desk import VerifyingDesk
from provenance.signing import Signing
from tests.api.conftest import Shell, World, jsonl, picture

MADE = {"action": "c2pa.created", "digitalSourceType": manifest.GENERATED}
ACTIONS = {"label": "c2pa.actions.v2", "created": True, "data": {"allActionsIncluded": True, "actions": [MADE]}}


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """By a maker whom this farm does not know."""
    data = labels.encode(Frame(64, 64, bytes(range(256)) * 48), "jpeg", manifest.GENERATED)
    made: manifest.Manifest = {"title": "a test", "assertions": [ACTIONS]}
    return Signing(keys.init(tmp_path_factory.mktemp("maker"))).sign(made, data, "image/jpeg").data


@pytest.fixture
def broken(signed: bytes) -> bytes:
    """Still a picture."""
    return signed[:-30] + bytes([signed[-30] ^ 1]) + signed[-29:]


def test_the_api_takes_what_can_be_signed_and_names_what_is_broken(
    signed: bytes, broken: bytes, tmp_path: Path
) -> None:
    settings = Settings(home=tmp_path)
    engine = connect(settings.database_url)
    migrate(engine)
    access = Access(engine)
    access.create_project("p")
    headers = {"Authorization": f"Bearer {access.create_key('p', 'k', 'submitter')}"}
    engine.dispose()
    with TestClient(build_api(settings)) as client:
        answers = [client.post("/api/uploads", content=data, headers=headers) for data in (picture(), signed, broken)]
        farm = client.app.state.farm  # type: ignore[attr-defined]
        assert isinstance(farm.examiner, VerifyingDesk)
        farm.examiner.close()
    assert [answer.status_code for answer in answers] == [201, 201, 422]
    problem = answers[-1].json()
    assert problem["field"] == "body"
    assert "the file was changed after it was signed" in problem["detail"]
    assert "without content credentials" in problem["fix"]
    kept = [path for path in tmp_path.rglob("*") if path.is_file() and path.read_bytes() in (signed, broken)]
    assert [path.read_bytes() for path in kept] == [signed]


def test_the_cli_names_the_line_and_ends_with_two(
    world: World, address: str, shell: Shell, broken: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"URL": address, "KEY": world.keys["ours/submitter"], "HOME": "nowhere"}.items():
        monkeypatch.setenv(f"FARM_{name}", value)
    (tmp_path / "broken.jpg").write_bytes(broken)
    (tmp_path / "batch.jsonl").write_bytes(jsonl({}, {"image": "broken.jpg"}))
    assert shell("submit", tmp_path / "batch.jsonl") == 2
    assert "line 2: image:" in shell.err
    assert "changed after it was signed" in shell.err
    assert world.get("/api/batches").json()["items"] == []
