"""What a rank keeps of the weights and needs to work in, from sizes alone."""

from collections.abc import Iterable, Mapping
from math import prod

from actors.flux.config import FluxConfig, VaeConfig
from actors.flux.shapes import Shapes, Sizes, T5Sizes, expected, is_block
from actors.flux.sharding import Place, kept_shapes

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
SCALE = 4  # bytes: each row of a weight in fp8 has one, in float32
# Activations of one 1024x1024 image per unit of the transformer's width: 4,608 tokens, and a block's widest tensors of
# qkv + mlp (7 widths) with its results and copies (7 more).
ACTIVATIONS = 4608 * 14
DECODER = 3 * 2**29  # an estimate, in numbers: the released autoencoder decoding 1024x1024, six of its widest maps
DECODER_WEIGHTS = 84e6  # of the released autoencoder


def held_bytes(sizes: Sizes, ranks: int, precision: str, fp8: frozenset[str] = frozenset()) -> dict[str, int]:
    """The bytes of each tensor that one of so many ranks keeps of a part whose other weights are in this precision."""
    return {name: tensor_bytes(sizes, name, shape, precision, fp8) for name, shape in shared(sizes, ranks).items()}


def tensor_bytes(sizes: Sizes, name: str, shape: tuple[int, ...], precision: str, fp8: frozenset[str]) -> int:
    if name in fp8:
        return prod(shape) + SCALE * shape[0]
    # T5 keeps one of its projections wider where float16 would not hold it.
    wide = isinstance(sizes, T5Sizes) and precision == "float16" and ".wo." in name
    return prod(shape) * BYTES["float32" if wide else precision]


def shared(sizes: Sizes, ranks: int) -> Shapes:
    """What one of so many ranks keeps of a part; one that cannot be shared out evenly is whole on each."""
    try:
        return kept_shapes(sizes, Place(0, ranks))
    except (TypeError, ValueError):
        return expected(sizes)


def streaming_bytes(held: Mapping[str, int]) -> int:
    """All that is in no block, and two blocks: the one that is at work, and the next."""
    blocks = block_bytes(held)
    return sum(held.values()) - sum(blocks.values()) + 2 * max(blocks.values(), default=0)


def block_bytes(held: Mapping[str, int]) -> dict[str, int]:
    """What waits in the memory of the host while blocks stream."""
    blocks: dict[str, int] = {}
    for name, nbytes in held.items():
        if is_block(name):
            block = ".".join(name.split(".")[: 3 if name.startswith("encoder.") else 2])
            blocks[block] = blocks.get(block, 0) + nbytes
    return blocks


def room_bytes(parts: Iterable[Sizes], precision: str) -> int:
    """To work in, for one 1024x1024 image. Its activations and the decoder's are never held together."""
    needs = [0]
    for sizes in parts:
        if isinstance(sizes, FluxConfig):
            needs.append(sizes.hidden_size * ACTIVATIONS)
        elif isinstance(sizes, VaeConfig):
            share = sum(map(prod, expected(sizes).values())) / DECODER_WEIGHTS
            needs.append(int(min(1.0, share) * DECODER))
    return max(needs) * BYTES[precision]
