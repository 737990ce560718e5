"""Where the parts of a model lie: in one file, a folder of files, a diffusers folder, a ComfyUI `models` folder."""

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from actors.flux.beside import COMFYUI, DIFFUSERS, OWN_NAMES, hints_near, read_json
from actors.flux.families import IGNORED, split
from actors.flux.headers import (
    PICKLE_SUFFIXES,
    Header,
    NotRendered,
    TensorInfo,
    WeightsError,
    read_header,
    refuse,
)
from actors.flux.names import PARTS, Named, Part, named
from actors.flux.quant import is_marker, precision, refuse_foreign, refuse_types, stored_in_fp8

Kind = Literal["file", "folder", "diffusers", "comfyui"]
SUFFIXES = {".safetensors", ".sft", ".gguf", *PICKLE_SUFFIXES}
VARIANT = re.compile(r"(diffusion_pytorch_)?model\.(?!safetensors)|.*\.index\.(?!json)")  # in fp16, say: of diffusers
MOST_ENTRIES = 100_000  # of a ComfyUI folder: a link may lead anywhere


@dataclass(frozen=True)
class TensorSet:
    """One part of a model as it is stored: in one file, or in the shards of one folder."""

    part: Part
    files: tuple[Path, ...]
    tensors: Mapping[str, TensorInfo] = field(repr=False)
    hints: Mapping[str, Any] = field(repr=False)  # what a config.json near it says

    @cached_property
    def named(self) -> dict[str, Named]:
        return named(self.part, {name: info for name, info in self.tensors.items() if not is_marker(name)})

    @cached_property
    def fp8(self) -> frozenset[str]:
        return stored_in_fp8(self.named, self.tensors)

    @property
    def precision(self) -> str:
        return precision(self.tensors)

    @property
    def nbytes(self) -> int:
        return sum(info.nbytes for info in self.tensors.values())


@dataclass(frozen=True)
class Found:
    """What a path holds: the parts that can be read, and what was passed over with the reason."""

    path: Path
    kind: Kind
    sets: tuple[TensorSet, ...]
    known: tuple[str, ...] = ()  # recognised, not rendered yet
    refused: tuple[str, ...] = ()


def find(path: Path) -> Found:
    """Look at a file or a folder, reading headers alone. Raises for a bad file; a folder lists its own."""
    if not path.exists():
        refuse(path, "there is no such file or folder")
    if not path.is_dir():
        return Found(path, "file", tuple(sets_of_file(path)))
    inner = path / "models"
    root = inner if not is_comfyui(path) and inner.is_dir() and is_comfyui(inner) else path
    if is_diffusers(path):
        return gathered(path, "diffusers", ([path / name] for name in DIFFUSERS if (path / name).is_dir()))
    if is_comfyui(root):
        try:
            return gathered(root, "comfyui", [[file] for file in weights_below(root)])
        except WeightsError as error:
            return Found(root, "comfyui", (), refused=(str(error),))
    if is_part(path):
        return gathered(path, "diffusers", [[path]])
    return gathered(path, "folder", ([file] for file in weight_files(path)))


def places(folder: Path) -> Iterator[Found]:
    """The folder itself, and diffusers folders within it, or within those of Hugging Face's cache."""
    if folder.is_dir():
        yield find(folder)
        within = (each for pattern in ("*", "snapshots/*", "*/snapshots/*") for each in sorted(folder.glob(pattern)))
        yield from (find(each) for each in within if each.is_dir() and is_diffusers(each))


def is_diffusers(path: Path) -> bool:
    return (path / "model_index.json").exists() or (path / "transformer" / "config.json").exists()


def is_part(path: Path) -> bool:
    """A folder of one part, as `save_pretrained` writes it."""
    names = {file.name.partition(".")[0] for file in weight_files(path)}
    alone = len(names) == 1 and names.issubset(OWN_NAMES)
    return (path / "config.json").exists() and (alone or shard_index(path) is not None)


def is_comfyui(path: Path) -> bool:
    return any((path / name).is_dir() for name in COMFYUI[:5])


def weight_files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.glob("*") if is_weights(file))


