"""Stage two: the transformer and its text encoders, by flow matching on the latents of drawn scenes and of their edits.

Workers train apart, each on one core, and now and then add what they learnt to weights that all share, without waiting
for each other: on a busy machine that goes much further than threads, or gradients shared at every step. A GPU has one
worker with a larger batch.
B batch, L image tokens, R reference tokens, C channels, K cells of a token.
"""

import copy
import math
import os
import random
import time
from collections import defaultdict, deque
from pathlib import Path

import numpy as np
import torch
import torch.multiprocessing as mp
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from actors.flux import latents
from actors.flux.blocks import Attend, Qkv
from actors.flux.config import FluxConfig
from actors.flux.model import Flux
from actors.flux.rope import Rotation, rotate
from actors.flux.sampler import resolution_shift
from actors.flux.text import TextEncoders
from actors.flux.vae import AutoEncoder
from training.edits import Edit
from training.encoders import LENGTHS, Facts, Reader, embed, meaning
from training.pool import CELL, Drawn, Pool
from training.shapes import COLOURS

CONFIG = FluxConfig(
    in_channels=64,
    vec_in_dim=128,
    context_in_dim=128,
    hidden_size=192,
    num_heads=3,
    depth=2,
    depth_single_blocks=4,
    axes_dim=(16, 24, 24),
)
EDIT_SHARE = 0.58
PEAK_RATE = 1e-3
TOKENS = 2600  # of pictures, in one worker's batch
LAYOUT_AFTER = 1  # the single block whose output also has to tell the picture's layout
WEIGHTS = {"velocity": 1.0, "layout": 1.0, "plan": 0.3, "meaning": 0.3}
THROWN_AWAY = ("layout", "plan", "reader")
TIED = "encoder.embed_tokens.weight"
EMA = 0.96  # from one meeting to the next
MEET = 8  # steps between two visits
ADDED = 0.75  # of what a worker learnt


class PlainAttend(Attend):
    """The same attention as matrix products: at these lengths its backward is four times as fast on CPUs."""

    def forward(self, qkv: Qkv, turn: Rotation) -> Tensor:
        q_BHLD, k_BHLD = rotate(qkv.q_BHLD, turn), rotate(qkv.k_BHLD, turn)
        weight_BHLL = ((q_BHLD * q_BHLD.shape[-1] ** -0.5) @ k_BHLD.transpose(-1, -2)).softmax(-1)
        out_BHLD: Tensor = weight_BHLL.to(qkv.v_BHLD) @ qkv.v_BHLD
        return out_BHLD.transpose(1, 2).flatten(2)


