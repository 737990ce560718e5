"""The header reader against files that lie."""

import json
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from actors.flux.headers import HEADER_LIMIT, NotRendered, WeightsError, read_header

GOOD = {"a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}


def file_of(folder: Path, header: Any, data: int = 24, name: str = "x.safetensors") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path = folder / name
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(data))
    return path


def test_agrees_with_the_library_that_wrote_the_file(tmp_path: Path) -> None:
    tensors = {
        "weight": torch.zeros(3, 5, dtype=torch.bfloat16),
        "scalar": torch.tensor(1.0),
        "none": torch.zeros(0, 4),
        "eight": torch.zeros(7, dtype=torch.float8_e4m3fn),
    }
    save_file(tensors, tmp_path / "x.safetensors", {"format": "pt"})
    header = read_header(tmp_path / "x.safetensors")
    assert {name: info.shape for name, info in header.tensors.items()} == {
        name: tuple(tensor.shape) for name, tensor in tensors.items()
    }
    assert header.metadata == {"format": "pt"}
    assert header.nbytes == (tmp_path / "x.safetensors").stat().st_size


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 20]}}, "needs 24 bytes"),
        ({"a": {"dtype": "F32", "shape": [2, -3], "data_offsets": [0, 24]}}, "shape or offsets"),
        ({"a": {"dtype": "F32", "shape": [2, True], "data_offsets": [0, 8]}}, "shape or offsets"),
        ({"a": {"dtype": "F32", "shape": [2.0, 3], "data_offsets": [0, 24]}}, "shape or offsets"),
        ({"a": {"dtype": "F32", "shape": [2**60, 2**60], "data_offsets": [0, 24]}}, "shape or offsets"),
        ({"a": {"dtype": "F32", "shape": [1] * 9, "data_offsets": [0, 4]}}, "shape or offsets"),
        ({"a": {"dtype": "F33", "shape": [6], "data_offsets": [0, 24]}}, "unknown type"),
        ({"a": {"dtype": ["F32"], "shape": [6], "data_offsets": [0, 24]}}, "unknown type"),
        ({"a": {"dtype": "F32", "shape": [6]}}, "must have dtype"),
        ({"a": {**GOOD["a"], "extra": 1}}, "must have dtype"),
        ({"a": 3}, "must have dtype"),
        ({"a\n\x1b[2J": GOOD["a"]}, "no name"),
        ({**GOOD, "__metadata__": {"k": 1}}, "__metadata__"),
        ({**GOOD, "b": {"dtype": "F32", "shape": [2], "data_offsets": [16, 24]}}, "does not begin"),
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]}}, "does not begin"),
        ({"a": {"dtype": "F32", "shape": [7], "data_offsets": [0, 28]}}, "truncated"),
        ({"a": {"dtype": "F32", "shape": [5], "data_offsets": [0, 20]}}, "follow its last"),
        ([1, 2], "not an object"),
        (b'{"a": NaN}', "not JSON"),
        (b'{"a": 1, "a": 2}', "twice"),
        (b"[" * 50_000, "corrupt header"),
        (b"\xff\xfe{}", "corrupt header"),
        (b'{"a":{"dtype":"F32","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,24]}}', "corrupt header"),
    ],
)
def test_names_what_is_wrong(tmp_path: Path, change: Any, says: str) -> None:
    with pytest.raises(WeightsError, match=says) as caught:
        read_header(file_of(tmp_path, change))
    assert "x.safetensors" in str(caught.value)


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".pth", ".bin"])
def test_pickles_are_refused_unopened(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"model{suffix}"
    torch.save({"a": torch.zeros(2)}, path)
    with pytest.raises(WeightsError, match="pickle"):
        read_header(path)
    renamed = path.rename(tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match="pickle"):
        read_header(renamed)


@pytest.mark.parametrize("beginning", [b"\x80\x02}q\x00.", b"\x80\x02\x8a\x0alF", b"\x80\x04\x95" + bytes(range(40))])
def test_older_pickles_are_known_by_their_beginning(tmp_path: Path, beginning: bytes) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(beginning)
    with pytest.raises(WeightsError, match="pickle"):
        read_header(path)


def test_a_header_length_that_looks_like_a_pickle_is_still_a_header(tmp_path: Path) -> None:
    text = json.dumps(GOOD).encode()
    path = file_of(tmp_path, text + b" " * (0x10280 - len(text)))
    assert path.read_bytes()[:2] == b"\x80\x02"
    assert list(read_header(path).tensors) == ["a"]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "truncated"),
        (b"\x10\0\0\0\0\0\0\0", "truncated"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
        (b"<!DOCTYPE html><html>login</html>", "web page"),
        (b"\xff" * 100, "not a safetensors file"),
    ],
)
def test_other_files_are_told_apart(tmp_path: Path, data: bytes, says: str) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(data)
    with pytest.raises(WeightsError, match=says):
        read_header(path)


def test_gguf_is_known_but_not_rendered(tmp_path: Path) -> None:
    path = tmp_path / "flux1-dev-Q4_0.gguf"
    path.write_bytes(b"GGUF\x03\0\0\0" + bytes(64))
    with pytest.raises(NotRendered, match=r"GGUF.*not rendered yet"):
        read_header(path)


def test_what_is_no_file_is_said_to_be_none(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent.safetensors"):
        with pytest.raises(WeightsError, match="no such file"):
            read_header(path)


def test_a_claimed_header_of_any_size_allocates_little(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    for claimed in (HEADER_LIMIT + 1, 2**40, 2**63, 2**64 - 1):
        with path.open("wb") as file:
            file.write(struct.pack("<Q", claimed))
            file.truncate(2**42)  # sparse: as large as the claim, and empty
        tracemalloc.start()
        with pytest.raises(WeightsError):
            read_header(path)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 2**20


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "BF16", "F8_E4M3", "F4", "U8", "X"]) | json_values,
        "shape": st.lists(st.integers(-2, 2**70), max_size=10) | json_values,
        "data_offsets": st.lists(st.integers(-2, 2**70), max_size=3) | json_values,
    }
)


@settings(max_examples=200)
@given(
    header=st.dictionaries(st.text(max_size=12) | st.just("__metadata__"), entries | json_values, max_size=4)
    | json_values,
    data=st.integers(0, 64),
)
@example(header={"\ud800": GOOD["a"]}, data=24)
def test_any_json_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, header: Any, data: int) -> None:
    read_or_refused(file_of(tmp_path_factory.getbasetemp(), header, data))


@settings(max_examples=200)
@given(data=st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "y.safetensors"
    path.write_bytes(data)
    read_or_refused(path)


@settings(max_examples=200)
@given(at=st.integers(0, 120), value=st.integers(0, 255), cut=st.integers(0, 130))
def test_any_damage_to_a_good_file_is_survived(
    tmp_path_factory: pytest.TempPathFactory, at: int, value: int, cut: int
) -> None:
    path = file_of(tmp_path_factory.getbasetemp(), GOOD, name="z.safetensors")
    data = bytearray(path.read_bytes())
    data[at % len(data)] = value
    path.write_bytes(bytes(data[: max(0, len(data) - cut)]))
    read_or_refused(path)


def read_or_refused(path: Path) -> None:
    """Nothing but a WeightsError comes out, and what is read lies within the file."""
    try:
        header = read_header(path)
    except WeightsError as error:
        str(error).encode()  # printable anywhere
        return
    for name, info in header.tensors.items():
        name.encode()
        assert 8 <= info.start <= info.start + info.nbytes <= path.stat().st_size
