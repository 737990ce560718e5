"""The blocks of the FLUX.1 transformer, with Black Forest Labs' parameter names.

B batch, L tokens (text first, then image), C width, K (query, key, value), H heads, D head size.
Head counts are read from the tensors, never from the configuration, so that a block whose linears hold a
shard of the heads still works; every exchange between tokens passes through `Attend`, the one module that a
sequence-parallel plan replaces.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from actors.flux.config import FluxConfig
from actors.flux.rope import Rotation, rotate


class Qkv(NamedTuple):
    q_BHLD: Tensor
    k_BHLD: Tensor
    v_BHLD: Tensor


class Turn(NamedTuple):
    """What the conditioning vector does to one branch: x -> gate * branch(x * (1 + scale) + shift)."""

    shift_B1C: Tensor
    scale_B1C: Tensor
    gate_B1C: Tensor


class Attend(nn.Module):
    def forward(self, qkv: Qkv, turn: Rotation) -> Tensor:
        q_BHLD, k_BHLD = rotate(qkv.q_BHLD, turn), rotate(qkv.k_BHLD, turn)
        out_BHLD = F.scaled_dot_product_attention(q_BHLD, k_BHLD, qkv.v_BHLD)
        return out_BHLD.transpose(1, 2).flatten(2)


class Embedder(nn.Module):
    def __init__(self, in_dim: int, hidden_size: int) -> None:
        super().__init__()
        self.in_layer = nn.Linear(in_dim, hidden_size)
        self.out_layer = nn.Linear(hidden_size, hidden_size)

    def forward(self, x_BC: Tensor) -> Tensor:
        out: Tensor = self.out_layer(F.silu(self.in_layer(x_BC)))
        return out


class Modulation(nn.Module):
    def __init__(self, hidden_size: int, turns: int) -> None:
        super().__init__()
        self.turns = turns
        self.lin = nn.Linear(hidden_size, turns * 3 * hidden_size)

    def forward(self, vec_BC: Tensor) -> tuple[Turn, ...]:
        parts = self.lin(F.silu(vec_BC)).unsqueeze(1).chunk(3 * self.turns, dim=-1)
        return tuple(Turn(*parts[3 * i : 3 * i + 3]) for i in range(self.turns))


class RmsNorm(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.scale.shape, self.scale.to(x.dtype), eps=1e-6)


class QkNorm(nn.Module):
    def __init__(self, head_dim: int) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.query_norm = RmsNorm(head_dim)
        self.key_norm = RmsNorm(head_dim)

    def forward(self, qkv_BLC: Tensor) -> Qkv:
        q_BHLD, k_BHLD, v_BHLD = torch.unflatten(qkv_BLC, -1, (3, -1, self.head_dim)).permute(2, 0, 3, 1, 4)
        return Qkv(self.query_norm(q_BHLD).to(v_BHLD), self.key_norm(k_BHLD).to(v_BHLD), v_BHLD)


class SelfAttention(nn.Module):
    """The projections of one stream; the attention itself runs over both streams together."""

    def __init__(self, config: FluxConfig) -> None:
        super().__init__()
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.norm = QkNorm(config.head_dim)
        self.proj = nn.Linear(config.hidden_size, config.hidden_size)

    def project(self, x_BLC: Tensor) -> Qkv:
        qkv: Qkv = self.norm(self.qkv(x_BLC))
        return qkv


class DoubleBlock(nn.Module):
    """Two streams with weights of their own and one attention over both."""

    def __init__(self, config: FluxConfig) -> None:
        super().__init__()
        self.img_mod = Modulation(config.hidden_size, turns=2)
        self.img_attn = SelfAttention(config)
        self.img_mlp = mlp(config)
        self.txt_mod = Modulation(config.hidden_size, turns=2)
        self.txt_attn = SelfAttention(config)
        self.txt_mlp = mlp(config)
        self.attend = Attend()

    def forward(self, img_BLC: Tensor, txt_BLC: Tensor, vec_BC: Tensor, turn: Rotation) -> tuple[Tensor, Tensor]:
        img_turn, img_mlp_turn = self.img_mod(vec_BC)
        txt_turn, txt_mlp_turn = self.txt_mod(vec_BC)
        img_qkv = self.img_attn.project(modulate(img_BLC, img_turn))
        txt_qkv = self.txt_attn.project(modulate(txt_BLC, txt_turn))
        both = Qkv(*(torch.cat(pair, dim=2) for pair in zip(txt_qkv, img_qkv, strict=True)))
        txt_out, img_out = self.attend(both, turn).split((txt_BLC.shape[1], img_BLC.shape[1]), dim=1)
        img_BLC = img_BLC + img_turn.gate_B1C * self.img_attn.proj(img_out)
        txt_BLC = txt_BLC + txt_turn.gate_B1C * self.txt_attn.proj(txt_out)
        img_BLC = img_BLC + img_mlp_turn.gate_B1C * self.img_mlp(modulate(img_BLC, img_mlp_turn))
        txt_BLC = txt_BLC + txt_mlp_turn.gate_B1C * self.txt_mlp(modulate(txt_BLC, txt_mlp_turn))
        return within_half(img_BLC), within_half(txt_BLC)


class SingleBlock(nn.Module):
    """One stream; attention and mlp side by side between two fused linears."""

    def __init__(self, config: FluxConfig) -> None:
        super().__init__()
        self.qkv_share = 3 * config.hidden_size / (3 * config.hidden_size + config.mlp_size)
        self.linear1 = nn.Linear(config.hidden_size, 3 * config.hidden_size + config.mlp_size)
        self.linear2 = nn.Linear(config.hidden_size + config.mlp_size, config.hidden_size)
        self.norm = QkNorm(config.head_dim)
        self.modulation = Modulation(config.hidden_size, turns=1)
        self.attend = Attend()

    def forward(self, x_BLC: Tensor, vec_BC: Tensor, turn: Rotation) -> Tensor:
        (own_turn,) = self.modulation(vec_BC)
        wide_BLC = self.linear1(modulate(x_BLC, own_turn))
        cut = round(wide_BLC.shape[-1] * self.qkv_share)
        attention_BLC = self.attend(self.norm(wide_BLC[..., :cut]), turn)
        mlp_BLC = F.gelu(wide_BLC[..., cut:], approximate="tanh")
        out_BLC = self.linear2(torch.cat((attention_BLC, mlp_BLC), dim=-1))
        return within_half(x_BLC + own_turn.gate_B1C * out_BLC)


class FinalLayer(nn.Module):
    def __init__(self, config: FluxConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.linear = nn.Linear(width, config.in_channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x_BLC: Tensor, vec_BC: Tensor) -> Tensor:
        shift_B1C, scale_B1C = self.adaLN_modulation(vec_BC).unsqueeze(1).chunk(2, dim=-1)
        out_BLC: Tensor = self.linear(norm(x_BLC) * (1 + scale_B1C) + shift_B1C)
        return out_BLC


def mlp(config: FluxConfig) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(config.hidden_size, config.mlp_size),
        nn.GELU(approximate="tanh"),
        nn.Linear(config.mlp_size, config.hidden_size),
    )


def norm(x_BLC: Tensor) -> Tensor:
    return F.layer_norm(x_BLC, x_BLC.shape[-1:], eps=1e-6)


def modulate(x_BLC: Tensor, turn: Turn) -> Tensor:
    return norm(x_BLC) * (1 + turn.scale_B1C) + turn.shift_B1C


def within_half(x: Tensor) -> Tensor:
    """The residual stream of the 12B models leaves float16's range; bfloat16 and float32 hold it."""
    return x.clamp(-65504, 65504) if x.dtype == torch.float16 else x
