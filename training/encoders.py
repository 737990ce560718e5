"""The small T5 and CLIP text models: sizes, building, and a first schooling in what sentences say.

Before the picture model sees them they learn to name what a sentence describes: that leaves it far less to find out.
B sentences, T tokens, D width, V CLIP width.
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
from training.edits import KINDS, Edit, invent_edit
from training.shapes import COLOURS, PLACES, SHAPES, SIZES, Item, Scene, invent
from training.tokens import CLIP_LENGTH, T5_LENGTH
from training.words import SAID, seen_sentence

NOTHING = "nothing"
WORDS = [NOTHING, *COLOURS, *SHAPES, *SIZES, *PLACES, "plain", "sides", "halves", "draw", *KINDS]
NUMBER = {word: number for number, word in enumerate(WORDS)}
SLOTS = 12
LOOK = 4.0  # added to the logits of attention
# Of T5's padded sequence: it attends to its padding, and must not mind how much there is.
LENGTHS = (28, 28, 28, T5_LENGTH)


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
    look_around(t5)
    clip = CLIPTextModel(clip_config(len(clip_tokens)))
    return TextEncoders(t5, clip, t5_tokens, clip_tokens)


@torch.no_grad()
def look_around(t5: T5EncoderModel) -> None:
    """Each head of the first layer begins with its eyes on one neighbour. Without that a small T5 stays blind to the
    order of words for hours, and of two colours cannot say which is whose; with it minutes suffice."""
    attention = t5.encoder.block[0].layer[0].SelfAttention
    near = torch.tensor([-1, 1, -2, 2])
    config = t5.config
    buckets = attention._relative_position_bucket(
        near, True, config.relative_attention_num_buckets, config.relative_attention_max_distance
    )
    attention.relative_attention_bias.weight[buckets, torch.arange(len(near))] += LOOK


def embed(text: TextEncoders, sentences: list[str], length: int = T5_LENGTH) -> tuple[Tensor, Tensor]:
    """What `TextEncoders` gives, with gradients."""
    t5_ids_BT = text.tokens(text.t5_tokenizer, text.t5, sentences, length)
    clip_ids_BT = text.tokens(text.clip_tokenizer, text.clip, sentences, CLIP_LENGTH)
    txt_BTD: Tensor = text.t5(input_ids=t5_ids_BT).last_hidden_state
    pooled_BV: Tensor = text.clip(input_ids=clip_ids_BT).pooler_output
    return txt_BTD, pooled_BV


def meaning(what: Scene | Edit, sentence: str) -> list[str]:
    """The facts that a sentence settles, one word a slot. Of an edit: what shall be, then the item it names."""
    if isinstance(what, Scene):
        first, second = (*what.items, None, None)[:2]
        return ["draw", what.split, what.ground[0], what.ground[-1], *item_facts(first), *item_facts(second)]
    facts = [what.kind] + [NOTHING] * (SLOTS - 1)
    if what.target is None:
        facts[2] = what.after.ground[0]
        return facts
    if what.kind != "remove":
        wanted = item_facts(what.after.items[what.target])
        settled = {"recolour": (1,), "shape": (0,), "move": (3,), "add": (0, 1, 2, 3)}[what.kind]
        facts[4:8] = [word if i in settled else NOTHING for i, word in enumerate(wanted)]
    if what.kind != "add":
        named = what.before.items[what.target]
        said = set(sentence.split())
        facts[8] = named.shape if said.intersection(SAID.get(named.shape, (named.shape,))) else NOTHING
        facts[9] = named.colour if named.colour in said else NOTHING
    return facts


def item_facts(item: Item | None) -> list[str]:
    return [item.shape, item.colour, item.size, item.place] if item else [NOTHING] * 4


def asked(rng: random.Random) -> tuple[str, list[str]]:
    """A sentence and its meaning."""
    if rng.random() < 0.6:
        scene = invent(rng, rng.choice((1, 2)))
        words = seen_sentence(rng, scene)
        return words, meaning(scene, words)
    edit = invent_edit(rng, rng.choice(list(KINDS)))
    return edit.sentence, meaning(edit, edit.sentence)


class Facts(nn.Module):
    """Tells facts from a sequence, each by attention of its own. S slots, W words."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.ask_SD = nn.Parameter(torch.randn(SLOTS, width))
        self.keys = nn.Linear(width, width)
        self.say_SDW = nn.Parameter(torch.randn(SLOTS, width, len(WORDS)) * width**-0.5)

    def forward(self, txt_BTD: Tensor) -> Tensor:
        """Logits, batch x slots x words."""
        keys_BTD: Tensor = self.keys(txt_BTD)
        attention_BST = torch.einsum("sd,btd->bst", self.ask_SD, keys_BTD * keys_BTD.shape[-1] ** -0.5).softmax(-1)
        found_BSD = attention_BST.to(txt_BTD.dtype) @ txt_BTD
        return torch.einsum("bsd,sdw->bsw", found_BSD, self.say_SDW)

    def loss(self, txt_BTD: Tensor, facts: list[list[str]]) -> Tensor:
        return F.cross_entropy(self(txt_BTD).float().flatten(0, 1), numbers(facts, txt_BTD.device).flatten())


