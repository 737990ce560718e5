"""Writes one set of random weights into every container that users have."""

import json
import math
import struct
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from actors.flux.config import FluxConfig, VaeConfig
from actors.flux.headers import BITS
from actors.flux.names import flux_modules, our_leaf, vae_modules
from actors.flux.shapes import ClipSizes, Sizes, T5Sizes, expected

Tensors = dict[str, Tensor]

FLUX = FluxConfig(
    in_channels=64,
    vec_in_dim=16,
    context_in_dim=24,
    hidden_size=32,
    num_heads=2,
    depth=2,
    depth_single_blocks=3,
    axes_dim=(4, 6, 6),
)
VAE = VaeConfig(ch=8, ch_mult=(1, 2, 2, 2), num_res_blocks=1, norm_groups=4)
T5 = T5Sizes(vocab_size=60, d_model=24, d_kv=8, d_ff=40, num_layers=2, num_heads=3)
CLIP = ClipSizes(vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
DECLARED = ("float8_e4m3fn", "float8_e4m3fn_rowwise", "float8_e5m2")  # as ComfyUI names the formats that are read
DTYPES = {"comfy_quant": "U8", "weight_scale": "F32"}  # of names that end so, in a sparse file
CONFIG: dict[str, Any] = {"flux": vars(FLUX), "vae": vars(VAE), "t5": vars(T5), "clip": vars(CLIP)}


def random_tensors(sizes: Sizes, seed: int = 0, scale: float = 0.3) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    return {name: scale * torch.randn(shape, generator=generator) for name, shape in expected(sizes).items()}


def write(path: Path, tensors: Tensors, metadata: dict[str, str] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata)
    return path


def write_config(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))


def to_diffusers(tensors: Tensors, modules: dict[str, tuple[str, ...]], width: int) -> Tensors:
    """The other way than the reader goes, by torch alone: split what is fused, swap the last modulation's halves."""
    out: Tensors = {}
    for ours, theirs in modules.items():
        for leaf in ("weight", "bias"):
            tensor = tensors.get(f"{ours}.{our_leaf(ours, leaf)}")
            if tensor is None or (leaf == "bias" and our_leaf(ours, leaf) == "scale"):
                continue
            if ours.endswith("adaLN_modulation.1"):
                tensor = torch.cat(tensor.chunk(2)[::-1])
            if ".attn_1." in ours and tensor.ndim == 4:
                tensor = tensor.flatten(1)
            cuts = [width] * (len(theirs) - 1)
            parts = torch.split(tensor, [*cuts, len(tensor) - sum(cuts)])
            out |= {f"{their}.{leaf}": part for their, part in zip(theirs, parts, strict=True)}
    return out


def flux_in_diffusers(tensors: Tensors) -> Tensors:
    names = [f"transformer_blocks.{FLUX.depth - 1}.x", f"single_transformer_blocks.{FLUX.depth_single_blocks - 1}.x"]
    return to_diffusers(tensors, flux_modules(names), FLUX.hidden_size)


def vae_in_diffusers(tensors: Tensors) -> Tensors:
    last, blocks = len(VAE.ch_mult) - 1, VAE.num_res_blocks
    names = [f"encoder.down_blocks.{level}.resnets.{blocks - 1}.x" for level in range(last + 1)]
    names += [f"decoder.up_blocks.{level}.resnets.{blocks}.x" for level in range(last + 1)]
    return to_diffusers(tensors, vae_modules(names), 0)


def write_shards(folder: Path, tensors: Tensors, stem: str, count: int) -> None:
    names = sorted(tensors)
    files = {name: f"{stem}-{index % count + 1:05}-of-{count:05}.safetensors" for index, name in enumerate(names)}
    for file in set(files.values()):
        write(folder / file, {name: tensors[name] for name in names if files[name] == file})
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))


def quantised(tensors: Tensors, convention: str) -> tuple[Tensors, Tensors, dict[str, str]]:
    """The tensors of an fp8 scaled file in a convention, what they stand for, and the file's metadata."""
    stored: Tensors = {"scaled_fp8": torch.empty(2, dtype=torch.float8_e4m3fn)} if convention == "old" else {}
    meant: Tensors = {}
    layers: dict[str, dict[str, str]] = {}
    eight = torch.float8_e5m2 if convention == "float8_e5m2" else torch.float8_e4m3fn
    declared = convention if convention in DECLARED else "float8_e4m3fn"
    for name, tensor in tensors.items():
        module, _, leaf = name.rpartition(".")
        if tensor.ndim != 2 or leaf != "weight":
            stored[name] = meant[name] = tensor
            continue
        by_row = convention in {"rows", "float8_e4m3fn_rowwise"}
        most = tensor.abs().amax(dim=1, keepdim=True) if by_row else tensor.abs().max()
        scale = most / torch.finfo(eight).max
        stored[name] = (tensor / scale).to(eight)
        meant[name] = stored[name].float() * scale
        kept = scale.squeeze(1) if convention == "float8_e4m3fn_rowwise" else scale
        stored[f"{module}.{'scale_weight' if convention == 'old' else 'weight_scale'}"] = kept
        layers[module] = {"format": declared}
        if convention == "old":
            stored[f"{module}.scale_input"] = torch.tensor(1.0)
        if convention in {"new", *DECLARED}:
            document = json.dumps({"format": declared, "full_precision_matrix_mult": True}).encode()
            stored[f"{module}.comfy_quant"] = torch.tensor(list(document), dtype=torch.uint8)
    metadata = {"_quantization_metadata": json.dumps({"format_version": "1.0", "layers": layers})}
    return stored, meant, metadata if convention == "metadata" else {}


def write_sparse(path: Path, shapes: dict[str, tuple[int, ...]], dtype: str) -> int:
    """A file with a true header and a hole for data: as large as the real one, and nothing on the disk."""
    at, entries = 0, {}
    for name, shape in shapes.items():
        kind = DTYPES.get(name.rpartition(".")[2], dtype)
        nbytes = math.prod(shape) * BITS[kind] // 8
        entries[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [at, at + nbytes]}
        at += nbytes
    text = json.dumps(entries).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + at)
    return 8 + len(text) + at
