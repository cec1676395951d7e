"""The cost of computing a packed row, in multiply-adds, from the sizes in a checkpoint's config.json."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from learner.packing.rows import Row
from rlsys.models.model_config import read_model_config

BACKWARD_TIMES_FORWARD = 2
"""Products in the backward pass per product in the forward pass: one for the inputs and one for the weights."""


@dataclass(frozen=True, kw_only=True)
class CostModel:
    """The sizes of a model that determine the cost of a row.

    hidden, mlp, query_size and kv_size (query or key/value heads x head size), vocabulary: of the language model, which
    has `layers` layers; `mlp` of the experts that a token passes where there are experts.  gate_size: numbers of the
    gate of attention's output.  linear_layers: of the layers, those with linear attention in the place of attention,
    which costs a token `linear_attention` multiply-adds.
    vision_*: of the vision tower; its blocks attend within windows of `window_patches` patches a side, except
    `full_attention_blocks`, which attend within a temporal patch.  patch_dim: number of values in a patch.
    vision_mlp_matrices: 3 where the tower's MLPs have a gate, else 2.
    num_projectors: how often merged patches are projected into the language model.  projector_inner: inner width of
    one; 0 for that of a merged patch.  class_tokens: tokens of a temporal patch beside its patches.
    is_tower_frozen: whether the tower has no backward pass.
    """

    layers: int
    hidden: int
    mlp: float
    query_size: int
    kv_size: int
    vocabulary: int
    vision_depth: int
    vision_hidden: int
    vision_mlp: int
    full_attention_blocks: int
    window_patches: int
    merge_size: int
    patch_dim: int
    vision_mlp_matrices: int = 3
    num_projectors: int = 1
    projector_inner: int = 0
    class_tokens: int = 0
    is_tower_frozen: bool = False
    gate_size: int = 0
    linear_layers: int = 0
    linear_attention: float = 0.0

    def row(self, row: Row) -> float:
        """Return the multiply-adds of a forward and backward pass over the row."""
        grids = [clip.info.grid_thw for clip in row.clips]
        return self.group(len(row.prompt.prompt_ids), grids, [len(response.ids) for response in row.responses])

    def group(self, prompt: int, grids: Sequence[Sequence[int]], responses: Sequence[int]) -> float:
        """Return the multiply-adds of a forward and backward pass over a group.

        prompt: tokens of the prompt.  grids: patches (time, height, width) of each clip.  responses: tokens of each.
        """
        text = (
            self._text(prompt, [max(num - 1, 0) for num in responses]) + sum(responses) * self.hidden * self.vocabulary
        )
        vision = sum(self._clip(grid) for grid in grids)
        factor = 1 + BACKWARD_TIMES_FORWARD
        return factor * text + (1 if self.is_tower_frozen else factor) * vision

    def _text(self, prompt: int, read: Sequence[int]) -> float:
        pairs = prompt * (prompt + 1) / 2 + sum(num * prompt + num * (num + 1) / 2 for num in read)
        attention = self.hidden * (2 * self.query_size + self.gate_size + 2 * self.kv_size)
        attention_layers = self.layers - self.linear_layers
        of_token = (
            attention_layers * attention
            + self.linear_layers * self.linear_attention
            + self.layers * 3 * self.hidden * self.mlp
        )
        return (prompt + sum(read)) * of_token + attention_layers * 2 * pairs * self.query_size

    def _clip(self, grid_thw: Sequence[int]) -> float:
        time, height, width = grid_thw
        patches, size = time * height * width, self.vision_hidden
        linear = (
            self.vision_depth * (4 * size**2 + self.vision_mlp_matrices * size * self.vision_mlp)
            + self.patch_dim * size
        )
        whole = time * (height * width + self.class_tokens) ** 2
        pairs = self.full_attention_blocks * whole
        if windowed := self.vision_depth - self.full_attention_blocks:
            rows, columns = (_window_pairs(length, self.window_patches) for length in (height, width))
            pairs += windowed * time * rows * columns
        merged = size * self.merge_size**2
        inner = self.projector_inner or merged
        merger = patches / self.merge_size**2 * (merged + self.hidden) * inner
        return patches * linear + 2 * pairs * size + self.num_projectors * merger


def _window_pairs(length: int, window: int) -> int:
    """Return the sum of squared window lengths along one axis, where the last window may be shorter."""
    return length // window * window**2 + (length % window) ** 2


def read_cost_model(model_path: Path, frozen_parts: Sequence[str] = ()) -> CostModel:
    """Return the cost model of the checkpoint in a folder. frozen_parts: as `LearnerConfig.frozen_parts`."""
    config = read_model_config(model_path)
    vision, linear = config.vision, config.linear
    return CostModel(
        layers=config.layers,
        hidden=config.hidden,
        mlp=config.used_mlp,
        query_size=config.queries,
        kv_size=config.kv,
        vocabulary=config.vocabulary,
        vision_depth=vision.depth,
        vision_hidden=vision.hidden,
        vision_mlp=vision.mlp,
        full_attention_blocks=vision.num_full_attention,
        window_patches=vision.window_size // vision.patch_size,
        merge_size=vision.merge_size,
        patch_dim=vision.patch_dim,
        vision_mlp_matrices=vision.mlp_matrices,
        num_projectors=1 + vision.num_deepstack,
        projector_inner=vision.projector_inner(config.hidden) if vision.is_narrow else 0,
        class_tokens=int(vision.has_class_token),
        is_tower_frozen="vision_tower" in frozen_parts,
        gate_size=config.projected_queries - config.queries,
        linear_layers=linear.layers if linear else 0,
        linear_attention=linear.multiply_adds(config.hidden) if linear else 0.0,
    )
