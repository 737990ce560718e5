"""One name for each tensor, whatever the container: Black Forest Labs' for transformer and autoencoder, Hugging Face's
for T5 and CLIP.

A tensor is put together from pieces: ranges of rows of stored tensors, end to end. Fused projections are several
pieces; the swapped halves of diffusers' last modulation are two pieces of one tensor.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from actors.flux.headers import TensorInfo

Part = Literal["transformer", "vae", "t5", "clip"]
PARTS: tuple[Part, ...] = ("transformer", "vae", "t5", "clip")
Modules = dict[str, tuple[str, ...]]  # one of ours: theirs, in the order of our rows


@dataclass(frozen=True, slots=True)
class Piece:
    source: str
    start: int  # row
    rows: int


@dataclass(frozen=True, slots=True)
class Named:
    """A tensor under our name: its whole shape, and where its rows lie."""

    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]


ROOT: Modules = {
    "img_in": ("x_embedder",),
    "txt_in": ("context_embedder",),
    "time_in.in_layer": ("time_text_embed.timestep_embedder.linear_1",),
    "time_in.out_layer": ("time_text_embed.timestep_embedder.linear_2",),
    "vector_in.in_layer": ("time_text_embed.text_embedder.linear_1",),
    "vector_in.out_layer": ("time_text_embed.text_embedder.linear_2",),
    "guidance_in.in_layer": ("time_text_embed.guidance_embedder.linear_1",),
    "guidance_in.out_layer": ("time_text_embed.guidance_embedder.linear_2",),
    "final_layer.linear": ("proj_out",),
    "final_layer.adaLN_modulation.1": ("norm_out.linear",),
}
DOUBLE: Modules = {
    "img_mod.lin": ("norm1.linear",),
    "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "img_attn.norm.query_norm": ("attn.norm_q",),
    "img_attn.norm.key_norm": ("attn.norm_k",),
    "img_attn.proj": ("attn.to_out.0",),
    "img_mlp.0": ("ff.net.0.proj",),
    "img_mlp.2": ("ff.net.2",),
    "txt_mod.lin": ("norm1_context.linear",),
    "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "txt_attn.norm.query_norm": ("attn.norm_added_q",),
    "txt_attn.norm.key_norm": ("attn.norm_added_k",),
    "txt_attn.proj": ("attn.to_add_out",),
    "txt_mlp.0": ("ff_context.net.0.proj",),
    "txt_mlp.2": ("ff_context.net.2",),
}
SINGLE: Modules = {
    "modulation.lin": ("norm.linear",),
    "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
    "linear2": ("proj_out",),
    "norm.query_norm": ("attn.norm_q",),
    "norm.key_norm": ("attn.norm_k",),
}
RESNET = {"norm1": "norm1", "conv1": "conv1", "norm2": "norm2", "conv2": "conv2", "nin_shortcut": "conv_shortcut"}
ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
ENDS = {"conv_in": "conv_in", "norm_out": "conv_norm_out", "conv_out": "conv_out"}
T5_WORDS, T5_TIED = "shared.weight", "encoder.embed_tokens.weight"  # one matrix under two names
SWAPPED = "final_layer.adaLN_modulation.1"  # (shift, scale) here, (scale, shift) in diffusers


def named(part: Part, tensors: Mapping[str, TensorInfo]) -> dict[str, Named]:
    """Everything the file holds, under our names; a fused tensor without all its pieces, alike, is left out."""
    if part == "transformer" and "x_embedder.weight" in tensors:
        return renamed(tensors, flux_modules(tensors))
    if part == "vae" and any(name.startswith("encoder.down_blocks.") for name in tensors):
        return renamed(tensors, vae_modules(tensors))
    return {our_name(part, name, tensors): whole_tensor(name, info.shape) for name, info in tensors.items()}


def our_name(part: Part, name: str, tensors: Mapping[str, TensorInfo]) -> str:
    module, _, leaf = name.rpartition(".")
    if part == "transformer" and leaf == "weight":  # ComfyUI saves the scales of norms as weights
        ours = f"{module}.{our_leaf(module, leaf)}"
        return name if ours in tensors else ours
    if part == "t5" and name == T5_TIED and T5_WORDS not in tensors:
        return T5_WORDS
    return name.removeprefix("text_model.") if part == "clip" else name


def whole_tensor(name: str, shape: tuple[int, ...]) -> Named:
    return Named(shape, (Piece(name, 0, shape[0] if shape else 1),))


def renamed(tensors: Mapping[str, TensorInfo], modules: Modules) -> dict[str, Named]:
    """Names that the table does not know stay as they are, to be reported as unexpected."""
    found, used = {}, set()
    for ours, theirs in modules.items():
        for leaf in ("weight", "bias"):
            sources = [f"{module}.{leaf}" for module in theirs]
            used.update(sources)
            tails = {tensors[source].shape[1:] if source in tensors else None for source in sources}
            if len(tails) == 1 and None not in tails:
                found[f"{ours}.{our_leaf(ours, leaf)}"] = fused(tensors, sources, ours)
    return found | {name: whole_tensor(name, tensors[name].shape) for name in tensors.keys() - used}


def our_leaf(module: str, leaf: str) -> str:
    return "scale" if module.endswith(("query_norm", "key_norm")) else leaf


def fused(tensors: Mapping[str, TensorInfo], sources: list[str], ours: str) -> Named:
    shapes = [tensors[source].shape or (1,) for source in sources]
    rows = [shape[0] for shape in shapes]
    pieces = tuple(Piece(source, 0, count) for source, count in zip(sources, rows, strict=True))
    if ours == SWAPPED:
        half = rows[0] // 2
        pieces = (Piece(sources[0], half, rows[0] - half), Piece(sources[0], 0, half))
    # diffusers stores the autoencoder's 1x1 convolutions as linears: the same numbers, two dimensions fewer.
    pad = (1, 1) if ".attn_1." in ours and len(shapes[0]) == 2 else ()
    return Named((sum(rows), *shapes[0][1:], *pad), pieces)


def count_blocks(names: Iterable[str], prefix: str) -> int:
    """One more than the highest number that follows the prefix."""
    numbers = (name[len(prefix) :].split(".", 1)[0] for name in names if name.startswith(prefix))
    return max((int(number) + 1 for number in numbers if number.isdecimal() and len(number) < 4), default=0)


def flux_modules(names: Iterable[str]) -> Modules:
    names = list(names)
    table = dict(ROOT)
    stacks = (("double_blocks", "transformer_blocks", DOUBLE), ("single_blocks", "single_transformer_blocks", SINGLE))
    for ours, theirs, block in stacks:
        for index in range(count_blocks(names, f"{theirs}.")):
            for module, sources in block.items():
                table[f"{ours}.{index}.{module}"] = tuple(f"{theirs}.{index}.{source}" for source in sources)
    return table


def vae_modules(names: Iterable[str]) -> Modules:
    names = list(names)
    table = {f"{half}.{ours}": f"{half}.{theirs}" for half in ("encoder", "decoder") for ours, theirs in ENDS.items()}
    for half, ours in (("encoder", "down"), ("decoder", "up")):
        for index in (0, 1):
            table |= joined(f"{half}.mid.block_{index + 1}", f"{half}.mid_block.resnets.{index}", RESNET)
        table |= joined(f"{half}.mid.attn_1", f"{half}.mid_block.attentions.0", ATTENTION)
        levels = count_blocks(names, f"{half}.{ours}_blocks.")
        for level in range(levels):
            there = f"{half}.{ours}_blocks.{level}"
            # diffusers counts the decoder's levels in the order they run, Black Forest Labs by resolution.
            here = f"{half}.{ours}.{level if half == 'encoder' else levels - 1 - level}"
            for block in range(count_blocks(names, f"{there}.resnets.")):
                table |= joined(f"{here}.block.{block}", f"{there}.resnets.{block}", RESNET)
            table[f"{here}.{ours}sample.conv"] = f"{there}.{ours}samplers.0.conv"
    return {ours: (theirs,) for ours, theirs in table.items()}


def joined(here: str, there: str, modules: Mapping[str, str]) -> dict[str, str]:
    return {f"{here}.{ours}": f"{there}.{theirs}" for ours, theirs in modules.items()}
