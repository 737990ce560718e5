"""Trains the tiny CLIP of the embedded gate on drawn scenes.

python -m training.clip --minutes 30          trains, or trains on, and writes safety/tiny_clip

Then the demo policy is fitted to it: `python -m training.clip_set DIR` and `farm policy calibrate`.
"""

import argparse
import json
import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from training.clip_scenes import PAIRS, Look, looks
from training.tokens import clip_tokenizer
from training.words import with_articles

OUT = Path(__file__).parent.parent / "safety" / "tiny_clip"
SIZE, CONTEXT, DIM = 64, 32, 64
BATCH, LOOKS = 96, 4
WEIGHTS = "open_clip_model.safetensors"
PHRASE_RATE = 2e-3
HARDEST = 6
PHRASE_STEPS = 40
THERE = ("{}", "{}", "a {}", "a {}", "a picture of a {}", "a drawing of a {}", "there is a {}",
         "a picture with a {} in it")  # fmt: skip
ABSENT = ("no {}", "a picture without a {}", "there is no {}", "a picture with no {} in it")


def config(vocabulary: int) -> dict[str, Any]:
    vision = {"layers": [1, 1, 1, 1], "width": 16, "head_width": 32, "image_size": SIZE}
    text = {"context_length": CONTEXT, "vocab_size": vocabulary, "width": 64, "heads": 4, "layers": 2,
            "hf_tokenizer_name": "tokenizer"}  # fmt: skip
    model = {"embed_dim": DIM, "vision_cfg": vision, "text_cfg": text}
    preprocess = {"size": [SIZE, SIZE], "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25],
                  "interpolation": "bicubic", "resize_mode": "squash"}  # fmt: skip
    return {"model_cfg": model, "preprocess_cfg": preprocess}


def write_folder(out: Path) -> None:
    """Everything of open_clip's local-dir layout but the weights."""
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = clip_tokenizer()
    tokenizer.save(str(out / "tokenizer.json"))
    names = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    told = {"tokenizer_class": "PreTrainedTokenizerFast", **names, "pad_token": names["eos_token"]}
    (out / "tokenizer_config.json").write_text(json.dumps(told, indent=2) + "\n")
    (out / "open_clip_config.json").write_text(json.dumps(config(tokenizer.get_vocab_size()), indent=2) + "\n")


def phrases(rng: random.Random, templates: tuple[str, ...]) -> list[str]:
    return [with_articles(rng.choice(templates).format(" ".join(pair))) for pair in PAIRS]


def presence_loss(logits_BP: Tensor, shows_BP: Tensor) -> Tensor:
    """Shown pairs, all the rest, and the hardest of the rest count a third each; what nobody can say counts nothing."""
    each = F.binary_cross_entropy_with_logits(logits_BP, shows_BP.nan_to_num(), reduction="none")
    each = each.masked_fill(shows_BP.isnan(), 0)
    there, rest = each[shows_BP == 1], each.masked_fill(shows_BP == 1, 0)
    shown = there.mean() if there.numel() else each.new_zeros(())
    return shown + rest.mean() * 4 + rest.topk(HARDEST, dim=1).values.mean()


def caption_loss(picture_BD: Tensor, text_BD: Tensor, scale: Tensor) -> Tensor:
    logits = scale * picture_BD @ text_BD.T
    same = torch.arange(len(logits))
    return (F.cross_entropy(logits, same) + F.cross_entropy(logits.T, same)) / 2


def apart_loss(text_PD: Tensor) -> Tensor:
    """Keeps phrases apart that pictures cannot tell apart yet; else red circle and red square soon read as one."""
    return F.cross_entropy(20 * text_PD @ text_PD.T, torch.arange(len(text_PD)))


