"""How a network is cut over the ranks of a gang: plans as data, and what a rank keeps of each tensor. No communication.

Tensor parallelism cuts matrices. A rule names linears and says along which side; `exchange.py` then makes each rank's
network from the ordinary one. Sequence parallelism cuts tokens and keeps every weight whole.
"""

import fnmatch
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from actors.flux.config import FluxConfig
from actors.flux.shapes import Shape, Shapes, Sizes, Slice, T5Sizes, expected


class Cut(StrEnum):
    OUTPUTS = "outputs"  # each rank makes its share of the outputs and goes on with it alone
    INPUTS = "inputs"  # each rank takes its share of the inputs; the products are summed over the ranks
    GATHERED = "gathered"  # each rank makes its share of the outputs; then all ranks have them all
    WHOLE = "whole"


@dataclass(frozen=True)
class Rule:
    """`parts` are the widths that lie side by side along the cut, each of which is shared out by itself."""

    modules: str  # a pattern of module names
    cut: Cut
    why: str
    parts: tuple[str, ...] = ()


ATTENTION = ("attention",)
QKV = ("attention", "attention", "attention")

FLUX_PLAN = (
    Rule("double_blocks.*.*_attn.qkv", Cut.OUTPUTS, "heads attend apart", QKV),
    Rule("double_blocks.*.*_attn.proj", Cut.INPUTS, "takes what its heads gave", ATTENTION),
    Rule("double_blocks.*.*_attn.norm.*", Cut.WHOLE, "as wide as one head, and every head has the same"),
    Rule("double_blocks.*.*_mlp.0", Cut.OUTPUTS, "the mlp's inner width needs nothing from its neighbours", ("mlp",)),
    Rule("double_blocks.*.*_mlp.2", Cut.INPUTS, "takes what the inner width gave", ("mlp",)),
    Rule("double_blocks.*.*_mod.lin", Cut.GATHERED, "many weights; its outputs are one row", ("modulation2",)),
    Rule("single_blocks.*.linear1", Cut.OUTPUTS, "heads and the mlp's inner width, fused", (*QKV, "mlp")),
    Rule("single_blocks.*.linear2", Cut.INPUTS, "takes what both gave", (*ATTENTION, "mlp")),
    Rule("single_blocks.*.norm.*", Cut.WHOLE, "as wide as one head, and every head has the same"),
    Rule("single_blocks.*.modulation.lin", Cut.GATHERED, "many weights; its outputs are one row", ("modulation1",)),
    Rule("*_in", Cut.WHOLE, "small, and every rank needs all of its outputs"),
    Rule("*_in.in_layer", Cut.WHOLE, "small, and its outputs are one row"),
    Rule("*_in.out_layer", Cut.WHOLE, "small, and its outputs are one row"),
    Rule("final_layer.*", Cut.WHOLE, "small, and every rank needs the whole velocity"),
)

T5_PLAN = (
    Rule("shared", Cut.WHOLE, "2% of the weights, and looked up, not multiplied"),
    Rule("encoder.block.*.SelfAttention.[qkv]", Cut.OUTPUTS, "heads attend apart", ATTENTION),
    Rule("encoder.block.*.SelfAttention.o", Cut.INPUTS, "takes what its heads gave", ATTENTION),
    Rule("encoder.block.*.relative_attention_bias", Cut.OUTPUTS, "a column for each head", ("heads",)),
    Rule("encoder.block.*.DenseReluDense.wi_[01]", Cut.OUTPUTS, "the inner width is used point by point", ("mlp",)),
    Rule("encoder.block.*.DenseReluDense.wo", Cut.INPUTS, "takes what the inner width gave", ("mlp",)),
    Rule("encoder.*layer_norm", Cut.WHOLE, "one number a channel"),
)

Plan = tuple[Rule, ...]


@dataclass(frozen=True)
class Place:
    """One rank among those that share the matrices."""

    rank: int = 0
    degree: int = 1


