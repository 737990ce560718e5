"""Train the tiny FLUX.1 on a CPU: python -m training.train --stage all --minutes 170 --out DIR

`all` is vae, text, flux and pack, one after the other; each goes on from what DIR holds. `pack` writes the finished
model in ComfyUI's layout; `unpack` fills DIR with one, to go on from.
"""

import argparse
import dataclasses
import json
import shutil
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from actors.flux.text import TextEncoders
from actors.flux.vae import AutoEncoder
from actors.flux.weights import load_text as load_encoders
from training import encoders, flux, tokens, vae

SHARES = {"vae": 0.18, "text": 0.02, "flux": 0.8}  # of the minutes that all of them have
MODELS = Path(__file__).parent.parent / "actors" / "tiny" / "models"


def train_text(minutes: float, out: Path) -> None:
    tokens.save(out / "tokenizers")
    torch.manual_seed(4)
    text = encoders.build(out / "tokenizers")
    encoders.school(text, encoders.Reader(), minutes)
    save_file(
        {name: tensor.contiguous() for name, tensor in text.state_dict().items() if "embed_tokens" not in name},
        out / "text.safetensors",
    )


def load_vae(out: Path) -> AutoEncoder:
    autoencoder = AutoEncoder(vae.CONFIG)
    autoencoder.load_state_dict(load_file(out / "vae.safetensors"))
    return autoencoder.eval().requires_grad_(False)


def load_text(out: Path) -> TextEncoders:
    text = encoders.build(out / "tokenizers")
    missing, unexpected = text.load_state_dict(load_file(out / "text.safetensors"), strict=False)
    if unexpected or any("embed_tokens" not in name for name in missing):
        raise ValueError(f"text.safetensors does not fit: missing {missing}, unexpected {unexpected}")
    return text


def train_flux(minutes: float, options: argparse.Namespace) -> None:
    text, autoencoder = load_text(options.out), load_vae(options.out)
    device, seed = torch.device(options.device), time.time_ns() if options.seed is None else options.seed
    flux.train(minutes, options.out, text, autoencoder, options.workers, options.rate, options.tokens, device, seed)


def pack(out: Path, models: Path) -> None:
    """The running mean of the weights, bfloat16, under the names and in the folders of real checkpoints."""
    learnt = load_file(out / "mean.safetensors")
    parts: dict[str, dict[str, Tensor]] = {"flux.": {}, "text.t5.": {}, "text.clip.": {}}
    for name, tensor in ((n, t) for n, t in learnt.items() if n.split(".")[0] not in flux.THROWN_AWAY):
        prefix = next(prefix for prefix in parts if name.startswith(prefix))
        parts[prefix][name.removeprefix(prefix)] = tensor.bfloat16()
    clip = {f"text_model.{name.removeprefix('text_model.')}": tensor for name, tensor in parts["text.clip."].items()}
    autoencoder, text = load_vae(out), load_text(out)
    files = {
        "diffusion_models/tiny-flux": parts["flux."],
        "text_encoders/t5xxl": parts["text.t5."],
        "text_encoders/clip_l": clip,
        "vae/ae": {name: tensor.bfloat16() for name, tensor in autoencoder.state_dict().items()},
    }
    for name, tensors in files.items():
        (models / name).parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, models / f"{name}.safetensors", metadata={"format": "pt"})
        (models / f"{name}.safetensors").chmod(0o644)
    shutil.copytree(out / "tokenizers", models / "tokenizers", dirs_exist_ok=True)  # those it was trained with
    config = {
        "flux": dataclasses.asdict(flux.CONFIG),
        "vae": dataclasses.asdict(autoencoder.config),
        **encoders.configs(text),
    }
    (models / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def unpack(models: Path, out: Path) -> None:
    """What a finished model holds, to go on from. What is thrown away in the end is learnt anew."""
    flux_file, vae_file = models / "diffusion_models/tiny-flux.safetensors", models / "vae/ae.safetensors"
    shutil.copytree(models / "tokenizers", out / "tokenizers", dirs_exist_ok=True)
    save_file({name: tensor.float() for name, tensor in load_file(vae_file).items()}, out / "vae.safetensors")
    text = load_encoders(models, "cpu", torch.float32)
    words = {name: tensor for name, tensor in text.state_dict().items() if "embed_tokens" not in name}
    save_file({name: tensor.contiguous() for name, tensor in words.items()}, out / "text.safetensors")
    learnt = {f"flux.{name}": tensor.float() for name, tensor in load_file(flux_file).items()}
    learnt |= {f"text.{name}": tensor.contiguous() for name, tensor in words.items()}
    save_file(learnt, out / "flux.safetensors")


def stage(name: str, minutes: float, options: argparse.Namespace) -> None:
    if name == "unpack":
        unpack(options.models, options.out)
    elif name == "vae":
        vae.train(minutes, options.out)
    elif name == "text":
        train_text(minutes, options.out)
    elif name == "flux":
        train_flux(minutes, options)
    else:
        pack(options.out, options.models)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stage", choices=("all", "unpack", *SHARES, "pack"), required=True)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--models", type=Path, default=MODELS, help="where pack writes to and unpack reads")
    parser.add_argument("--workers", type=int, default=2, help="processes of the flux stage, one core each")
    parser.add_argument("--rate", type=float, default=flux.PEAK_RATE, help="the peak learning rate of the flux stage")
    parser.add_argument("--tokens", type=int, default=flux.TOKENS, help="of pictures, in a worker's batch")
    parser.add_argument("--device", default="cpu", help="of the flux stage; cuda goes with one worker and more tokens")
    parser.add_argument("--seed", type=int, help="of the flux stage; without one, another each time")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for name in (*SHARES, "pack") if options.stage == "all" else (options.stage,):
        stage(name, options.minutes * (SHARES.get(name, 1) if options.stage == "all" else 1), options)


if __name__ == "__main__":
    main()
