"""What the learner needs of a model family's modules in transformers: the only file of the learner that names them.

A family is described in `rlsys.models.families`; the tests hold that both tables have the same families.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl
from transformers.models.qwen2_vl import modeling_qwen2_vl
from transformers.vision_utils import get_vision_window_index

from rlsys.models.families.family import Family
from rlsys.models.families.table import family_named

Rotate = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True, kw_only=True)
class Modules:
    """The modules of a family's vision tower.

    attention: class of a block's attention, with `qkv`, `proj`, `num_heads` and `scaling`, which is given hidden
    states [N, hidden], `cu_seqlens` and `position_embeddings`.  rotate: its rotation of queries and keys, each
    [N, heads, head_dim], by cos and sin.
    order: the order of merged patches in the tower's last states, as indices into that of the features, i64 [merged
    patches]; None if it is the same.
    """

    attention: type[nn.Module]
    rotate: Rotate
    order: Callable[[nn.Module, torch.Tensor], torch.Tensor | None]


def _window_order(tower: nn.Module, grid_thw: torch.Tensor) -> torch.Tensor:
    config = tower.config
    order, _ = get_vision_window_index(grid_thw, config.spatial_merge_size, config.window_size, config.patch_size)
    return order


MODULES: Mapping[str, Modules] = {
    "qwen2_5_vl": Modules(
        attention=modeling_qwen2_5_vl.Qwen2_5_VLVisionAttention,
        rotate=modeling_qwen2_5_vl.apply_rotary_pos_emb_vision,
        order=_window_order,
    ),
    "qwen2_vl": Modules(
        attention=modeling_qwen2_vl.VisionAttention,
        rotate=modeling_qwen2_vl.apply_rotary_pos_emb_vision,
        order=lambda tower, grid_thw: None,
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
    """Return the vision tower, including the projector."""
    return model.get_submodule(family_of(model).tower)
