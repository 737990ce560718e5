"""What several rooms' tests share: a PostgreSQL server of our own, and a migrated database of either kind."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import create_engine, make_url, text

from benchmarks import postgres
from farm.db import connect, migrate

DATABASES = ["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)]
_numbers = itertools.count(1)


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
        _create(url, "template")
        engine = connect(_named(url, "template"))
        migrate(engine)
        engine.dispose()
        yield url


@pytest.fixture(params=DATABASES)
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A migrated database of each kind, empty."""
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path / 'farm.db'}"
        engine = connect(url)
        migrate(engine)
        engine.dispose()
        return url
    return fresh_postgres(request.getfixturevalue("postgres_server"), "TEMPLATE template")


def fresh_postgres(server: str, how: str = "") -> str:
    name = f"test_{next(_numbers)}"
    _create(server, name, how)
    return _named(server, name)


def _named(server: str, name: str) -> str:
    return make_url(server).set(database=name).render_as_string(hide_password=False)


def _create(server: str, name: str, how: str = "") -> None:
    engine = create_engine(server, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name} {how}"))
    engine.dispose()
