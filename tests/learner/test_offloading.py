"""The learner's state leaves its device and comes back with the same bits, and nothing points to where it was."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from learner.offloading import MovedStorages
from tests.support.pace import patience

CODE = """
import json, sys
from dataclasses import replace
from pathlib import Path
import numpy as np, torch
from learner.engine import LearnerEngine, join_ranks, open_store
from learner.packing.shards import split_batch
from rlsys.config.run import LoraConfig
from tests.learner.test_group import make_spec, mixed_groups
from tests.support.learner import cost_model, make_batch

folder = Path(sys.argv[1])
join_ranks(0, 1, open_store(1, "127.0.0.1", 60.0), device="cpu", timeout_s=60.0)
batches = [make_batch(np.random.default_rng(seed), mixed_groups(seed)) for seed in (5, 6)]
shards = [split_batch(batch, 1, 16384, cost_model())[0] for batch in batches]
variants = {
    "bf16, a reference and a frozen tower": ("bfloat16", {"frozen_parts": ("vision_tower",)}, 0.1),
    "adapters": ("float32", {"lora": LoraConfig(rank=4, alpha=8.0)}, 0.0),
}

def addresses(engine, stage):
    moved = [one for one in engine._policy.parameters() if not one.requires_grad]
    if stage == 3:
        moved = [one.ds_tensor for one in engine._policy.parameters()]
        moved += engine._engine.optimizer.fp32_partitioned_groups_flat
    if engine._reference is not None:
        moved += list(engine._reference.parameters())
    return [one.untyped_storage().data_ptr() for one in moved if one.numel()]

def trained(name, stage, moves):
    dtype, learner, kl = variants[name]
    spec = make_spec(folder, dtype=dtype, zero_stage=stage, kl_coef=kl)
    engine = LearnerEngine(replace(spec, learner=spec.learner.model_copy(update=learner)))
    found, stayed = [], 0
    for shard in shards:
        if moves:
            before = addresses(engine, stage)
            engine.offload(keeps_parameters=stage == 2)
            engine.offload(keeps_parameters=False)
            stayed += sum(one == other for one, other in zip(before, addresses(engine, stage), strict=True))
            engine.reload()
        engine.update(shard)
        found.append(tensors(engine))
    moments = engine._engine.optimizer.optimizer.state
    found.append(sorted(digest(value) for state in moments.values() for value in state.values()))
    engine.close()
    return found, stayed

def digest(tensor):
    import hashlib
    return hashlib.sha256(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes()).hexdigest()

def tensors(engine):
    with engine._gathered(list(engine._policy.parameters())):
        return [digest(one) for one in engine._policy.parameters()]

result = {}
for stage in (2, 3):
    result[stage] = {}
    for name in variants:
        (left, _), (moved, stayed) = trained(name, stage, False), trained(name, stage, True)
        result[stage][name] = {"equal": left == moved, "changes": left[0] != left[1], "stayed": stayed}
print(json.dumps(result))
"""


@pytest.fixture(scope="module")
def found_by_stage(tiny_model_dir: Path) -> dict[str, dict[str, Any]]:
    """Train with and without offloading in one process, which imports DeepSpeed once for all stages."""
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(tiny_model_dir)],
        capture_output=True,
        text=True,
        timeout=patience(300.0),
        env={**os.environ, "DS_ACCELERATOR": "cpu"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.stack
@pytest.mark.parametrize("stage", ["2", "3"])
def test_updates_after_offloading_are_those_without_it_bit_for_bit(
    found_by_stage: dict[str, dict[str, Any]], stage: str
) -> None:
    wanted = {"equal": True, "changes": True, "stayed": 0}
    assert found_by_stage[stage] == dict.fromkeys(("bf16, a reference and a frozen tower", "adapters"), wanted)


def test_views_of_one_storage_stay_views_of_one_storage() -> None:
    flat = torch.arange(12, dtype=torch.float32)
    views = [flat[:4].view(2, 2), flat[4:10].view(2, 3).t(), flat.view(torch.uint8)[40:]]
    alone = torch.ones(3, dtype=torch.bfloat16)
    before = [one.clone() for one in (flat, *views, alone)]
    start = flat.data_ptr()
    moved = MovedStorages()
    moved.move([flat, *views, alone], pins=False)
    moved.move([flat], pins=False)  # is there already
    assert flat.data_ptr() != start
    for _ in range(2):
        assert all(torch.equal(one, old) for one, old in zip((flat, *views, alone), before, strict=True))
        assert {one.untyped_storage().data_ptr() for one in views} == {flat.untyped_storage().data_ptr()}
        moved.restore(torch.device("cpu"))
    flat[5] = -1.0
    assert views[1][1, 0] == -1.0
