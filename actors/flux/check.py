"""What a file or a folder holds and whether it would load, from headers alone: no torch, no tensor read."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from actors.flux.beside import highest_token, read_json, tokenizer_near
from actors.flux.choice import PartReport, fullest, objection, report_part
from actors.flux.config import FluxConfig
from actors.flux.containers import Found, Kind, TensorSet, absent_parts, find, places
from actors.flux.headers import NotRendered, WeightsError
from actors.flux.memory import room_bytes, streaming_bytes
from actors.flux.names import Part
from actors.flux.quant import Fp8, fp8_of
from actors.flux.shapes import ClipSizes, T5Sizes

NO_TOKENIZER = "no tokenizer near it"
GPUS = (1, 2, 4, 8)
WIDE = "bfloat16"
PRECISIONS = ("auto", "bfloat16", "fp8")  # of a pool on GPUs, where the first computes in bfloat16


@dataclass(frozen=True)
class Report:
    path: str
    container: Kind
    model: str
    precision: str  # of the transformer, or of the only part
    parts: tuple[PartReport, ...]
    taken: Mapping[Part, tuple[str, ...]]  # the files of each part that what is there is drawn with
    absent: tuple[str, ...]  # parts and tokenizers that rendering needs as well
    known: tuple[str, ...]  # recognised, not rendered yet
    problems: tuple[str, ...]
    nbytes: int
    memory_per_gpu: Mapping[
        str, Mapping[int, int]
    ]  # by the precision asked for: the first GPU's bytes, by their number
    memory_streamed: Mapping[str, int]  # of one GPU to which blocks come from the host's memory as they are needed
    room_bytes: int  # to work in, which is in each of these
    loads: bool  # nothing in what is there stands in the way

    @property
    def complete(self) -> bool:
        return self.loads and not self.absent


def check(path: Path) -> Report:
    """Judge a file, or the place in a folder that holds most of a model, as the farm takes it. Never raises for what it
    finds: a bad file is a problem in the report."""
    try:
        reports = [report(found) for found in (places(path) if path.is_dir() else (find(path),))]
    except NotRendered as error:
        return empty(path, known=(str(error),))
    except WeightsError as error:
        return empty(path, problems=(str(error),))
    return max(reports, key=lambda each: ("transformer" in each.taken, len(each.taken)))


def report(found: Found) -> Report:
    parts = tuple(report_part(each) for each in found.sets)
    taken = fullest(found.sets)
    one_each = {part: report_part(each) for part, each in taken.items()}
    without = {part: why for part, each in taken.items() if (why := tokenizer_objection(each))}
    absent = [*absent_parts(found), *(f"tokenizer of {part}" for part in without)]
    unread = (why for why in without.values() if why != NO_TOKENIZER)
    objections = ((part, objection(part, one_each.get("transformer"))) for part in parts)
    main = [part for part in parts if part.part == "transformer"] or list(parts[:1])
    return Report(
        path=str(found.path),
        container=found.kind,
        model=" and ".join(dict.fromkeys(title(part) for part in main)) or "unknown",
        precision=" and ".join(dict.fromkeys(part.precision for part in main)),
        parts=parts,
        taken={part: each.files for part, each in one_each.items()},
        absent=tuple(absent),
        known=found.known,
        problems=(*found.refused, *(f"{part.files[0]}: {why}" for part, why in objections if why), *unread),
        nbytes=sum(part.nbytes for part in parts),
        memory_per_gpu={
            asked: {n: memory(one_each, n, WIDE, fp8_of(asked, "cuda")) for n in GPUS} for asked in PRECISIONS
        },
        memory_streamed={
            asked: memory(one_each, 1, WIDE, fp8_of(asked, "cuda"), streamed=True) for asked in PRECISIONS
        },
        room_bytes=room_of(one_each, WIDE),
        # A stray bad file beside a whole model does no harm; one that leaves a part absent does.
        loads=bool(parts) and {part.part for part in parts} == set(one_each) and not (found.refused and absent),
    )


def empty(path: Path, known: tuple[str, ...] = (), problems: tuple[str, ...] = ()) -> Report:
    return Report(str(path), "file", "unknown", "", (), {}, (), known, problems, 0, {}, {}, 0, loads=False)


def tokenizer_objection(stored: TensorSet) -> str:
    """Why a text encoder has no tokenizer to read with; empty where it has one, and for other parts."""
    sizes = report_part(stored).sizes
    if not isinstance(sizes, T5Sizes | ClipSizes):
        return ""
    folder = tokenizer_near(stored.files, stored.part)
    if folder is None:
        return NO_TOKENIZER
    try:
        return too_many_words(folder, highest_token(folder), sizes.vocab_size)
    except WeightsError as error:
        return str(error)


def too_many_words(folder: Path, highest: int, rows: int) -> str:
    says = f"{folder}: its words are numbered up to {highest}, and the encoder's embedding has {rows} rows"
    return "" if highest < rows else f"{says}; use the tokenizer that came with the encoder"


def title(part: PartReport) -> str:
    """Dev and Kontext have the same shapes: only what is said of them tells them apart."""
    config = part.sizes
    if not isinstance(config, FluxConfig):
        return {"vae": "FLUX.1 autoencoder", "t5": "T5 encoder", "clip": "CLIP text encoder"}.get(part.part, "FLUX.1")
    released = FluxConfig(guidance_embed=config.guidance_embed)
    if config != released:
        return f"FLUX.1 of {config.depth} + {config.depth_single_blocks} blocks, width {config.hidden_size}"
    if not config.guidance_embed:
        return "FLUX.1 schnell"
    return "FLUX.1 Kontext dev" if "kontext" in said_of(Path(part.files[0])).lower() else "FLUX.1 dev"


def said_of(file: Path) -> str:
    """The pipeline that a diffusers folder was made for; elsewhere the name of the file."""
    index = file.parent.parent / "model_index.json"
    try:
        return str(read_json(index)["_class_name"]) if file.parent.name == "transformer" else file.name
    except (WeightsError, KeyError):  # a transformer folder of its own, or an index that says nothing
        return file.name


def memory(parts: Mapping[Part, PartReport], gpus: int, precision: str, fp8: Fp8, *, streamed: bool = False) -> int:
    """Bytes on each GPU: its share by the plan, all that no plan shares, and room for one 1024x1024 image."""
    held = [one.held(gpus, precision, fp8) for one in parts.values()]
    weights = sum(streaming_bytes(each) if streamed else sum(each.values()) for each in held)
    return weights + room_of(parts, precision)


def room_of(parts: Mapping[Part, PartReport], precision: str) -> int:
    return room_bytes([one.sizes for one in parts.values() if one.sizes], precision)


def memory_of(sets: Iterable[TensorSet], gpus: int, precision: str, fp8: Fp8) -> int:
    """What stored parts need on the first GPU."""
    return memory({each.part: report_part(each) for each in sets}, gpus, precision, fp8)