def numbers(facts: list[list[str]], device: torch.device) -> Tensor:
    return torch.tensor([[NUMBER[word] for word in line] for line in facts], device=device)


class Reader(nn.Module):
    """Tells a sentence's meaning from what both encoders give. It is thrown away, and makes them gather what belongs
    together: of two shapes, which one is red and where it is."""

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        self.pooled = nn.Linear(width, SLOTS * len(WORDS))
        self.sequence = Facts(width)

    def forward(self, txt_BTD: Tensor, pooled_BV: Tensor) -> tuple[Tensor, Tensor]:
        """Logits from T5's sequence and from CLIP's vector."""
        return self.sequence(txt_BTD), self.pooled(pooled_BV).unflatten(-1, (SLOTS, len(WORDS)))

    def loss(self, txt_BTD: Tensor, pooled_BV: Tensor, facts: list[list[str]]) -> tuple[Tensor, list[float]]:
        """And the share of sentences whose every fact T5 and CLIP give."""
        target_BS = numbers(facts, txt_BTD.device)
        both = [logits_BSW.float() for logits_BSW in self(txt_BTD, pooled_BV)]
        right = [(logits_BSW.argmax(-1) == target_BS).all(-1).float().mean().item() for logits_BSW in both]
        losses = [F.cross_entropy(logits_BSW.flatten(0, 1), target_BS.flatten()) for logits_BSW in both]
        return losses[0] + losses[1], right


def school(text: TextEncoders, reader: Reader, minutes: float, seed: int = 3, rate: float = 2e-3) -> None:
    rng = random.Random(seed)
    optimizer = torch.optim.AdamW(
        [*text.parameters(), *reader.parameters()], lr=rate, betas=(0.9, 0.98), weight_decay=0.01
    )
    start, step = time.monotonic(), 0
    while (share := (time.monotonic() - start) / (60 * minutes)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1, (step + 1) / 100) * (1 - share) + 1e-5
        sentences, facts = zip(*(asked(rng) for _ in range(64)), strict=True)
        loss, right = reader.loss(*embed(text, list(sentences), rng.choice(LENGTHS)), list(facts))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(text.parameters(), 1.0)
        optimizer.step()
        step += 1
        if step % 100 == 0:
            print(f"text step {step} loss {loss:.3f} all right: t5 {right[0]:.2f} clip {right[1]:.2f}", flush=True)


def configs(text: TextEncoders) -> dict[str, Any]:
    """What transformers needs to build the two models again."""
    noise = {"transformers_version", "architectures", "dtype"}
    both = {"t5": text.t5.config.to_diff_dict(), "clip": text.clip.config.to_diff_dict()}
    return {name: {key: value for key, value in fields.items() if key not in noise} for name, fields in both.items()}
