"""Networks with their weights in place: built without memory, then filled tensor by tensor from any container."""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor, nn

from actors.flux.beside import tokenizer_near
from actors.flux.check import too_many_words
from actors.flux.checkpoint import Checkpoint, open_checkpoint, stored_part
from actors.flux.config import FluxConfig, VaeConfig
from actors.flux.containers import TensorSet
from actors.flux.exchange import Seat, cut_network
from actors.flux.fp8 import keep
from actors.flux.headers import NotRendered, WeightsError
from actors.flux.model import Flux
from actors.flux.quant import Fp8, kept_in_fp8
from actors.flux.shapes import ClipSizes, Sizes, Slice, T5Sizes, expected
from actors.flux.sharding import shares, slices
from actors.flux.text import TextEncoders
from actors.flux.vae import AutoEncoder

if TYPE_CHECKING:
    from transformers import CLIPTextModel, PreTrainedTokenizerBase, T5EncoderModel

__all__ = [
    "Checkpoint",
    "NotRendered",
    "Slice",
    "WeightsError",
    "load_flux",
    "load_text",
    "load_vae",
    "open_checkpoint",
    "weights_sha256",
]

Module = TypeVar("Module", bound=nn.Module)
AnySizes = TypeVar("AnySizes", FluxConfig, VaeConfig, T5Sizes, ClipSizes)
Device = torch.device | str


def load_flux(
    source: Path | TensorSet,
    config: FluxConfig | None,
    device: Device,
    dtype: torch.dtype,
    seat: Seat | None = None,
    fp8: Fp8 = "never",
) -> Flux:
    """The transformer, or this rank's part of it; without a config, its sizes are those that the tensors tell."""
    checkpoint = open_checkpoint(source, "transformer")
    sizes = required(checkpoint, FluxConfig, config)
    flux = on_meta(lambda: Flux(sizes))
    return fill(flux, checkpoint, device, dtype, share=take_share(flux, sizes, seat), fp8=fp8)


def load_vae(source: Path | TensorSet, config: VaeConfig | None, device: Device, dtype: torch.dtype) -> AutoEncoder:
    checkpoint = open_checkpoint(source, "vae")
    sizes = required(checkpoint, VaeConfig, config)
    return fill(on_meta(lambda: AutoEncoder(sizes)), checkpoint, device, dtype)


def load_text(
    source: Path,
    device: Device,
    dtype: torch.dtype,
    t5: Path | TensorSet | None = None,
    clip: Path | TensorSet | None = None,
    seat: Seat | None = None,
    fp8: Fp8 = "never",
) -> TextEncoders:
    """Both text encoders with their tokenizers; `t5` and `clip` say which, where the source holds several.
    Tensor ranks share T5 where their number divides its heads; CLIP is small, and each has it whole."""
    t5_set, clip_set = stored_part(t5 or source, "t5"), stored_part(clip or source, "clip")
    t5_tokenizer, clip_tokenizer = load_tokenizer(t5_set), load_tokenizer(clip_set)
    for stored, tokenizer in ((t5_set, t5_tokenizer), (clip_set, clip_tokenizer)):
        require_rows(stored, tokenizer)
    # CLIP pools at its end token; the tokenizer knows it, while many a config.json has an old mistake there.
    if clip_tokenizer.eos_token_id is None:
        raise WeightsError(f"{clip_tokenizer.name_or_path}: it names no eos_token, at which CLIP's words end")
    special = {"bos_token_id": clip_tokenizer.bos_token_id, "eos_token_id": clip_tokenizer.eos_token_id}
    clip_model = load_clip(clip_set, device, dtype, special, fp8)
    return TextEncoders(load_t5(t5_set, device, dtype, seat, fp8), clip_model, t5_tokenizer, clip_tokenizer)


def load_t5(
    stored: TensorSet, device: Device, dtype: torch.dtype, seat: Seat | None = None, fp8: Fp8 = "never"
) -> "T5EncoderModel":
    from transformers import T5Config, T5EncoderModel

    checkpoint = Checkpoint(stored)
    sizes = required(checkpoint, T5Sizes)
    model = on_meta(lambda: T5EncoderModel(T5Config(feed_forward_proj="gated-gelu", **vars(sizes))))
    # As transformers does: in float16 this projection leaves its range.
    wide = torch.float32 if dtype == torch.float16 else dtype
    share = take_share(model, sizes, seat if seat and shares(sizes, seat.tensor.degree) else None)
    fill(model, checkpoint, device, dtype, lambda name: wide if ".wo." in name else dtype, share, fp8)
    model.set_input_embeddings(model.shared)
    return model


