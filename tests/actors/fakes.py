"""What the tests put into ranks and hosts instead of a model and a gate. A prompt says how it behaves."""

from __future__ import annotations

import importlib
import os
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from actors.messages import Post
from actors.shard import Shard
from farm.errors import Fault
from farm.job import Cause
from farm.ports import Frame, Outcome, Rules, Stage, Verdict

if TYPE_CHECKING:
    from actors.flux.render import Preview
    from actors.flux.sampler import SavedLatent

OnStep = Callable[[int, int, "Preview"], None]


class NotFinite(ArithmeticError):
    pass


class Cancelled(Exception):
    pass


class Flat:
    """Draws one colour a seed, and what the prompt tells it."""

    def render(
        self,
        jobs: Sequence[Any],
        on_step: OnStep | None = None,
        cancelled: Callable[[], bool] | None = None,
        resume: SavedLatent | None = None,
    ) -> list[NDArray[np.uint8]]:
        for job in jobs:
            self.obey(job.prompt, cancelled or (lambda: False))
        return [picture(job) for job in jobs]

    def obey(self, prompt: str, cancelled: Callable[[], bool]) -> None:
        if prompt == "die":
            os._exit(1)
        elif prompt == "hang":
            time.sleep(600)
        elif prompt == "child":
            subprocess.Popen(["sleep", "600"])
        elif prompt == "nan":
            raise NotFinite("the latent has NaN values")
        elif prompt == "odd":
            raise ValueError("an odd request")
        elif prompt == "memory":
            raise MemoryError("no more of it")
        elif prompt == "slow":
            for _ in range(600):
                time.sleep(0.05)
                if cancelled():
                    raise Cancelled("after a step")


class Walks(Flat):
    """Takes its time over each step; its picture tells by its colour at which one it began."""

    def render(
        self,
        jobs: Sequence[Any],
        on_step: OnStep | None = None,
        cancelled: Callable[[], bool] | None = None,
        resume: SavedLatent | None = None,
    ) -> list[NDArray[np.uint8]]:
        from actors.flux import sampler

        first, total = resume.step if resume else 0, jobs[0].steps
        for step in range(first + 1, total + 1):
            time.sleep(0.05)
            if cancelled and cancelled():
                raise sampler.Cancelled(preview_of(jobs, step - 1).saved())
            if on_step:
                on_step(step, total, preview_of(jobs, step))
        return [np.full((job.height, job.width, 3), first, np.uint8) for job in jobs]


def preview_of(jobs: Sequence[Any], step: int) -> Preview:
    """Its pictures are four by four, in the colour of the step."""
    import torch

    from actors.flux.render import Preview
    from actors.flux.sampler import Progress

    latents = torch.full((len(jobs), 4, 2), float(step))
    size = (jobs[0].width, jobs[0].height)
    small = [np.full((4, 4, 3), step, np.uint8) for _ in jobs]
    return Preview(Progress(step, jobs[0].steps, latents, latents, size), lambda _: small)


def picture(job: Any) -> NDArray[np.uint8]:
    flat = np.full((job.height, job.width, 3), job.seed % 256, np.uint8)
    if job.reference is not None:
        flat[:, :, 1] = np.asarray(job.reference)[0, 0, 1]
    return flat


def load_flat(post: Post) -> Shard:
    importlib.import_module("actors.flux.render")  # as a real one does: what follows is not slowed by it
    if post.card.name == "missing":
        raise Fault(Cause.WEIGHTS_MISSING, f"{post.card.name} has no files in {post.models}")
    if post.card.name == "broken":
        raise RuntimeError("these weights do not load")
    return Shard(Flat(), "f" * 64)


def load_blind(post: Post) -> Shard:
    """Where a rank that is told to draw on its CPU would find GPUs, it does not load."""
    seen = os.environ.get("CUDA_VISIBLE_DEVICES", "all")
    if (post.device, seen) != ("cpu", ""):
        raise RuntimeError(f"told {post.device!r}, and sees {seen!r}")
    return load_flat(post)


