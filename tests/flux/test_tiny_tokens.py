"""The tiny model's tokenizers know every word of the domain and spell all others."""

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

import actors
from training.tokens import CLIP_LENGTH, T5_LENGTH, corpus

TOKENIZERS = Path(actors.__file__).parent / "tiny" / "models" / "tokenizers"
LENGTHS = {"t5": T5_LENGTH, "clip": CLIP_LENGTH}
WORDS = sorted({word.strip(",") for line in corpus(3000, seed=99) for word in line.split()})


@pytest.fixture(scope="module", params=["t5", "clip"])
def named_tokenizer(request: pytest.FixtureRequest) -> tuple[str, Any]:
    return request.param, AutoTokenizer.from_pretrained(TOKENIZERS / request.param, local_files_only=True)


def test_each_word_of_the_domain_is_one_token(named_tokenizer: tuple[str, Any]) -> None:
    _, tokenizer = named_tokenizer
    assert len(WORDS) > 70
    assert [word for word in WORDS if len(tokenizer(word, add_special_tokens=False).input_ids) != 1] == []


def test_case_spaces_and_the_full_stop_leave_the_words_as_they_are(named_tokenizer: tuple[str, Any]) -> None:
    _, tokenizer = named_tokenizer
    plain = tokenizer("a red circle on a blue background", add_special_tokens=False).input_ids
    assert tokenizer(" A Red circle  on a BLUE background", add_special_tokens=False).input_ids[-6:] == plain[-6:]
    assert tokenizer("a red circle on a blue background.", add_special_tokens=False).input_ids[: len(plain)] == plain


def test_every_sentence_fits(named_tokenizer: tuple[str, Any]) -> None:
    name, tokenizer = named_tokenizer
    assert max(len(tokenizer(line).input_ids) for line in corpus(2000, seed=98)) <= LENGTHS[name]


@pytest.mark.parametrize("text", ["", "zebra #5 (x)", "naïve café Ω 🎨 東京", "red " * 400])
def test_foreign_text_still_has_tokens_and_the_length_asked_for(named_tokenizer: tuple[str, Any], text: str) -> None:
    name, tokenizer = named_tokenizer
    ids = tokenizer(text, padding="max_length", max_length=LENGTHS[name], truncation=True).input_ids
    assert len(ids) == LENGTHS[name]
    assert tokenizer.eos_token_id in ids
    assert max(ids) < len(tokenizer)


def test_pooling_finds_its_end_token_at_the_highest_id() -> None:
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZERS / "clip", local_files_only=True)
    assert tokenizer.eos_token_id == len(tokenizer) - 1
    assert tokenizer("a red circle").input_ids[0] == tokenizer.bos_token_id
