"""A short run of `make fuzz`, and that what it asks can be answered wrongly."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from provenance.report import TRUSTED
from provenance.verify import verify_bytes
from tests.provenance import fuzz
from tests.provenance.test_verify import container


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[fuzz.Case], str]:
    return fuzz.make_cases(tmp_path_factory.mktemp("fuzz"))


def test_a_changed_file_is_never_a_crash_and_never_trusted_by_mistake(tmp_path: Path) -> None:
    fuzz.store(tmp_path)
    words, wrong = fuzz.work(str(tmp_path), 1, range(600))
    assert [(one.number, one.why) for one in wrong] == []
    assert set(words) >= {"Trusted", "Invalid", "NoManifest", "Unreadable"}, "each kind of damage was met"
    assert words.total() == 600


def test_a_mutation_can_be_made_again(cases: tuple[list[fuzz.Case], str]) -> None:
    made = [fuzz.mutated(7, number, cases[0])[1] for number in range(50)]
    assert made == [fuzz.mutated(7, number, cases[0])[1] for number in range(50)]
    assert len(set(made)) > 40


def test_it_would_notice(cases: tuple[list[fuzz.Case], str], monkeypatch: pytest.MonkeyPatch) -> None:
    case, root = cases[0][0], cases[1]
    damaged = bytearray(case.data)
    damaged[container(case.data).stop + 20] ^= 1
    assert fuzz.judge(case, bytes(damaged), root) == ("Invalid", None)
    lenient = replace(verify_bytes(case.data, None, root), verdict=TRUSTED)
    monkeypatch.setattr(fuzz, "verify_bytes", lambda *_: lenient)
    assert fuzz.judge(case, bytes(damaged), root)[1] == "Trusted, though a covered byte changed"
    assert fuzz.judge(case, case.data, root) == (TRUSTED, None)

    def crash(*_: object) -> None:
        raise RuntimeError("oh")

    monkeypatch.setattr(fuzz, "verify_bytes", crash)
    assert fuzz.judge(case, case.data, root) == ("crash", "RuntimeError: oh")


def test_every_kind_of_mutation_is_among_the_first(cases: tuple[list[fuzz.Case], str]) -> None:
    met: Counter[str] = Counter()
    for number in range(200):
        case, data = fuzz.mutated(1, number, cases[0])
        met["longer" if len(data) > len(case.data) else "shorter" if len(data) < len(case.data) else "as long"] += 1
    assert set(met) == {"longer", "shorter", "as long"}