def step_loss(
    model: Any, tokenizer: Any, rng: random.Random, batch: list[Look], scale_bias: Tensor
) -> tuple[Tensor, Tensor]:
    pixels = torch.from_numpy(np.stack([look.pixels for look in batch])).permute(0, 3, 1, 2).float()
    shows_BP = torch.from_numpy(np.stack([look.shows for look in batch]))
    captions = [(i, look.caption) for i, look in enumerate(batch) if look.caption]
    texts = phrases(rng, THERE) + phrases(rng, ABSENT) + [text for _, text in captions]
    with torch.autocast("cpu", torch.bfloat16):
        picture_BD = model.encode_image(((pixels / 255 - 0.5) / 0.25).contiguous(memory_format=torch.channels_last))
        text_TD = model.encode_text(tokenizer(texts))
    picture_BD, text_TD = F.normalize(picture_BD.float(), dim=-1), F.normalize(text_TD.float(), dim=-1)
    there_PD, absent_PD, caption_CD = torch.split(text_TD, [len(PAIRS), len(PAIRS), len(captions)])
    cosine_BP = picture_BD @ there_PD.T
    margin_BP = cosine_BP - picture_BD @ absent_PD.T
    scale, bias, slope = scale_bias[0].exp(), scale_bias[1], scale_bias[2].exp()
    whole_CD = picture_BD[[i for i, _ in captions]]
    presence = presence_loss(scale * cosine_BP + bias, shows_BP)
    loss = presence + presence_loss(slope * margin_BP, shows_BP) + apart_loss(there_PD) + apart_loss(absent_PD)
    return loss + 0.2 * caption_loss(whole_CD, caption_CD, model.logit_scale.exp().clamp(max=100)), presence.detach()


def batches(rng: random.Random) -> Iterator[list[Look]]:
    """Draws the next batch while the last one is learned from."""

    def one() -> list[Look]:
        return [look for _ in range(BATCH // LOOKS) for look in looks(rng, LOOKS, SIZE)]

    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(one)
        while True:
            batch, coming = coming.result(), pool.submit(one)
            yield batch


def train(minutes: float, out: Path, peak_rate: float, seed: int) -> None:
    """Goes on with the weights that are there, if there are any."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    goes_on = (out / WEIGHTS).exists()
    if not goes_on:
        write_folder(out)
    name = f"local-dir:{out.absolute()}"
    model = open_clip.create_model(name, load_weights=goes_on).to(memory_format=torch.channels_last)
    tokenizer = open_clip.get_tokenizer(name)
    scale_bias = torch.nn.Parameter(torch.tensor([2.3, -4.0, 2.3]))
    model.train()
    if not goes_on:
        learn_phrases(model, tokenizer, rng)
    optimizer = torch.optim.AdamW([*model.parameters(), scale_bias], betas=(0.9, 0.98), weight_decay=0.02)
    start, step = time.monotonic(), 0
    ahead = batches(random.Random(seed))
    while (share := (time.monotonic() - start) / (60 * minutes)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = peak_rate * min(1, (step + 1) / 100) * (1 - share) ** 1.5 + 1e-6
        loss, presence = step_loss(model, tokenizer, rng, next(ahead), scale_bias)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        if step % 50 == 0:
            print(f"step {step} loss {loss:.4f} presence {presence:.4f} {time.monotonic() - start:.0f} s", flush=True)
        if step % 500 == 0:
            write_weights(model, out)
    write_weights(model, out)


def learn_phrases(model: Any, tokenizer: Any, rng: random.Random) -> None:
    """Text alone first: paraphrases together, everything else apart. Pictures cannot part phrases that start as one."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=PHRASE_RATE, weight_decay=0.0)
    for step in range(PHRASE_STEPS):
        texts = [phrases(rng, templates) for templates in (THERE, ABSENT, THERE, ABSENT)]
        rows = F.normalize(model.encode_text(tokenizer([text for some in texts for text in some])), dim=-1)
        one, other = rows.chunk(2)
        loss = F.cross_entropy(20 * one @ other.T, torch.arange(len(one)))
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        if step % 20 == 0:
            print(f"phrases {step} loss {loss:.4f}", flush=True)


def write_weights(model: torch.nn.Module, out: Path) -> None:
    """Half precision for the large ones; open_clip widens them again."""
    state = {name: value.detach().contiguous() for name, value in model.state_dict().items()}
    weights = {name: value.half() if value.ndim > 1 else value for name, value in state.items()}
    save_file(weights, out / WEIGHTS, metadata={"format": "pt"})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--rate", type=float, default=2e-3, help="peak learning rate; half of it to go on with")
    parser.add_argument("--seed", type=int, default=1, help="another one to go on with")
    parser.add_argument("--out", type=Path, default=OUT)
    asked = parser.parse_args()
    train(asked.minutes, asked.out, asked.rate, asked.seed)


if __name__ == "__main__":
    main()
