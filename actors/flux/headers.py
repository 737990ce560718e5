"""Reading the header of a safetensors file: eight bytes of length, then JSON. No tensor is touched, nothing is trusted.

WeightsError        a weights file that cannot be used, with the file, what is wrong and what to do
└── NotRendered     a file of a kind that is known by name, and that this version does not draw with
"""

import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

HEADER_LIMIT = 8 * 2**20  # the 12B files have 0.1 MiB; JSON takes some twenty times its size once parsed
DIMENSIONS = 8
NAME_LIMIT = 512
BITS = {
    "F4": 4,
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 16),
    **dict.fromkeys(("I32", "U32", "F32"), 32),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 64),
}
PICKLE_SUFFIXES = {".ckpt", ".pt", ".pth", ".bin", ".pkl"}
PICKLE = "a pickle, which can run code when opened; ask for the same model as .safetensors"
MAGIC = (  # how other files begin
    (re.compile(rb"PK\x03\x04"), False, f"a zip archive, most likely {PICKLE}"),
    (re.compile(rb"\x80[\x02-\x05]"), False, PICKLE),
    (re.compile(rb"GGUF"), True, "a GGUF file"),
    (re.compile(rb"version "), False, "a Git LFS pointer, not the weights; fetch them with `git lfs pull`"),
    (re.compile(rb"\s*<"), False, "a web page, not weights; the download needs a login or an accepted licence"),
)


class WeightsError(Exception):
    pass


class NotRendered(WeightsError):
    def __init__(self, path: Path, what: str) -> None:
        super().__init__(f"{path}: {what}: known, but not rendered yet")
        self.what = what


@dataclass(frozen=True, slots=True)
class TensorInfo:
    path: Path
    dtype: str
    shape: tuple[int, ...]
    start: int  # from the beginning of the file
    nbytes: int


@dataclass(frozen=True, slots=True)
class Header:
    path: Path
    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str]
    nbytes: int  # of the whole file


def read_header(path: Path) -> Header:
    """The tensors of a file: every length, name, type, shape and offset is checked, against each other and the file."""
    if path.suffix.lower() in PICKLE_SUFFIXES:
        refuse(path, PICKLE)
    data, length, nbytes = header_bytes(path)
    document = parse(path, data)
    metadata = document.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        refuse(path, "corrupt header: __metadata__ must map names to texts")
    begin = 8 + length
    tensors = {name: tensor_info(path, name, entry, begin) for name, entry in document.items()}
    require_tiling(path, tensors, begin, nbytes)
    return Header(path, tensors, metadata, nbytes)


def header_bytes(path: Path) -> tuple[bytes, int, int]:
    """The JSON, its length and the size of the file."""
    try:
        if not path.is_file():
            refuse(path, "there is no such file")
        with path.open("rb") as file:
            nbytes, first = os.fstat(file.fileno()).st_size, file.read(8)
            length = int.from_bytes(first, "little")
            if length > min(HEADER_LIMIT, nbytes - 8):
                refuse_beginning(path, first, nbytes)
            return file.read(length), length, nbytes
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path}: cannot be read: {error}") from error


def refuse_beginning(path: Path, first: bytes, nbytes: int) -> NoReturn:
    """No plausible length: say what the file is instead, where its first bytes tell."""
    for pattern, known, what in MAGIC:
        if pattern.match(first):
            if known:
                raise NotRendered(path, what)
            refuse(path, what)
    length = int.from_bytes(first, "little")
    if length <= HEADER_LIMIT:
        refuse(path, f"truncated: its {nbytes} bytes do not hold a header of {length}")
    refuse(path, f"not a safetensors file, or a corrupt one: it claims a header of {length} bytes")


def parse(path: Path, data: bytes) -> dict[str, Any]:
    try:
        document = json.loads(data.decode(), object_pairs_hook=unique, parse_constant=no_constant)
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{path}: corrupt header: {error}") from error
    if not isinstance(document, dict):
        refuse(path, "corrupt header: its JSON is not an object")
    return document


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        raise ValueError("the same name twice")
    return table


def no_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is not JSON")


def tensor_info(path: Path, name: str, entry: object, begin: int) -> TensorInfo:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        refuse(path, f"corrupt header: {name!r} must have dtype, shape and data_offsets")
    if not name.isprintable() or len(name) > NAME_LIMIT:
        refuse(path, f"corrupt header: {name[:40]!r} is no name of a tensor")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        refuse(path, f"{name!r} has the unknown type {str(dtype)[:40]!r}")
    if not whole(shape) or len(shape) > DIMENSIONS or not whole(offsets) or len(offsets) != 2:
        refuse(path, f"corrupt header: shape or offsets of {name!r}")
    bits, nbytes = math.prod(shape) * BITS[dtype], offsets[1] - offsets[0]
    if bits != 8 * nbytes:
        refuse(path, f"corrupt header: {name!r} needs {bits / 8:.0f} bytes and has {nbytes}")
    return TensorInfo(path, dtype, tuple(shape), begin + offsets[0], nbytes)


def whole(values: object) -> bool:
    """A list of counts; `True` is an int to Python and a mistake here."""
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 2**48 for value in values)


def require_tiling(path: Path, tensors: Mapping[str, TensorInfo], begin: int, nbytes: int) -> None:
    """Tensors lie end to end up to the end of the file: no gap, no overlap, nothing cut off."""
    at = begin
    for name, info in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].nbytes)):
        if info.start != at:
            refuse(path, f"corrupt header: {name!r} does not begin where the tensor before it ends")
        at += info.nbytes
    if at > nbytes:
        refuse(path, f"truncated: {nbytes} of {at} bytes are there; download it again")
    if at < nbytes:
        refuse(path, f"corrupt: {nbytes - at} bytes follow its last tensor")


def refuse(path: Path, what: str) -> NoReturn:
    raise WeightsError(f"{path}: {what}")
