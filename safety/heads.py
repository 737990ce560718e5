"""Linear probes: a direction in the encoder's space that was learned from labelled pictures, instead of phrases."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load

from farm.errors import Fault
from farm.job import Cause
from safety.clauses import Head
from safety.files import bytes_hash

PARTS = {"weight", "bias"}


def load_head(head: Head, dim: int) -> tuple[NDArray[np.float32], float]:
    """Its direction and its bias. Raises Fault(GATE_DOWN) where it is not the file that the policy means."""
    try:
        data = Path(head.file).read_bytes()
    except OSError as error:
        raise Fault(Cause.GATE_DOWN, f"the gate's head {head.file} is missing: {error.strerror}") from error
    if (found := bytes_hash(data)) != head.sha256:
        what = f"{head.file} is not the head that the policy means: its SHA-256 is {found}, not {head.sha256}"
        raise Fault(Cause.GATE_DOWN, what)
    try:
        parts = load(data)
    except SafetensorError as error:
        raise Fault(Cause.GATE_DOWN, f"the gate's head {head.file} does not load: {error}") from error
    if set(parts) != PARTS or parts["weight"].size != dim or parts["bias"].size != 1:
        shapes = ", ".join(f"{name} {list(part.shape)}" for name, part in sorted(parts.items()))
        what = f"the gate's head {head.file} has {shapes}; weight [{dim}] and bias [1] are needed"
        raise Fault(Cause.GATE_DOWN, what)
    weight, bias = parts["weight"].reshape(dim).astype(np.float32), float(parts["bias"].reshape(1)[0])
    if not np.isfinite(weight).all() or not np.isfinite(bias):
        raise Fault(Cause.GATE_DOWN, f"the gate's head {head.file} is broken: it is not finite")
    return weight, bias
