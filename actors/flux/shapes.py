"""Which tensors a part consists of, from its sizes. No torch: headers are judged with this alone, in milliseconds."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from actors.flux.config import FluxConfig, VaeConfig

Shape = tuple[int, ...]
Shapes = dict[str, Shape]


class Slice(NamedTuple):
    """Part of a tensor along one dimension: what a shard keeps of it."""

    dim: int
    start: int
    length: int


SINUSOID = 256
LOOKED_UP = ("shared", "relative_attention_bias", "token_embedding", "position_embedding")


@dataclass(frozen=True)
class T5Sizes:
    vocab_size: int = 32128
    d_model: int = 4096
    d_kv: int = 64
    d_ff: int = 10240
    num_layers: int = 24
    num_heads: int = 64
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    layer_norm_epsilon: float = 1e-6

    def __post_init__(self) -> None:
        buckets, distance = self.relative_attention_num_buckets, self.relative_attention_max_distance
        if not 4 <= buckets < 4 * distance:
            raise ValueError(f"relative_attention_max_distance {distance} does not go with {buckets} buckets")


@dataclass(frozen=True)
class ClipSizes:
    vocab_size: int = 49408
    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    max_position_embeddings: int = 77
    layer_norm_eps: float = 1e-5
    hidden_act: str = "quick_gelu"

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"num_attention_heads {self.num_attention_heads} do not divide {self.hidden_size} channels"
            )


Sizes = FluxConfig | VaeConfig | T5Sizes | ClipSizes


def is_linear(name: str, shape: Shape) -> bool:
    """A matrix that is multiplied, not looked up."""
    module, _, leaf = name.rpartition(".")
    return leaf == "weight" and len(shape) == 2 and not module.endswith(LOOKED_UP)


def is_block(name: str) -> bool:
    """Part of one of the blocks that make up nearly all of the transformer and of T5."""
    return name.startswith(("double_blocks.", "single_blocks.", "encoder.block."))


def linear(name: str, rows: int, columns: int) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.weight", (rows, columns)
    yield f"{name}.bias", (rows,)


def conv(name: str, rows: int, columns: int, side: int = 3) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.weight", (rows, columns, side, side)
    yield f"{name}.bias", (rows,)


def norm(name: str, width: int) -> Iterator[tuple[str, Shape]]:
    yield f"{name}.weight", (width,)
    yield f"{name}.bias", (width,)


def flux_shapes(config: FluxConfig) -> Shapes:
    width = config.hidden_size
    shapes = dict(linear("img_in", width, config.in_channels))
    shapes |= linear("txt_in", width, config.context_in_dim)
    embedders = {"time_in": SINUSOID, "vector_in": config.vec_in_dim}
    for name, columns in (embedders | ({"guidance_in": SINUSOID} if config.guidance_embed else {})).items():
        shapes |= linear(f"{name}.in_layer", width, columns)
        shapes |= linear(f"{name}.out_layer", width, width)
    for index in range(config.depth):
        for stream in ("img", "txt"):
            shapes |= double_stream(f"double_blocks.{index}.{stream}", config)
    for index in range(config.depth_single_blocks):
        shapes |= single_block(f"single_blocks.{index}", config)
    shapes |= linear("final_layer.linear", config.in_channels, width)
    shapes |= linear("final_layer.adaLN_modulation.1", 2 * width, width)
    return shapes


def double_stream(name: str, config: FluxConfig) -> Iterator[tuple[str, Shape]]:
    width = config.hidden_size
    yield from linear(f"{name}_mod.lin", 6 * width, width)
    yield from linear(f"{name}_attn.qkv", 3 * width, width)
    yield from qk_norm(f"{name}_attn.norm", config)
    yield from linear(f"{name}_attn.proj", width, width)
    yield from linear(f"{name}_mlp.0", config.mlp_size, width)
    yield from linear(f"{name}_mlp.2", width, config.mlp_size)


def single_block(name: str, config: FluxConfig) -> Iterator[tuple[str, Shape]]:
    width = config.hidden_size
    yield from linear(f"{name}.modulation.lin", 3 * width, width)
    yield from linear(f"{name}.linear1", 3 * width + config.mlp_size, width)
    yield from linear(f"{name}.linear2", width, width + config.mlp_size)
    yield from qk_norm(f"{name}.norm", config)


def qk_norm(name: str, config: FluxConfig) -> Iterator[tuple[str, Shape]]:
    for which in ("query_norm", "key_norm"):
        yield f"{name}.{which}.scale", (config.head_dim,)


def vae_shapes(config: VaeConfig) -> Shapes:
    widths, latent = config.widths, config.z_channels
    shapes = dict(conv("encoder.conv_in", widths[0], 3))
    shapes |= conv("encoder.conv_out", 2 * latent, widths[-1])
    shapes |= conv("decoder.conv_in", widths[-1], latent)
    shapes |= conv("decoder.conv_out", 3, widths[0])
    for half, last in (("encoder", widths[-1]), ("decoder", widths[0])):
        shapes |= middle(f"{half}.mid", widths[-1])
        shapes |= norm(f"{half}.norm_out", last)
    for level, width in enumerate(widths):
        finer = widths[max(level - 1, 0)]
        coarser = widths[min(level + 1, len(widths) - 1)]
        shapes |= resnets(f"encoder.down.{level}.block", finer, width, config.num_res_blocks)
        shapes |= resnets(f"decoder.up.{level}.block", coarser, width, config.num_res_blocks + 1)
        if level < len(widths) - 1:
            shapes |= conv(f"encoder.down.{level}.downsample.conv", width, width)
        if level:
            shapes |= conv(f"decoder.up.{level}.upsample.conv", width, width)
    return shapes


def middle(name: str, width: int) -> Iterator[tuple[str, Shape]]:
    for block in ("block_1", "block_2"):
        yield from resnet(f"{name}.{block}", width, width)
    yield from norm(f"{name}.attn_1.norm", width)
    for layer in ("q", "k", "v", "proj_out"):
        yield from conv(f"{name}.attn_1.{layer}", width, width, side=1)


def resnets(name: str, width_in: int, width: int, count: int) -> Iterator[tuple[str, Shape]]:
    for index in range(count):
        yield from resnet(f"{name}.{index}", width if index else width_in, width)


def resnet(name: str, width_in: int, width: int) -> Iterator[tuple[str, Shape]]:
    yield from norm(f"{name}.norm1", width_in)
    yield from conv(f"{name}.conv1", width, width_in)
    yield from norm(f"{name}.norm2", width)
    yield from conv(f"{name}.conv2", width, width)
    if width_in != width:
        yield from conv(f"{name}.nin_shortcut", width, width_in, side=1)


def t5_shapes(sizes: T5Sizes) -> Shapes:
    width, inner = sizes.d_model, sizes.num_heads * sizes.d_kv
    shapes: Shapes = {"shared.weight": (sizes.vocab_size, width), "encoder.final_layer_norm.weight": (width,)}
    for index in range(sizes.num_layers):
        attention, feed = (f"encoder.block.{index}.layer.{layer}" for layer in (0, 1))
        shapes |= {f"{attention}.SelfAttention.{which}.weight": (inner, width) for which in "qkv"}
        shapes |= {f"{attention}.SelfAttention.o.weight": (width, inner), f"{attention}.layer_norm.weight": (width,)}
        shapes |= {f"{feed}.DenseReluDense.{which}.weight": (sizes.d_ff, width) for which in ("wi_0", "wi_1")}
        shapes |= {f"{feed}.DenseReluDense.wo.weight": (width, sizes.d_ff), f"{feed}.layer_norm.weight": (width,)}
    bias = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    return shapes | {bias: (sizes.relative_attention_num_buckets, sizes.num_heads)}


def clip_shapes(sizes: ClipSizes) -> Shapes:
    width, inner = sizes.hidden_size, sizes.intermediate_size
    shapes: Shapes = {"embeddings.token_embedding.weight": (sizes.vocab_size, width)}
    shapes |= {"embeddings.position_embedding.weight": (sizes.max_position_embeddings, width)}
    shapes |= norm("final_layer_norm", width)
    for index in range(sizes.num_hidden_layers):
        layer = f"encoder.layers.{index}"
        for projection in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= linear(f"{layer}.self_attn.{projection}", width, width)
        shapes |= linear(f"{layer}.mlp.fc1", inner, width)
        shapes |= linear(f"{layer}.mlp.fc2", width, inner)
        for which in ("layer_norm1", "layer_norm2"):
            shapes |= norm(f"{layer}.{which}", width)
    return shapes


def expected(sizes: Sizes) -> Shapes:
    match sizes:
        case FluxConfig():
            return flux_shapes(sizes)
        case VaeConfig():
            return vae_shapes(sizes)
        case T5Sizes():
            return t5_shapes(sizes)
        case ClipSizes():
            return clip_shapes(sizes)
