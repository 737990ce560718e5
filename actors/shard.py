"""What a rank holds: the model, or its share or stages of it, and whether code and files are what they are held for."""

from __future__ import annotations

import hashlib
import importlib
import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from actors.messages import Post
from farm.errors import Fault
from farm.job import Cause

if TYPE_CHECKING:
    from actors.flux.offload import Setting
    from actors.flux.render import Preview, RenderJob
    from actors.flux.sampler import SavedLatent


class Draws(Protocol):
    """`actors.flux.render.Renderer`, as far as a rank uses it."""

    def render(
        self,
        jobs: Sequence[RenderJob],
        on_step: Callable[[int, int, Preview], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
        resume: SavedLatent | None = None,
    ) -> Sequence[Any]: ...


@dataclass(frozen=True, slots=True)
class Shard:
    renderer: Draws
    weights: str  # SHA-256 over its files
    files: tuple[Path, ...] = ()


def load_shard(post: Post) -> Shard:
    import torch

    from actors.flux.quant import fp8_of
    from actors.loading import Load, load_known
    from actors.plan import precision_of

    folder = Path(post.models) if post.models else None
    dtype = getattr(torch, precision_of(post.precision, post.device))
    setting, fp8 = cast("Setting", post.offload), fp8_of(post.precision, post.device)
    load = Load(post.device, dtype, setting, post.tensor, post.sequence, fp8, post.stages, post.embeddings_mb)
    known = load_known(post.card, folder, load)
    return Shard(known.renderer, known.weights, known.files)


def hide_gpus() -> None:
    """From torch, before it looks: Ray leaves a node's GPUs in sight of an actor that asked for none."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""


def factory(dotted: str) -> Callable[..., Any]:
    """`package.module:name`, as the composition root gives it."""
    module, _, name = dotted.partition(":")
    made: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return made


def require(code: str) -> None:
    """Where it is known what a gang is to run, a node with anything else draws none of it."""
    if code not in {"", code_of()}:
        where = f"{socket.gethostname()} has other code in {Path(__file__).parent} than the dispatcher runs"
        raise Fault(Cause.NO_ROOM, f"{where}: install the same on every node, or restart the dispatcher")


@cache
def code_of() -> str:
    """What ranks run: of other code the same seed might not be the same picture."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def stamps(files: Sequence[Path]) -> tuple[tuple[int, int], ...]:
    """Whether they are still the same without reading them again; one that is gone is no longer the same."""
    found = [os.stat(path) if path.exists() else None for path in files]
    return tuple((one.st_size, one.st_mtime_ns) if one else (-1, 0) for one in found)
