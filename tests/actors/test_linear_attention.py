"""Engines with linear attention: the rule by hand, updates of one and of two workers, and vLLM's kernel in bfloat16."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from actors.linear_attention import delta_rule
from learner.packing.rows import Response, Row
from rlsys.weights.manifest import NamedTensors
from rlsys.weights.tensors import HEAD, as_named, embedding_name
from tests.actors.test_tensor_parallel import Engines, check_equal, load
from tests.actors.test_weight_update import models
from tests.support.actors import SAMPLING, Asker, engine_spec, start_probe
from tests.support.plain_policy import plain_logprobs

OF_BFLOAT16 = 0.15  # of log-probs against those of a model in float32; 0.06 is usual


def test_a_state_decays_and_moves_to_a_value_by_a_step() -> None:
    of_token = torch.ones(1, 2, 1, 1)
    query, value = torch.tensor([3.0, 1.0]).view(1, 2, 1, 1), torch.full((1, 2, 1, 1), 2.0)
    decays, steps = torch.tensor([0.0, 0.5]).log1p().neg().view(1, 2, 1), torch.tensor([0.5, 1.0]).view(1, 2, 1)
    # 0 moves half of the way to 2, and 3 x 1 is read; a third of it is lost, and 2/3 moves all of the way
    found, state = delta_rule(query, of_token, value, decays, steps, torch.zeros(1, 1, 1, 1))
    assert found.flatten().tolist() == pytest.approx([3.0, 2.0])
    assert state.item() == pytest.approx(2.0)
    half = decays, torch.tensor([0.5, 0.5]).view(1, 2, 1)
    _, state = delta_rule(query, of_token, value, *half, torch.zeros(1, 1, 1, 1))
    assert state.item() == pytest.approx(2 / 3 + (2 - 2 / 3) / 2)


def test_tokens_of_zeros_change_no_state() -> None:
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, 5, 2, 4) for _ in range(3))
    decays, steps, start = -torch.rand(1, 5, 2), torch.rand(1, 5, 2), torch.randn(1, 2, 4, 4)
    inputs = (query, key, value, decays, steps)
    found, state = delta_rule(*inputs, start)
    padded = (torch.cat([one, torch.zeros_like(one)], dim=1) for one in inputs)
    longer, same = delta_rule(*padded, start)
    assert torch.equal(longer[:, :5], found)
    assert torch.equal(same, state)


@pytest.fixture(scope="module")
def engines(actor_cluster: None, qwen3_5_dirs: Mapping[str, Path]) -> Iterator[Engines]:
    """Engines in float32, of one and of two workers."""
    folder = qwen3_5_dirs["tiny"]
    spec = engine_spec(folder)
    rollout = spec.rollout.model_copy(update={"tensor_parallel_size": 2})
    one, two = start_probe(spec), start_probe(replace(spec, rollout=rollout))
    ray.get([one.ping.remote(), two.ping.remote()])
    yield Engines(one=one, two=two, ask=Asker(folder), model=folder)
    ray.get(two.shutdown.remote())


@pytest.mark.stack
@pytest.mark.long
def test_both_workers_hold_every_tensor_of_an_update_and_sample_as_one_does(engines: Engines) -> None:
    weights, found = models(engines.model), {}
    for version, tensors in ((1, weights.old), (2, weights.new)):
        for engine in (engines.one, engines.two):
            load(engine, tensors, version)
            stats = ray.get(engine.last_update.remote())
            assert stats.num_verified == stats.num_tensors == len(tensors)
        found[version] = engines.greedy(engines.one)
        check_equal(found[version], engines.greedy(engines.two))
    ids = [[one.response_ids.tolist() for [one] in found[version]] for version in (1, 2)]
    assert ids[0] != ids[1]


def in_bfloat16(folder: Path) -> NamedTensors:
    tensors = {name: tensor.bfloat16() for name, tensor in load_file(folder / "model.safetensors").items()}
    return {name: as_named(tensor) for name, tensor in {HEAD: tensors[str(embedding_name(tensors))], **tensors}.items()}


@pytest.mark.stack
@pytest.mark.long
def test_vllms_own_kernel_in_bfloat16_agrees_and_is_read_back(
    actor_cluster: None, qwen3_5_dirs: Mapping[str, Path]
) -> None:
    folder = qwen3_5_dirs["tiny"]
    spec = engine_spec(folder)
    engine: Any = start_probe(replace(spec, model=spec.model.model_copy(update={"dtype": "bfloat16"})))
    tensors = in_bfloat16(folder)
    load(engine, tensors, 1)
    stats = ray.get(engine.last_update.remote())
    assert stats.num_verified == stats.num_tensors == len(tensors)
    ask, plain = Asker(folder), AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    for index in range(2):
        item, prompt, clip = ask.prompt(index)
        rollouts = ray.get(ask.ask(engine, index, SAMPLING))
        responses = tuple(
            Response(ids=one.response_ids, sampler_logprobs=one.response_logprobs, advantage=0.0) for one in rollouts
        )
        row = Row(prompt_id=item.prompt_id, prompt=prompt, clips=(clip,), responses=responses)
        with torch.no_grad():
            expected = plain_logprobs(plain, row, folder)
        for response, logprobs in zip(responses, expected, strict=True):
            np.testing.assert_allclose(response.sampler_logprobs, logprobs, atol=OF_BFLOAT16)
