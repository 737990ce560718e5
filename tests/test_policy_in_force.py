"""A dispatcher and the policy: it puts that of the settings in force, and judges nothing before it has heard."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import Connection

from farm import rules
from farm.db import transact
from farm.dispatcher import Dispatcher
from farm.job_queue import NewJob
from farm.rules import ACTIVE, Herald
from farm.tables import IN_FORCE, VERDICT
from tests.test_pipeline import FakePorts, dispatch_until, fake_ports, rows, spec, states, submit

OLD, NEW = '{"name": "old"}', '{"name": "new"}'


@pytest.fixture
def ports(tmp_path: Path) -> Iterator[FakePorts]:
    yield from fake_ports(tmp_path)


def dispatcher_of(ports: FakePorts) -> Dispatcher:
    return Dispatcher(ports, rules=Herald(ports.queue.engine, ports.gate, OLD, "p"))


def judged_by(ports: FakePorts) -> set[str]:
    return {row["policy"] for row in rows(ports, VERDICT)}


def test_the_policy_of_the_settings_is_in_force_before_the_first_job_is_leased(ports: FakePorts) -> None:
    submit(ports, NewJob(line=1, spec=spec()))
    dispatcher = dispatcher_of(ports)
    with ThreadPoolExecutor(1) as pool:
        assert not dispatcher.step(pool)
    dispatch_until(dispatcher, lambda: states(ports) == {"published": 1})
    assert judged_by(ports) == {rules.hash_of(OLD)}
    assert [(row["role"], row["person"]) for row in rows(ports, IN_FORCE)] == [("active", "the settings")]


def test_another_policy_is_judged_by_as_soon_as_it_is_in_force(ports: FakePorts) -> None:
    def activate(connection: Connection) -> bool:
        return rules.put(connection, ACTIVE, NEW, "ann", "p", 0.0)

    dispatcher = dispatcher_of(ports)
    submit(ports, NewJob(line=1, spec=spec()))

    def done() -> bool:
        if states(ports) != {"published": 1} or not transact(ports.queue.engine, activate):
            return states(ports) == {"published": 2}
        submit(ports, NewJob(line=1, spec=spec()))
        return False

    dispatch_until(dispatcher, done)
    last = [row["policy"] for row in rows(ports, VERDICT)][-1]
    assert last == rules.hash_of(NEW)
