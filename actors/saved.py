"""Latents to go on from, as bytes: for each job a safetensors file, which says what it belongs to and what it holds.

Whoever goes on from one draws the picture that would have been drawn without it: it is taken only where everything that
decides the picture is the same.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from actors.messages import Post
from farm.ports import RenderRequest

if TYPE_CHECKING:
    from actors.flux.sampler import SavedLatent

NAME = "latent_LC"
HEAD = 8  # bytes, which hold the length of the header


def digest_of(request: RenderRequest, weights: str, post: Post, device: str, encoded_by: str = "") -> str:
    """Over everything that decides the picture. Another kind of device, number of ranks, or code rounds differently."""
    reference = request.reference.sha256 if request.reference else ""
    drawn_by = [weights, device, post.precision, post.tensor, post.sequence, encoded_by]
    return _hash(json.dumps([asdict(request.spec), reference, *drawn_by, post.code], sort_keys=True).encode())


def pack(saved: SavedLatent, digests: Sequence[str]) -> list[bytes]:
    """One file for each of the jobs it holds; none where any of it is not finite, for nobody should go on from that."""
    import torch
    from safetensors.torch import save

    if not bool(torch.isfinite(saved.latent_BLC).all()):
        return []
    width, height = saved.size
    at = {"step": saved.step, "total": saved.total, "width": width, "height": height}
    words = {name: str(value) for name, value in at.items()}
    rows = [row.contiguous() for row in saved.latent_BLC]
    return [
        save({NAME: row}, words | {"digest": digest, "sha256": _hash(_bytes(row))})
        for row, digest in zip(rows, digests, strict=True)
    ]


def unpack(data: bytes, digest: str) -> SavedLatent:
    """ValueError says why it is not to be gone on from."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    from actors.flux.sampler import SavedLatent

    try:
        row = load(data)[NAME]
        words = words_of(data)
        step, total, width, height = (int(words[name]) for name in ("step", "total", "width", "height"))
        theirs, sound = words["digest"], words["sha256"] == _hash(_bytes(row))
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise ValueError(f"it cannot be read: {error}") from error
    if not sound:
        raise ValueError("it is damaged")
    if theirs != digest:
        raise ValueError("it is of another picture, other weights or another kind of gang")
    return SavedLatent(step, total, row[None], (width, height))


def words_of(data: bytes) -> dict[str, str]:
    """What the file says of itself."""
    words: dict[str, str] = json.loads(data[HEAD : HEAD + int.from_bytes(data[:HEAD], "little")])["__metadata__"]
    return words


def joined(saved: Sequence[SavedLatent]) -> SavedLatent:
    """Of jobs that are drawn together, all at one step."""
    import torch

    from actors.flux.sampler import SavedLatent

    first = saved[0]
    return SavedLatent(first.step, first.total, torch.cat([one.latent_BLC for one in saved]), first.size)


def _bytes(row: Any) -> bytes:
    data: bytes = row.numpy().tobytes()
    return data


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