class Staged(Flat):
    """Some of the stages: what it makes tells through which it went."""

    def __init__(self, post: Post) -> None:
        self.stages, self.last = [str(stage) for stage in post.stages], not post.hands_on

    def render(
        self,
        jobs: Sequence[Any],
        on_step: OnStep | None = None,
        cancelled: Callable[[], bool] | None = None,
        resume: SavedLatent | None = None,
        given: Sequence[Any] | None = None,
    ) -> list[Any]:
        for job in jobs:
            what, _, where = job.prompt.partition(" in ")
            if where in self.stages:
                self.obey(what, cancelled or (lambda: False))
        made = [[*before, *self.stages] for before in given or [[] for _ in jobs]]
        if not self.last:
            return made
        assert made == [["encode", "denoise", "decode"] for _ in jobs]
        return [picture(job) for job in jobs]


def load_staged(post: Post) -> Shard:
    return Shard(Staged(post), "f" * 64)


def load_small(post: Post) -> Shard:
    """Random weights of the real architecture, with heads that 2 and 4 ranks can share, out of `post.models`."""
    import torch

    from actors.flux.containers import find
    from actors.loading import Load, assemble, seat_of
    from actors.models import ModelFiles

    sets = {each.part: each for each in find(Path(post.models)).sets}
    files = ModelFiles(sets["transformer"], sets["vae"], sets["t5"], sets["clip"])
    seat = seat_of(files, post.tensor, post.sequence)
    return Shard(assemble(post.card, files, Load("cpu", torch.float32, "never"), seat), "0" * 64)


def load_walks(_: Post) -> Shard:
    importlib.import_module("actors.flux.render")
    return Shard(Walks(), "f" * 64)


class Judge:
    """Its verdicts on prompts name its process and its device."""

    def __init__(self, word: str, device: str) -> None:
        self.word, self.device, self.broken = word, device, False

    def use(self, rules: Rules) -> None:
        if rules.policy == "no policy":
            raise ValueError("these rules cannot be read")
        self.word = rules.policy

    def judge_prompts(self, prompts: Sequence[str]) -> list[Verdict | Fault]:
        return [self.judge(prompt) for prompt in prompts]

    def judge_frames(self, frames: Sequence[Frame], stage: Stage) -> list[Verdict | Fault]:
        if self.word == "dies when asked":
            os._exit(1)
        if stage is Stage.PREVIEW and self.word == "hangs at previews":
            time.sleep(600)
        if self.broken:
            return [Fault(Cause.GATE_ERROR, "CUDA error: an illegal memory access was encountered") for _ in frames]
        return [Verdict(stage, frame.sha256, Outcome.REVIEW, "policy", "encoder") for frame in frames[:1]]

    def judge(self, prompt: str) -> Verdict | Fault:
        if prompt == "die":
            os._exit(1)
        if prompt == "hang":
            time.sleep(600)
        if prompt.startswith("until "):
            while not Path(prompt.removeprefix("until ")).exists():
                time.sleep(0.05)
        if prompt == "odd":
            raise ValueError("an odd prompt")
        self.broken |= prompt == "break"
        if prompt in ("fault", "break"):
            return Fault(Cause.GATE_ERROR, "no verdict for this one")
        outcome = Outcome.BLOCK if self.word in prompt else Outcome.ALLOW
        return Verdict(Stage.PROMPT, str(os.getpid()), outcome, "policy", self.device)

    def forbidden(self) -> str:
        return "this was not to be called"


def load_judge(word: str, device: str) -> Judge:
    if word == "broken":
        raise RuntimeError("this policy does not load")
    if word == "dies when made":
        os._exit(1)
    sees, threads = (os.environ.get(name, "all") for name in ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS"))
    return Judge(word, f"{device}, sees {sees!r}, threads {threads}")