class Learner(nn.Module):
    """What is trained together. `layout`, `plan` and `reader` are thrown away afterwards. `layout` names, from the
    middle of the transformer, the colour of each cell of the finished picture, and so teaches what goes where far
    sooner than velocities alone do. `plan`, from the words as the double blocks leave them, tells what the finished
    picture shows: of an edit that asks to read the reference. `reader` keeps the encoders telling what is said."""

    def __init__(self, text: TextEncoders) -> None:
        super().__init__()
        self.flux = Flux(CONFIG)
        self.text = text
        self.reader = Reader()
        self.layout = nn.Linear(CONFIG.hidden_size, (16 // CELL) ** 2 * len(COLOURS))
        self.plan = Facts(CONFIG.hidden_size)
        self.middle: Tensor | None = None
        self.planned: Tensor | None = None
        start_at_rest(self.flux)
        self.flux.single_blocks[LAYOUT_AFTER].register_forward_hook(self.keep_middle)
        self.flux.double_blocks[-1].register_forward_hook(self.keep_plan)
        for block in (*self.flux.double_blocks, *self.flux.single_blocks):
            block.attend = PlainAttend()

    def keep_middle(self, _block: nn.Module, _given: object, both_BLC: Tensor) -> None:
        self.middle = both_BLC

    def keep_plan(self, _block: nn.Module, _given: object, streams: tuple[Tensor, Tensor]) -> None:
        self.planned = streams[1]


def start_at_rest(flux: Flux) -> None:
    """Every branch begins closed and the output at zero, as in DiT."""
    for name, module in flux.named_modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
            if name.endswith(("_mod.lin", "modulation.lin", "adaLN_modulation.1", "final_layer.linear")):
                nn.init.zeros_(module.weight)


def times(count: int, image_tokens: int) -> Tensor:
    """Nearly half close to pure noise: there words alone decide what goes where, and the sampler takes its first
    steps. The rest logit-normal and uniform, under the shift that the sampler will use."""
    kind = torch.rand(count)
    t = torch.where(kind < 0.85, torch.randn(count).sigmoid(), torch.rand(count)).clamp(1e-3, 1 - 1e-4)
    mu = math.exp(resolution_shift(image_tokens))
    return torch.where(kind < 0.45, 1 - 0.2 * torch.rand(count), mu * t / (1 + (mu - 1) * t)).clamp(max=1 - 1e-4)


def losses_of(learner: Learner, drawn: list[Drawn], sentences: list[str], length: int) -> dict[str, Tensor]:
    """`length` is that of T5's sequence."""
    clean_BCHW = torch.stack([d.latent_CHW for d in drawn]).float()
    ids, clean_BLC = latents.image_ids(clean_BCHW), latents.pack(clean_BCHW)
    count, device = clean_BLC.shape[1], clean_BLC.device
    t_B = times(len(drawn), count).to(device)
    noise_BLC, t_B11 = torch.randn_like(clean_BLC), t_B[:, None, None]
    img_BLC = (1 - t_B11) * clean_BLC + t_B11 * noise_BLC
    if drawn[0].reference_CHW is not None:
        reference = torch.stack([d.reference_CHW for d in drawn if d.reference_CHW is not None]).float()
        ids = torch.cat((ids, latents.image_ids(reference, axis0=1)), dim=1)
        img_BLC = torch.cat((img_BLC, latents.pack(reference)), dim=1)
    guidance_B = 1 + 4 * torch.rand(len(drawn), device=device)
    with torch.autocast(device.type, torch.bfloat16):
        txt_BTD, pooled_BV = embed(learner.text, sentences, length)
        out = learner.flux(img_BLC, ids, txt_BTD, latents.text_ids(txt_BTD), t_B, pooled_BV, guidance_B)
        assert learner.middle is not None
        assert learner.planned is not None
        layout = learner.layout(learner.middle[:, txt_BTD.shape[1] :][:, :count])
    wanted_BLK = torch.stack([d.layout_LK for d in drawn]).long()
    facts = [meaning(d.what, sentence) for d, sentence in zip(drawn, sentences, strict=True)]
    shown = [meaning(d.what.after if isinstance(d.what, Edit) else d.what, "") for d in drawn]
    return {
        "velocity": F.mse_loss(out[:, :count].float(), noise_BLC - clean_BLC),
        "layout": F.cross_entropy(layout.float().unflatten(-1, (-1, len(COLOURS))).flatten(0, 2), wanted_BLK.flatten()),
        "plan": learner.plan.loss(F.layer_norm(learner.planned.float(), (CONFIG.hidden_size,)), shown),
        "meaning": learner.reader.loss(txt_BTD.float(), pooled_BV.float(), facts)[0],
    }


class Meeting:
    """Weights in shared memory: workers add a part of what they learnt since they last came."""

    def __init__(self, learner: nn.Module) -> None:
        self.shared = flat(learner).share_memory_()
        self.mean = self.shared.clone().share_memory_()
        self.visits = torch.zeros(1).share_memory_()
        self.lock = mp.get_context("spawn").Lock()

    @torch.no_grad()
    def visit(self, learner: nn.Module, start: Tensor) -> Tensor:
        with self.lock:
            self.visits += 1
            self.shared.add_(flat(learner) - start, alpha=ADDED)
            self.mean.lerp_(self.shared, 1 - min(EMA, self.visits.item() / (self.visits.item() + 5)))
            start = self.shared.clone()
        spread(start, learner)
        return start


def flat(learner: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in learner.parameters()]).cpu()


@torch.no_grad()
def spread(weights: Tensor, learner: nn.Module) -> None:
    parameters = list(learner.parameters())
    for parameter, part in zip(parameters, weights.split([p.numel() for p in parameters]), strict=True):
        parameter.copy_(part.view_as(parameter))


def optimizers(learner: Learner) -> list[torch.optim.Optimizer]:
    """Muon for the blocks' matrices, AdamW for the rest. `share` is each group's part of the learning rate;
    the text encoders have had their schooling and move more slowly."""
    inner = [p for name, p in learner.flux.named_parameters() if "blocks" in name and p.ndim == 2]
    ids = {id(p) for p in inner}
    outer = [p for p in learner.flux.parameters() if id(p) not in ids]
    heads = [p for name in THROWN_AWAY for p in getattr(learner, name).parameters()]
    found: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(
            [
                {"params": [*outer, *heads], "share": 1.0},
                {"params": list(learner.text.parameters()), "share": 0.5},
            ],
            betas=(0.9, 0.98),
            weight_decay=0.01,
        )
    ]
    found.append(
        torch.optim.Muon(
            [{"params": inner, "share": 3.0}],
            momentum=0.95,
            weight_decay=0.01,
            adjust_lr_fn="match_rms_adamw",
            ns_steps=4,
        )
    )
    return found


