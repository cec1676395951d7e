"""Updates of the weights while an engine generates: kept tokens, recomputed caches, and recorded versions."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import ray
from safetensors.numpy import load_file

from actors.pool import RolloutPool
from actors.requests import WeightUpdate
from actors.weights.weights_in import expected_adapter, expected_weights
from rlsys.config.run import LoraConfig, ModelConfig
from rlsys.types import Rollout
from rlsys.weights.manifest import NamedTensor, WeightTransfer
from rlsys.weights.version import WeightVersion
from tests.actors.test_engine import as_tensors
from tests.support.actors import SAMPLING, Asker, engine_spec, ids_and_logprobs, start_probe
from tests.support.pace import patience
from tests.support.rounding import LOGPROB
from tests.support.transfers import transfer_of, version_of

NamedTensors = Mapping[str, NamedTensor]
LORA = LoraConfig(rank=4, alpha=8)
LONG = replace(SAMPLING, max_tokens=60)
NUM_GROUPS = 8
SWITCH = 20  # tokens at which the weights change: a block of the prefix cache is not full then


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Return two versions of the same kind."""

    kind: Literal["full", "adapter"]
    old: NamedTensors
    new: NamedTensors

    def old_as(self, version: int) -> tuple[WeightTransfer, WeightVersion]:
        return transfer_of(self.old), version_of(self.old, version, self.kind)

    def new_as(self, version: int) -> tuple[WeightTransfer, WeightVersion]:
        return transfer_of(self.new), version_of(self.new, version, self.kind)


@dataclass(frozen=True, kw_only=True)
class Setting:
    engine: Any
    ask: Asker
    model: Path

    def run(self, *update: object) -> list[tuple[Rollout, ...]]:
        """Return four groups, with the update after token SWITCH - 1."""
        asked, frames = zip(*(self.ask.request(index, LONG) for index in range(4)), strict=True)
        return ray.get(self.engine.update_between.remote(asked, frames, SWITCH, *update))


@pytest.fixture(scope="module")
def setting(actor_cluster: None, tiny_model_dir: Path) -> Setting:
    model = ModelConfig(path=tiny_model_dir, dtype="float32", max_model_len=512)
    engine = start_probe(engine_spec(tiny_model_dir, model=model, lora=LORA, weight_update="keep"))
    ray.get(engine.ping.remote())
    return Setting(engine=engine, ask=Asker(tiny_model_dir), model=tiny_model_dir)


def adapters(model: Path) -> Weights:
    expected = expected_adapter(expected_weights(model, "float32"), LORA)
    rng = np.random.default_rng(0)
    old, new = (
        {
            name: NamedTensor(
                spec=spec, data=(0.3 * rng.standard_normal(spec.shape)).astype(np.float32).reshape(-1).view(np.uint8)
            )
            for name, spec in expected.specs.items()
        }
        for _ in range(2)
    )
    return Weights(kind="adapter", old=old, new=new)


def models(model: Path) -> Weights:
    weights = load_file(model / "model.safetensors")
    rng = np.random.default_rng(1)
    moved = {
        name: array + 0.05 * rng.standard_normal(array.shape).astype(np.float32) for name, array in weights.items()
    }
    return Weights(kind="full", old=as_tensors(weights), new=as_tensors(moved))


@pytest.mark.parametrize("make", [adapters, models])  # in this order: whoever got a model takes no adapters
def test_kept_groups_continue_under_the_new_weights(setting: Setting, make: Any) -> None:
    weights = make(setting.model)
    ray.get(setting.engine.load_weights.remote(*weights.old_as(1)))
    undisturbed = setting.run()
    # weights that change nothing change nothing: neither a token nor a bit of a log-prob
    for before, after in zip(undisturbed, setting.run(*weights.old_as(2)), strict=True):
        assert ids_and_logprobs(before) == ids_and_logprobs(after)
    ray.get(setting.engine.load_weights.remote(*weights.old_as(3)))
    changed = setting.run(*weights.new_as(4))
    for index, (before, after) in enumerate(zip(undisturbed, changed, strict=True)):
        for one, other in zip(before, after, strict=True):
            check_switch(setting, index, one, other)
    # nothing that was cached under the old weights serves a later group
    fresh = [ids_and_logprobs(group) for group in setting.run()]
    ray.get(setting.engine.load_weights.remote(*weights.new_as(5)))
    assert fresh == [ids_and_logprobs(group) for group in setting.run()]
    assert fresh != [ids_and_logprobs(group) for group in changed]


