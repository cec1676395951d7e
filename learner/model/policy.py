"""The policy on packed batches: a model with the vision tower once per clip and the head at response tokens only."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import AutoModelForImageTextToText, PreTrainedModel

from learner.loss.logprobs import TokenHead
from learner.model.families import family_of, modules_of
from learner.model.frozen import ClipFeatures
from learner.model.pixels import read_pixel_format
from learner.model.vision import speed_up
from learner.packing.attention import FORMS
from learner.packing.linear_attention import ChannelConvolution, PackedDeltaNet
from learner.packing.packing import ModelLayout, PackedBatch
from rlsys.models.model_config import read_model_config

if TYPE_CHECKING:
    from learner.sequence.group import SequenceGroup
    from learner.sequence.shared_pass import SharedPass


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
    """Return the token ids and the pixel format that packing needs. model_path: the folder that it was loaded from."""
    return ModelLayout(
        image_token_id=model.config.image_token_id,
        video_token_id=read_model_config(model_path).video_token_id,
        pixels=read_pixel_format(model_path),
    )


def _pack_layers(model: PreTrainedModel) -> None:
    """Make the layers that keep a state read packed rows. Raises ValueError for layers of a kind that is not known."""
    recurrence, text = modules_of(model).recurrence, model.model.language_model
    known = {"full_attention", *(["linear_attention"] if recurrence else [])}
    if unknown := set(getattr(text.config, "layer_types", None) or ()) - known:
        raise ValueError(f"the model's layers are {sorted(unknown)}; packing supports only {sorted(known)}.")
    for layer in text.modules():
        if recurrence and type(layer) is recurrence.layer:
            layer.__class__, layer.conv1d.__class__ = PackedDeltaNet, ChannelConvolution
            layer.rule = recurrence.rule


class WholePass:
    """The inputs of a rank that computes a pass by itself; the counterpart of `SharedPass`."""

    def __init__(self, batch: PackedBatch) -> None:
        self._batch = batch
        self.input_ids, self.position_ids = batch.input_ids, batch.position_ids
        self.media_index, self.targets = batch.media_index, batch.targets

    def features(self, computed: torch.Tensor) -> torch.Tensor:
        """Return the features of the media tokens. computed: those of the distinct clips, in order."""
        index = self._batch.feature_index
        return computed if index is None else computed.index_select(0, index)

    def predictors(self, states: torch.Tensor) -> torch.Tensor:
        """Return the states that predict the targets. states: [L, hidden]."""
        # not by indexing, whose backward pass is much slower
        return states.index_select(0, self._batch.hidden_index)

    def joined(self, logprobs: torch.Tensor, entropy: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the log-probs and entropies of all targets, which are its own."""
        return logprobs, entropy


class PackedPolicy(nn.Module):
    """The model as a function from a packed batch to log-probs.

    DeepSpeed wraps this module, so that its hooks see every parameter of a pass.
    """

    def __init__(self, model: PreTrainedModel, sequence: SequenceGroup | None = None) -> None:
        """Wrap a model, whose frozen parts must be frozen already. One not made by `load_model` uses "sdpa".

        sequence: the ranks that compute every pass together; None if this rank computes its own.
        """
        super().__init__()
        self.model = model
        text = model.model.language_model.config
        if text._attn_implementation not in FORMS.values():
            text._attn_implementation = FORMS["sdpa"]
        _pack_layers(model)
        model.lm_head.__class__ = TokenHead
        self._features = ClipFeatures(model)
        self._has_one_axis = family_of(model).has_one_axis
        self._sequence = sequence

    def forget_features(self) -> None:
        """Discard the stored features of clips; call this after the last pass of a batch."""
        self._features.forget()

    def forward(self, batch: PackedBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the log-prob of each response token and the entropy there, both f32 [T], in nats.

        The ranks of a sequence group must be given the same rows, and return the same.
        """
        share = self._share(batch)
        embeddings = self.model.get_input_embeddings()(share.input_ids)
        joined, added = self._with_media(embeddings[0], batch, share)
        states = self.model.model.language_model(
            inputs_embeds=joined[None],
            packed_mask=batch.mask,
            sequence=self._sequence,
            position_ids=share.position_ids[0] if self._has_one_axis else share.position_ids,
            use_cache=False,
            **added,
        ).last_hidden_state
        return share.joined(*self.model.lm_head(share.predictors(states[0]), share.targets))

    def _share(self, batch: PackedBatch) -> WholePass | SharedPass:
        if self._sequence is None:
            return WholePass(batch)
        return self._sequence.share(batch, self._features.merged, batch.input_ids.device)

    def _with_media(
        self, tokens: torch.Tensor, batch: PackedBatch, share: WholePass | SharedPass
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        """Return the embeddings `tokens`, [L, hidden], with the clips' features at the media tokens.

        Returns also the arguments by which the language model adds further levels of features to its layers' states.
        """
        features = self._features(batch).to(tokens.dtype)
        if not len(batch.media_index):
            # a blank image's features times 0, so that every trained parameter has a gradient on all ranks
            return (tokens + 0.0 * features.sum() if features.requires_grad else tokens), {}
        first, *others = share.features(features).split(tokens.shape[-1], dim=-1)
        added = {}
        if others:
            is_media = torch.zeros(len(tokens), dtype=torch.bool, device=tokens.device)
            is_media[share.media_index] = True
            added = {"visual_pos_masks": is_media[None], "deepstack_visual_embeds": others}
        return tokens.index_copy(0, share.media_index, first), added
