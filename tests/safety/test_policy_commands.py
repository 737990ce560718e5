"""`farm policy check | show | diff`, and that a difference is never missed."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from farm.cli import _run
from safety.diff import changes, word_by_word
from safety.policy import DEMO, load, parse

DOCUMENT: dict[str, Any] = yaml.safe_load(DEMO.read_text())
BAND = DOCUMENT["concepts"][0]["band"]
Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _no_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def other(tmp_path: Path) -> Path:
    document = copy.deepcopy(DOCUMENT)
    triangle, ring = document["concepts"]
    triangle["band"]["t_low"] = 0.3
    triangle["words"] = triangle["words"].replace("shows", "may show")
    triangle["phrases"].append("a triangle in red")
    del ring["calibration"]
    del document["prompt_rules"][2]
    document["siblings"] = "hold"
    document["templates"].reverse()
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(document))
    return tmp_path / "other.yaml"


def test_the_demo_policy_has_nothing_to_doubt(capsys: Capture) -> None:
    assert _run(["policy", "check", str(DEMO), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"valid": True, "name": "demo", "hash": load().hash, "doubts": []}


def test_check_names_what_is_not_calibrated(other: Path, capsys: Capture) -> None:
    assert _run(["policy", "check", str(other)]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert load(other).hash in first
    assert second.startswith("doubt: red-ring is not calibrated for this farm's encoder")
    assert "farm policy calibrate" in second


def test_check_says_that_the_encoder_is_missing(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setenv("FARM_ENCODER", "nowhere")
    assert _run(["policy", "check", str(DEMO), "--json"]) == 0
    (doubt,) = json.loads(capsys.readouterr().out)["doubts"]
    assert "nowhere" in doubt


def test_check_names_a_list_until_it_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setenv("FARM_HOME", str(tmp_path / "home"))
    document = copy.deepcopy(DOCUMENT)
    entry = {"name": "known", "outcome": "block", "code": "known", "words": "It may not be shown."}
    (tmp_path / "p.yaml").write_text(yaml.safe_dump(document | {"hash_lists": [entry]}))
    (tmp_path / "list.txt").write_text("ab" * 32)

    def doubts() -> list[str]:
        assert _run(["policy", "check", "p.yaml", "--json"]) == 0
        found: list[str] = json.loads(capsys.readouterr().out)["doubts"]
        return found

    (doubt,) = doubts()
    assert doubt.startswith("nobody imported its hash list known")
    assert not (tmp_path / "home").exists()
    (tmp_path / "home").mkdir()
    assert _run(["policy", "lists", "import", "known", "list.txt", "--kind", "sha256", "--by", "ann"]) == 0
    capsys.readouterr()
    assert doubts() == []


def test_a_refused_policy_is_told_and_ends_with_1(tmp_path: Path, capsys: Capture) -> None:
    document = copy.deepcopy(DOCUMENT)
    document["concepts"][0]["band"] = {"t_low": 0.9, "t_high": 0.8}
    (tmp_path / "bad.yaml").write_text(yaml.safe_dump(document))
    assert _run(["policy", "check", "bad.yaml"]) == 1
    assert "t_low 0.9 is not below t_high" in capsys.readouterr().err
    assert _run(["policy", "check", "bad.yaml", "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert (told["valid"], told["field"]) == (False, "concepts.red-triangle.band")


def test_show_says_the_policy_in_words_and_as_it_is(capsys: Capture) -> None:
    assert _run(["policy", "show"]) == 0
    said = capsys.readouterr().out
    for word in (
        "red-triangle",
        "a red ring",
        str(BAND["t_low"]),
        "figure-of-speech",
        "leave those of a blocked job",
        "no batch",
    ):
        assert word in said
    assert _run(["policy", "show", str(DEMO), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert parse(json.dumps(told["document"])).hash == told["hash"] == load().hash


def test_diff_says_each_change_once_in_words(other: Path, capsys: Capture) -> None:
    assert _run(["policy", "diff", str(DEMO), str(other)]) == 0
    lines = capsys.readouterr().out.splitlines()
    where = "concepts.red-triangle"
    for line in (
        f"{where}.band.t_low: {BAND['t_low']} -> 0.3",
        f"{where}.phrases.a triangle in red: added: a triangle in red",
        "siblings: added: hold",
    ):
        assert line in lines
    starts = ("concepts.red-ring.calibration: removed", "prompt_rules.toy-doubt: removed", "templates: the same in ano")
    for start in starts:
        assert sum(line.startswith(start) for line in lines) == 1
    (words,) = [line for line in lines if line.startswith(f"{where}.words")]
    assert words.startswith(f"{where}.words: The picture [-shows-] {{+may show+}} a red triangle,")
    assert len(lines) == 7
    assert _run(["policy", "diff", str(DEMO), str(other), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [change["words"] for change in told["changes"]] == lines
    assert (told["before"], told["after"]) == (load().hash, load(other).hash)


def test_diff_of_the_same_says_so(capsys: Capture) -> None:
    assert _run(["policy", "diff", str(DEMO), str(DEMO)]) == 0
    assert "they say the same" in capsys.readouterr().err


def leaves(part: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = part.items() if isinstance(part, dict) else enumerate(part) if isinstance(part, list) else ()
    deeper = [leaf for key, value in items for leaf in leaves(value, (*path, key))]
    return deeper or [path]


@settings(max_examples=40)
@given(st.data())
def test_no_change_of_one_value_is_missed(data: st.DataObject) -> None:
    document = copy.deepcopy(DOCUMENT)
    numbers = [path for path in leaves(document) if path[-1] in ("t_low", "t_high", "a", "b", "words", "about", "code")]
    path = data.draw(st.sampled_from(numbers))
    part = document
    for step in path[:-1]:
        part = part[step]
    old = part[path[-1]]
    part[path[-1]] = f"{old}x" if isinstance(old, str) else old * 0.99
    (change,) = changes(load(), parse(yaml.safe_dump(document)))
    assert (change.before, change.after) == (old, part[path[-1]])
    assert change.where.endswith(str(path[-1]))


texts = st.text(alphabet="ab ", max_size=12)


@given(before=texts, after=texts)
def test_words_that_went_and_came_give_both_texts_again(before: str, after: str) -> None:
    said = word_by_word(before, after)
    old, new = [], []
    for mark in said.replace("[-", "\n-").replace("{+", "\n+").replace("-]", "\n").replace("+}", "\n").split("\n"):
        if not mark.startswith("+"):
            old += mark.removeprefix("-").split()
        if not mark.startswith("-"):
            new += mark.removeprefix("+").split()
    assert (old, new) == (before.split(), after.split())


def test_help_of_the_group_loads_nothing_heavy() -> None:
    code = "from farm.cli import main; import sys\ntry: main(['policy', '--help'])\nexcept SystemExit: pass\n"
    code += "print(sorted({'torch', 'ray', 'numpy', 'open_clip'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