def is_weights(file: Path) -> bool:
    return file.suffix.lower() in SUFFIXES and file.is_file()


def weights_below(root: Path) -> list[Path]:
    """The weights of a ComfyUI folder, by kind. Links are followed, for large files lie elsewhere; a folder is looked
    at once, however many links lead to it, in circles or not."""
    files: list[Path] = []
    seen, entries = set(), 0
    for name in COMFYUI:
        below: list[Path] = []
        for folder, folders, names in os.walk(root / name, followlinks=True):
            real = os.path.realpath(folder)
            if real in seen:
                folders.clear()
                continue
            seen.add(real)
            entries += len(folders) + len(names)
            if entries > MOST_ENTRIES:
                refuse(root, f"more than {MOST_ENTRIES:,} files lie below it or behind its links: give one of weights")
            below += (file for file in (Path(folder, each) for each in names) if is_weights(file))
        files += sorted(below)
    return files


def gathered(path: Path, kind: Kind, places: Iterator[list[Path]] | list[list[Path]]) -> Found:
    sets: list[TensorSet] = []
    known, refused = [], []
    for (place,) in places:
        try:
            sets.extend(sets_of_folder(place) if place.is_dir() else sets_of_file(place))
        except NotRendered as error:
            known.append(str(error))
        except WeightsError as error:
            refused.append(str(error))
    return Found(path, kind, tuple(sets), tuple(known), tuple(refused))


def sets_of_file(path: Path) -> list[TensorSet]:
    return sets_of(read_header(path), (path,))


def sets_of(header: Header, files: tuple[Path, ...]) -> list[TensorSet]:
    refuse_foreign(header.path, header.tensors, header.metadata)
    sets = []
    for part, tensors in split(header).items():
        refuse_types(header.path, tensors, {*IGNORED, *(f"text_model.{name}" for name in IGNORED)})
        sets.append(TensorSet(part, files, tensors, hints_near(files[0], part)))
    return sets


def sets_of_folder(folder: Path) -> list[TensorSet]:
    """A diffusers part: one file, or the shards that its index names; a variant (fp16, say) where nothing is plain."""
    index = shard_index(folder)
    files = [file for file in weight_files(folder) if file.suffix == ".safetensors"] or weight_files(folder)
    plain = [file for file in files if not VARIANT.match(file.name)]
    if index is None or (plain and VARIANT.match(index.name)):
        files = plain or files
        if len(files) != 1:
            refuse(folder, f"{len(files)} weight files and no index; one file, or an index of several, is needed")
        return sets_of_file(files[0])
    shards = shards_of(index)
    headers = [read_header(shard) for shard in shards]
    tensors: dict[str, TensorInfo] = {}
    metadata: dict[str, str] = {}
    for header in headers:
        if both := tensors.keys() & header.tensors.keys():
            refuse(header.path, f"{min(both)!r} is in another shard too")
        tensors |= header.tensors
        metadata |= header.metadata
    return sets_of(Header(folder, tensors, metadata, sum(header.nbytes for header in headers)), tuple(shards))


def shard_index(folder: Path) -> Path | None:
    """A plain one before those of variants."""
    found = sorted(folder.glob("*.safetensors.index*.json"))
    return next((index for index in found if not VARIANT.match(index.name)), found[0] if found else None)


def shards_of(index: Path) -> list[Path]:
    """The files an index names; each lies beside it, whatever the index says."""
    names = read_json(index).get("weight_map", {})
    if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
        refuse(index, "corrupt index: its weight_map must give a file for each tensor")
    shards = sorted(set(names.values()))
    if outside := [name for name in shards if Path(name).name != name]:
        refuse(index, f"corrupt index: {outside[0]!r} is not a file beside it")
    if absent := [name for name in shards if not (index.parent / name).is_file()]:
        refuse(index, f"{len(absent)} of {len(shards)} shards are not there: {', '.join(absent[:3])}")
    return [index.parent / name for name in shards]


def absent_parts(found: Found) -> tuple[Part, ...]:
    there = {each.part for each in found.sets}
    return tuple(part for part in PARTS if part not in there)
