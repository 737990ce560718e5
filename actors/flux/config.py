"""Sizes of the networks. The defaults are FLUX.1 dev; smaller ones of its shape run the same code."""

from dataclasses import dataclass


@dataclass(frozen=True)
class FluxConfig:
    in_channels: int = 64
    vec_in_dim: int = 768
    context_in_dim: int = 4096
    hidden_size: int = 3072
    mlp_ratio: float = 4.0
    num_heads: int = 24
    depth: int = 19
    depth_single_blocks: int = 38
    axes_dim: tuple[int, int, int] = (16, 56, 56)
    theta: int = 10_000
    guidance_embed: bool = True

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_heads:
            raise ValueError(f"hidden_size {self.hidden_size} does not divide into num_heads {self.num_heads}")
        fits = len(self.axes_dim) == 3 and sum(self.axes_dim) == self.head_dim
        if not fits or any(axis % 2 for axis in self.axes_dim):
            raise ValueError(f"axes_dim {self.axes_dim} must be three even numbers that add up to {self.head_dim}")

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def mlp_size(self) -> int:
        return int(self.hidden_size * self.mlp_ratio)


@dataclass(frozen=True)
class VaeConfig:
    ch: int = 128
    ch_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    z_channels: int = 16
    scale_factor: float = 0.3611
    shift_factor: float = 0.1159
    norm_groups: int = 32

    @property
    def widths(self) -> tuple[int, ...]:
        return tuple(self.ch * mult for mult in self.ch_mult)

    @property
    def compression(self) -> int:
        """Pixels along one side that a latent stands for: 8 in every FLUX.1 model."""
        return int(2 ** (len(self.ch_mult) - 1))


FLUX1_DEV = FluxConfig()
FLUX1_SCHNELL = FluxConfig(guidance_embed=False)
FLUX1_VAE = VaeConfig()
