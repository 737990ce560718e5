"""What the shipped weights and the shipped gate make of the bundled batch, without the farm between them."""

from __future__ import annotations

from collections import Counter
from importlib import resources

import numpy as np
from PIL import Image

from actors.flux.render import RenderJob
from actors.models import catalogue
from farm.lines import Line, parse_line
from farm.ports import Frame, Outcome, Stage, Verdict
from safety.gate import ClipGate, load_gate
from training.evaluate import renderer
from training.shapes import Pixels

BATCH = resources.files("farm.demo").joinpath("batch.jsonl").read_bytes()


def lines() -> list[Line]:
    parsed = [parse_line(number, text, catalogue(), "tiny") for number, text in enumerate(BATCH.splitlines(), 1)]
    return [line for line in parsed if isinstance(line, Line)]


def outcome(gate: ClipGate, prompt: str, picture: Pixels) -> Outcome:
    """The sterner of the two."""
    height, width, _ = picture.shape
    frame = Frame(width, height, picture.tobytes())
    verdicts = [*gate.judge_prompts([prompt]), *gate.judge_frames([frame], Stage.FRAME)]
    found = [one.outcome for one in verdicts if isinstance(one, Verdict)]
    assert len(found) == 2, verdicts
    return next(one for one in (Outcome.BLOCK, Outcome.REVIEW, Outcome.ALLOW) if one in found)


def test_the_demo_publishes_holds_and_blocks_what_the_readme_says() -> None:
    machine, gate = renderer(), load_gate()
    drawn: dict[str | None, Pixels] = {}
    counts: Counter[Outcome] = Counter()
    for line in lines():
        for index in range(line.n):
            spec, edited = line.spec, drawn.get(line.line) if line.line else None
            reference = None if edited is None else Image.fromarray(edited)
            width, height = reference.size if reference else (spec.width, spec.height)
            job = RenderJob(spec.prompt, spec.seed + index, width, height, spec.steps, spec.guidance, reference)
            drawn[line.id] = np.asarray(machine.render([job])[0])
            counts[outcome(gate, spec.prompt, drawn[line.id])] += 1
    assert counts == {Outcome.ALLOW: 13, Outcome.REVIEW: 2, Outcome.BLOCK: 2}
