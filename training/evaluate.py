"""Score the tiny model on sentences and edits that training never saw: python -m training.evaluate [--quick] [--save]

The checker looks at pixels alone. The table is printed as it is; `--save` keeps it in benchmarks/results/, with the
fingerprint of the weights it is about.
"""

import argparse
import datetime
import itertools
import json
import os
import platform
import random
import textwrap
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont

from actors.cards import TINY
from actors.flux.render import Renderer, RenderJob, renderer_of
from actors.flux.weights import load_flux, load_text, load_vae, weights_sha256
from training.checker import judge, judge_edit
from training.edits import KINDS, Edit, invent_edit
from training.shapes import Pixels, Scene, draw, invent
from training.tokens import T5_LENGTH
from training.train import MODELS
from training.words import seen_sentence

ROOT = Path(__file__).parent.parent
AIMS = {"ground and colours": 95, "shape": 90, "place": 90, "edit made": 90, "rest kept": 90}
BATCH = 8
RESULT = ROOT / "benchmarks" / "results" / "tiny-eval.json"


@dataclass(frozen=True)
class Task:
    what: Scene | Edit
    job: RenderJob

    def judge(self, picture: Pixels) -> dict[str, bool]:
        if isinstance(self.what, Scene):
            return judge(self.what, picture)
        return judge_edit(self.what, draw(self.what.before), picture)


def renderer(models: Path = MODELS) -> Renderer:
    cpu, dtype = "cpu", torch.float32
    flux = load_flux(models / "diffusion_models" / "tiny-flux.safetensors", None, cpu, dtype)
    vae = load_vae(models / "vae" / "ae.safetensors", None, cpu, dtype)
    return renderer_of(flux, vae, load_text(models, cpu, dtype), cpu, dtype, max_text=T5_LENGTH)


def sentences(count: int, seed: int) -> list[Task]:
    rng, tasks = random.Random(seed), []
    for number in range(count):
        scene = invent(rng)
        words = seen_sentence(rng, scene, held_out=True)
        tasks.append(Task(scene, RenderJob(words, 1000 + number, scene.width, scene.height, TINY.steps, TINY.guidance)))
    return tasks


def edits(count: int, seed: int) -> list[Task]:
    rng, kinds, tasks = random.Random(seed), list(KINDS), []
    for number in range(count):
        edit = invent_edit(rng, kinds[number % len(kinds)], held_out=True)
        before = Image.fromarray(draw(edit.before))
        job = RenderJob(edit.sentence, 5000 + number, before.width, before.height, TINY.steps, TINY.guidance, before)
        tasks.append(Task(edit, job))
    return tasks


def render_all(machine: Renderer, tasks: list[Task]) -> list[Pixels]:
    """Tasks of one shape go together."""
    shapes: dict[Any, list[int]] = defaultdict(list)
    for index, task in enumerate(tasks):
        shapes[task.job.shape].append(index)
    pictures: dict[int, Pixels] = {}
    for indices in shapes.values():
        for start in range(0, len(indices), BATCH):
            part = indices[start : start + BATCH]
            pictures |= dict(zip(part, machine.render([tasks[i].job for i in part]), strict=True))
    return [pictures[index] for index in range(len(tasks))]


def share(verdicts: list[dict[str, bool]], name: str) -> float:
    return round(100 * sum(verdict[name] for verdict in verdicts) / max(1, len(verdicts)), 1)


def table(tasks: list[Task], verdicts: list[dict[str, bool]]) -> dict[str, float]:
    """Every row in per cent."""
    both = list(zip(tasks, verdicts, strict=True))
    drawn = [(task, verdict) for task, verdict in both if isinstance(task.what, Scene)]
    edited = [(task.what, verdict) for task, verdict in both if isinstance(task.what, Edit)]
    rows = {}
    for label, count in (("", None), (", one shape", 1), (", two shapes", 2)):
        some = [v for t, v in drawn if isinstance(t.what, Scene) and count in (None, len(t.what.items))]
        for row, name in (
            ("ground and colours", "colours"),
            ("shape", "shape"),
            ("size", "size"),
            ("place", "place"),
            ("nothing else", "count"),
        ):
            rows[row + label] = share(some, name)
    rows["edit made"] = share([v for _, v in edited], "made")
    rows["rest kept"] = share([v for _, v in edited], "kept")
    for kind in KINDS:
        rows[f"edit made, {kind}"] = share([v for e, v in edited if e.kind == kind], "made")
        rows[f"rest kept, {kind}"] = share([v for e, v in edited if e.kind == kind], "kept")
    return rows


