"""What `rlsys plan` says that a pass keeps, against the tensors that the real models keep."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from learner.model.frozen import freeze
from learner.model.lora import add_adapters
from learner.model.policy import PackedPolicy, load_model, read_layout
from learner.packing.packing import pack
from rlsys.config.run import parse
from rlsys.models.sizes import read_model_sizes
from rlsys.planning.plan_learner import activation_bytes
from tests.support.learner import cut_of, make_clip, make_group, make_prompt, make_row
from tests.support.memory import MemoryMeter
from tests.support.models import lora_targets

FRAMES = (8, 40)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("trained", ["all", "no tower", "adapters"])
def test_activations_are_those_that_the_plan_counts(family_dirs: Mapping[str, Path], trained: str, dtype: str) -> None:
    """The pass with more frames keeps what the plan says of their tokens, within a tenth."""
    folder = family_dirs["bench"]
    learner: dict[str, Any] = {"all": {}, "no tower": {"frozen_parts": ["vision_tower", "projector"]}}.get(
        trained, {"lora": {"rank": 4, "targets": list(lora_targets(folder))}}
    )
    tree = {"output_dir": "out", "model": {"path": str(folder), "dtype": dtype}, "learner": learner}
    config = parse(tree, source="test")
    model = load_model(folder, dtype=dtype, attention="sdpa")
    if config.learner.lora.rank:
        add_adapters(model, config.learner.lora)
    freeze(model, config.learner.frozen_parts)
    policy = PackedPolicy(model.train())
    kept, tokens = [], []
    for num_frames in FRAMES:
        rng = np.random.default_rng(0)
        cut = cut_of(folder)
        clip = make_clip(rng, "video", num_frames, patch=cut.patch)
        row = replace(
            make_row(make_group(rng, "0", (), [5, 3])), prompt=make_prompt(rng, (clip,), cut=cut), clips=(clip,)
        )
        batch = pack([row], read_layout(model, folder), dtype=getattr(torch, dtype))
        policy.forget_features()
        with MemoryMeter() as meter:
            found, _ = policy(batch)
            kept.append(meter.alive + batch.patches.nbytes)
        assert found.requires_grad
        tokens.append(row.num_tokens)
    planned = activation_bytes(config, read_model_sizes(folder), tokens[1] - tokens[0], 1.0).kept
    # adapters of attention alone: of what frozen experts keep the plan also counts the inputs of their last product
    spares = config.learner.lora.rank > 0 and read_model_sizes(folder).experts is not None
    assert (0.85 if spares else 0.9) * planned < kept[1] - kept[0] < 1.1 * planned
