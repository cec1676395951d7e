"""A packed batch through Qwen2.5-VL: vision tower once per clip, head only where a response token is predicted."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from transformers import Qwen2_5_VLForConditionalGeneration

from learner.attention import FORMS
from learner.logprobs import token_logprobs
from learner.packing import ModelLayout, PackedBatch
from learner.pixels import read_pixel_format
from learner.vision import speed_up


def load_model(model_path: Path, *, dtype: str, attention: str) -> Qwen2_5_VLForConditionalGeneration:
    """The checkpoint folder's model, on the CPU.

    attention: "flash_attention_2" is for the vision tower alone: its kernels know no mask in which
    the responses of a group share a prompt, so the language model stays with SDPA.
    """
    implementation: str | dict[str, str] = attention
    if attention == "flash_attention_2":
        implementation = {"text_config": "sdpa", "vision_config": attention}
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        model_path, dtype=getattr(torch, dtype), attn_implementation=implementation, local_files_only=True
    )
    speed_up(model.model.visual)
    return model


def read_layout(model: Qwen2_5_VLForConditionalGeneration, model_path: Path) -> ModelLayout:
    """Token ids and pixel format that packing needs."""
    config = model.config
    return ModelLayout(
        image_token_id=config.image_token_id, video_token_id=config.video_token_id, pixels=read_pixel_format(model_path)
    )


class PackedPolicy(nn.Module):
    """The model as a function from a packed batch to log-probabilities.

    It is the module that DeepSpeed wraps, so that its hooks see every parameter of a pass.
    """

    def __init__(self, model: Qwen2_5_VLForConditionalGeneration) -> None:
        super().__init__()
        self.model = model
        model.model.language_model.config._attn_implementation = FORMS["sdpa"]

    def forward(self, batch: PackedBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probability of each response token and the entropy there, both f32 [T], in nats."""
        embeddings = self.model.get_input_embeddings()(batch.input_ids)
        features = self.model.model.visual(batch.patches.to(embeddings.dtype), grid_thw=batch.grid_thw).pooler_output
        tokens = embeddings.flatten(0, 1)
        if len(batch.media_index):
            tokens = tokens.index_copy(0, batch.media_index, features.to(tokens.dtype))
        else:
            tokens = tokens + 0.0 * features.sum()
        states = self.model.model.language_model(
            inputs_embeds=tokens.view_as(embeddings),
            attention_mask={"full_attention": batch.mask},
            position_ids=batch.position_ids,
            use_cache=False,
        ).last_hidden_state
        return token_logprobs(states.flatten(0, 1)[batch.hidden_index], self.model.lm_head, batch.targets)
