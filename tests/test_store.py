"""The store: content-addressed, whole or not at all, and an outage is nobody's fault."""

import errno
from pathlib import Path

import pytest

from farm.errors import Fault, NotFound
from farm.job import Cause
from farm.store import FsspecStore, open_store


@pytest.fixture(params=["file", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> FsspecStore:
    return open_store(f"file://{tmp_path}/store" if request.param == "file" else f"memory://{tmp_path.name}")


def test_what_is_put_can_be_got_by_its_hash(store: FsspecStore) -> None:
    key = store.put(b"picture")
    assert store.put(b"picture") == key
    assert store.get(key) == b"picture"
    store.delete(key)
    store.delete(key)
    assert not store.has(key)
    with pytest.raises(NotFound):
        store.get(key)


def test_a_damaged_file_is_never_handed_out_and_heals_when_put_again(store: FsspecStore) -> None:
    key = store.put(b"picture")
    store.fs.pipe_file(store._path(key), b"damaged")
    with pytest.raises(Fault, match="corrupt"):
        store.get(key)
    store.put(b"picture")
    assert store.get(key) == b"picture"


def test_a_full_disk_waits_and_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(f"file://{tmp_path}/store")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(Fault) as caught:
        store.put(b"picture")
    assert caught.value.cause is Cause.STORE_FULL
    assert [path for path in (tmp_path / "store").rglob("*") if path.is_file()] == []


def test_a_folder_that_cannot_be_made_is_an_outage(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("in the way")
    store = open_store(f"file://{tmp_path}/store")
    for deed in (store.reach, lambda: store.put(b"picture")):
        with pytest.raises(Fault) as caught:
            deed()
        assert caught.value.cause is Cause.STORE_DOWN


def test_a_store_is_reached_before_anything_was_put_and_not_where_nothing_can_be_written(
    store: FsspecStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.reach()
    store.put(b"picture")
    store.reach()
    if store.local:
        monkeypatch.setattr("os.access", lambda path, mode: False)
        with pytest.raises(Fault, match="no folder that can be written"):
            store.reach()


def test_whatever_a_remote_store_raises_is_an_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    class EndpointGoneError(Exception):
        """Clients of remote stores raise kinds of their own, which are no OSError."""

    def gone(path: str) -> bool:
        raise EndpointGoneError("no route")

    store = open_store("memory://remote")
    monkeypatch.setattr(store.fs, "exists", gone)
    for deed in (store.reach, lambda: store.put(b"picture")):
        with pytest.raises(Fault) as caught:
            deed()
        assert caught.value.cause is Cause.STORE_DOWN


def test_the_folders_it_makes_are_its_users_alone_and_those_that_stood_are_left(tmp_path: Path) -> None:
    """The home above it may not be there yet: `farm doctor` writes to the store before anything else made it."""
    tmp_path.chmod(0o755)
    open_store(f"file://{tmp_path}/home/store").put(b"picture")
    modes = [path.stat().st_mode & 0o777 for path in (tmp_path, tmp_path / "home", tmp_path / "home/store")]
    assert modes == [0o755, 0o700, 0o700]