def worker(
    rank: int,
    minutes: float,
    out: Path,
    text: TextEncoders,
    vae: AutoEncoder,
    rate: float,
    meeting: Meeting,
    tokens: int,
    device: torch.device,
    seed: int,
) -> None:
    torch.set_num_threads(1)
    rng = random.Random(seed + rank)
    torch.manual_seed(rng.getrandbits(32))
    learner, pool = Learner(text).to(device), Pool(vae, rng, tokens, device)
    met = meeting.shared.clone()
    spread(met, learner)
    optimizing = optimizers(learner)
    losses = defaultdict[str, deque[float]](lambda: deque(maxlen=60))
    parent, start, step, saved = os.getppid(), time.monotonic(), 0, 0.0
    while (spent := time.monotonic() - start) < 60 * minutes and os.getppid() == parent:
        now = rate * min(1, (step + 1) / 60) * min(1, 1.6 * (1 - spent / 60 / minutes)) + 1e-6
        for group in (group for optimizer in optimizing for group in optimizer.param_groups):
            group["lr"] = group["share"] * now
        with_reference = rng.random() < EDIT_SHARE
        drawn = pool.batch(with_reference)
        found = losses_of(learner, drawn, [d.sentence(rng) for d in drawn], rng.choice(LENGTHS))
        learner.zero_grad()
        sum((weight * found[name] for name, weight in WEIGHTS.items()), torch.tensor(0.0, device=device)).backward()
        torch.nn.utils.clip_grad_norm_(learner.parameters(), 1.0)
        for optimizer in optimizing:
            optimizer.step()
        step += 1
        kind = "edit" if with_reference else "draw"
        for name, loss in found.items():
            losses[f"{kind} {name}"].append(loss.item())
        if step % MEET == 0:
            met = meeting.visit(learner, met)
        if step % 50 == 0:
            report = ", ".join(f"{key} {np.mean(values):.4f}" for key, values in sorted(losses.items()))
            print(f"flux worker {rank} step {step} {spent:.0f} s {report} rate {now:.1e}", flush=True)
        if rank == 0 and spent - saved > 120:
            saved = spent
            keep(learner, meeting, out)
    meeting.visit(learner, met)
    if rank == 0:
        keep(learner, meeting, out)


def keep(learner: Learner, meeting: Meeting, out: Path) -> None:
    """The weights as trained, to go on from, and their running mean, to draw with."""
    learner.middle = learner.planned = None  # a graph cannot be copied
    copied = copy.deepcopy(learner)
    for name, weights in (("flux", meeting.shared), ("mean", meeting.mean)):
        spread(weights.clone(), copied)
        tensors = {k: v.cpu().contiguous() for k, v in copied.state_dict().items() if not k.endswith(TIED)}
        save_file(tensors, out / f"{name}.new")
        (out / f"{name}.new").rename(out / f"{name}.safetensors")


def restore(learner: Learner, path: Path) -> None:
    missing, unexpected = learner.load_state_dict(load_file(path), strict=False)
    if unexpected or not all(name.split(".")[0] in THROWN_AWAY or name.endswith(TIED) for name in missing):
        raise ValueError(f"{path} does not fit: missing {missing}, unexpected {unexpected}")


def train(
    minutes: float,
    out: Path,
    text: TextEncoders,
    vae: AutoEncoder,
    workers: int,
    rate: float,
    tokens: int,
    device: torch.device,
    seed: int,
) -> None:
    """Goes on from the weights in `out` when there are some. The seed settles what each worker sees, not the outcome:
    they do not wait for each other."""
    torch.manual_seed(seed)
    learner = Learner(text)
    if (out / "flux.safetensors").exists():
        restore(learner, out / "flux.safetensors")
    meeting, spawned = Meeting(learner), mp.get_context("spawn")
    given = (minutes, out, text, vae, rate, meeting, tokens, device, seed)
    crew = [spawned.Process(target=worker, args=(rank, *given), daemon=True) for rank in range(workers)]
    for process in crew:
        process.start()
    for process in crew:
        process.join()
    if any(process.exitcode for process in crew):
        raise RuntimeError(f"workers ended with {[process.exitcode for process in crew]}; their errors are above")
