"""What the gate costs beside its model: images/s through the whole gate (views, batches, scores, hashes) against a
plain loop of bare open_clip over the same views, on ViT-B/32 with random weights and on the bundled tiny model; and how
many stored embeddings a second are judged again under a policy.

python -m benchmarks.safety --json [--images N] [--rounds N] [--threads N] [--device cpu|cuda] [--stored N] [--out FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from PIL import Image
from safetensors.torch import save_file

from benchmarks.pool import rounded
from benchmarks.queue import machine, say
from farm.ports import Frame, Stage, Verdict
from safety.clip import as_image, views
from safety.gate import ClipGate, load_gate
from safety.places import TINY
from safety.scoring import Stored, measure_of, rescored

GROUP = 4  # as the farm leases them
LARGE, SMALL = "ViT-B-32", "tiny"
SIDES = {LARGE: 1024, SMALL: 128}  # what FLUX draws unless it is told otherwise, and the tiny model
Timed = Callable[[Sequence[Frame]], object]


@dataclass(frozen=True, slots=True)
class Subject:
    """One model: for the gate by its name, for open_clip by what it is made with."""

    name: str
    encoder: str
    made_with: tuple[str, str | None]


def subjects(folder: Path) -> list[Subject]:
    weights = folder / "random.safetensors"
    torch.manual_seed(1)
    save_file(open_clip.create_model(LARGE, load_weights=False).state_dict(), weights)
    large = Subject(LARGE, f"{LARGE}@{weights}", (LARGE, str(weights)))
    return [large, Subject(SMALL, "", (f"local-dir:{TINY.absolute()}", None))]


def pictures(count: int, side: int) -> list[Frame]:
    """Each another one, and none flat."""
    rng = np.random.default_rng(1)
    coarse = rng.integers(0, 256, (count, side // 8, side // 8, 3), dtype=np.uint8)
    return [Frame(side, side, Image.fromarray(one).resize((side, side)).tobytes()) for one in coarse]


def bare(subject: Subject, device: str) -> Timed:
    """As one would write it: the model's own preprocessing of each crop, one batch of a group's, unit vectors."""
    name, pretrained = subject.made_with
    model, _, preprocess = open_clip.create_model_and_transforms(name, pretrained=pretrained, device=device)
    model.eval()

    def encode(frames: Sequence[Frame]) -> torch.Tensor:
        crops = [image.crop(box) for image in map(as_image, frames) for box in boxes(*image.size)]
        pixels = torch.stack([preprocess(crop) for crop in crops]).to(device)
        with torch.inference_mode():
            embeddings: torch.Tensor = model.encode_image(pixels, normalize=True)
        return embeddings.cpu()

    return encode


def boxes(width: int, height: int) -> list[tuple[int, int, int, int]]:
    return [tuple(round(edge) for edge in view.box) for view in views(width, height)]  # type: ignore[misc]


def through(gate: ClipGate) -> Timed:
    def judge(frames: Sequence[Frame]) -> list[Verdict]:
        verdicts = [one for one in gate.judge_frames(frames, Stage.FRAME) if isinstance(one, Verdict)]
        if len(verdicts) != len(frames):
            raise RuntimeError(f"of {len(frames)} pictures {len(verdicts)} got a verdict")
        return verdicts

    return judge


def rate(work: Timed, frames: Sequence[Frame]) -> float:
    began = time.perf_counter()
    for at in range(0, len(frames), GROUP):
        work(frames[at : at + GROUP])
    return len(frames) / (time.perf_counter() - began)


def compare(subject: Subject, gate: ClipGate, images: int, rounds: int, device: str) -> dict[str, float]:
    """In turns, so that whatever else the machine does meets both."""
    whole, alone, side = through(gate), bare(subject, device), SIDES[subject.name]
    frames = pictures(images, side)
    for work in (whole, alone):
        work(frames[:GROUP])
    pairs = []
    for number in range(1, rounds + 1):
        pairs.append((rate(whole, frames), rate(alone, frames)))
        say(f"{subject.name}, round {number} of {rounds}: {pairs[-1][0]:.2f} images/s, bare {pairs[-1][1]:.2f}")
    middle = [statistics.median(column) for column in zip(*pairs, strict=True)]
    ratio = statistics.median(ours / theirs for ours, theirs in pairs)
    figures = {"images_per_s": middle[0], "bare_images_per_s": middle[1], "ratio_to_bare": ratio}
    return {"side": side, "views": len(views(side, side))} | figures


def rescan(gate: ClipGate, count: int, side: int) -> float:
    """Verdicts a second from stored embeddings, one matrix product for thousands."""
    measure = measure_of(gate.policy, gate.encoder())
    rng, dim = np.random.default_rng(1), measure.texts_TD.shape[1]
    rows = rng.standard_normal((count, len(views(side, side)), dim), dtype=np.float32)
    rows /= np.linalg.norm(rows, axis=-1, keepdims=True)
    told = gate.encoder().fingerprint
    stored = [
        Stored(Stage.FRAME, f"{n:064x}", side, side, told, one.tobytes()) for n, one in enumerate(rows.astype("e"))
    ]
    began = time.perf_counter()
    answers = rescored(measure, stored)
    seconds = time.perf_counter() - began
    if not all(isinstance(answer, Verdict) for answer in answers):
        raise RuntimeError("not every embedding got a verdict")
    return count / seconds


def measured(images: int, rounds: int, device: str, stored: int) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        say(f"making {LARGE} with random weights")
        for subject in subjects(Path(folder)):
            gate = load_gate(subject.encoder, device)
            many = images if subject.name == LARGE else images * 10
            figures[subject.name] = compare(subject, gate, many, rounds, device)
            say(f"{subject.name}: {stored:,} stored embeddings judged again")
            figures[subject.name]["rescan_per_s"] = rescan(gate, stored, SIDES[subject.name])
    keys = ("images_per_s", "ratio_to_bare", "rescan_per_s")
    return {key: figures[LARGE][key] for key in keys} | figures


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="farm bench safety", description=(__doc__ or "").split("\n\n", maxsplit=1)[0])
    parser.add_argument(
        "--images", type=int, default=32, help="a round, of the large model; ten times so many of the tiny one"
    )
    parser.add_argument("--rounds", type=int, default=5, help="in which gate and bare loop take turns")
    parser.add_argument("--threads", type=int, default=1, help="on the CPU; 1: as a gate actor has")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--stored", type=int, default=100_000, help="embeddings judged again")
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    parser.add_argument("--out", type=Path, help="also write it to this file, with device and date")
    arguments = sys.argv[1:] if arguments is None else arguments
    given = parser.parse_args(arguments)
    threads = {"OMP_NUM_THREADS": str(given.threads)}
    if threads.items() - os.environ.items():  # NumPy, which is loaded by now, has asked for as many as there are cores
        command = [sys.executable, "-m", "benchmarks.safety", *arguments]
        return subprocess.run(command, env=os.environ | threads, check=False).returncode
    figures = rounded(measured(given.images, given.rounds, given.device, given.stored))
    settings = {"images": given.images, "rounds": given.rounds, "group": GROUP, "threads": given.threads}
    on = {"device": torch.cuda.get_device_name()} if given.device == "cuda" else {}
    document = figures | settings | machine() | on
    if given.out:
        given.out.write_text(json.dumps(document, indent=2) + "\n")
    if given.json:
        print(json.dumps(document))
    else:
        for name, value in document.items():
            print(f"{name:<20} {value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
