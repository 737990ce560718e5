"""Blocked frames that a policy keeps: signed, sealed, opened on the record, and gone when their time is over."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from farm import audit, quarantine, rules, unseen
from farm.cli import _run
from farm.db import reading, transact
from farm.errors import Fault, NotFound
from farm.job import Cause
from farm.job_queue import NewJob
from farm.known import state_of
from farm.ports import Frame, Kept, Outcome, Stage, Verdict
from farm.purge import purge
from farm.quarantine import DAY_S, Quarantine, days_of
from farm.sealed import make_keys, private_path, public_path, read_private, unseal
from farm.tables import QUARANTINE
from tests.fakes import WordGate, away
from tests.test_pipeline import FakePorts, fake_ports, rows, run, spec, states, submit

NOW = 1_800_000_000.0
DOCUMENT = {"name": "p", "concepts": [{"name": "kept", "pixels": {"quarantine_days": 7}}, {"name": "gone"}]}
TEXT = json.dumps(DOCUMENT, sort_keys=True)
Capture = pytest.CaptureFixture[str]


@dataclass
class Blocks(WordGate):
    concept: str = "kept"
    illegal: bool = False

    def judge_frames(self, frames: Sequence[Frame], stage: Stage) -> list[Verdict | Fault]:
        more: dict[str, Any] = {"policy": rules.hash_of(TEXT), "concept": self.concept, "illegal": self.illegal}
        return [replace(self._verdict(stage, frame.sha256, Outcome.BLOCK), **more) for frame in frames]


@pytest.fixture
def ports(tmp_path: Path) -> Iterator[FakePorts]:
    make_keys(tmp_path)
    for bare in fake_ports(tmp_path):
        engine = bare.queue.engine
        transact(engine, lambda connection: rules.put(connection, "active", TEXT, "ann", "p", NOW))
        keeps = Quarantine(engine, bare.store, bare.signer, public_path(tmp_path), lambda: NOW)
        yield replace(bare, gate=Blocks(), quarantine=keeps)


def test_a_blocked_frame_is_kept_signed_and_sealed(ports: FakePorts, tmp_path: Path) -> None:
    submit(ports, NewJob(line=1, spec=spec()), NewJob(line=2, spec=spec("a forbidden thing")))
    run(ports)
    assert states(ports) == {"blocked": 2}
    (row,) = rows(ports, QUARANTINE)
    assert (row["job_id"], row["expires_at"], row["created_at"]) == (1, NOW + 7 * DAY_S, NOW)
    with reading(ports.queue.engine) as connection:
        (kept,) = quarantine.shown(connection)
    sealed = ports.store.get(row["key"])
    signed = f"1 {kept['subject']}".encode()
    assert signed not in sealed
    private = read_private(private_path(tmp_path))
    assert unseal(private, sealed, quarantine.about(1, kept["subject"])) == signed
    assert ports.signer.signed == [1]


@pytest.mark.parametrize("why", ["concept", "illegal", "no key", "signer", "store", "no quarantine", "allowed"])
def test_nothing_else_is_kept_and_the_job_is_blocked_all_the_same(
    ports: FakePorts, tmp_path: Path, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Blocks(concept="gone" if why == "concept" else "kept", illegal=why == "illegal")
    ports = replace(ports, gate=WordGate() if why == "allowed" else gate)
    if why == "no key":
        public_path(tmp_path).unlink()
    if why == "signer":
        ports.signer.fault = away(Cause.SIGNER_DOWN)
    if why == "store":
        monkeypatch.setattr(ports.store, "put", lambda data: (_ for _ in ()).throw(away(Cause.STORE_FULL)))
    if why == "no quarantine":
        ports = replace(ports, quarantine=None)
    submit(ports, NewJob(line=1, spec=spec()))
    run(ports)
    assert states(ports) == ({"queued": 1} if why == "allowed" else {"blocked": 1})
    kept = [row for row in rows(ports, QUARANTINE) if ports.store.has(row["key"])]
    assert kept == []


def test_what_was_kept_goes_when_its_time_is_over(ports: FakePorts) -> None:
    submit(ports, NewJob(line=1, spec=spec()))
    run(ports)
    (row,) = rows(ports, QUARANTINE)
    engine, store = ports.queue.engine, ports.store
    assert quarantine.expire(engine, store, NOW + 7 * DAY_S - 1) == 0
    assert store.has(row["key"])
    assert quarantine.expire(engine, store, NOW + 7 * DAY_S) == 1
    assert (store.has(row["key"]), rows(ports, QUARANTINE)) == (False, [])


def test_a_file_that_cannot_be_deleted_keeps_no_other(ports: FakePorts, monkeypatch: pytest.MonkeyPatch) -> None:
    submit(ports, NewJob(line=1, spec=spec()), NewJob(line=2, spec=spec("another")))
    run(ports)
    first, second = rows(ports, QUARANTINE)
    delete = ports.store.delete

    def sticks(key: str) -> None:
        if key == first["key"]:
            raise away(Cause.STORE_DOWN)
        delete(key)

    monkeypatch.setattr(ports.store, "delete", sticks)
    assert quarantine.expire(ports.queue.engine, ports.store, NOW + 7 * DAY_S) == 1
    assert (ports.store.has(second["key"]), rows(ports, QUARANTINE)) == (False, [first])


def test_a_list_that_comes_in_later_ends_what_is_kept(ports: FakePorts) -> None:
    submit(ports, NewJob(line=1, spec=spec()), NewJob(line=2, spec=spec("another")))
    run(ports)
    engine, store = ports.queue.engine, ports.store
    first, second = rows(ports, QUARANTINE)
    with reading(engine) as connection:
        listed = {row["job_id"]: row["subject"] for row in quarantine.shown(connection)}[first["job_id"]]

    def judge(some: Sequence[Kept]) -> list[Verdict | Fault]:
        illegal = {"outcome": Outcome.BLOCK, "illegal": True, "lists": "a list"}
        allow = [Verdict(one.stage, one.subject, Outcome.ALLOW, rules.hash_of(TEXT), "") for one in some]
        return [replace(one, **illegal) if one.subject == listed else one for one in allow]  # type: ignore[arg-type]

    with reading(engine) as connection:
        stands = rules.in_force(connection)
    assert stands is not None
    assert [unseen.find(engine, judge, stands, lambda: NOW) for _ in range(2)] == [1, 0]
    with reading(engine) as connection:
        assert [row["job_id"] for row in quarantine.shown(connection)] == [second["job_id"]]
    assert purge(engine, store, 0) == 1
    assert [store.has(row["key"]) for row in (first, second)] == [False, True]


def test_none_is_opened_after_its_time(ports: FakePorts) -> None:
    submit(ports, NewJob(line=1, spec=spec()))
    run(ports)
    (row,) = rows(ports, QUARANTINE)

    def opened(now: float) -> dict[str, Any]:
        return transact(ports.queue.engine, lambda one: quarantine.opened(one, row["id"], "Ann", "an appeal", now))

    with pytest.raises(NotFound):
        opened(row["expires_at"])
    assert opened(NOW)["job_id"] == 1


def test_an_operator_opens_one_on_the_record(
    ports: FakePorts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FARM_HOME", str(tmp_path))
    monkeypatch.setenv("FARM_STORE", f"file://{tmp_path}/store")
    submit(ports, NewJob(line=1, spec=spec()))
    run(ports)
    assert _run(["policy", "quarantine", "ls", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["job_id"], row["concept"]) == (1, "kept")
    opened = ["policy", "quarantine", "open", str(row["id"]), "seen.png", "--by", "Ann", "--reason", "an appeal"]
    assert _run([*opened, "--key", "nowhere.pem"]) == 2
    assert _run(["policy", "quarantine", "open", "99", "seen.png", "--reason", "an appeal"]) == 1
    assert _run(opened[:-2]) == 2, "without a reason"
    audit.seal(ports.queue.engine)
    assert [one for one in audit.read(ports.queue.engine) if one["action"] == "open quarantine"] == []
    assert _run(opened) == 0
    assert "job 1 that kept blocked; Ann opened it" in capsys.readouterr().err
    sha256 = hashlib.sha256(Path("seen.png").read_bytes()).hexdigest()
    assert state_of(ports.queue.engine, sha256) == "blocked, kept for an appeal"
    assert Path("seen.png").read_bytes() == f"1 {row['subject']}".encode()
    assert Path("seen.png").stat().st_mode & 0o077 == 0
    assert _run(opened) == 2, "it is there already"
    audit.seal(ports.queue.engine)
    (told,) = [one for one in audit.read(ports.queue.engine) if one["action"] == "open quarantine"]
    assert (told["actor"], told["data"]) == ("Ann", {"job": 1, "reason": "an appeal"})


def test_a_document_says_how_long() -> None:
    said = json.dumps(DOCUMENT | {"concepts": [*DOCUMENT["concepts"], {"name": "off", "pixels": "discard"}]})
    assert [days_of(said, concept) for concept in ("kept", "gone", "off", "a-list", None)] == [7, 0, 0, 0, 0]
    assert days_of(json.dumps({"name": "p"}), "kept") == 0
