"""Law 10, tried: nothing of a model whose licence asks to be accepted is taken or drawn before it is, on the record."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import IntegrityError

from actors.cards import CARDS, DEV, SCHNELL, TINY
from farm import audit, licences
from farm.access import Access
from farm.cli import _run, build_dispatcher
from farm.config import Settings
from farm.db import connect, reading
from farm.errors import BadInput
from farm.insights import Insights
from farm.intake import Rules, Submission, take
from farm.job import Spec
from farm.job_queue import JobQueue, NewJob
from farm.ports import Lease

CATALOGUE = {card.name: card for card in CARDS}
LINE = b'{"prompt": "a red circle", "model": "flux1-dev"}\n'


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    engine = connect(database_url)
    Access(engine).create_project("ours")
    yield engine
    engine.dispose()


def queue(engine: Engine) -> JobQueue:
    return JobQueue(engine, licences=licences.asked(CATALOGUE))


def submit(engine: Engine, line: bytes = LINE, again: bool = False) -> int:
    rules = Rules("ours", CATALOGUE, "tiny")
    return take(io.BytesIO(line), Submission("b", "ann", again=again), rules, queue(engine)).batch_id


def stage(engine: Engine, model: str) -> int:
    """Past the intake, as a batch of an older version lies in the queue."""
    batch = queue(engine).open_batch("ours", "old", "ann")
    queue(engine).stage(batch, [NewJob(line=n, spec=Spec(model, "a red circle", n, 512, 512, 28, 3.5)) for n in (1, 2)])
    return queue(engine).accept(batch, None)


def claim(engine: Engine) -> list[Lease]:
    lanes = queue(engine).lanes()
    return [lease for lane in lanes for lease in queue(engine).claim(lane.id, "worker-1", 4, 30.0)]


def test_the_intake_refuses_it_and_says_what_to_do(engine: Engine) -> None:
    with pytest.raises(BadInput) as refused:
        submit(engine)
    (bad,) = refused.value.more["bad_lines"]
    assert bad["field"] == "model"
    assert "FLUX.1 [dev] Non-Commercial License v1.1.1" in bad["reason"]
    assert "farm models accept flux1-dev --by NAME --holds non-commercial" in bad["reason"]
    licences.accept(engine, DEV, "non-commercial", "Ann Lee", "ours")
    assert submit(engine) > 0


def test_no_job_of_it_is_leased_and_the_batch_says_why(engine: Engine) -> None:
    old, free = stage(engine, "flux1-dev"), stage(engine, "tiny")
    assert {lease.batch_id for lease in claim(engine)} == {free}
    found = Insights(engine).batch("ours", old)
    assert found is not None
    (wait,) = found["waits"]
    assert wait["reason"].startswith("licence_not_accepted: flux1-dev comes under")
    assert wait["jobs"] == 2
    licences.accept(engine, DEV, "commercial", "Ann Lee", "ours")
    assert {lease.batch_id for lease in claim(engine)} == {old}


def test_the_dispatcher_that_farm_runs_knows_what_to_ask_for(tmp_path: Path) -> None:
    dispatcher, close = build_dispatcher(Settings(home=tmp_path))
    assert "flux1-dev" in dispatcher.queue.licences
    assert dispatcher.queue.licences == licences.asked(CATALOGUE)
    close()
    dispatcher.queue.engine.dispose()


def test_an_acceptance_is_of_one_model_and_one_version(engine: Engine) -> None:
    licences.accept(engine, DEV, "non-commercial", "Ann Lee", "ours")
    assert set(licences.refused(engine, CATALOGUE)) == {"flux1-kontext-dev", "flux2-dev", "flux2-klein-9b"}
    newer = replace(DEV, licence=replace(DEV.licence, name="FLUX.1 [dev] Non-Commercial License v3"))
    assert "v3" in licences.refused(engine, {"flux1-dev": newer})["flux1-dev"]


def test_a_free_model_asks_for_nothing(engine: Engine) -> None:
    for card in (TINY, SCHNELL):
        with pytest.raises(BadInput, match="asks for no acceptance"):
            licences.accept(engine, card, "commercial", "Ann", "ours")
    assert licences.refused(engine, {"tiny": TINY, "flux1-schnell": SCHNELL}) == {}


def test_it_is_on_the_record_and_stays_there(engine: Engine) -> None:
    licences.accept(engine, DEV, "non-commercial", " Ann Lee ", "ours", lambda: 5.0)
    licences.accept(engine, DEV, "commercial", "Bo", "ours", lambda: 6.0)
    with reading(engine) as connection:
        (found,) = licences.standing(connection).values()
    assert found == licences.Acceptance("flux1-dev", DEV.licence.name, "commercial", "Bo", 6.0)
    audit.seal(engine)
    said = {"licence": DEV.licence.name, "holds": "non-commercial"}
    first = audit.read(engine, "ours")[0]
    assert (first["actor"], first["action"], first["subject"], first["data"]) == (
        "Ann Lee",
        "accept licence",
        "model flux1-dev",
        said,
    )
    for statement in ("UPDATE acceptance SET person = 'x'", "DELETE FROM acceptance"):
        with pytest.raises(IntegrityError, match="never changed or deleted"), engine.begin() as connection:
            connection.execute(text(statement))


def test_it_is_accepted_and_listed_by_command(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FARM_HOME", str(tmp_path))
    monkeypatch.setenv("FARM_DATABASE", database_url)

    def listed() -> dict[str, object]:
        assert _run(["models", "ls", "--json"]) == 0
        return {row["name"]: row["accepted"] for row in json.loads(capsys.readouterr().out)}

    assert set(listed().values()) == {None}
    assert _run(["models", "ls"]) == 0
    assert capsys.readouterr().out.count("NO") == 4
    assert _run(["models", "accept", "flux1-dev", "--by", "Ann Lee", "--holds", "non-commercial"]) == 0
    assert DEV.licence.url in capsys.readouterr().err
    found = listed()["flux1-dev"]
    assert isinstance(found, dict)
    assert (found["person"], found["holds"], found["licence"]) == ("Ann Lee", "non-commercial", DEV.licence.name)
    for wrong in (["flux1-dev", "--holds", "none", "--by", "x"], ["tiny", "--holds", "commercial", "--by", "x"]):
        assert _run(["models", "accept", *wrong]) == 2
    assert _run(["models", "accept", "flux1-dev", "--holds", "commercial", "--by", " "]) == 2
    assert _run(["models", "accept", "flux1-def", "--holds", "commercial", "--by", "x"]) == 1
