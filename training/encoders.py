"""The small T5 and CLIP text models: sizes, building, and a first schooling in what sentences say.

Before the picture model sees them they learn to name what a sentence describes: that leaves it far less to find out.
B sentences, T tokens, D T5 width, V CLIP width.
"""

import random
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoTokenizer, CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from actors.flux.text import TextEncoders
from training.edits import KINDS, invent_edit
from training.shapes import COLOURS, PLACES, SHAPES, SIZES, Scene, invent
from training.tokens import CLIP_LENGTH, T5_LENGTH
from training.words import seen_sentence

NOTHING = "nothing"
WORDS = [NOTHING, *COLOURS, *SHAPES, *SIZES, *PLACES, "plain", "sides", "halves", "draw", *KINDS]
SLOTS = 12


def t5_config(vocab: int) -> T5Config:
    return T5Config(
        vocab_size=vocab,
        d_model=128,
        d_kv=32,
        d_ff=256,
        num_layers=2,
        num_heads=4,
        relative_attention_num_buckets=16,
        relative_attention_max_distance=40,
        dropout_rate=0.0,
        feed_forward_proj="gated-gelu",
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
        tie_word_embeddings=False,
    )


def clip_config(vocab: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=vocab,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=CLIP_LENGTH,
        projection_dim=128,
        bos_token_id=vocab - 2,
        eos_token_id=vocab - 1,
        pad_token_id=vocab - 1,
    )


def build(tokenizers: Path) -> TextEncoders:
    t5_tokens, clip_tokens = (AutoTokenizer.from_pretrained(tokenizers / name) for name in ("t5", "clip"))
    t5 = T5EncoderModel(t5_config(len(t5_tokens)))
    clip = CLIPTextModel(clip_config(len(clip_tokens)))
    return TextEncoders(t5, clip, t5_tokens, clip_tokens)


def embed(text: TextEncoders, sentences: list[str], length: int = T5_LENGTH) -> tuple[Tensor, Tensor]:
    """What `TextEncoders` gives, with gradients."""
    t5_ids_BT = text.tokens(text.t5_tokenizer, text.t5, sentences, length)
    clip_ids_BT = text.tokens(text.clip_tokenizer, text.clip, sentences, CLIP_LENGTH)
    txt_BTD: Tensor = text.t5(input_ids=t5_ids_BT).last_hidden_state
    pooled_BV: Tensor = text.clip(input_ids=clip_ids_BT).pooler_output
    return txt_BTD, pooled_BV


def meaning(kind: str, scene: Scene) -> list[str]:
    """The facts of a drawn scene, one word a slot."""
    first, second = (*scene.items, None)[:2] if scene.items else (None, None)
    facts = [kind, scene.split, scene.ground[0], scene.ground[-1]]
    for item in (first, second):
        facts += [item.shape, item.colour, item.size, item.place] if item else [NOTHING] * 4
    return facts


def asked(rng: random.Random) -> tuple[str, list[str]]:
    """A sentence and its meaning; of an edit, only the words that the sentence itself settles."""
    if rng.random() < 0.6:
        scene = invent(rng)
        return seen_sentence(rng, scene), meaning("draw", scene)
    kind = rng.choice(list(KINDS))
    edit = invent_edit(rng, kind)
    facts = [kind] + [NOTHING] * (SLOTS - 1)
    if kind == "background":
        facts[2] = edit.after.ground[0]
    elif kind != "remove" and edit.target is not None:
        item = edit.after.items[edit.target]
        facts[4] = item.shape if kind in ("shape", "add") else NOTHING
        facts[5] = item.colour if kind in ("recolour", "add") else NOTHING
        facts[6] = item.size if kind == "add" else NOTHING
        facts[7] = item.place if kind in ("move", "add") else NOTHING
    return edit.sentence, facts


def school(text: TextEncoders, minutes: float, seed: int = 3) -> None:
    """Both models learn to give the meaning through linear heads that are thrown away."""
    rng = random.Random(seed)
    heads = nn.ModuleList(nn.Linear(128, SLOTS * len(WORDS)) for _ in range(2))
    optimizer = torch.optim.AdamW(
        [*text.parameters(), *heads.parameters()], lr=2e-3, betas=(0.9, 0.98), weight_decay=0.01
    )
    start, step = time.monotonic(), 0
    while (share := (time.monotonic() - start) / (60 * minutes)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1, (step + 1) / 100) * (1 - share) + 1e-5
        sentences, facts = zip(*(asked(rng) for _ in range(48)), strict=True)
        target_BS = torch.tensor([[WORDS.index(word) for word in line] for line in facts])
        txt_BTD, pooled_BV = embed(text, list(sentences))
        losses, guesses = [], []
        for head, features in zip(heads, (txt_BTD.mean(dim=1), pooled_BV), strict=True):
            logits_BSW = head(features).unflatten(-1, (SLOTS, len(WORDS)))
            losses.append(F.cross_entropy(logits_BSW.flatten(0, 1), target_BS.flatten()))
            guesses.append((logits_BSW.argmax(-1) == target_BS).float().mean())
        optimizer.zero_grad()
        torch.stack(losses).sum().backward()
        torch.nn.utils.clip_grad_norm_(text.parameters(), 1.0)
        optimizer.step()
        step += 1
        if step % 100 == 0:
            print(
                f"text step {step} loss {sum(losses):.3f} right: t5 {guesses[0]:.3f} clip {guesses[1]:.3f}", flush=True
            )


def configs(text: TextEncoders) -> dict[str, Any]:
    """What transformers needs to build the two models again."""
    noise = {"transformers_version", "architectures", "dtype"}
    both = {"t5": text.t5.config.to_diff_dict(), "clip": text.clip.config.to_diff_dict()}
    return {name: {key: value for key, value in fields.items() if key not in noise} for name, fields in both.items()}
