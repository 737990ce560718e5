"""What `farm bench safety` times is the gate: every picture gets its verdict, and the bare loop sees the same views."""

from __future__ import annotations

import pytest
import torch

from benchmarks import safety
from farm.ports import Frame, Stage, Verdict
from safety.gate import load_gate
from safety.places import TINY

SUBJECT = safety.Subject("tiny", "", (f"local-dir:{TINY.absolute()}", None))


def test_both_sides_see_the_same_and_are_timed() -> None:
    gate = load_gate()
    frames = safety.pictures(2, 96)
    ours = torch.cat(gate.encoder().encode_frames(frames))
    theirs = safety.bare(SUBJECT, "cpu")(frames)
    assert isinstance(theirs, torch.Tensor)
    torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=0)
    figures = safety.compare(SUBJECT, gate, images=4, rounds=1, device="cpu")
    assert figures["ratio_to_bare"] == pytest.approx(figures["images_per_s"] / figures["bare_images_per_s"])
    assert safety.rescan(gate, 50, 96) > 0


def test_a_picture_without_a_verdict_ends_the_bench() -> None:
    gate = load_gate()
    assert isinstance(gate.judge_frames(safety.pictures(1, 64), Stage.FRAME)[0], Verdict)
    with pytest.raises(RuntimeError, match="of 1 pictures 0 got a verdict"):
        safety.through(gate)([Frame(8, 8, b"")])
