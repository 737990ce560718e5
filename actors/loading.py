"""A model made ready to draw: the stages that a process is to hold, with their weights in place."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from actors.cards import KONTEXT, SCHNELL, TEXT_TOKENS, TINY
from actors.flux.check import memory_of
from actors.flux.headers import WeightsError
from actors.flux.quant import Fp8
from actors.models import ModelFiles, locate
from actors.stages import WHOLE, Stage, parts_of
from farm.errors import Fault
from farm.job import Cause
from farm.ports import ModelCard

if TYPE_CHECKING:
    import torch

    from actors.flux.config import VaeConfig
    from actors.flux.decode import Decoder
    from actors.flux.denoise import Denoiser
    from actors.flux.encode import Encoder
    from actors.flux.exchange import Seat
    from actors.flux.model import Flux
    from actors.flux.offload import Setting
    from actors.flux.render import Renderer
    from actors.flux.vae import AutoEncoder


@dataclass(frozen=True)
class Load:
    """How a process is to hold a model, and which of its stages."""

    device: "torch.device | str"
    dtype: "torch.dtype"
    offload: "Setting" = "auto"
    tensor: int = 1
    sequence: int = 1
    fp8: Fp8 = "never"
    stages: tuple[Stage, ...] = WHOLE
    embeddings_mb: int = 256


@dataclass(frozen=True)
class Known:
    """A model that is ready to draw, and what it was made of."""

    renderer: "Renderer"
    weights: str  # the fingerprint of all its files, whichever of them this process holds
    files: tuple[Path, ...]


def load_known(card: ModelCard, folder: Path | None, load: Load) -> Known:
    """As `load_renderer`, with the fingerprint of the very files that were read: if one changes meanwhile, a Fault."""
    from actors.flux.weights import weights_sha256

    try:
        files = locate(card, folder)
        paths = files.paths
        before = states(paths)
        renderer = load_renderer(card, folder, load)
        known = Known(renderer, weights_sha256(paths), paths)
    except WeightsError as error:
        raise Fault(Cause.WEIGHTS_MISSING, str(error)) from error
    changed = [path.name for path, old, new in zip(paths, before, states(paths), strict=True) if old != new]
    if changed or locate(card, folder) != files:
        what = ", ".join(changed) or f"the files of {card.name}"
        raise Fault(Cause.WEIGHTS_MISSING, f"{what} changed while {card.name} was loaded: let the folder be at rest")
    return known


def states(paths: Iterable[Path]) -> list[tuple[int, ...]]:
    """What tells a file from the one that it was, without reading it."""
    found = [path.stat() if path.exists() else None for path in paths]
    return [(one.st_ino, one.st_size, one.st_mtime_ns, one.st_ctime_ns) if one else () for one in found]


def load_renderer(card: ModelCard, folder: Path | None, load: Load) -> "Renderer":
    """A model with its weights in place, its blocks streamed from host memory where the device is too small; in a gang
    of several ranks, this rank's share of it. The tiny one is in float32 everywhere: it has room and time enough."""
    import torch

    files = locate(card, folder)
    load = replace(load, dtype=torch.float32) if card.name == TINY.name else load
    try:
        return assemble(card, files, load, seat_of(files, load.tensor, load.sequence))
    except WeightsError as error:
        raise Fault(Cause.WEIGHTS_MISSING, str(error)) from error


def seat_of(files: ModelFiles, tensor: int, sequence: int) -> "Seat | None":
    """This rank's, once the ranks have met; None where there is one."""
    from actors.flux.exchange import GangShape, take_seat
    from actors.flux.sharding import check as divides
    from actors.flux.sharding import heads
    from actors.flux.weights import open_checkpoint

    if tensor * sequence == 1:
        return None
    sizes = open_checkpoint(files.transformer, "transformer").sizes
    try:
        divides(sizes, tensor)
    except ValueError as error:
        raise Fault(Cause.WEIGHTS_MISSING, f"{files.transformer.files[0].name} cannot be shared so: {error}") from error
    return take_seat(GangShape.of(tensor, sequence, heads(sizes)))


def assemble(card: ModelCard, files: ModelFiles, load: Load, seat: "Seat | None" = None) -> "Renderer":
    """Of the files only what the stages need is read; the autoencoder is small, and read where either end needs it."""
    from actors.flux.render import Renderer
    from actors.flux.weights import load_vae

    place, needed = (load.device, load.dtype), parts_of(load.stages)
    streamed = blocks_stream(files, load)
    vae = load_vae(files.vae, None, *place) if "vae" in needed else None
    return Renderer(
        encoder_of(card, files, load, vae, seat, streamed) if vae and Stage.ENCODE in load.stages else None,
        denoiser_of(card, files, load, seat, streamed) if Stage.DENOISE in load.stages else None,
        decoder_of(load, vae, seat) if vae and Stage.DECODE in load.stages else None,
    )


def encoder_of(
    card: ModelCard, files: ModelFiles, load: Load, vae: "AutoEncoder", seat: "Seat | None", streamed: bool
) -> "Encoder":
    from actors.flux.encode import KONTEXT_SIZES, Embeddings, Encoder
    from actors.flux.offload import stream_blocks
    from actors.flux.weights import load_text

    home = "cpu" if streamed else load.device
    text = load_text(files.t5.files[0].parent, home, load.dtype, files.t5, files.clip, seat, load.fp8)
    if streamed:
        stream_blocks(text, (text.t5.encoder.block,), load.device)
    return Encoder(
        Embeddings(text, load.embeddings_mb * 2**20),
        vae,
        load.device,
        max_text=TEXT_TOKENS.get(card.name, 512),
        kontext_sizes=KONTEXT_SIZES if card.name == KONTEXT.name else None,
    )


def denoiser_of(card: ModelCard, files: ModelFiles, load: Load, seat: "Seat | None", streamed: bool) -> "Denoiser":
    from actors.flux.denoise import Denoiser
    from actors.flux.offload import stream_blocks
    from actors.flux.spread import Spread
    from actors.flux.together import GangDenoiser
    from actors.flux.weights import load_flux, open_checkpoint

    flux = load_flux(files.transformer, None, "cpu" if streamed else load.device, load.dtype, seat, load.fp8)
    if streamed:
        stream_blocks(flux, (flux.double_blocks, flux.single_blocks), load.device)
    spread = cast("Flux", Spread(flux, seat)) if seat and seat.sequence.degree > 1 else flux  # it is called as one is
    vae = cast("VaeConfig", open_checkpoint(files.vae, "vae").sizes)
    kind = GangDenoiser if seat else Denoiser
    return kind(spread, vae, load.device, load.dtype, shift=card.name != SCHNELL.name)


def decoder_of(load: Load, vae: "AutoEncoder", seat: "Seat | None") -> "Decoder":
    from actors.flux.decode import Decoder
    from actors.flux.together import GangDecoder

    return (GangDecoder if seat else Decoder)(vae, load.device)


def blocks_stream(files: ModelFiles, load: Load) -> bool:
    """By setting, or because a CUDA device has too little memory free; elsewhere there is but one memory."""
    import torch

    from actors.flux.offload import streams

    place = torch.device(load.device)
    if place.type != "cuda":
        return load.offload == "always"
    free, _ = torch.cuda.mem_get_info(place)
    needed = [each for each in files.sets if each.part in parts_of(load.stages)]
    precision = str(load.dtype).removeprefix("torch.")
    return streams(load.offload, memory_of(needed, load.tensor, precision, load.fp8), free)
