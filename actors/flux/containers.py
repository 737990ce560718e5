"""Where the parts of a model lie: in one file, a folder of files, a diffusers folder, a ComfyUI `models` folder."""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal

from actors.flux.families import IGNORED, split
from actors.flux.headers import (
    HEADER_LIMIT,
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
COMFYUI = ("diffusion_models", "unet", "checkpoints", "text_encoders", "clip", "vae", "loras")
MOST_ENTRIES = 100_000  # of a ComfyUI folder: a link may lead anywhere
DIFFUSERS: dict[str, Part] = {
    "transformer": "transformer",
    "vae": "vae",
    "text_encoder_2": "t5",
    "text_encoder": "clip",
}
OWN_NAMES = ("diffusion_pytorch_model", "model")  # how diffusers begins the names of its files
TOKENIZERS: dict[Part, tuple[str, ...]] = {
    "t5": ("tokenizer_2", "tokenizers/t5"),
    "clip": ("tokenizer", "tokenizers/clip"),
}
CONFIG_KEYS: dict[Part, str] = {"transformer": "flux", "vae": "vae", "t5": "t5", "clip": "clip"}
RENAMED = {  # diffusers' words for our sizes
    "axes_dims_rope": "axes_dim",
    "num_attention_heads": "num_heads",
    "num_single_layers": "depth_single_blocks",
    "guidance_embeds": "guidance_embed",
    "latent_channels": "z_channels",
    "scaling_factor": "scale_factor",
    "norm_num_groups": "norm_groups",
    "layers_per_block": "num_res_blocks",
}


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

    def one(self, part: Part) -> TensorSet:
        """The set for a part: of several text encoders or autoencoders the most precise; a transformer stands alone."""
        sets = [each for each in self.sets if each.part == part]
        if not sets:
            reasons = "; ".join((*self.refused, *self.known)) or "nothing of it is there"
            raise WeightsError(f"{self.path}: no {part} can be read: {reasons}")
        if part == "transformer" and len(sets) > 1:
            names = ", ".join(sorted(each.files[0].name for each in sets))
            raise WeightsError(f"{self.path}: several transformers; name one of them: {names}")
        return min(sets, key=lambda each: ("fp8" in each.precision, each.files[0].name))


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
    if (path / "config.json").exists() and shard_index(path):
        return gathered(path, "diffusers", [[path]])
    return gathered(path, "folder", ([file] for file in weight_files(path)))


def is_diffusers(path: Path) -> bool:
    return (path / "model_index.json").exists() or (path / "transformer" / "config.json").exists()


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
    """A diffusers part: one file, or the shards that its index names."""
    index = shard_index(folder)
    if index is None:
        files = [file for file in weight_files(folder) if file.suffix == ".safetensors"] or weight_files(folder)
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
    return next(iter(sorted(folder.glob("*.safetensors.index.json"))), None)


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


def read_json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > HEADER_LIMIT:
            refuse(path, f"more than {HEADER_LIMIT} bytes of JSON")
        document = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"{path}: cannot be read: {error}") from error
    if not isinstance(document, dict):
        refuse(path, "its JSON is not an object")
    return document


def hints_near(file: Path, part: Part) -> dict[str, Any]:
    return config_near(file, part)[1]


def config_near(file: Path, part: Part) -> tuple[Path | None, dict[str, Any]]:
    """The config.json of the part's own folder, or one for a whole `models` folder, and what it says of the part."""
    for folder in file.parents[:2]:
        path = folder / "config.json"
        if not path.is_file():
            continue
        document = read_json(path)
        section = document.get(CONFIG_KEYS[part])
        if isinstance(section, dict):
            return path, section
        # Anyone's models lie side by side in a ComfyUI folder `vae`: only files of diffusers' own name go with it.
        if folder == file.parent and folder.name in DIFFUSERS and file.name.startswith(OWN_NAMES):
            return path, diffusers_hints(document, part)
    return None, {}


def diffusers_hints(document: dict[str, Any], part: Part) -> dict[str, Any]:
    if part in {"t5", "clip"}:
        return document
    renamed = {RENAMED.get(name, name): value for name, value in document.items()}
    return renamed | ({"depth": document["num_layers"]} if part == "transformer" and "num_layers" in document else {})


def tokenizer_near(files: tuple[Path, ...], part: Part) -> Path | None:
    """The folder of a tokenizer: beside the folder that the weights lie in, or one further up."""
    folders = (base / name for base in files[0].parents[:3] for name in TOKENIZERS[part])
    return next((folder for folder in folders if (folder / "tokenizer_config.json").is_file()), None)


def small_files(stored: TensorSet) -> list[Path]:
    """What is read beside the weights and changes the picture as they do: its config.json and its tokenizer."""
    config, _ = config_near(stored.files[0], stored.part)
    tokenizer = tokenizer_near(stored.files, stored.part) if stored.part in TOKENIZERS else None
    files = sorted(path for path in tokenizer.iterdir() if path.is_file()) if tokenizer else []
    return [config, *files] if config else files


def highest_token(folder: Path) -> int:
    """The highest number that a tokenizer gives a word, by its own files; -1 where they do not say."""
    file = next((folder / name for name in ("tokenizer.json", "vocab.json") if (folder / name).is_file()), None)
    if file is None:
        return -1
    found = file.stat()
    return highest_number(file, found.st_size, found.st_mtime_ns)


@lru_cache(maxsize=16)
def highest_number(file: Path, size: int, changed_ns: int) -> int:
    """Size and time are asked for so that a file is read again when it changes; megabytes are slow to read."""
    document = read_json(file)
    if file.name == "vocab.json":
        return max(filter(is_number, document.values()), default=-1)
    model, added = document.get("model"), document.get("added_tokens")
    words = model.get("vocab") if isinstance(model, dict) else None
    numbers = words.values() if isinstance(words, dict) else [len(words) - 1] if isinstance(words, list) else []
    more = [each.get("id") for each in added if isinstance(each, dict)] if isinstance(added, list) else []
    return max(filter(is_number, (*numbers, *more)), default=-1)


def is_number(value: object) -> bool:
    return isinstance(value, int)


def absent_parts(found: Found) -> tuple[Part, ...]:
    there = {each.part for each in found.sets}
    return tuple(part for part in PARTS if part not in there)
