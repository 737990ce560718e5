"""What lies beside weights and is read with them: a config.json, a tokenizer."""

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from actors.flux.headers import HEADER_LIMIT, WeightsError, refuse
from actors.flux.names import Part

DIFFUSERS: dict[str, Part] = {
    "transformer": "transformer",
    "vae": "vae",
    "text_encoder_2": "t5",
    "text_encoder": "clip",
}
COMFYUI = ("diffusion_models", "unet", "checkpoints", "text_encoders", "clip", "vae", "loras")
OWN_NAMES = ("diffusion_pytorch_model", "model")  # how diffusers and transformers begin the names of their files
CLASSES: dict[Part, tuple[str, ...]] = {  # how a config.json of theirs names a part
    "transformer": ("FluxTransformer2DModel",),
    "vae": ("AutoencoderKL",),
    "t5": ("t5", "T5EncoderModel", "T5ForConditionalGeneration"),
    "clip": ("clip", "clip_text_model", "CLIPModel", "CLIPTextModel", "CLIPTextModelWithProjection"),
}
TOKENIZERS: dict[Part, tuple[str, ...]] = {
    "t5": ("tokenizer_2", "tokenizers/t5"),
    "clip": ("tokenizer", "tokenizers/clip"),
}
CONFIG_KEYS: dict[Part, str] = {"transformer": "flux", "vae": "vae", "t5": "t5", "clip": "clip"}
RENAMED = {  # diffusers' words for our sizes
    "axes_dims_rope": "axes_dim",
    "num_attention_heads": "num_heads",
    "num_single_layers": "depth_single_blocks",
    "guidance_embeds": "guidance_embed",
    "latent_channels": "z_channels",
    "scaling_factor": "scale_factor",
    "norm_num_groups": "norm_groups",
    "layers_per_block": "num_res_blocks",
}


def hints_near(file: Path, part: Part) -> dict[str, Any]:
    return config_near(file, part)[1]


def config_near(file: Path, part: Part) -> tuple[Path | None, dict[str, Any]]:
    """The config.json of the part's own folder, or one for a whole `models` folder, and what it says of the part."""
    for folder in file.parents[:2]:
        path = folder / "config.json"
        if not path.is_file():
            continue
        document = read_json(path)
        section = document.get(CONFIG_KEYS[part])
        if isinstance(section, dict):
            return path, section
        if folder == file.parent and goes_with(document, file, part):
            return path, diffusers_hints(document, part)
    return None, {}


def goes_with(document: dict[str, Any], file: Path, part: Part) -> bool:
    """Whether a config.json is of the weights beside it. Anyone's models lie side by side in a ComfyUI folder, `vae`
    say: there it is of files of diffusers' own name alone."""
    own = file.name.startswith(OWN_NAMES)
    if file.parent.name in DIFFUSERS:
        return own
    architectures = document.get("architectures")
    kinds = [document.get("_class_name"), document.get("model_type")]
    kinds += architectures if isinstance(architectures, list) else []
    return any(kind in CLASSES[part] for kind in kinds) and (own or file.parent.name not in COMFYUI)


def diffusers_hints(document: dict[str, Any], part: Part) -> dict[str, Any]:
    if part == "clip" and isinstance(text := document.get("text_config"), dict):  # of a whole CLIP
        return text
    if part in {"t5", "clip"}:
        return document
    renamed = {RENAMED.get(name, name): value for name, value in document.items()}
    return renamed | ({"depth": document["num_layers"]} if part == "transformer" and "num_layers" in document else {})


def tokenizer_near(files: tuple[Path, ...], part: Part) -> Path | None:
    """The folder of a tokenizer: beside the folder that the weights lie in, or one further up."""
    folders = (base / name for base in files[0].parents[:3] for name in TOKENIZERS[part])
    return next((folder for folder in folders if (folder / "tokenizer_config.json").is_file()), None)


def small_files(files: tuple[Path, ...], part: Part) -> list[Path]:
    """What is read beside weights and changes the picture as they do: their config.json and their tokenizer."""
    config, _ = config_near(files[0], part)
    tokenizer = tokenizer_near(files, part) if part in TOKENIZERS else None
    words = sorted(path for path in tokenizer.iterdir() if path.is_file()) if tokenizer else []
    return [config, *words] if config else words


def highest_token(folder: Path) -> int:
    """The highest number that a tokenizer gives a word, by its own files; -1 where they do not say."""
    file = next((folder / name for name in ("tokenizer.json", "vocab.json") if (folder / name).is_file()), None)
    if file is None:
        return -1
    found = file.stat()
    return highest_number(file, found.st_size, found.st_mtime_ns)


@lru_cache(maxsize=16)
def highest_number(file: Path, size: int, changed_ns: int) -> int:
    """Size and time are asked for so that a file is read again when it changes; megabytes are slow to read."""
    document = read_json(file)
    if file.name == "vocab.json":
        return max(filter(is_number, document.values()), default=-1)
    model, added = document.get("model"), document.get("added_tokens")
    words = model.get("vocab") if isinstance(model, dict) else None
    numbers = words.values() if isinstance(words, dict) else [len(words) - 1] if isinstance(words, list) else []
    more = [each.get("id") for each in added if isinstance(each, dict)] if isinstance(added, list) else []
    return max(filter(is_number, (*numbers, *more)), default=-1)


def is_number(value: object) -> bool:
    return isinstance(value, int)


def read_json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > HEADER_LIMIT:
            refuse(path, f"more than {HEADER_LIMIT} bytes of JSON")
        document = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"{path}: cannot be read: {error}") from error
    if not isinstance(document, dict):
        refuse(path, "its JSON is not an object")
    return document
