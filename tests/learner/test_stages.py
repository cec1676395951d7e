"""The model is the same at every ZeRO stage and in every number format, also where prompts are long."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from rlsys.models.families.table import FAMILIES
from tests.support.pace import patience
from tests.support.rounding import LOGPROB

CODE = """
import json, sys
from pathlib import Path
import numpy as np, torch
from learner.engine import LearnerEngine, join_ranks, open_store
from transformers import AutoModelForImageTextToText
from tests.learner.test_group import make_spec
from tests.support.learner import cut_of, make_group, make_row

join_ranks(0, 1, open_store(1, "127.0.0.1", 60.0), device="cpu", timeout_s=60.0)

def found(folder, dtype):
    rng = np.random.default_rng(3)
    row = make_row(make_group(rng, "long", ("video",), (6, 9), num_text=1500, cut=cut_of(folder)))
    ordinary = AutoModelForImageTextToText.from_pretrained(folder, dtype=getattr(torch, dtype))
    wanted = dict(ordinary.named_buffers())
    by_stage = {}
    for stage in range(4):
        engine = LearnerEngine(make_spec(folder, zero_stage=stage, dtype=dtype))
        held = dict(engine._policy.model.named_buffers())
        by_stage[stage] = {
            "buffers": {
                name: held[name].dtype == one.dtype and torch.equal(held[name], one) for name, one in wanted.items()
            },
            "logprobs": [values.tolist() for values in engine.logprobs([[row]])[0][0]],
        }
        engine.close()
    return by_stage

print(json.dumps({
    f"{family} {dtype}": found(Path(folder), dtype)
    for family, folder in json.loads(sys.argv[1]).items()
    for dtype in ("float32", "bfloat16")
}))
"""


NUM_ROTARY = {"internvl": 1}
"""Rotary tables of a family, if only its language model has one."""


@pytest.fixture(scope="module")
def found_by_model(tiny_dirs_by_family: Mapping[str, Path]) -> dict[str, Any]:
    """Load every family in every format at every stage in one process, which imports DeepSpeed once for all of them."""
    folders = {family: str(folder) for family, folder in tiny_dirs_by_family.items()}
    done = subprocess.run(
        [sys.executable, "-c", CODE, json.dumps(folders)],
        capture_output=True,
        text=True,
        timeout=patience(400.0),
        env={**os.environ, "DS_ACCELERATOR": "cpu"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.stack
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_stage_has_the_buffers_and_the_log_probs_of_an_ordinary_model(
    found_by_model: dict[str, Any], family: str, dtype: str
) -> None:
    """DeepSpeed builds the model in its number format at stage 3; a rotary table in bfloat16 would be wrong there."""
    found = found_by_model[f"{family} {dtype}"]
    assert sorted(found) == ["0", "1", "2", "3"]
    for stage, of_stage in found.items():
        assert all(of_stage["buffers"].values()), (stage, of_stage["buffers"])
        assert len(of_stage["buffers"]) == 2 * NUM_ROTARY.get(family, 2)
        for here, there in zip(of_stage["logprobs"], found["2"]["logprobs"], strict=True):
            # the same products in the same order; what differs between stages is where parameters lie
            assert torch.allclose(torch.tensor(here), torch.tensor(there), rtol=0, atol=LOGPROB), stage
