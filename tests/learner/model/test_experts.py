"""Experts in the learner: which tokens train them, and that their parameters are gathered as one module."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import nn

from learner.model.policy import PackedPolicy, load_model, read_layout
from learner.packing.packing import pack
from tests.support.learner import cut_of, random_rows


@pytest.fixture(scope="module")
def policy(qwen3_vl_moe_dirs: Mapping[str, Path]) -> PackedPolicy:
    return PackedPolicy(load_model(qwen3_vl_moe_dirs["tiny"], dtype="float32", attention="sdpa"))


def blocks(policy: PackedPolicy) -> list[nn.Module]:
    return [layer.mlp for layer in policy.model.model.language_model.layers]


def test_an_expert_that_no_token_takes_has_a_gradient_of_zero(
    policy: PackedPolicy, qwen3_vl_moe_dirs: Mapping[str, Path]
) -> None:
    """All ranks then have a gradient for every parameter, whichever experts their tokens take."""
    folder = qwen3_vl_moe_dirs["tiny"]
    for block in blocks(policy):
        # routers that see nothing weigh all experts equally; the first two are taken
        nn.init.zeros_(block.gate.weight)
    rows = random_rows(seed=0, cut=cut_of(folder))
    policy.zero_grad()
    logprobs, _ = policy(pack(rows, read_layout(policy.model, folder), dtype=torch.float32))
    logprobs.sum().backward()
    for block in blocks(policy):
        for weights in (block.experts.gate_up_proj, block.experts.down_proj):
            taken = weights.grad.flatten(1).norm(dim=1) > 0
            assert taken.sum() == 2 and weights.grad.shape == weights.shape
    assert all(parameter.grad is not None for parameter in policy.model.parameters())


def test_the_experts_of_a_layer_are_the_parameters_of_one_module(policy: PackedPolicy) -> None:
    """ZeRO-3 gathers a module's own parameters before it runs, so ranks gather the same ones for any routing.

    Were each expert a module, ranks whose tokens take others would wait for each other, and DeepSpeed would have to be
    told to treat the block as a leaf (`set_z3_leaf_modules`).
    """
    for block in blocks(policy):
        assert sorted(name for name, _ in block.experts.named_parameters()) == ["down_proj", "gate_up_proj"]
        assert not [one for one in block.experts.modules() if one is not block.experts and list(one.parameters())]
