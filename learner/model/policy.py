"""The policy on packed batches: a model with the vision tower once per clip and the head at response tokens only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForImageTextToText, PreTrainedModel

from learner.loss.logprobs import token_logprobs
from learner.model.frozen import ClipFeatures
from learner.model.pixels import read_pixel_format
from learner.model.vision import speed_up
from learner.packing.attention import FORMS
from learner.packing.packing import ModelLayout, PackedBatch


def load_model(model_path: Path, *, dtype: str, attention: str) -> PreTrainedModel:
    """Load the model of a checkpoint folder, on the CPU.

    attention: `learner.packing.attention.FORMS` gives the language model's. The vision tower, which has no packed mask,
    uses the attention of this name, except SDPA for "flex_attention".
    """
    tower = "sdpa" if attention == "flex_attention" else attention
    model = AutoModelForImageTextToText.from_pretrained(
        model_path,
        dtype=getattr(torch, dtype),
        attn_implementation={"text_config": FORMS[attention], "vision_config": tower},
        local_files_only=True,
    )
    rebuild_buffers(model)
    speed_up(model)
    return model


def rebuild_buffers(model: nn.Module) -> None:
    """Compute the buffers that no checkpoint holds again, as a model outside DeepSpeed has them.

    At ZeRO-3 transformers builds the model inside DeepSpeed's `zero.Init`, which makes every tensor in the model's
    number format: rotary frequencies in bfloat16 turn positions by wrong angles, the more the longer the prompt
    (https://github.com/deepspeedai/DeepSpeed/issues/4932). Raises ValueError for a module that has such a buffer and
    cannot be built anew from its config.
    """
    for name, module in model.named_modules():
        if not module._non_persistent_buffers_set:
            continue
        config = getattr(module, "config", None)
        if config is None or module._parameters or module._modules:
            raise ValueError(f"{name}: {type(module).__name__} has buffers that only its constructor makes; not known.")
        fresh = type(module)(config)
        for buffer in module._non_persistent_buffers_set:
            setattr(module, buffer, getattr(fresh, buffer))


def read_layout(model: PreTrainedModel, model_path: Path) -> ModelLayout:
    """Return the token ids and the pixel format that packing needs."""
    config = model.config
    return ModelLayout(
        image_token_id=config.image_token_id, video_token_id=config.video_token_id, pixels=read_pixel_format(model_path)
    )


class PackedPolicy(nn.Module):
    """The model as a function from a packed batch to log-probs.

    DeepSpeed wraps this module, so that its hooks see every parameter of a pass.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        """Wrap a model, whose frozen parts must be frozen already. One not made by `load_model` uses "sdpa"."""
        super().__init__()
        self.model = model
        text = model.model.language_model.config
        if text._attn_implementation not in FORMS.values():
            text._attn_implementation = FORMS["sdpa"]
        if any(kind != "full_attention" for kind in getattr(text, "layer_types", None) or ()):
            raise ValueError(
                f"the model's layers are {sorted(set(text.layer_types))}; packing supports only full_attention."
            )
        self._features = ClipFeatures(model)

    def forget_features(self) -> None:
        """Discard the stored features of clips; call this after the last pass of a batch."""
        self._features.forget()

    def forward(self, batch: PackedBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the log-prob of each response token and the entropy there, both f32 [T], in nats."""
        embeddings = self.model.get_input_embeddings()(batch.input_ids)
        joined, added = self._with_media(embeddings[0], batch)
        states = self.model.model.language_model(
            inputs_embeds=joined[None],
            packed_mask=batch.mask,
            position_ids=batch.position_ids,
            use_cache=False,
            **added,
        ).last_hidden_state
        # not by indexing, whose backward pass is much slower
        predictors = states[0].index_select(0, batch.hidden_index)
        return token_logprobs(predictors, self.model.lm_head, batch.targets)

    def _with_media(self, tokens: torch.Tensor, batch: PackedBatch) -> tuple[torch.Tensor, dict[str, Any]]:
        """Return the embeddings `tokens`, [L, hidden], with the clips' features at the media tokens.

        Returns also the arguments by which the language model adds further levels of features to its layers' states.
        """
        features = self._features(batch).to(tokens.dtype)
        if not len(batch.media_index):
            # a blank image's features times 0, so that every trained parameter has a gradient on all ranks
            return (tokens + 0.0 * features.sum() if features.requires_grad else tokens), {}
        if batch.feature_index is not None:
            features = features.index_select(0, batch.feature_index)
        first, *others = features.split(tokens.shape[-1], dim=-1)
        added = {}
        if others:
            is_media = torch.zeros(len(tokens), dtype=torch.bool, device=tokens.device)
            is_media[batch.media_index] = True
            added = {"visual_pos_masks": is_media[None], "deepstack_visual_embeds": others}
        return tokens.index_copy(0, batch.media_index, first), added
