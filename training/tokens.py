"""The two tokenizers, made from sentences of the domain: Unigram for T5, BPE for CLIP. They spell any ASCII text."""

import json
import math
import random
import string
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE, Unigram
from tokenizers.trainers import BpeTrainer

from training.edits import KINDS, invent_edit
from training.shapes import invent
from training.words import sentence

LETTERS = string.ascii_lowercase + string.digits + ".,;:!?'\"()-/#&%"
T5_LENGTH, CLIP_LENGTH = 40, 40


def corpus(lines: int = 12_000, seed: int = 5) -> Iterator[str]:
    rng, kinds = random.Random(seed), list(KINDS)
    for _ in range(lines):
        yield sentence(rng, invent(rng))
        yield invent_edit(rng, rng.choice(kinds)).sentence


def t5_tokenizer() -> Tokenizer:
    """Unigram over the words of the domain, scored by how often they come; letters, at a price, spell all others."""
    counts = Counter(word for line in corpus() for word in line.lower().replace(",", " ,").split())
    total = sum(counts.values())
    words = [("▁" + word, math.log(count / total)) for word, count in counts.most_common()]
    letters = [(letter, -20.0) for letter in ("▁", *LETTERS) if "▁" + letter not in counts]
    tokenizer = Tokenizer(Unigram([("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *words, *letters], unk_id=2))
    tokenizer.add_special_tokens(["<pad>", "</s>", "<unk>"])
    one_space = normalizers.Replace(Regex(r"\s+"), " ")
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Lowercase(), one_space, normalizers.Strip()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return tokenizer


def clip_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(BPE(unk_token="<|endoftext|>", end_of_word_suffix="</w>", fuse_unk=False))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    tokenizer.decoder = decoders.BPEDecoder(suffix="</w>")
    alphabet = [*LETTERS, *(letter + "</w>" for letter in LETTERS)]
    trainer = BpeTrainer(vocab_size=510, special_tokens=alphabet, end_of_word_suffix="</w>", show_progress=False)
    tokenizer.train_from_iterator(corpus(), trainer)
    return ending(tokenizer)


def ending(tokenizer: Tokenizer) -> Tokenizer:
    """CLIP's start and end tokens come last: its pooling looks for the highest id."""
    model = json.loads(tokenizer.to_str())
    vocab: dict[str, int] = model["model"]["vocab"]
    for token in ("<|startoftext|>", "<|endoftext|>"):
        vocab[token] = len(vocab)
    kept = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    model["added_tokens"] = [
        {"id": vocab[token], "content": token, **kept} for token in ("<|startoftext|>", "<|endoftext|>")
    ]
    tokenizer = Tokenizer.from_str(json.dumps(model))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|startoftext|> $A <|endoftext|>",
        special_tokens=[(token, vocab[token]) for token in ("<|startoftext|>", "<|endoftext|>")],
    )
    return tokenizer


def save(folder: Path) -> None:
    settings: dict[str, tuple[Tokenizer, dict[str, Any]]] = {
        "t5": (
            t5_tokenizer(),
            {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>", "model_max_length": T5_LENGTH},
        ),
        "clip": (
            clip_tokenizer(),
            {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>",
             "pad_token": "<|endoftext|>", "model_max_length": CLIP_LENGTH},
        ),
    }  # fmt: skip
    for name, (tokenizer, config) in settings.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        tokenizer.save(str(folder / name / "tokenizer.json"))
        text = json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **config}, indent=2)
        (folder / name / "tokenizer_config.json").write_text(text + "\n")
