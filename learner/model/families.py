"""What the learner needs of a model family's modules in transformers: the only file of the learner that names them.

A family is described in `rlsys.models.families`; the tests hold that both tables have the same families.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import isqrt

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.models.internvl import modeling_internvl
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl
from transformers.models.qwen2_vl import modeling_qwen2_vl
from transformers.models.qwen3_5 import modeling_qwen3_5
from transformers.models.qwen3_vl import modeling_qwen3_vl
from transformers.models.qwen3_vl_moe import modeling_qwen3_vl_moe
from transformers.vision_utils import get_vision_window_index

from learner.packing.linear_attention import Rule
from rlsys.models.families.family import Family
from rlsys.models.families.table import family_named

Rotate = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
Read = Callable[[nn.Module, torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Recurrence:
    """The layers of a language model that keep a state.

    layer: their class, with the parts of `learner.packing.linear_attention.PackedDeltaNet`.  rule: what they compute.
    """

    layer: type[nn.Module]
    rule: Rule


@dataclass(frozen=True, kw_only=True)
class Modules:
    """The modules of a family's vision tower, and of its language model those that a mask is not enough for.

    root: name of the module that has tower and projectors, which the functions below are given.
    attention: class of a block's attention, with `qkv`, `proj`, `num_heads` and `scaling`, which is given hidden
    states [N, hidden], `cu_seqlens` and `position_embeddings`; None where all frames have one size, so that they are
    a batch.  rotate: its rotation of queries and keys, each [N, heads, head_dim], by cos and sin.
    read_patches: makes a tower read patches that are cut already, if its own class reads whole frames.
    side: of root, number of patches on a side of a merged one.
    features: what the language model reads of patches [N, patch_dim] with grids i64 [M, 3], in order of the clips:
    [merged patches, levels x hidden]; the first level replaces the embeddings of media tokens, and each further one
    is added to the states that the language layer of its number returns.
    states: what the projectors make the features of, [merged patches, patches in one, levels x tower's width].
    project: states -> features.
    recurrence: the layers that keep a state; None if there are none.
    """

    root: str = "model.visual"
    attention: type[nn.Module] | None = None
    rotate: Rotate | None = None
    features: Read
    states: Read
    project: Callable[[nn.Module, torch.Tensor], torch.Tensor]
    read_patches: Callable[[nn.Module], None] | None = None
    side: Callable[[nn.Module], int] = lambda root: int(root.config.spatial_merge_size)
    recurrence: Recurrence | None = None


def _features(tower: nn.Module, patches: torch.Tensor, grid_thw: torch.Tensor) -> torch.Tensor:
    return tower(patches, grid_thw=grid_thw).pooler_output


def _states(tower: nn.Module, patches: torch.Tensor, grid_thw: torch.Tensor) -> torch.Tensor:
    return tower(patches, grid_thw=grid_thw).last_hidden_state.unflatten(0, (-1, tower.spatial_merge_size**2))


def _project(tower: nn.Module, states: torch.Tensor) -> torch.Tensor:
    return tower.merger(states.flatten(0, 1))


def _windowed_states(tower: nn.Module, patches: torch.Tensor, grid_thw: torch.Tensor) -> torch.Tensor:
    """Return the states by merged patch; the tower has them in the order of its windows, its features in the clips'."""
    config = tower.config
    order, _ = get_vision_window_index(grid_thw, config.spatial_merge_size, config.window_size, config.patch_size)
    return _states(tower, patches, grid_thw)[order.argsort()]


def _deep_features(tower: nn.Module, patches: torch.Tensor, grid_thw: torch.Tensor) -> torch.Tensor:
    found = tower(patches, grid_thw=grid_thw)
    return torch.cat([found.pooler_output, *found.deepstack_features], dim=-1)


def _deep_states(tower: nn.Module, patches: torch.Tensor, grid_thw: torch.Tensor) -> torch.Tensor:
    read: dict[int, torch.Tensor] = {}
    hooks = [
        merger.register_forward_pre_hook(lambda _, inputs, level=level: read.__setitem__(level, inputs[0]))
        for level, merger in enumerate((tower.merger, *tower.deepstack_merger_list))
    ]
    try:
        tower(patches, grid_thw=grid_thw)
    finally:
        for hook in hooks:
            hook.remove()
    joined = torch.cat([read[level] for level in range(len(hooks))], dim=-1)
    return joined.unflatten(0, (-1, tower.spatial_merge_size**2))


def _deep_project(tower: nn.Module, states: torch.Tensor) -> torch.Tensor:
    mergers = (tower.merger, *tower.deepstack_merger_list)
    levels = states.flatten(0, 1).chunk(len(mergers), dim=-1)
    # contiguous, because they are viewed as merged patches
    return torch.cat([merger(level.contiguous()) for merger, level in zip(mergers, levels, strict=True)], dim=-1)


_MERGE = 2  # patches on a side of a merged one, which `refusal` of the family demands


class CutFrames(modeling_internvl.InternVLVisionEmbeddings):
    """Embeddings of frames that are cut into patches already, in the order of merged patches.

    Blocks attend to all patches of a frame and the class token, so only their positions must be in the same order.
    """

    def forward(self, pixel_values: torch.Tensor, bool_masked_pos: None = None) -> torch.Tensor:
        """Return [frames, 1 + patches, hidden]. pixel_values: patches of square frames, [frames, patches, patch_dim].

        Fewer patches than there are positions, of a blank image, have those at the top left.
        """
        tokens = self.patch_embeddings.projection(pixel_values)
        side, whole, merge = isqrt(tokens.shape[1]), isqrt(self.position_embeddings.shape[1] - 1), _MERGE
        table = self.position_embeddings[0, 1:].view(whole, whole, -1)[:side, :side]
        blocks = table.reshape(side // merge, merge, side // merge, merge, -1).transpose(1, 2)
        first = (self.cls_token + self.position_embeddings[:, :1]).expand(len(tokens), -1, -1)
        return torch.cat([first, tokens + blocks.reshape(1, side**2, -1)], dim=1)


class CutProjection(nn.Conv2d):
    """A convolution over single patches as one matrix product."""

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """Return [..., out_channels] for patches [..., values of one]."""
        return nn.functional.linear(patches.to(self.weight.dtype), self.weight.flatten(1), self.bias)


def _read_cut_frames(tower: nn.Module) -> None:
    tower.embeddings.__class__ = CutFrames
    tower.embeddings.patch_embeddings.projection.__class__ = CutProjection


def _frame_states(model: nn.Module, patches: torch.Tensor, grid_thw: torch.Tensor) -> torch.Tensor:
    of_frame = int(grid_thw[0, 1] * grid_thw[0, 2])  # the same in all grids
    found = model.vision_tower(pixel_values=patches.view(-1, of_frame, patches.shape[1])).last_hidden_state
    return found[:, 1:].reshape(-1, _MERGE**2, found.shape[-1])


def _frame_project(model: nn.Module, states: torch.Tensor) -> torch.Tensor:
    return model.multi_modal_projector(states.flatten(1))


def _frame_features(model: nn.Module, patches: torch.Tensor, grid_thw: torch.Tensor) -> torch.Tensor:
    return _frame_project(model, _frame_states(model, patches, grid_thw))


_QWEN3_VL = Modules(
    attention=modeling_qwen3_vl.Qwen3VLVisionAttention,
    rotate=modeling_qwen3_vl.apply_rotary_pos_emb_vision,
    features=_deep_features,
    states=_deep_states,
    project=_deep_project,
)

MODULES: Mapping[str, Modules] = {
    "qwen2_5_vl": Modules(
        attention=modeling_qwen2_5_vl.Qwen2_5_VLVisionAttention,
        rotate=modeling_qwen2_5_vl.apply_rotary_pos_emb_vision,
        features=_features,
        states=_windowed_states,
        project=_project,
    ),
    "qwen2_vl": Modules(
        attention=modeling_qwen2_vl.VisionAttention,
        rotate=modeling_qwen2_vl.apply_rotary_pos_emb_vision,
        features=_features,
        states=_states,
        project=_project,
    ),
    "qwen3_vl": _QWEN3_VL,
    "qwen3_vl_moe": replace(
        _QWEN3_VL,
        attention=modeling_qwen3_vl_moe.Qwen3VLMoeVisionAttention,
        rotate=modeling_qwen3_vl_moe.apply_rotary_pos_emb_vision,
    ),
    "internvl": Modules(
        root="model",
        features=_frame_features,
        states=_frame_states,
        project=_frame_project,
        read_patches=_read_cut_frames,
        side=lambda root: _MERGE,
    ),
    "qwen3_5": Modules(
        attention=modeling_qwen3_5.Qwen3_5VisionAttention,
        rotate=modeling_qwen3_5.apply_rotary_pos_emb_vision,
        features=_features,
        states=_states,
        project=_project,
        recurrence=Recurrence(
            layer=modeling_qwen3_5.Qwen3_5GatedDeltaNet, rule=modeling_qwen3_5.torch_chunk_gated_delta_rule
        ),
    ),
}
"""`model_type` -> modules."""


def family_of(model: PreTrainedModel) -> Family:
    """Return the description of the model's family."""
    return family_named(model.config.model_type)


def modules_of(model: PreTrainedModel) -> Modules:
    """Return the modules of the model's family."""
    return MODULES[family_of(model).model_type]


def tower_of(model: PreTrainedModel) -> nn.Module:
    """Return the vision tower, which in some families has the projectors in it."""
    return model.get_submodule(family_of(model).tower.rstrip("."))


def vision_of(model: PreTrainedModel) -> nn.Module:
    """Return the module that has tower and projectors, which the functions of `Modules` are given."""
    return model.get_submodule(modules_of(model).root)
