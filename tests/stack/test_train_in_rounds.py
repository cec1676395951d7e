"""Training on rounds on the real stack: a model that points somewhere is asked again, and every round is learned."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import mlflow
import numpy as np
import pytest

from rlsys.config.run import RunConfig, load
from rlsys.demo.synthetic import draw_dataset
from rlsys.evaluation.runner import evaluate
from rlsys.runs.assemble import Stack, open_stack
from rlsys.runs.continuation import StartOptions
from rlsys.runs.inputs.items import training_items
from rlsys.runs.records import ledger
from rlsys.runs.records.rollout_store import SavedStep, read_step
from rlsys.runs.records.saved_group import FOLDER
from rlsys.runs.run import Summary
from rlsys.runs.sft import sft
from rlsys.runs.train import train
from rlsys.types import Sampling
from tests.support.pace import patience
from tests.support.paths import CONFIGS
from tests.support.plain_reward_server import plain_reward_server
from tests.support.rounding import FLOAT32

pytestmark = pytest.mark.stack
NUM_STEPS, ROUNDS, GROUP = 4, 3, 4


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Iterator[RunConfig]:
    folder = tmp_path_factory.mktemp("rounds")
    clips = draw_dataset(folder / "clips", num_clips=6, seed=3)
    with plain_reward_server() as url:
        yield load(
            CONFIGS / "demo.yaml",
            [
                f"output_dir={folder / 'whole'}",
                f"model.path={tiny_model_dir}",
                f"data.annotations={clips.annotations}",
                f"data.videos={clips.videos}",
                "data.think=false",
                "data.decode_workers=1",
                f"reward.url={url}",
                f"rollout={{num_actors: 1, group_size: {GROUP}, max_tokens: 16}}",
                "learner.num_ranks=1",
                f"train={{num_steps: {NUM_STEPS}, prompts_per_step: 2, learning_rate: 1.0e-3, schedule: constant}}",
                f"perception={{rounds: {ROUNDS}, stop: [answer_repeated]}}",
                "checkpoint.every_steps=2",
                "tracking={log_model: false, samples_per_step: 4, page_every_steps: 4}",
            ],
        )


@pytest.fixture(scope="module")
def stack(config: RunConfig) -> Iterator[Stack]:
    with open_stack(config, {"temporal_grounding"}) as opened:
        yield opened


@pytest.fixture(scope="module")
def taught(config: RunConfig, stack: Stack) -> RunConfig:
    """The config with a model that answers with periods, most of the time."""
    once = config.model_copy(
        update={
            "output_dir": config.output_dir.with_name("taught"),
            "perception": config.perception.model_copy(update={"rounds": 1}),
            "train": config.train.model_copy(update={"num_steps": 150, "prompts_per_step": 4}),
        }
    )
    model = config.model.model_copy(update={"path": Path(sft(once, stack=stack).model)})
    return config.model_copy(update={"model": model})


@pytest.fixture(scope="module")
def whole(taught: RunConfig, stack: Stack) -> Summary:
    return train(taught, stack=stack)


def steps(config: RunConfig) -> dict[int, SavedStep]:
    """Return the saved steps: those after the oldest checkpoint that is kept."""
    found = [read_step(path) for path in sorted((config.output_dir / FOLDER).glob("*.npz"))]
    return {one.step: one for one in found}


def test_responses_that_point_somewhere_are_asked_again_each_from_a_prompt_of_its_own(
    taught: RunConfig, whole: Summary
) -> None:
    saved = steps(taught)
    assert list(saved) == [3, 4]
    groups = [group for step in saved.values() for group in step.groups.values()]
    assert all(len(group.rollouts) == GROUP for group in groups)
    second = [one for group in groups for one in group.later if one.number == 2]
    assert len(second) == GROUP * len(groups), "nothing stops a row after its first round"
    third = [one for group in groups for one in group.later if one.number == 3]
    assert len(third) < len(second), "an answer that is repeated is not asked again"
    assert sum(not one.reason for one in second) > len(second) // 2, "the model was taught to answer with periods"
    for group in groups:
        looks = {one.group.clip_digests for one in group.later if not one.reason}
        assert group.clip_digests not in looks, "a clue shows the clip in another way than the first look"
        texts = {tuple(one.group.rollouts[0].response_ids.tolist()) for one in group.later}
        assert texts
    seeds = {one.group.rollouts[0].rollout_id for group in groups for one in group.later}
    assert len(seeds) == sum(len(group.later) for group in groups), "every response has a seed of its own"


def test_metrics_ledger_and_samples_tell_of_rounds(taught: RunConfig, whole: Summary) -> None:
    entries = ledger.read(taught.output_dir)
    assert not ledger.problems(entries, 2 * NUM_STEPS)
    assert len({one.weights_digest for one in entries}) == NUM_STEPS
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{taught.output_dir / 'mlflow.db'}")
    metrics = client.get_run(whole.mlflow_run_id).data.metrics
    assert 2 <= metrics["rollout/rounds/mean"] <= ROUNDS
    assert {f"reward/by_round/{number}/mean" for number in (1, 2)} <= metrics.keys()
    assert {f"reward/iou_by_round/{number}/mean" for number in (1, 2)} <= metrics.keys()
    for number, saved in steps(taught).items():
        last = [
            next(
                (one.group.rewards[0] for one in reversed(group.later) if one.sample_index == index),
                group.rewards[index],
            )
            for group in saved.groups.values()
            for index in range(GROUP)
        ]
        assert entries[number - 1].reward == pytest.approx(np.mean(last), abs=FLOAT32), "worth its last answer"
    samples = client.list_artifacts(whole.mlflow_run_id)
    assert any("samples" in file.path for file in samples)


@pytest.mark.long
def test_a_run_that_is_resumed_ends_with_the_same_weights_with_its_saved_rounds_or_without(
    taught: RunConfig, whole: Summary, stack: Stack
) -> None:
    for name, is_saved in (("saved", True), ("sampled", False)):
        out = taught.output_dir.with_name(name)
        shutil.copytree(taught.output_dir, out)
        shutil.rmtree(out / "checkpoints" / f"step_{NUM_STEPS:06d}")
        (out / "summary.json").unlink()
        if not is_saved:
            shutil.rmtree(out / FOLDER)
        before = stack.pool.counters()["rollout/groups"]
        again = train(taught.model_copy(update={"output_dir": out}), StartOptions(resume=out), stack=stack)
        assert again.weights_digest == whole.weights_digest
        sampled = stack.pool.counters()["rollout/groups"] - before
        assert (sampled == 0) is is_saved


def test_held_out_rows_are_answered_in_rounds_too(taught: RunConfig, whole: Summary, stack: Stack) -> None:
    items = training_items(taught)[:2]
    stack.publish(NUM_STEPS)
    found = evaluate(stack.producer, items, taught)
    assert found["greedy"]["num_responses"] == 2
    greedy = Sampling(num_samples=1, temperature=0.0, top_p=1.0, max_tokens=16, seed=5)
    one = stack.producer.start(items[0], greedy).result(timeout=patience(300.0))
    assert one.later and json.dumps([round.number for round in one.later]) in ("[2]", "[2, 3]")
    assert one.rewards[0] == one.later[-1].scored.rewards[0]