def plan_of(sizes: Sizes) -> Plan:
    if isinstance(sizes, FluxConfig):
        return FLUX_PLAN
    if isinstance(sizes, T5Sizes):
        return T5_PLAN
    raise TypeError(f"{type(sizes).__name__} has no plan: each rank that needs it holds it whole")


def widths(sizes: Sizes) -> Mapping[str, int]:
    """What the names of parts stand for."""
    if isinstance(sizes, FluxConfig):
        hidden = sizes.hidden_size
        return {"attention": hidden, "mlp": sizes.mlp_size, "modulation1": 3 * hidden, "modulation2": 6 * hidden}
    if isinstance(sizes, T5Sizes):
        return {"attention": sizes.num_heads * sizes.d_kv, "mlp": sizes.d_ff, "heads": sizes.num_heads}
    raise TypeError(f"{type(sizes).__name__} has no plan")


def heads(sizes: Sizes) -> int:
    if isinstance(sizes, FluxConfig | T5Sizes):
        return sizes.num_heads
    raise TypeError(f"{type(sizes).__name__} has no plan")


def rule_for(plan: Plan, module: str) -> Rule:
    for rule in plan:
        if fnmatch.fnmatchcase(module, rule.modules):
            return rule
    raise LookupError(f"the plan has no rule for {module}")


def check(sizes: Sizes, degree: int) -> None:
    """Raise where the degree does not share everything out evenly."""
    if degree < 1 or heads(sizes) % degree:
        possible = ", ".join(str(n) for n in range(1, heads(sizes) + 1) if heads(sizes) % n == 0)
        raise ValueError(f"tensor {degree} does not divide {heads(sizes)} heads: possible are {possible}")
    for name, width in widths(sizes).items():
        if width % degree:
            raise ValueError(f"tensor {degree} does not divide the {name} width of {width}")


def shares(sizes: Sizes, degree: int) -> bool:
    """Whether so many ranks can share this network; where they cannot, each may still have it whole."""
    try:
        check(sizes, degree)
    except ValueError:
        return False
    return True


def slices(sizes: Sizes, name: str, shape: Shape, place: Place) -> tuple[Slice, ...] | None:
    """What the rank keeps of a parameter; None for all of it."""
    module, _, kind = name.rpartition(".")
    rule = rule_for(plan_of(sizes), module)
    if place.degree == 1 or rule.cut is Cut.WHOLE or (rule.cut is Cut.INPUTS and kind == "bias"):
        return None
    # Linears keep inputs in columns and outputs in rows; a table that is looked up has its outputs in columns.
    looked_up = module.endswith("relative_attention_bias")
    dim = 1 if rule.cut is Cut.INPUTS or looked_up else 0
    lengths = [widths(sizes)[part] for part in rule.parts]
    if sum(lengths) != shape[dim]:
        raise ValueError(f"{name} is {list(shape)}, the plan cuts {'+'.join(rule.parts)} = {sum(lengths)}")
    found, start = [], 0
    for length in lengths:
        share = length // place.degree
        found.append(Slice(dim, start + place.rank * share, share))
        start += length
    return tuple(found)


def kept(sizes: Sizes, name: str, shape: Shape, place: Place) -> Shape:
    """The shape of what the rank keeps."""
    cuts = slices(sizes, name, shape, place)
    if cuts is None:
        return shape
    dim = cuts[0].dim
    return (*shape[:dim], sum(cut.length for cut in cuts), *shape[dim + 1 :])


def kept_shapes(sizes: Sizes, place: Place) -> Shapes:
    check(sizes, place.degree)
    return {name: kept(sizes, name, shape, place) for name, shape in expected(sizes).items()}


def share(tokens: int, rank: int, degree: int) -> tuple[int, int]:
    """Where a rank's tokens begin and how many are real; each rank holds as many as the first, padded."""
    chunk = -(-tokens // degree)
    start = min(rank * chunk, tokens)
    return start, min(chunk, tokens - start)


def module_names(parameters: Iterable[str]) -> list[str]:
    return sorted({name.rpartition(".")[0] for name in parameters})
