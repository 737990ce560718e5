"""One open_clip encoder: the views it takes of a frame, its embeddings, and the fingerprint that names it.

Shapes: V views of a frame, N views of all frames, D the embedding, C H W an encoder's input.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from farm.errors import BadInput, Fault, nearest
from farm.job import Cause
from farm.ports import Frame
from safety.files import file_hash, file_hashes
from safety.places import CONFIG, FILE, HUB, check_file, check_folder, parts

VIEWS = "whole+centre+squares+tiles of two thirds, half overlapping"
BATCH = 64  # views in one pass
BUNDLED = Path(open_clip.tokenizer.default_bpe())
CUTTERS = 4  # threads, beside a GPU


@dataclass(frozen=True, slots=True)
class View:
    """A part of a frame by its box in pixels: left, top, right, bottom."""

    name: str
    box: tuple[float, float, float, float]


def views(width: int, height: int) -> list[View]:
    """The whole (squashed), then squares that overlap by half: nothing at an edge or small goes unseen."""
    short = min(width, height)
    found = [View("whole", (0, 0, width, height))]
    if width != height:
        left, top = (width - short) / 2, (height - short) / 2
        found.append(View("centre", (left, top, left + short, top + short)))
        found += tiles(width, height, short, "square")
    return found + tiles(width, height, short * 2 / 3, "tile")


def tiles(width: int, height: int, side: float, name: str) -> list[View]:
    corners = [(left, top) for top in _starts(height, side) for left in _starts(width, side)]
    return [View(f"{name} {i}", (left, top, left + side, top + side)) for i, (left, top) in enumerate(corners, 1)]


def _starts(length: int, side: float) -> list[float]:
    steps = math.ceil((length - side) / (side / 2) - 1e-9)
    return [step * (length - side) / steps for step in range(steps + 1)] if steps else [0.0]


class Encoder:
    """A loaded model. Embeddings are unit vectors in float32; a broken model gives NaN, which the gate refuses."""

    def __init__(self, model: Any, tokenizer: Any, fingerprint: str, device: str) -> None:
        self.fingerprint, self.device = fingerprint, device
        self._model, self._tokenizer = model.to(device).eval().requires_grad_(False), tokenizer
        self._texts: dict[str, Tensor] = {}
        # A GPU would wait for one thread that cuts views; on a CPU the model's own thread has that time.
        self._map = map if device == "cpu" else ThreadPoolExecutor(CUTTERS, thread_name_prefix="views").map
        look = model.visual.preprocess_cfg
        size = look["size"]
        self.size: tuple[int, int] = (size, size) if isinstance(size, int) else (size[1], size[0])
        self._resample = Image.Resampling.BILINEAR if look["interpolation"] == "bilinear" else Image.Resampling.BICUBIC
        self._mean_C11 = torch.tensor(look["mean"], device=device).view(-1, 1, 1)
        self._std_C11 = torch.tensor(look["std"], device=device).view(-1, 1, 1)

    def encode_frames(self, frames: Sequence[Frame]) -> list[Tensor]:
        """One V x D tensor for each frame, on the CPU; views of all frames go through the model together."""
        images = [as_image(frame) for frame in frames]
        taken = [(image, view) for image in images for view in views(*image.size)]
        cut = self._map(self._pixels, taken)
        passes = [self._encode_pixels(batch) for batch in iter(lambda: list(islice(cut, BATCH)), [])]
        return list(torch.split(torch.cat(passes), [len(views(*image.size)) for image in images])) if images else []

    def encode_texts(self, phrases: Sequence[str]) -> Tensor:
        """One row a phrase; each phrase is encoded once in the life of the encoder."""
        new = [phrase for phrase in dict.fromkeys(phrases) if phrase not in self._texts]
        if new:
            with torch.inference_mode():
                rows = unit(self._model.encode_text(self._tokenizer(new).to(self.device)).float()).cpu()
            self._texts |= dict(zip(new, rows, strict=True))
        return torch.stack([self._texts[phrase] for phrase in phrases])

    def _pixels(self, taken: tuple[Image.Image, View]) -> NDArray[np.uint8]:
        image, view = taken
        return np.asarray(image.resize(self.size, self._resample, box=view.box))

    def _encode_pixels(self, views_NHWC: Sequence[NDArray[np.uint8]]) -> Tensor:
        pixels_NCHW = torch.from_numpy(np.stack(views_NHWC)).to(self.device).permute(0, 3, 1, 2).float() / 255
        with torch.inference_mode():
            return unit(self._model.encode_image((pixels_NCHW - self._mean_C11) / self._std_C11).float()).cpu()


def unit(rows: Tensor) -> Tensor:
    """Unlike functional.normalize, a row of zeros becomes NaN and is refused, not passed on as zeros."""
    return torch.div(rows, rows.norm(dim=-1, keepdim=True))


def as_image(frame: Frame) -> Image.Image:
    if frame.width < 1 or frame.height < 1 or len(frame.pixels) != frame.width * frame.height * 3:
        raise ValueError(f"{len(frame.pixels)} bytes are no RGB picture of {frame.width}x{frame.height}")
    return Image.frombytes("RGB", (frame.width, frame.height), frame.pixels)


def load_encoder(name: str = "", device: str = "cpu") -> Encoder:
    """`name`: a folder (open_clip's local-dir layout, with or without that prefix), hf-hub:OWNER/REPO, or
    ARCHITECTURE@FILE.safetensors; empty: the bundled tiny one. Raises Fault(GATE_DOWN) where it is not there."""
    before, place = parts(name)
    if before.endswith(FILE):
        return _from_file(before.removesuffix(FILE), Path(place), device)
    return _from_folder(_fetched(place) if before == HUB else Path(place), device)


def _fetched(repository: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    wanted = ["*.json", "*.txt", "*.model", "*.safetensors"]
    try:
        return Path(snapshot_download(repository, allow_patterns=wanted))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise Fault(Cause.GATE_DOWN, f"the gate's encoder {repository} could not be fetched: {error}") from error


def _from_folder(folder: Path, device: str) -> Encoder:
    """Where its configuration names no tokenizer, open_clip's own vocabulary is meant."""
    check_folder(folder)
    text = json.loads((folder / CONFIG).read_text()).get("model_cfg", {}).get("text_cfg", {})
    vocabulary = {} if text.get("hf_tokenizer_name") else {"vocabulary": file_hash(BUNDLED)}
    return _open(f"local-dir:{folder.absolute()}", None, file_hashes(folder) | vocabulary, device)


def _from_file(architecture: str, weights: Path, device: str) -> Encoder:
    if architecture not in open_clip.list_models():
        fix = nearest(architecture, open_clip.list_models())
        raise BadInput(f"open_clip has no architecture {architecture!r}", field="encoder", fix=fix)
    check_file(weights)
    text = open_clip.get_model_config(architecture)["text_cfg"]
    if text.get("hf_tokenizer_name") or "siglip" in architecture.lower():
        fix = f"name its folder, or {HUB}OWNER/REPO"
        raise BadInput(f"the tokenizer of {architecture} is a file of its own", field="encoder", fix=fix)
    files = {"weights": file_hash(weights), "vocabulary": file_hash(BUNDLED)}
    return _open(architecture, str(weights), files, device)


def _open(name: str, weights: str | None, files: Mapping[str, str], device: str) -> Encoder:
    model = open_clip.create_model(name, pretrained=weights, require_pretrained=True)
    for part, value in model.state_dict().items():
        if not bool(torch.isfinite(value).all()):
            raise Fault(Cause.GATE_DOWN, f"the gate's encoder is broken: {part} of {name} is not finite")
    config = open_clip.get_model_config(name)
    told = {"files": files, "config": config, "preprocess": dict(model.visual.preprocess_cfg), "views": VIEWS}
    fingerprint = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
    return Encoder(model, open_clip.get_tokenizer(name), fingerprint, device)
