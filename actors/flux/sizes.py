"""The sizes of a part from the shapes of its tensors.

Sizes that no shape tells (head counts, RoPE axes, group counts) come from a config.json near the weights, or from
FLUX.1 itself.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from actors.flux.config import FluxConfig, VaeConfig
from actors.flux.families import IGNORED
from actors.flux.headers import WeightsError
from actors.flux.names import Part, count_blocks
from actors.flux.shapes import ClipSizes, Shape, Sizes, T5Sizes

AXES = (16, 56, 56)  # of every released FLUX.1; they add up to its head size
REMEDY = "put a config.json beside the weights (the README says what stands in it)"
COUNTS = {"depth", "depth_single_blocks", "num_layers", "num_hidden_layers", "num_res_blocks"}
LEVELS = 8
WORDS = {"hidden_act": ("quick_gelu", "gelu")}


class Seen:
    """The shapes of a file; where a tensor is missing, FLUX.1's own value, so that it is reported as missing later."""

    def __init__(self, shapes: Mapping[str, Shape]) -> None:
        self.shapes = shapes

    def size(self, name: str, axis: int, default: int) -> int:
        shape = self.shapes.get(name, ())
        return shape[axis] if axis < len(shape) and shape[axis] > 0 else default

    def blocks(self, prefix: str) -> int:
        return count_blocks(self.shapes, prefix)


def deduce(part: Part, shapes: Mapping[str, Shape], hints: Mapping[str, Any]) -> Sizes:
    """The sizes that the shapes tell, with what a config.json says in their place where it says something."""
    seen = Seen(shapes)
    try:
        match part:
            case "transformer":
                return deduce_flux(seen, hints)
            case "vae":
                return deduce_vae(seen, hints)
            case "t5":
                return T5Sizes(**(t5_values(seen) | chosen(T5Sizes, hints)))
            case "clip":
                return ClipSizes(**(clip_values(seen) | chosen(ClipSizes, hints)))
    except (TypeError, ValueError, ArithmeticError) as error:
        raise WeightsError(f"no sizes of a {part} follow from the file: {error}") from error


def chosen(kind: type[Any], hints: Mapping[str, Any]) -> dict[str, Any]:
    """What the hints say of this kind's fields, each of which must be a value that a network can be built with."""
    told: dict[str, Any] = {}
    for each in fields(kind):
        if each.name in hints:
            value = hints[each.name]
            wanted: type[Any] = type(each.default)
            if not possible(each.name, value, wanted):
                raise ValueError(f"config.json says {each.name}: {str(value)[:60]}")
            # A whole number is written for a float too, and transformers takes floats alone.
            told[each.name] = wanted(value)
    return told


def possible(name: str, value: Any, kind: type[Any]) -> bool:
    if kind is tuple:
        few = isinstance(value, list) and 0 < len(value) <= LEVELS
        return few and all(possible(name, each, int) for each in value)
    if kind is float:
        near = type(value) in (int, float) and abs(value) < 1e4  # no NaN is
        return near and (value > 1e-12 or name == "shift_factor")
    if kind is int:
        return type(value) is int and (0 <= value < 1000 if name in COUNTS else 0 < value < 2**24)
    return type(value) is kind and (kind is bool or value in WORDS[name])


