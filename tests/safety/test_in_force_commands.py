"""`farm policy activate, rescan, ls` on a farm with pictures that the tiny gate has judged."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from farm import config, rules
from farm.cli import _run
from farm.commands import doctor
from farm.db import connect, migrate, transact
from farm.job_queue import NewJob
from farm.ports import Lease, Outcome, Stage, Verdict
from farm.rules import ACTIVE
from safety.gate import ClipGate
from safety.policy import DEMO, load
from tests.queue.conftest import SPEC, Desk, finished
from tests.safety.conftest import some

Capture = pytest.CaptureFixture[str]
DRAWN = [("red", "circle"), ("green", "star"), ("red", "ring"), ("red", "triangle")]


@dataclass
class Small:
    """A farm of four jobs: two published, one held, one blocked."""

    desk: Desk
    edited: Path  # a policy under which nothing is looked for but stars, and these are blocked

    def states(self) -> list[str]:
        return [row["state"] for row in self.desk.rows("SELECT state FROM job ORDER BY id")]


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gate: ClipGate) -> Iterator[Small]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FARM_HOME", str(tmp_path / "home"))
    engine = connect(f"sqlite:///{tmp_path}/home/farm.db")
    migrate(engine)
    desk = Desk(engine)
    transact(engine, lambda one: rules.put(one, ACTIVE, load().document, "the settings", "ours", 0.0, first=True))
    frames = [some(*shape) for shape in DRAWN]
    desk.submit(*(NewJob(line=line, spec=replace(SPEC, width=128, height=128)) for line in range(1, 5)))
    for lease, frame, said in zip(desk.claim(), frames, gate.judge_frames(frames, Stage.FRAME), strict=True):
        assert isinstance(said, Verdict)
        (verdict_id,) = desk.queue.record([(lease, said)])
        if said.outcome is not Outcome.BLOCK:
            size = {"width": frame.width, "height": frame.height, "frame_sha256": frame.sha256}
            assert verdict_id is not None
            assert desk.queue.publish([finished(lease, verdict_id, said.outcome, **size)]) == [True]
    document = yaml.safe_load(DEMO.read_text())
    document["name"] = "other"
    document["prompt_rules"] = []
    triangle, ring = document["concepts"]
    ring["band"] = {"t_low": 0.999}
    triangle["band"] = {"t_low": 0.0}
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(document))
    yield Small(desk, tmp_path / "other.yaml")
    engine.dispose()


def answer(capsys: Capture, *words: str) -> Any:
    assert _run(["policy", *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_dry_run_lists_the_artifacts_that_flip_and_changes_nothing(small: Small, capsys: Capture) -> None:
    assert small.states() == ["published", "published", "held", "blocked"]
    told = answer(capsys, "rescan", "--dry-run", "--policy", str(small.edited))
    assert [(one["job"], one["from"], one["to"], one["becomes"]) for one in told["flips"]] == [
        (1, "allow", "review", "held"),
        (2, "allow", "review", "held"),
    ]
    assert (told["judged"], told["policy"], told["unjudged"]) == (3, load(small.edited).hash, {})
    assert small.states() == ["published", "published", "held", "blocked"]
    assert answer(capsys, "rescan", "--dry-run")["flips"] == []


def test_an_activation_holds_what_flips_and_can_be_undone_by_a_person_alone(small: Small, capsys: Capture) -> None:
    told = answer(capsys, "activate", str(small.edited), "--by", "ann", "--yes")
    assert (told["activated"], told["counts"]) == (True, {"allow -> review, published -> held": 2})
    assert told["moved"] == {"held": 2}
    assert small.states() == ["held", "held", "held", "blocked"]
    assert [row["now"] for row in answer(capsys, "ls")] == ["active", ""]
    back = answer(capsys, "activate", load().hash[:10], "--by", "bob", "--yes")
    assert (back["counts"], back["moved"]) == ({"review -> allow, stays held": 2}, {})
    assert small.states() == ["held", "held", "held", "blocked"]
    assert answer(capsys, "rescan", "--by", "bob")["judged"] == 0
    assert not answer(capsys, "activate", load().hash, "--by", "bob", "--yes")["activated"]


def test_it_asks_first_and_an_answer_of_no_changes_nothing(
    small: Small, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _run(["policy", "activate", str(small.edited), "--by", "ann"]) == 2
    assert "add --yes" in capsys.readouterr().err
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("typer.confirm", lambda words: False)
    assert _run(["policy", "activate", str(small.edited), "--by", "ann"]) == 1
    said = capsys.readouterr()
    assert "allow -> review, published -> held" in said.out
    assert "would be moved: 2 held" in said.err
    assert small.states() == ["published", "published", "held", "blocked"]


def test_an_activation_that_was_broken_off_is_ended_by_a_rescan(
    small: Small, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("farm.rescan.PAGE", 1)
    with monkeypatch.context() as broken:
        broken.setattr("farm.moves.apply", interrupt)
        assert _run(["policy", "activate", str(small.edited), "--by", "ann", "--yes"]) != 0
    assert small.states() == ["published", "published", "held", "blocked"]
    capsys.readouterr()
    assert answer(capsys, "rescan", "--by", "ann")["judged"] == 3
    assert small.states() == ["held", "held", "held", "blocked"]


def interrupt(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("words", "fix"),
    [
        (["rescan", "--policy", str(DEMO)], "--dry-run"),
        (["rescan"], "give a name"),
        (["activate", str(DEMO), "--by", " ", "--yes"], "give a name"),
        (["activate", "abcdef123456", "--by", "ann", "--yes"], "farm policy ls"),
    ],
)
def test_wrong_usage_says_what_to_do(small: Small, capsys: Capture, words: list[str], fix: str) -> None:
    assert _run(["policy", *words]) != 0
    assert fix in capsys.readouterr().err


def test_show_says_which_is_in_force_and_that_the_settings_mean_another(
    small: Small, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer(capsys, "activate", str(small.edited), "--by", "ann", "--yes")
    assert answer(capsys, "show")["hash"] == load(small.edited).hash
    monkeypatch.setenv("FARM_POLICY", str(DEMO))
    assert _run(["policy", "show"]) == 0
    said = capsys.readouterr().out
    assert "active, since" in said
    assert "the settings name the policy demo" in said


def test_a_shadow_is_put_there_reported_and_taken_away(small: Small, capsys: Capture) -> None:
    assert _run(["policy", "shadow", "--report"]) == 1
    assert "no policy is in shadow" in capsys.readouterr().err
    assert _run(["policy", "shadow", str(small.edited), "--by", "ann"]) == 0
    (lease,) = leased(small)
    beside = Verdict(Stage.FRAME, "f", Outcome.REVIEW, load(small.edited).hash, "e", concept="red-triangle")
    small.desk.queue.record([(lease, replace(beside, outcome=Outcome.ALLOW, policy=load().hash, shadow=beside))])
    told = answer(capsys, "shadow", "--report")
    said = {"stage": "frame", "from": "allow", "to": "review", "concept": "red-triangle", "count": 1}
    assert told["matrix"] == [said | {"against": load().hash}]
    assert told["unjudged"] == 0
    assert _run(["policy", "shadow", "none", "--by", "ann"]) == 0
    assert [row["now"] for row in answer(capsys, "ls") if row["name"] == "other"] == [""]
    assert _run(["policy", "shadow", load(small.edited).hash[:8], "--report"]) == 0
    assert "judged 1 beside the policy in force; the same: 0" in capsys.readouterr().err
    assert _run(["policy", "shadow"]) == 2


def test_a_shadow_that_could_judge_nothing_is_refused(small: Small, capsys: Capture) -> None:
    document = yaml.safe_load(small.edited.read_text())
    (small.edited.parent / "vit").mkdir()
    (small.edited.parent / "vit" / "model.safetensors").write_bytes(b"weights")
    document["classifier"] = {"folder": "vit", "speaks": [{"concept": "red-triangle", "labels": ["cruel"]}]}
    small.edited.write_text(yaml.safe_dump(document))
    assert _run(["policy", "shadow", str(small.edited), "--by", "ann"]) == 2
    assert "has not the same classifier" in capsys.readouterr().err
    assert [row["now"] for row in answer(capsys, "ls")] == ["active"]


def leased(small: Small) -> list[Lease]:
    small.desk.submit(count=1)
    return small.desk.claim()


def test_a_list_that_is_imported_later_finds_what_was_published_before(
    small: Small, capsys: Capture, tmp_path: Path
) -> None:
    hashes = [row["subject"] for row in small.desk.rows("SELECT subject FROM verdict ORDER BY job_id")]
    document = yaml.safe_load(DEMO.read_text())
    document["hash_lists"] = [{"name": "known", "outcome": "block", "code": "c", "words": "Known."}]
    (tmp_path / "listed.yaml").write_text(yaml.safe_dump(document))
    digests = tmp_path / "digests"
    digests.write_text(hashes[0])
    assert _run(["policy", "lists", "import", "known", str(digests), "--kind", "sha256"]) == 0
    capsys.readouterr()
    told = answer(capsys, "activate", str(tmp_path / "listed.yaml"), "--by", "ann", "--yes")
    assert (told["moved"], small.states()) == ({"unlisted": 1}, ["unlisted", "published", "held", "blocked"])
    assert doctored().ok
    digests.write_text(f"{hashes[0]}\n{hashes[1]}")
    assert _run(["policy", "lists", "import", "known", str(digests), "--kind", "sha256", "--replace"]) == 0
    assert "farm policy rescan" in capsys.readouterr().err
    assert "3 pictures were judged by another" in doctored().detail
    assert answer(capsys, "rescan", "--by", "ann")["moved"] == {"unlisted": 1}
    assert small.states() == ["unlisted", "unlisted", "held", "blocked"]
    assert doctored().ok


def doctored() -> doctor.Check:
    return doctor._run("policy", doctor.CHECKS["policy"], config.load())