def load_clip(
    stored: TensorSet, device: Device, dtype: torch.dtype, special: Mapping[str, int | None], fp8: Fp8 = "never"
) -> "CLIPTextModel":
    from transformers import CLIPTextConfig, CLIPTextModel

    checkpoint = Checkpoint(stored)
    sizes = required(checkpoint, ClipSizes)
    model = on_meta(lambda: CLIPTextModel(CLIPTextConfig(**special, **vars(sizes))))
    model.embeddings.position_ids = torch.arange(sizes.max_position_embeddings, device=device)[None]
    return fill(model, checkpoint, device, dtype, fp8=fp8)


def load_tokenizer(stored: TensorSet) -> "PreTrainedTokenizerBase":
    from transformers import AutoTokenizer

    folder = tokenizer_near(stored.files, stored.part)
    if folder is None:
        raise WeightsError(
            f"{stored.files[0]}: no tokenizer near it; put tokenizer.json and tokenizer_config.json into "
            f"tokenizers/{stored.part} of the models folder (diffusers folders call them tokenizer and tokenizer_2)"
        )
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the libraries raise whatever their parsers do, the bare class included
        raise WeightsError(f"{folder}: no tokenizer can be read from it: {error}") from error
    return tokenizer


def require_rows(stored: TensorSet, tokenizer: "PreTrainedTokenizerBase") -> None:
    """Every word must have its row of the embedding: one without would end the gang at the first prompt."""
    rows = stored.named["shared.weight" if stored.part == "t5" else "embeddings.token_embedding.weight"].shape[0]
    if why := too_many_words(Path(tokenizer.name_or_path), max(tokenizer.get_vocab().values(), default=-1), rows):
        raise WeightsError(why)


def required(checkpoint: Checkpoint, kind: type[AnySizes], given: AnySizes | None = None) -> AnySizes:
    """The sizes to build with, once the file is known to hold exactly their tensors."""
    sizes = given or checkpoint.sizes
    if not isinstance(sizes, kind):
        raise TypeError(f"a checkpoint of {checkpoint.stored.part} was asked for {kind.__name__}")
    checkpoint.require(sizes)
    return sizes


def on_meta(build: Callable[[], Module]) -> Module:
    """A network that has shapes and no memory."""
    with torch.device("meta"):
        return build()


def take_share(network: nn.Module, sizes: Sizes, seat: Seat | None) -> Callable[[str], Sequence[Slice] | None] | None:
    """Cut the network to what this rank holds; what comes back says which slices of its tensors to read."""
    if seat is None or seat.tensor.degree == 1:
        return None
    cut_network(network, sizes, seat.tensor, seat.tensor_group)
    shapes = expected(sizes)
    return lambda name: slices(sizes, name, shapes[name], seat.tensor)


def fill(
    module: Module,
    checkpoint: Checkpoint,
    device: Device,
    dtype: torch.dtype,
    dtype_of: Callable[[str], torch.dtype] | None = None,
    share: Callable[[str], Sequence[Slice] | None] | None = None,
    fp8: Fp8 = "never",
) -> Module:
    """Give each parameter its final memory and read it there: no second copy of the weights ever exists.
    `share` says which slices of a tensor to read, where not all of it."""
    kept = kept_in_fp8(fp8, checkpoint.stored.fp8, checkpoint.shapes)
    tensors: dict[str, Tensor] = {}
    for name, parameter in list(module.named_parameters()):
        wide, cuts = dtype_of(name) if dtype_of else dtype, share(name) if share else None
        if name in kept:
            keep(module, name.removesuffix(".weight"), *checkpoint.read_fp8(name, device, cuts), wide)
            continue
        tensors[name] = torch.empty(parameter.shape, dtype=wide, device=device)
        checkpoint.read_into(tensors[name], name, cuts)
    module.load_state_dict(tensors, strict=False, assign=True)
    if empty := [name for name, buffer in module.named_buffers() if buffer.is_meta]:
        raise WeightsError(f"{type(module).__name__} has buffers that no file holds: {', '.join(empty)}")
    return module.eval().requires_grad_(False)


def weights_sha256(paths: Iterable[Path]) -> str:
    """One fingerprint of a set of files: of their contents alone, whatever they are called and wherever they lie."""
    digests = sorted(file_sha256(path) for path in paths)
    return digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()


def file_sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read: {error}") from error