def deduce_flux(seen: Seen, hints: Mapping[str, Any]) -> FluxConfig:
    width = seen.size("img_in.weight", 0, 3072)
    head = seen.size("double_blocks.0.img_attn.norm.query_norm.scale", 0, 128)
    values: dict[str, Any] = {
        "in_channels": seen.size("img_in.weight", 1, 64),
        "vec_in_dim": seen.size("vector_in.in_layer.weight", 1, 768),
        "context_in_dim": seen.size("txt_in.weight", 1, 4096),
        "hidden_size": width,
        "mlp_ratio": seen.size("double_blocks.0.img_mlp.0.weight", 0, 4 * width) / width,
        "num_heads": max(width // head, 1),
        "depth": seen.blocks("double_blocks."),
        "depth_single_blocks": seen.blocks("single_blocks."),
        "guidance_embed": any(name.startswith("guidance_in.") for name in seen.shapes),
        "axes_dim": AXES,
    }
    told = chosen(FluxConfig, hints)
    if head != sum(AXES) and "axes_dim" not in told:
        raise WeightsError(f"heads of {head} channels: no shape tells their RoPE axes; {REMEDY}")
    return FluxConfig(**(values | told))


def deduce_vae(seen: Seen, hints: Mapping[str, Any]) -> VaeConfig:
    levels = max(seen.blocks("encoder.down."), 1)
    finest = seen.size("encoder.conv_in.weight", 0, 128)
    widths = [seen.size(f"encoder.down.{level}.block.0.conv1.weight", 0, finest) for level in range(levels)]
    values: dict[str, Any] = {
        "ch": widths[0],
        "ch_mult": tuple(width // widths[0] for width in widths),
        "num_res_blocks": seen.blocks("encoder.down.0.block."),
        "z_channels": seen.size("decoder.conv_in.weight", 1, 16),
    }
    config = VaeConfig(**(values | chosen(VaeConfig, hints)))
    if any(width % config.norm_groups for width in config.widths):
        raise WeightsError(f"widths {config.widths} do not divide into norm_groups {config.norm_groups}; {REMEDY}")
    return config


def t5_values(seen: Seen) -> dict[str, int]:
    attention = "encoder.block.0.layer.0.SelfAttention"
    heads = seen.size(f"{attention}.relative_attention_bias.weight", 1, 64)
    return {
        "vocab_size": seen.size("shared.weight", 0, 32128),
        "d_model": seen.size("shared.weight", 1, 4096),
        "d_kv": seen.size(f"{attention}.q.weight", 0, 64 * heads) // heads,
        "d_ff": seen.size("encoder.block.0.layer.1.DenseReluDense.wi_0.weight", 0, 10240),
        "num_layers": seen.blocks("encoder.block."),
        "num_heads": heads,
        "relative_attention_num_buckets": seen.size(f"{attention}.relative_attention_bias.weight", 0, 32),
    }


def clip_values(seen: Seen) -> dict[str, int]:
    width = seen.size("embeddings.token_embedding.weight", 1, 768)
    return {
        "vocab_size": seen.size("embeddings.token_embedding.weight", 0, 49408),
        "hidden_size": width,
        "intermediate_size": seen.size("encoder.layers.0.mlp.fc1.weight", 0, 3072),
        "num_hidden_layers": seen.blocks("encoder.layers."),
        "num_attention_heads": max(width // 64, 1),
        "max_position_embeddings": seen.size("embeddings.position_embedding.weight", 0, 77),
    }


@dataclass(frozen=True)
class Differences:
    """How a file's tensors differ from those of a network; empty where it would load."""

    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    wrong_shape: tuple[str, ...] = ()

    @property
    def none(self) -> bool:
        return not (self.missing or self.unexpected or self.wrong_shape)

    def __str__(self) -> str:
        kinds = (("missing", self.missing), ("unexpected", self.unexpected), ("of the wrong shape", self.wrong_shape))
        return "; ".join(f"{len(names)} {kind}: {few(names)}" for kind, names in kinds if names)


def few(names: tuple[str, ...], count: int = 3) -> str:
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")


def differences(shapes: Mapping[str, Shape], wanted: Mapping[str, Shape]) -> Differences:
    wrong = (name for name in wanted if name in shapes and shapes[name] != wanted[name])
    return Differences(
        missing=tuple(name for name in wanted if name not in shapes),
        unexpected=tuple(sorted(name for name in shapes if name not in wanted and name not in IGNORED)),
        wrong_shape=tuple(f"{name} is {list(shapes[name])}, not {list(wanted[name])}" for name in wrong),
    )
