"""Small random models of the FLUX.1 shape, and the same weights inside diffusers' classes."""

import dataclasses
import functools
import math
from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from diffusers.loaders.single_file_utils import (
    convert_flux_transformer_checkpoint_to_diffusers,
    convert_ldm_vae_checkpoint,
)
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast, T5Config, T5EncoderModel

from actors.flux.config import FluxConfig, VaeConfig
from actors.flux.decode import Decoder
from actors.flux.denoise import Denoiser
from actors.flux.encode import Encoder
from actors.flux.model import Flux
from actors.flux.render import Renderer
from actors.flux.text import TextEncoders
from actors.flux.vae import AutoEncoder

WORDS = ("a", "red", "blue", "circle", "square", "on", "make", "the", "green")
FLUX = FluxConfig(
    vec_in_dim=24,
    context_in_dim=32,
    hidden_size=64,
    num_heads=4,
    depth=2,
    depth_single_blocks=2,
    axes_dim=(4, 6, 6),
)
VAE = VaeConfig(ch=8, ch_mult=(1, 2, 2, 4), norm_groups=4)
CONVERTER_WIDTH = 3072  # diffusers' converter splits linear1 at the released size, whatever the model's


def randomize(model: nn.Module, seed: int, gain: float = 1.0) -> None:
    """Weights of which each one moves the output: unit gain through linears, norms around one, biases that show."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        noise = torch.randn(tensor.shape, generator=generator)
        is_norm = tensor.ndim == 1 and not name.endswith("bias")
        spread = 0.3 if tensor.ndim == 1 else gain / math.sqrt(tensor[0].numel())
        tensor.copy_(noise * spread + (1.0 if is_norm else 0.0))


def small_flux(guidance: bool = True, seed: int = 1) -> Flux:
    flux = Flux(dataclasses.replace(FLUX, guidance_embed=guidance)).eval()
    randomize(flux, seed)
    return flux


def small_vae(seed: int = 2) -> AutoEncoder:
    vae = AutoEncoder(VAE).eval()
    randomize(vae, seed)
    return vae


def small_tokenizer(ends: bool) -> PreTrainedTokenizerFast:
    specials = ["<pad>", "<s>", "</s>", "<unk>"]
    vocabulary = {word: i for i, word in enumerate([*specials, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    single = "<s> $A </s>" if ends else "$A </s>"
    tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=[("<s>", 1), ("</s>", 2)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=77,
    )


def small_text(seed: int = 3) -> TextEncoders:
    size = len(WORDS) + 4
    t5 = T5EncoderModel(
        T5Config(
            vocab_size=size,
            d_model=FLUX.context_in_dim,
            d_kv=8,
            d_ff=48,
            num_layers=2,
            num_heads=4,
            feed_forward_proj="gated-gelu",
        )
    )
    clip = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=size,
            hidden_size=FLUX.vec_in_dim,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=77,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
    )
    for model in (t5, clip):
        randomize(model.eval(), seed)
    return TextEncoders(t5, clip, small_tokenizer(ends=False), small_tokenizer(ends=True))


def peer_flux(flux: Flux) -> FluxTransformer2DModel:
    config = flux.config
    peer = FluxTransformer2DModel(
        in_channels=config.in_channels,
        num_layers=config.depth,
        num_single_layers=config.depth_single_blocks,
        attention_head_dim=config.head_dim,
        num_attention_heads=config.num_heads,
        joint_attention_dim=config.context_in_dim,
        pooled_projection_dim=config.vec_in_dim,
        guidance_embeds=config.guidance_embed,
        axes_dims_rope=config.axes_dim,
    )
    peer.load_state_dict(peer_flux_weights(flux))
    return peer.eval()


def peer_flux_weights(flux: Flux) -> dict[str, Tensor]:
    """diffusers' own converter, but for linear1, which we split."""
    ours = dict(flux.state_dict())
    fused = {name: ours[name] for name in ours if ".linear1." in name}
    stand_in = torch.zeros(7 * CONVERTER_WIDTH, 1)
    theirs: dict[str, Tensor] = convert_flux_transformer_checkpoint_to_diffusers(ours | dict.fromkeys(fused, stand_in))
    width = flux.config.hidden_size
    for name, tensor in fused.items():
        _, index, _, leaf = name.split(".")
        parts = zip(
            ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
            tensor.tensor_split([width, 2 * width, 3 * width]),
            strict=True,
        )
        theirs |= {f"single_transformer_blocks.{index}.{part}.{leaf}": rows for part, rows in parts}
    return theirs


def peer_vae(vae: AutoEncoder) -> AutoencoderKL:
    config = vae.config
    levels = len(config.ch_mult)
    peer = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=config.widths,
        layers_per_block=config.num_res_blocks,
        latent_channels=config.z_channels,
        norm_num_groups=config.norm_groups,
        scaling_factor=config.scale_factor,
        shift_factor=config.shift_factor,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    peer.load_state_dict(convert_ldm_vae_checkpoint(dict(vae.state_dict()), peer.config))
    return peer.eval()


def peer_scheduler(shift: bool) -> FlowMatchEulerDiscreteScheduler:
    """As the released models configure it: dev and Kontext shift with the resolution, schnell does not."""
    return FlowMatchEulerDiscreteScheduler(
        num_train_timesteps=1000, shift=3.0 if shift else 1.0, use_dynamic_shifting=shift
    )


def relative_error(value: Tensor, reference: Tensor) -> float:
    return float(((value - reference).abs().max() / reference.abs().max()).detach())


@functools.cache
def inputs(batch: int, rows: int, columns: int, reference: bool, seed: int = 4) -> dict[str, Any]:
    """What one call of the transformer takes, under our names; rows and columns are in tokens."""
    generator = torch.Generator().manual_seed(seed)
    ids = [grid(rows, columns, 0)] + ([grid(rows + 1, columns - 1, 1)] if reference else [])
    img_ids = torch.cat(ids)
    txt = torch.randn(batch, 7, FLUX.context_in_dim, generator=generator)
    return {
        "img_BLC": torch.randn(batch, len(img_ids), FLUX.in_channels, generator=generator),
        "img_ids_BL3": img_ids.expand(batch, -1, -1),
        "txt_BTD": txt,
        "txt_ids_BT3": torch.zeros(batch, 7, 3),
        "timesteps_B": torch.linspace(0.9731, 0.25, batch),
        "y_BV": torch.randn(batch, FLUX.vec_in_dim, generator=generator),
        "guidance_B": torch.linspace(3.5, 2.0, batch),
    }


def grid(rows: int, columns: int, axis0: int) -> Tensor:
    return torch.tensor([[axis0, row, column] for row in range(rows) for column in range(columns)]).float()


def stages(renderer: Renderer) -> tuple[Encoder, Denoiser, Decoder]:
    assert renderer.encoder
    assert renderer.denoiser
    assert renderer.decoder
    return renderer.encoder, renderer.denoiser, renderer.decoder
