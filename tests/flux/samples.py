"""One set of random weights as each container that users have, and what the networks make of it."""

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn

from actors.flux.model import Flux
from tests.flux import containers_kit as kit

CPU, F32 = "cpu", torch.float32
FLUX_WEIGHTS = kit.random_tensors(kit.FLUX, seed=1)
VAE_WEIGHTS = kit.random_tensors(kit.VAE, seed=2)
T5_WEIGHTS = kit.random_tensors(kit.T5, seed=3)
CLIP_WEIGHTS = kit.random_tensors(kit.CLIP, seed=4)
CLIP_STORED = {f"text_model.{name}": tensor for name, tensor in CLIP_WEIGHTS.items()} | {
    "logit_scale": torch.tensor(4.6),
    "text_projection.weight": torch.eye(16),
}


def bfl_file(folder: Path) -> Path:
    kit.write_config(folder)
    return kit.write(folder / "flux1-dev.safetensors", FLUX_WEIGHTS)


def bfl_folder(folder: Path) -> Path:
    kit.write(folder / "ae.safetensors", VAE_WEIGHTS)
    return bfl_file(folder).parent


def bfl_file_saved_by_comfyui(folder: Path) -> Path:
    """Which calls the scales of norms their weights."""
    kit.write_config(folder)
    tensors = {name.replace("_norm.scale", "_norm.weight"): tensor for name, tensor in FLUX_WEIGHTS.items()}
    assert tensors.keys() != FLUX_WEIGHTS.keys()
    return kit.write(folder / "flux1-dev.safetensors", tensors)


def prefixed(folder: Path) -> Path:
    kit.write_config(folder)
    return kit.write(folder / "x.safetensors", {f"diffusion_model.{name}": FLUX_WEIGHTS[name] for name in FLUX_WEIGHTS})


def prefixed_in_diffusers(folder: Path) -> Path:
    kit.write_config(folder)
    tensors = kit.flux_in_diffusers(FLUX_WEIGHTS)
    return kit.write(folder / "x.safetensors", {f"transformer.{name}": tensors[name] for name in tensors})


def write_tokenizer(folder: Path, size: int) -> None:
    folder.mkdir(parents=True)
    words = {f"w{index}": index for index in range(2, size)} | {"<pad>": 0, "</s>": 1}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="</s>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {"pad_token": "<pad>", "eos_token": "</s>", "tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(special))


def comfyui(
    folder: Path, prefix: str = "", transformers: str = "diffusion_models", texts: str = "text_encoders"
) -> Path:
    kit.write_config(folder)
    kit.write(folder / transformers / "flux1-dev.safetensors", {prefix + k: v for k, v in FLUX_WEIGHTS.items()})
    kit.write(folder / "vae" / "ae.safetensors", VAE_WEIGHTS)
    kit.write(folder / texts / "t5xxl_fp16.safetensors", T5_WEIGHTS)
    kit.write(folder / texts / "clip_l.safetensors", CLIP_STORED)
    write_tokenizer(folder / "tokenizers" / "t5", kit.T5.vocab_size)
    write_tokenizer(folder / "tokenizers" / "clip", kit.CLIP.vocab_size)
    return folder


def comfyui_installation(folder: Path) -> Path:
    return comfyui(folder / "models", "model.diffusion_model.", "unet", "clip").parent


def all_in_one(folder: Path) -> Path:
    kit.write_config(folder)
    parts = (
        ("model.diffusion_model.", FLUX_WEIGHTS),
        ("vae.", VAE_WEIGHTS),
        ("text_encoders.t5xxl.transformer.", T5_WEIGHTS),
        ("text_encoders.clip_l.transformer.", CLIP_STORED),
    )
    tensors = {prefix + name: tensor for prefix, part in parts for name, tensor in part.items()}
    for name, size in (("t5", kit.T5.vocab_size), ("clip", kit.CLIP.vocab_size)):
        write_tokenizer(folder / "tokenizers" / name, size)
    return kit.write(folder / "checkpoints" / "all.safetensors", tensors)


def diffusers(folder: Path) -> Path:
    kit.write_shards(folder / "transformer", kit.flux_in_diffusers(FLUX_WEIGHTS), "diffusion_pytorch_model", count=3)
    kit.write(folder / "vae" / "diffusion_pytorch_model.safetensors", kit.vae_in_diffusers(VAE_WEIGHTS))
    kit.write(folder / "text_encoder" / "model.safetensors", CLIP_STORED)
    kit.write_shards(folder / "text_encoder_2", T5_WEIGHTS, "model", count=2)
    write_tokenizer(folder / "tokenizer", kit.CLIP.vocab_size)
    write_tokenizer(folder / "tokenizer_2", kit.T5.vocab_size)
    transformer = {"axes_dims_rope": [4, 6, 6], "num_layers": 2, "num_single_layers": 3, "guidance_embeds": True}
    configs = {
        "transformer": transformer,
        "vae": {"norm_num_groups": 4, "layers_per_block": 1, "scaling_factor": 0.3611, "shift_factor": 0.1159},
        "text_encoder": {**vars(kit.CLIP), "eos_token_id": 1, "bos_token_id": 0, "architectures": ["CLIPTextModel"]},
        "text_encoder_2": {**vars(kit.T5), "feed_forward_proj": "gated-gelu"},
    }
    for name, config in configs.items():
        (folder / name / "config.json").write_text(json.dumps(config))
    (folder / "model_index.json").write_text("{}")
    return folder


def same(module: nn.Module, tensors: kit.Tensors) -> bool:
    return all(torch.equal(parameter, tensors[name]) for name, parameter in module.named_parameters())


def without(tensors: kit.Tensors, *names: str) -> kit.Tensors:
    return {name: tensor for name, tensor in tensors.items() if name not in names}


def reference() -> Flux:
    model = Flux(kit.FLUX)
    model.load_state_dict(FLUX_WEIGHTS)
    return model.eval()


@torch.no_grad()
def velocity(model: Flux, device: str = "cpu") -> Tensor:
    generator = torch.Generator().manual_seed(7)
    img, txt, y = (torch.randn(shape, generator=generator) for shape in ((2, 6, 64), (2, 4, 24), (2, 16)))
    ids = torch.arange(18.0).view(1, 6, 3).expand(2, 6, 3)
    given = (img, ids, txt, torch.zeros(2, 4, 3), torch.tensor([0.3, 0.9]), y, torch.tensor([3.5, 1.0]))
    out: Tensor = model(*(tensor.to(device) for tensor in given))
    return out
