"""What several rooms' tests share: a PostgreSQL server of our own, and a migrated database of either kind."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from sqlalchemy import create_engine, make_url, text

from benchmarks import postgres
from farm.db import connect, migrate
from farm.tables import METADATA
from tests.sharing import ByFile

settings.register_profile("farm", deadline=None)  # a busy machine is not a defect
settings.load_profile("farm")
os.environ.pop("COLUMNS", None)  # pytest's workers are given one; tables are as wide as they like

_numbers = itertools.count(1)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByFile:
    return ByFile(config, log)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """The URL of a server of our own; missing, the test is skipped, but in CI that is a failure."""
    try:
        postgres.find()
    except postgres.NoServer as error:
        if os.environ.get("CI"):
            pytest.fail(str(error))
        pytest.skip(str(error))
    with postgres.server(fsync=False) as url:
        yield url


@pytest.fixture(scope="session")
def _postgres_database(postgres_server: str) -> str:
    url = fresh_postgres(postgres_server)
    _migrate(url)
    return url


@pytest.fixture(scope="session")
def _sqlite_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("database") / "farm.db"
    _migrate(f"sqlite:///{path}")
    return path


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A migrated database of each kind, empty."""
    if request.param == "sqlite":
        shutil.copy(request.getfixturevalue("_sqlite_file"), tmp_path / "farm.db")
        return f"sqlite:///{tmp_path / 'farm.db'}"
    url = str(request.getfixturevalue("_postgres_database"))
    _empty(url)
    return url


def fresh_postgres(server: str) -> str:
    """A database of its own, not migrated yet."""
    name = f"test_{next(_numbers)}"
    engine = create_engine(server, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    engine.dispose()
    return make_url(server).set(database=name).render_as_string(hide_password=False)


def _migrate(url: str) -> None:
    engine = connect(url)
    migrate(engine)
    engine.dispose()


def _empty(url: str) -> None:
    """Quicker than another database. The triggers refuse TRUNCATE, so they are left out of this session."""
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(text("SET LOCAL session_replication_role = replica"))
        connection.execute(text(f"TRUNCATE {', '.join(METADATA.tables)} RESTART IDENTITY"))
    engine.dispose()
