"""Linears that keep their weights in fp8 and widen them for each product.

What is widened equals, bit for bit, what reading the file would have widened: the pictures are the same, in half of
bfloat16's memory and somewhat more time.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Linear(nn.Linear):
    """An ordinary linear, until it keeps its weight in fp8: `stored`, whose rows are multiplied by `scale`."""

    stored: Tensor | None
    scale: Tensor
    wide: torch.dtype  # of its products then

    def __init__(self, in_features: int, out_features: int, bias: bool, device: torch.device | str) -> None:
        super().__init__(in_features, out_features, bias, device)
        self.register_parameter("stored", None)

    def keep(self, stored: Tensor, scale: Tensor, wide: torch.dtype) -> None:
        # T5 turns its inputs into the type of this weight: without a weight it leaves them alone.
        self.register_parameter("weight", None)
        self.stored = nn.Parameter(stored, requires_grad=False)
        self.scale = nn.Parameter(scale, requires_grad=False)
        self.wide = wide

    def product(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        if self.stored is None:
            return F.linear(x, self.weight, bias)
        # The first step is exact, the second computes in float32 and rounds once.
        weight = self.stored.to(self.wide).mul_(self.scale)
        return F.linear(x.to(self.wide), weight, bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.product(x, self.bias)


def keep(network: nn.Module, name: str, stored: Tensor, scale: Tensor, wide: torch.dtype) -> None:
    """Let the linear of that name keep this weight."""
    linear = network.get_submodule(name)
    if not isinstance(linear, nn.Linear):
        raise TypeError(f"{name} is a {type(linear).__name__}, and only linears keep fp8")
    if not isinstance(linear, Linear):
        own = Linear(linear.in_features, linear.out_features, bias=False, device="meta")
        own.bias = linear.bias
        network.set_submodule(name, own)
        linear = own
    linear.keep(stored, scale, wide)
