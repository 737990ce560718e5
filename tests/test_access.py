"""Who may do what is one table, for every role there is and for no other."""

from __future__ import annotations

import pytest

from farm.access import MAY, Deed, KeyView, may, may_see, require
from farm.errors import Forbidden
from farm.job import State
from farm.tables import ROLES


def key(role: str) -> KeyView:
    return KeyView("key_1", "ours", "ann", role, 0.0)


def test_the_table_knows_every_role_and_no_other() -> None:
    assert set(MAY) == set(ROLES)


@pytest.mark.parametrize(
    ("role", "runs", "judges"), [("submitter", True, False), ("reviewer", False, True), ("operator", True, True)]
)
def test_each_role_may_what_the_table_says(role: str, runs: bool, judges: bool) -> None:
    assert (may(key(role), Deed.RUN), may(key(role), Deed.JUDGE)) == (runs, judges)
    assert may_see(key(role), State.PUBLISHED)
    assert may_see(key(role), State.HELD) == judges
    assert not may_see(key(role), State.BLOCKED)


def test_who_may_not_is_told_who_may() -> None:
    with pytest.raises(Forbidden, match="a submitter may not judge pictures") as refused:
        require(key("submitter"), Deed.JUDGE)
    assert refused.value.fix == "use the key of an operator or reviewer"
