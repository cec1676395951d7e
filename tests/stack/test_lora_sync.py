"""A real learner that trains adapters and a real engine that is sent them alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from actors.errors import WeightsRefused
from rlsys.config.run import RunConfig, WeightsConfig, load
from rlsys.models.model_config import patch_shape
from rlsys.runs.assemble import Stack, open_stack
from rlsys.types import RolloutGroup, TrainBatch
from rlsys.weights.check import compare
from tests.stack.test_parity import CONFIGS, TOLERANCE, image, largest_difference, sample, video
from tests.support.transfers import tensors_of, transfer_of


@pytest.fixture(
    scope="module",
    params=[
        "tiny_model_dir",
        *(pytest.param(f"{name}_dirs", marks=pytest.mark.long) for name in ("qwen3_vl", "internvl")),
    ],
)
def config(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> RunConfig:
    out, model = tmp_path_factory.mktemp("lora"), request.getfixturevalue(request.param)
    return load(
        CONFIGS / "demo.yaml",
        [
            f"output_dir={out}",
            f"model.path={model if isinstance(model, Path) else model['tiny']}",
            "rollout.num_actors=1",
            "learner.num_ranks=1",
            "learner.lora.rank=4",
            "train.learning_rate=1e-2",
            "train.warmup_steps=0",
        ],
    )


@pytest.fixture(scope="module")
def stack(config: RunConfig) -> Iterator[Stack]:
    with open_stack(config, {"temporal_grounding"}) as opened:
        opened.load_learner(config)
        yield opened


def groups(stack: Stack, config: RunConfig, seed: int) -> list[RolloutGroup]:
    rng = np.random.default_rng(7)  # the same clips every time: the engine has kept what its tower made of them
    patch = patch_shape(config.model.path)
    media = ([video(rng, 8, 2.0, patch)], [image(rng, patch)], [image(rng, patch), video(rng, 4, 1.0, patch)])
    return [sample(stack, list(each), seed=seed + index) for index, each in enumerate(media)]


def supervised(asked: list[RolloutGroup]) -> TrainBatch:
    sizes = [len(group.rollouts) for group in asked]
    return TrainBatch(
        objective="nll",
        groups=tuple(asked),
        advantages=tuple(np.ones(size, np.float32) for size in sizes),
        is_trained=tuple(np.ones(size, bool) for size in sizes),
    )


def test_engine_and_learner_agree_under_every_version_of_the_adapter(stack: Stack, config: RunConfig) -> None:
    first = stack.publish(0)
    assert first.kind == "adapter"
    asked = groups(stack, config, seed=0)
    start = np.concatenate([rollout.response_logprobs for group in asked for rollout in group.rollouts])
    assert largest_difference(stack, asked) <= TOLERANCE
    for version in (1, 2):
        for _ in range(3):
            stack.learner.update(supervised(asked))
        # the engine's log-probs are of the policy before: the updates must have moved it for this to be a test
        assert largest_difference(stack, asked) > 10 * TOLERANCE
        published = stack.publish(version)
        assert published.kind == "adapter"
        assert published.num_bytes < config_bytes(config) / 4
        asked = groups(stack, config, seed=0)
        assert {rollout.weight_version for group in asked for rollout in group.rollouts} == {version}
        assert largest_difference(stack, asked) <= TOLERANCE
    end = np.concatenate([rollout.response_logprobs for group in asked for rollout in group.rollouts])
    assert start.shape != end.shape or np.abs(start - end).max() > 0.01


def config_bytes(config: RunConfig) -> int:
    """Size of the whole model's weights."""
    return (config.model.path / "model.safetensors").stat().st_size


def test_an_adapter_that_is_not_the_announced_one_is_refused_and_the_engine_serves_on(
    stack: Stack, config: RunConfig
) -> None:
    transfer, announced = stack.learner.publish(5)
    tensors = tensors_of(transfer)
    name = next(iter(tensors))
    other = {**tensors, name: replace(tensors[name], data=np.zeros_like(tensors[name].data))}
    with pytest.raises(WeightsRefused, match="lora_A.weight: its checksum is"):
        stack.pool.load_weights(transfer_of(other), announced)
    del tensors[name]
    with pytest.raises(WeightsRefused, match="lora_A.weight: in no bucket"):
        stack.pool.load_weights(transfer_of(tensors), announced)
    assert sample(stack, [image(np.random.default_rng(3), patch_shape(config.model.path))]).rollouts


def test_after_a_whole_model_only_whole_models_are_sent(stack: Stack, config: RunConfig) -> None:
    """The engine's own weights are gone after it."""
    plain = config.model_copy(
        update={"learner": config.learner.model_copy(update={"lora": type(config.learner.lora)()})}
    )
    transfer, announced = stack.learner.publish(6)
    stack.load_learner(plain)
    assert stack.publish(7).kind == "full"
    with pytest.raises(WeightsRefused, match="sent another model since"):
        stack.pool.load_weights(transfer, replace(announced, version=8))
    stack.load_learner(config)
    stack.learner.update(supervised(groups(stack, config, seed=0)))
    assert stack.publish(9).kind == "full"
    assert largest_difference(stack, groups(stack, config, seed=1)) <= TOLERANCE


def test_a_broadcast_brings_the_learners_weights_and_everybody_can_tell(
    stack: Stack, config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = config.learner.model_copy(update={"lora": type(config.learner.lora)()})
    weights = WeightsConfig(transport="collective", bucket_mib=1)
    stack.load_learner(config.model_copy(update={"learner": plain, "weights": weights}))
    stack.publish(10)
    stack.learner.update(supervised(groups(stack, config, seed=0)))
    assert not all(row.is_equal for row in compare(stack.learner, stack.pool, 11, None))
    send, sent = stack.learner.send, []
    monkeypatch.setattr(stack.learner, "send", lambda: sent.append(send()) or sent[-1])
    assert stack.publish(11).transport == "collective"
    assert [(one.num_receivers, one.problem) for one in sent] == [(1, "")]
    assert sent[0].num_bytes > 0
    stack.learner.export(tmp_path / "model")
    rows = compare(stack.learner, stack.pool, 11, tmp_path / "model")
    assert all(row.is_equal for row in rows)
    assert {row.findings["checkpoint"] for row in rows} == {"equal"}
    assert {row.findings["actor 0"] for row in rows} == {"equal"}
    assert largest_difference(stack, groups(stack, config, seed=2)) <= TOLERANCE
