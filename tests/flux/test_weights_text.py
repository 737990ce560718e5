"""Text encoders as transformers wrote them, whole models too: what we read from them computes what theirs compute."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from open_clip.tokenizer import SimpleTokenizer
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    PreTrainedModel,
    T5Config,
    T5EncoderModel,
    T5ForConditionalGeneration,
)

from actors.flux.check import check
from actors.flux.checkpoint import stored_part
from actors.flux.weights import load_clip, load_t5, load_tokenizer
from tests.flux import containers_kit as kit
from tests.flux.samples import CPU, F32, T5_WEIGHTS, comfyui, same

END = {"bos_token_id": 48, "eos_token_id": 49}
T5_CONFIG = T5Config(**(vars(kit.T5) | {"layer_norm_epsilon": 0.03}), feed_forward_proj="gated-gelu")
TEXT: dict[str, Any] = vars(kit.CLIP) | {"layer_norm_eps": 0.02, "hidden_act": "gelu"} | END
VISION = CLIPVisionConfig(
    hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=4
)
TOKENS = torch.tensor([[48, 3, 9, 49, 0, 0], [48, 7, 7, 2, 11, 49]])


def randomised(model: PreTrainedModel) -> PreTrainedModel:
    generator = torch.Generator().manual_seed(8)
    for parameter in model.parameters():
        parameter.data = 0.4 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


@pytest.mark.parametrize("kind", [T5EncoderModel, T5ForConditionalGeneration])
@torch.no_grad()
def test_t5_computes_what_transformers_computes(tmp_path: Path, kind: type[PreTrainedModel]) -> None:
    theirs: Any = randomised(kind(T5_CONFIG))
    theirs.save_pretrained(tmp_path)
    assert check(tmp_path).loads
    ours = load_t5(stored_part(tmp_path, "t5"), CPU, F32)
    want, have = (encoder(input_ids=TOKENS).last_hidden_state for encoder in (theirs.get_encoder(), ours))
    assert torch.equal(have, want)


@pytest.mark.parametrize("kind", [CLIPTextModel, CLIPTextModelWithProjection, CLIPModel])
@torch.no_grad()
def test_clip_computes_what_transformers_computes(tmp_path: Path, kind: type[PreTrainedModel]) -> None:
    whole = CLIPConfig(text_config=TEXT, vision_config=VISION.to_dict(), projection_dim=12)
    theirs: Any = randomised(kind(whole if kind is CLIPModel else CLIPTextConfig(**TEXT)))
    theirs.save_pretrained(tmp_path)
    assert check(tmp_path).loads
    ours = load_clip(stored_part(tmp_path, "clip"), CPU, F32, END)
    text = theirs if kind is CLIPTextModel else theirs.text_model
    assert torch.equal(ours(input_ids=TOKENS).pooler_output, text(input_ids=TOKENS).pooler_output)


def test_t5_without_its_shared_name_has_the_tied_one(tmp_path: Path) -> None:
    kit.write_config(tmp_path)
    tied = {"encoder.embed_tokens.weight" if name == "shared.weight" else name: T5_WEIGHTS[name] for name in T5_WEIGHTS}
    path = kit.write(tmp_path / "t5xxl.safetensors", tied)
    assert check(path).loads
    assert same(load_t5(stored_part(path, "t5"), CPU, F32), T5_WEIGHTS)


PROMPTS = [
    "a red circle on a blue background",
    "A PHOTO of  two Cats, 1024x768; it's 50% grey!",
    "\u00fcber-caf\u00e9 na\u00efve \u65e5\u672c\u8a9e \U0001f600",
    "",
    "word " * 200,
]


def test_clips_tokenizer_of_a_vocabulary_and_merges_gives_open_clips_ids(tmp_path: Path) -> None:
    """The files that its maker published, made from open_clip's own copy of them."""
    theirs, folder = SimpleTokenizer(), tmp_path / "tokenizers" / "clip"
    comfyui(tmp_path)
    shutil.rmtree(folder)
    folder.mkdir()
    start, end = "<|startoftext|>", "<|endoftext|>"
    names = {"<start_of_text>": start, "<end_of_text>": end}
    vocabulary = {names.get(word, word): number for word, number in theirs.encoder.items()}
    merges = [" ".join(pair) for pair in sorted(theirs.bpe_ranks, key=theirs.bpe_ranks.__getitem__)]
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    special = {"bos_token": start, "eos_token": end, "pad_token": end, "unk_token": end}
    (folder / "tokenizer_config.json").write_text(
        json.dumps(special | {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "do_lower_case": True})
    )
    ours = load_tokenizer(stored_part(tmp_path, "clip"))
    ids = ours(PROMPTS, padding="max_length", max_length=77, truncation=True).input_ids
    assert [cut(row) for row in ids] == [cut(row) for row in theirs(PROMPTS).tolist()]
    assert {row[0] for row in ids} == {49406}


def cut(ids: list[int]) -> list[int]:
    """Up to the end: what stands behind it is seen by nobody."""
    return ids[: ids.index(49407) + 1]
