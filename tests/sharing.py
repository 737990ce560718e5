"""Which tests stay together where several processes share them: `make test` uses two."""

from __future__ import annotations

from xdist.scheduler import LoadScopeScheduling

# A Ray head and its ranks fill two cores: two of them would starve each other. Theirs is the longest unit by far, so
# it is handed out first.
STARTS_RAY = ("tests/actors/", "tests/chaos/", "tests/test_apart.py", "tests/test_two_nodes.py")


class ByFile(LoadScopeScheduling):  # type: ignore[misc]
    """A file's tests share what its fixtures made; all that starts Ray is one unit."""

    def _split_scope(self, nodeid: str) -> str:
        return unit_of(nodeid)


def unit_of(nodeid: str) -> str:
    return "ray" if nodeid.startswith(STARTS_RAY) else nodeid.partition("::")[0]