def parameters(machine: Renderer) -> int:
    assert machine.denoiser
    return sum(p.numel() for p in machine.denoiser.flux.parameters())


def seconds_an_image(machine: Renderer) -> float:
    job = RenderJob("a red circle on a blue background", 1, 128, 128, TINY.steps, TINY.guidance)
    machine.render([job])
    start = time.perf_counter()
    machine.render([job])
    return round(time.perf_counter() - start, 3)


COLUMNS, COLUMN, GAP, WORDS_HIGH = 4, 410, 8, 60  # of the sheet, in pixels; an edit's pictures may be wide


def sheet(tasks: list[Task], pictures: list[Pixels], path: Path) -> None:
    """The first samples as they come, none chosen: 16 sentences and 8 edits, each edit beside its reference."""
    drawn = [(t, p) for t, p in zip(tasks, pictures, strict=True) if isinstance(t.what, Scene)][:16]
    edited = [(t, p) for t, p in zip(tasks, pictures, strict=True) if isinstance(t.what, Edit)][:8]
    cells = [([p], t.job.prompt) for t, p in drawn]
    cells += [([draw(t.what.before), p], t.job.prompt) for t, p in edited if isinstance(t.what, Edit)]
    rows = [cells[i : i + COLUMNS] for i in range(0, len(cells), COLUMNS)]
    highs = [max(image.shape[0] for images, _ in row for image in images) + WORDS_HIGH for row in rows]
    page = Image.new("RGB", (COLUMNS * COLUMN + GAP, sum(highs)), "white")
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(15)
    for row, bottom in zip(rows, itertools.accumulate(highs), strict=True):
        for column, (images, words) in enumerate(row):
            left, foot = column * COLUMN + GAP, bottom - WORDS_HIGH + GAP
            pen.text((left, foot + GAP), textwrap.fill(words, 50), fill="black", font=font)
            for image in images:
                top = foot - image.shape[0]
                page.paste(Image.fromarray(image), (left, top))
                pen.rectangle((left - 1, top - 1, left + image.shape[1], foot), outline="lightgrey")
                left += image.shape[1] + GAP
    path.parent.mkdir(parents=True, exist_ok=True)
    page.save(path)


def fingerprint(models: Path) -> str:
    """Of all weights that a picture depends on."""
    return weights_sha256(sorted(models.rglob("*.safetensors")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="60 sentences and 36 edits, which say little")
    parser.add_argument("--models", type=Path, default=MODELS)
    parser.add_argument("--sheet", type=Path, help="where to write 24 samples")
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--save", action="store_true", help="keep the table as the one of the model that is shipped")
    options = parser.parse_args()
    if options.save and (options.quick or options.models != MODELS):
        parser.error("--save keeps the whole table of the shipped model: leave --quick and --models out")
    machine = renderer(options.models)
    counts = (60, 36) if options.quick else (500, 300)
    tasks = sentences(counts[0], options.seed) + edits(counts[1], options.seed + 1)
    pictures = render_all(machine, tasks)
    rows = table(tasks, [task.judge(picture) for task, picture in zip(tasks, pictures, strict=True)])
    for row, value in rows.items():
        print(f"{row:<36}{value:6.1f} %" + (f"   aim {AIMS[row]}" if row in AIMS else ""))
    if options.sheet:
        sheet(tasks, pictures, options.sheet)
    if options.save:
        result = {
            "date": datetime.date.today().isoformat(),
            "weights_sha256": fingerprint(MODELS),
            "sentences": counts[0],
            "edits": counts[1],
            "seed": options.seed,
            "steps": TINY.steps,
            "aims": AIMS,
            "per_cent": rows,
            "seconds_per_128x128_image": seconds_an_image(machine),
            "threads": torch.get_num_threads(),
            "device": f"{platform.machine()}, {os.cpu_count()} CPUs",
            "parameters": parameters(machine),
        }
        RESULT.parent.mkdir(parents=True, exist_ok=True)
        RESULT.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
