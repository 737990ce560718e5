"""Who sits where in a gang, and what tensor ranks tell each other.

Tensor ranks share matrices: an ordinary network goes in, the one of this rank comes out, in which some linears sum or
gather their outputs. Sequence ranks share tokens: `spread.py`.

B batch, C channels, H rows, W columns.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from actors.flux.fp8 import Linear
from actors.flux.shapes import Sizes, expected
from actors.flux.sharding import Cut, Place, check, kept, plan_of, rule_for
from actors.flux.vae import AutoEncoder


@dataclass(frozen=True)
class GangShape:
    """`ulysses` of the sequence ranks trade heads, the rest form rings; tensor ranks lie next to each other."""

    tensor: int = 1
    sequence: int = 1
    ulysses: int = 1

    def __post_init__(self) -> None:
        if min(self.tensor, self.sequence, self.ulysses) < 1 or self.sequence % self.ulysses:
            raise ValueError(f"{self} is no shape: sequence must be a multiple of ulysses, all of them 1 or more")

    @property
    def ranks(self) -> int:
        return self.tensor * self.sequence

    @property
    def rings(self) -> int:
        return self.sequence // self.ulysses

    @staticmethod
    def of(tensor: int, sequence: int, heads: int) -> "GangShape":
        """As many ranks trade heads as there are heads to trade: that costs less than a ring."""
        return GangShape(tensor, sequence, math.gcd(heads // tensor, sequence))


@dataclass(frozen=True)
class Seat:
    """Where this process sits: its rank in each direction, and the group it talks to there (None when alone)."""

    shape: GangShape
    tensor: Place
    tensor_group: ProcessGroup | None
    sequence: Place
    sequence_group: ProcessGroup | None
    ulysses_group: ProcessGroup | None
    ring_group: ProcessGroup | None


def take_seat(shape: GangShape) -> Seat:
    """Once a process, after `init_process_group`; every process makes every group, in one order."""
    if dist.get_world_size() != shape.ranks:
        raise ValueError(f"{shape} needs {shape.ranks} ranks, this group has {dist.get_world_size()}")
    ranks = torch.arange(shape.ranks).view(shape.rings, shape.ulysses, shape.tensor)
    me = dist.get_rank()
    rows = {
        "tensor": ranks.flatten(0, 1),
        "sequence": ranks.flatten(0, 1).T,
        "ulysses": ranks.transpose(1, 2).flatten(0, 1),
        "ring": ranks.permute(1, 2, 0).flatten(0, 1),
    }
    groups = {name: my_group(lines.tolist(), me) for name, lines in rows.items()}
    return Seat(
        shape,
        Place(me % shape.tensor, shape.tensor),
        groups["tensor"],
        Place(me // shape.tensor, shape.sequence),
        groups["sequence"],
        groups["ulysses"],
        groups["ring"],
    )


def my_group(lines: Sequence[Sequence[int]], me: int) -> ProcessGroup | None:
    made = {tuple(line): dist.new_group(list(line)) for line in lines if len(line) > 1}
    mine = next((group for line, group in made.items() if me in line), None)
    return mine if isinstance(mine, ProcessGroup) else None


class Summed(Linear):
    """Takes a share of the inputs; what the ranks get is summed, and the bias added once."""

    group: ProcessGroup

    def forward(self, x: Tensor) -> Tensor:
        out = self.product(x)
        dist.all_reduce(out, group=self.group)
        return out if self.bias is None else out + self.bias


class Gathered(Linear):
    """Makes a share of the outputs, then has them all."""

    group: ProcessGroup

    def forward(self, x: Tensor) -> Tensor:
        own = self.product(x, self.bias)
        parts = [torch.empty_like(own) for _ in range(self.group.size())]
        dist.all_gather(parts, own.contiguous(), group=self.group)
        return torch.cat(parts, dim=-1)


KINDS = {Cut.OUTPUTS: Linear, Cut.INPUTS: Summed, Cut.GATHERED: Gathered}


def cut_network(network: nn.Module, sizes: Sizes, place: Place, group: ProcessGroup | None) -> None:
    """Each linear that the plan cuts becomes one of this rank's size, without memory yet (the network is on meta)."""
    if place.degree == 1 or group is None:
        return
    check(sizes, place.degree)
    held = {parameter.rpartition(".")[0] for parameter in expected(sizes)}
    for name, module in list(network.named_modules()):
        # What no file holds is another module under a second name, as T5's embedding.
        cut = rule_for(plan_of(sizes), name).cut if name in held else Cut.WHOLE
        if cut is Cut.WHOLE or not isinstance(module, nn.Linear | nn.Embedding):
            continue
        rows, columns = kept(sizes, f"{name}.weight", tuple(module.weight.shape), place)
        if isinstance(module, nn.Embedding):
            network.set_submodule(name, nn.Embedding(rows, columns, device="meta"))
            continue
        made = KINDS[cut](columns, rows, bias=module.bias is not None, device="meta")
        if isinstance(made, Summed | Gathered):
            made.group = group
        network.set_submodule(name, made)


def decode_together(vae: AutoEncoder, latent_BCHW: Tensor) -> Tensor:
    """Tiles dealt out over all ranks; every rank gets the picture."""
    me, ranks = dist.get_rank(), dist.get_world_size()
    return vae.decode_tiled(latent_BCHW, mine=lambda number: number % ranks == me, join=dist.all_reduce)
