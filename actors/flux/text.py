"""Prompts to what the transformer reads: T5's sequence and CLIP's pooled vector.

B prompts, T tokens, D T5 width, V CLIP width.
"""

from typing import TYPE_CHECKING

from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import CLIPTextModel, PreTrainedTokenizerBase, T5EncoderModel


class TextEncoders(nn.Module):
    """Built from modules and tokenizers that are already there: T5EncoderModel, CLIPTextModel and their tokenizers."""

    def __init__(
        self,
        t5: "T5EncoderModel",
        clip: "CLIPTextModel",
        t5_tokenizer: "PreTrainedTokenizerBase",
        clip_tokenizer: "PreTrainedTokenizerBase",
    ) -> None:
        super().__init__()
        self.t5 = t5
        self.clip = clip
        self.clip_length: int = clip.config.max_position_embeddings
        self.t5_tokenizer = t5_tokenizer
        self.clip_tokenizer = clip_tokenizer

    def forward(self, prompts: list[str], max_length: int) -> tuple[Tensor, Tensor]:
        # The released models were trained on T5's whole padded sequence without a mask: the padding carries meaning.
        t5_ids_BT = self.tokens(self.t5_tokenizer, self.t5, prompts, max_length)
        clip_ids_BT = self.tokens(self.clip_tokenizer, self.clip, prompts, self.clip_length)
        txt_BTD: Tensor = self.t5(input_ids=t5_ids_BT).last_hidden_state
        pooled_BV: Tensor = self.clip(input_ids=clip_ids_BT).pooler_output
        return txt_BTD, pooled_BV

    def tokens(self, tokenizer: "PreTrainedTokenizerBase", model: nn.Module, prompts: list[str], length: int) -> Tensor:
        batch = tokenizer(prompts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        ids_BT: Tensor = batch.input_ids
        return ids_BT.to(next(model.parameters()).device)