def test_a_kept_group_recomputes_a_clip_that_another_group_had_computed(setting: Setting) -> None:
    # vLLM gives its workers no pixels of a clip that the prefix cache covers, and an update empties that cache
    weights = models(setting.model)
    ray.get(setting.engine.load_weights.remote(*weights.old_as(6)))
    first, frames = setting.ask.request(0, replace(SAMPLING, max_tokens=4), frames=8)
    second, _ = setting.ask.request(0, LONG, frames=8)
    num_tokens = setting.ask.prompt(0, frames=8)[1].prompt_ids.size
    assert num_tokens > 32, "the clip's tokens lie in a full block of the cache"
    undisturbed = ray.get(setting.engine.update_behind.remote(first, second, frames))
    kept = ray.get(setting.engine.update_behind.remote(first, second, frames, *weights.old_as(7)))
    assert ids_and_logprobs(kept) == ids_and_logprobs(undisturbed)
    assert {int(version) for rollout in kept for version in rollout.token_versions} == {6, 7}


def check_switch(setting: Setting, index: int, undisturbed: Rollout, changed: Rollout) -> None:
    """Check for the old model's tokens before the switch, the new model's log-probs after it, and their versions."""
    size = changed.response_ids.size
    first = min(SWITCH, size)
    assert changed.token_versions.tolist() == [3] * first + [4] * (size - first)
    assert changed.weight_version == 3
    assert changed.response_ids[:first].tolist() == undisturbed.response_ids[:first].tolist()
    assert changed.response_logprobs[:first].tolist() == undisturbed.response_logprobs[:first].tolist()
    if size > SWITCH:
        request, frames = setting.ask.request(index, LONG)
        forced = ray.get(setting.engine.forced_logprobs.remote(request, frames, changed.response_ids))
        np.testing.assert_allclose(changed.response_logprobs[SWITCH:], forced[SWITCH:], atol=LOGPROB)
        assert np.abs(changed.response_logprobs[:SWITCH] - forced[:SWITCH]).max() > 0.01


@pytest.mark.parametrize("weight_update", ["pause", "keep", "abort"])
def test_a_pool_updates_while_groups_run_and_more_wait(setting: Setting, weight_update: WeightUpdate) -> None:
    weights = models(setting.model)
    ray.get(setting.engine.set_weight_update.remote(weight_update))
    handles = [setting.engine]
    pool = RolloutPool(
        lambda place: handles.pop(), 1, timeout_s=patience(120.0), start_timeout_s=patience(120.0), max_num_seqs=8
    )
    pool.load_weights(transfer_of(weights.old), version_of(weights.old, 10))
    transfer, version = transfer_of(weights.new), version_of(weights.new, 11)
    # every other group runs for long after its neighbour has ended, so that the update finds it running
    samplings = [replace(SAMPLING, max_tokens=40 + 240 * (index % 2), num_samples=4) for index in range(NUM_GROUPS)]

    async def generate() -> list[tuple[Rollout, ...]]:
        prompts = [setting.ask.prompt(index) for index in range(NUM_GROUPS)]
        asked = [
            asyncio.create_task(pool.generate(item, prompt, (clip,), sampling))
            for (item, prompt, clip), sampling in zip(prompts, samplings, strict=True)
        ]
        while not any(task.done() for task in asked):
            await asyncio.sleep(0.002)
        assert pool.counters()["rollout/waiting_groups"] > 0
        await asyncio.to_thread(pool.load_weights, transfer, version)
        assert pool.counters()["rollout/healthy_actors"] == 1
        assert not all(task.done() for task in asked)  # what waited was not waited for
        return list(await asyncio.gather(*asked))

    groups = asyncio.run(generate())
    versions = [sorted({int(v) for rollout in group for v in rollout.token_versions}) for group in groups]
    assert [10] in versions
    assert [11] in versions
    assert ([10, 11] in versions) == (weight_update == "keep")
    assert (pool.counters()["rollout/aborted_groups"] > 0) == (weight_update == "abort")
    assert pool.counters()["rollout/lost_actors"] == 0
    timed = [pool.counters()[f"weights/{part}_s"] for part in ("transfer", "engine_load", "verify")]
    assert 0 < min(timed) <= sum(timed) <= pool.counters()["weights/load_s"]
    of_new = [index for index in range(NUM_GROUPS) if versions[index] == [11]]
    again = ray.get([setting.ask.ask(setting.engine, index, samplings[index]) for index in of_new])
    assert [ids_and_logprobs(groups[index]) for index in of_new] == [ids_and_logprobs(group) for group in again]
