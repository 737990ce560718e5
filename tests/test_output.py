"""What somebody else chose does not steer the terminal that shows it."""

from __future__ import annotations

import pytest

from farm.commands.output import facts, say, table

HOSTILE = "x\x1b]0;mine\x07\x1b[2J\x9b2J\u202ey"


def test_names_and_reasons_steer_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    table([{"id": 1, "name": HOSTILE}], ["id", "name"])
    facts({"reason": HOSTILE, "states": "one\ntwo"})
    say(f"farm: {HOSTILE}\nand a second line")
    told = capsys.readouterr()
    assert told.out.splitlines()[1].split() == ["1", "x]0;mine[2J2Jy"]
    assert told.out.splitlines()[2:] == ["reason  x]0;mine[2J2Jy", "states  one two"]
    assert told.err == "farm: x]0;mine[2J2Jy\nand a second line\n"


def test_where_there_is_little_room_the_long_columns_are_cut(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    row = {"state": "not rendered", "name": "flux1-kontext-dev" * 2, "prompt": "a red circle " * 9, "id": 12345}
    table([row], list(row))
    table([], ["id"])
    head, line, empty = capsys.readouterr().out.splitlines()
    assert (head.split(), empty.split()) == (list(row), ["id"])
    assert len(line) <= 60
    assert line.startswith("not rendered  ")
    assert line.rstrip().endswith("… 12345") or line.rstrip().endswith("…  12345")
