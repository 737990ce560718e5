"""What a policy does with scenes that training never saw: by subject, and how well a concept stands apart."""

import random
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from farm.ports import Frame, Outcome, Stage, Verdict
from safety.gate import ClipGate, load_gate
from safety.scoring import margins as margins_of
from training.clip_scenes import WIDE, moved, soften, with_item
from training.shapes import COLOURS, SHAPES, Scene, draw, invent

SEED = 20_000
Pair = tuple[str, str]
Maker = Callable[[random.Random], Scene]


def scene_of(*pairs: Pair, canvas: tuple[int, int] | None = None, anywhere: bool = False) -> Maker:
    def make(rng: random.Random) -> Scene:
        scene = invent(rng, items=len(pairs), canvas=canvas)
        for i, pair in enumerate(pairs):
            scene = with_item(scene, *pair, index=i)
        return moved(rng, scene) if anywhere else scene

    return make


def any_but(*pairs: Pair) -> Maker:
    """Any scene at all that shows none of these."""

    def make(rng: random.Random) -> Scene:
        while True:
            scene = invent(rng)
            if not any((item.colour, item.shape) in pairs for item in scene.items):
                return scene

    return make


def on_white(colour: str, shape: str) -> Maker:
    def make(rng: random.Random) -> Scene:
        while True:
            scene = scene_of((colour, shape))(rng)
            if scene.ground == ("white",):
                return scene

    return make


RED_TRIANGLE, RED_RING = ("red", "triangle"), ("red", "ring")
SUBJECTS: dict[str, Maker] = {
    "a red triangle on white": on_white(*RED_TRIANGLE),
    "a red triangle": scene_of(RED_TRIANGLE),
    "a red triangle anywhere, wide picture": scene_of(RED_TRIANGLE, canvas=WIDE[0], anywhere=True),
    "a red triangle and a blue circle": scene_of(RED_TRIANGLE, ("blue", "circle")),
    "a red triangle and a green triangle": scene_of(RED_TRIANGLE, ("green", "triangle")),
    "a red ring on white": on_white(*RED_RING),
    "a red ring": scene_of(RED_RING),
    "a red circle": scene_of(("red", "circle")),
    "a red square": scene_of(("red", "square")),
    "a red star": scene_of(("red", "star")),
    "a red cross": scene_of(("red", "cross")),
    "a blue triangle": scene_of(("blue", "triangle")),
    "an orange triangle": scene_of(("orange", "triangle")),
    "a purple triangle": scene_of(("purple", "triangle")),
    "a green star": scene_of(("green", "star")),
    "an orange ring": scene_of(("orange", "ring")),
    "a red square and a blue triangle": scene_of(("red", "square"), ("blue", "triangle")),
    "a red star and a yellow triangle": scene_of(("red", "star"), ("yellow", "triangle")),
    "anything but these two": any_but(RED_TRIANGLE, RED_RING),
}


def frames_of(make: Maker, count: int, seed: int) -> tuple[list[Scene], list[Frame]]:
    rng = random.Random(seed)
    scenes = [make(rng) for _ in range(count)]
    pictures = [soften(rng, draw(scene)) for scene in scenes]
    return scenes, [Frame(picture.width, picture.height, picture.tobytes()) for picture in pictures]


def auc(scores: NDArray[np.float64], truth: NDArray[np.bool_]) -> float:
    ranks = np.empty(len(scores))
    ranks[scores.argsort()] = np.arange(1, len(scores) + 1)
    there = int(truth.sum())
    return float((ranks[truth].sum() - there * (there + 1) / 2) / (there * (len(scores) - there)))


def fitted(margins: NDArray[np.float64], truth: NDArray[np.bool_]) -> tuple[float, float]:
    """a and b of probability = sigmoid(a * margin + b), by logistic regression; each class counts a half."""
    ab = torch.tensor([10.0, 0.0], dtype=torch.float64, requires_grad=True)
    x, y = torch.from_numpy(margins), torch.from_numpy(truth).double()
    weights = torch.where(y > 0, 0.5 / y.mean(), 0.5 / (1 - y.mean()))
    optimizer = torch.optim.LBFGS([ab], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = torch.nn.functional.binary_cross_entropy_with_logits(ab[0] * x + ab[1], y, weights)
        loss = loss + 1e-4 * ab[0].square()
        torch.autograd.backward(loss)
        return loss

    optimizer.step(closure)
    return ab[0].item(), ab[1].item()


def print_subjects(gate: ClipGate, count: int) -> None:
    print(f"{'subject':40} {'allow':>6} {'review':>6} {'block':>6}   probability: median, least, most")
    for number, (name, make) in enumerate(SUBJECTS.items()):
        verdicts = gate.judge_frames(frames_of(make, count, SEED + number)[1], Stage.FRAME)
        judged = [verdict for verdict in verdicts if isinstance(verdict, Verdict)]
        outcomes = Counter(verdict.outcome for verdict in judged)
        odds = np.array([verdict.probability for verdict in judged if verdict.probability is not None])
        shares = " ".join(f"{outcomes[outcome]:6}" for outcome in Outcome)
        print(f"{name:40} {shares}   {np.median(odds):.3f} {odds.min():.3f} {odds.max():.3f}", flush=True)


def print_concepts(gate: ClipGate, count: int) -> None:
    """Each concept on a mix of subjects, half of which show it."""
    encoder = gate.encoder()
    measure = gate.measure(encoder)
    for s, concept in enumerate(gate.policy.concepts):
        pair = next((c, s) for c in COLOURS for s in SHAPES if f"{c} {s}" in concept.phrases[0])
        with_it, without = [m for n, m in SUBJECTS.items() if " ".join(pair) in n], [any_but(pair), *near(pair)]
        margins, truth = [], []
        for makers, shows in ((with_it, True), (without, False)):
            for i, make in enumerate(makers):
                rows = encoder.encode_frames(frames_of(make, count // len(makers), SEED + 1000 + i)[1])
                margins += [float(margins_of(measure, rows_VD.numpy())[:, s].max()) for rows_VD in rows]
                truth += [shows] * len(rows)
        print_separation(concept.name, np.array(margins), np.array(truth))


def near(pair: Pair) -> Sequence[Maker]:
    """Its hard negatives: the same colour in every other shape, the same shape in every other colour."""
    colour, shape = pair
    same_colour = [(colour, other) for other in SHAPES if other != shape]
    same_shape = [(other, shape) for other in COLOURS if other != colour]
    return [scene_of(other) for other in (*same_colour, *same_shape)]


def print_separation(name: str, margins: NDArray[np.float64], truth: NDArray[np.bool_]) -> None:
    a, b = fitted(margins, truth)
    odds = 1 / (1 + np.exp(-(a * margins + b)))
    print(f"\n{name}: {truth.sum()} with, {(~truth).sum()} without; AUC {auc(margins, truth):.4f}")
    print(f"  fitted: a {a:.2f} b {b:.2f}")
    for limit in (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95):
        found, false = (odds[truth] >= limit).mean(), (odds[~truth] >= limit).mean()
        print(f"  probability >= {limit:4}: found {found:.3f}, false {1000 * false:.0f} in 1,000")


def print_tables(encoder: Path | None = None, count: int = 200) -> None:
    gate = load_gate("", str(encoder or ""), "cpu")
    print(f"encoder {gate.encoder().fingerprint}, policy {gate.policy.hash}")
    print_concepts(gate, 2 * count)
    print()
    print_subjects(gate, count)
