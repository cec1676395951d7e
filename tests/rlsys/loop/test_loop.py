"""The loop with in-memory parts: order, staleness, failed scores, unusable clips."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import pytest

from rlsys.algorithm.batch import ScoringFailed
from rlsys.config.run import RewardConfig, RunConfig, parse
from rlsys.data.video.errors import ClipError
from rlsys.errors import LearnerLost, RowUnusable, WeightsDiffer
from rlsys.loop import loop
from rlsys.loop.collect import Collected
from rlsys.loop.objective import PolicyGradient
from rlsys.loop.parts import Step
from rlsys.loop.state import RunState
from rlsys.types import RolloutGroup, ScoredGroup, TrainBatch
from rlsys.weights.version import WeightVersion
from tests.support.factories import batch_of, make_group, make_scored
from tests.support.paths import REPO
from tests.support.rounding import FLOAT32

START = RunState(step=0, prompts_consumed=0, seed=0, mlflow_run_id="", weights_digest="")


def config(*, max_lag: int = 0, on_bad_clip: str = "skip", num_steps: int = 5, **algorithm: object) -> RunConfig:
    tree = {
        "output_dir": "out",
        "model": {"path": "model"},
        "data": {"on_bad_clip": on_bad_clip},
        "train": {"num_steps": num_steps, "prompts_per_step": 4},
        "pipeline": {"max_lag": max_lag},
        "rollout": {"max_tokens": 4},
        "algorithm": algorithm,
    }
    return parse(tree, source="test")


class InMemoryParts:
    def __init__(self, bad_prompts: frozenset[int] = frozenset(), flat_prompts: frozenset[int] = frozenset()) -> None:
        self.version = -1
        self.bad_prompts, self.flat_prompts = bad_prompts, flat_prompts
        self.started: list[int] = []
        self.trained: list[list[str]] = []
        self.steps: list[Step] = []
        self.num_reference_passes = 0
        self.prefetched: list[int] = []
        self.kept: list[tuple[int, tuple[int, ...]]] = []

    def start(self, prompt_index: int) -> Future[ScoredGroup]:
        self.started.append(prompt_index)
        future: Future[ScoredGroup] = Future()
        if prompt_index in self.bad_prompts:
            future.set_exception(ClipError(f"{prompt_index}.mp4", "corrupt", "test"))
        else:
            group = make_group(f"file:{prompt_index}", weight_version=self.version)
            future.set_result(make_scored(group, [1, 1, 1, 1] if prompt_index in self.flat_prompts else [0, 0, 1, 1]))
        return future

    def prefetch(self, prompt_index: int) -> None:
        self.prefetched.append(prompt_index)

    def check(self) -> None:
        """Do nothing."""

    def keep(self, step: int, collected: Collected) -> None:
        self.kept.append((step, collected.prompt_indices))

    def reference_logprobs(self, groups: Sequence[RolloutGroup]) -> Sequence[Sequence[np.ndarray]]:
        """Return the sampler's log-probs, which are -1, lowered by 0.1 for the first response of each group."""
        self.num_reference_passes += 1
        return [[np.full(3, -1.1 if index == 0 else -1.0, np.float32) for index in range(4)] for _ in groups]

    def update(self, batch: TrainBatch) -> Mapping[str, float]:
        self.trained.append([group.item.prompt_id for group in batch.groups])
        return {}

    def publish(self, version: int) -> WeightVersion:
        self.version = version
        return WeightVersion(version=version, transport="none", num_tensors=0, num_bytes=0, digest=f"d{version}")

    def record(self, step: Step) -> None:
        self.steps.append(step)


@pytest.mark.parametrize("max_lag", [0, 1, 3])
def test_every_prompt_is_trained_on_once_and_in_order_at_any_lag(max_lag: int) -> None:
    parts = InMemoryParts()
    end = loop.train(parts, config(max_lag=max_lag), START)
    assert [name for step in parts.trained for name in step] == [f"file:{prompt_index}" for prompt_index in range(20)]
    assert parts.started == list(range(20))
    assert (end.step, end.prompts_consumed, end.weights_digest) == (5, 20, "d5")


def test_rollouts_are_at_most_max_lag_updates_old_when_trained_on() -> None:
    parts = InMemoryParts()
    loop.train(parts, config(max_lag=2), START)
    lags = [
        step.state.step - 1 - rollout.weight_version
        for step in parts.steps
        for scored in step.groups
        for rollout in scored.group.rollouts
    ]
    assert max(lags) == 2


def test_a_rollout_that_is_too_old_stops_the_run() -> None:
    parts = InMemoryParts()
    parts.publish = lambda version: WeightVersion(  # type: ignore[method-assign]
        version=version, transport="none", num_tensors=0, num_bytes=0, digest=""
    )
    parts.version = 0
    with pytest.raises(RuntimeError, match="1 updates old at version 1; pipeline.max_lag=0"):
        loop.train(parts, config(), START)


def test_a_row_with_an_unusable_clip_is_skipped_counted_and_replaced() -> None:
    parts = InMemoryParts(bad_prompts=frozenset({1, 2, 7}))
    end = loop.train(parts, config(num_steps=2), START)
    assert parts.trained == [["file:0", "file:3", "file:4", "file:5"], ["file:6", "file:8", "file:9", "file:10"]]
    assert [len(step.collected.skipped) for step in parts.steps] == [2, 1]
    assert end.prompts_consumed == 11


def test_an_unusable_clip_stops_the_run_when_the_config_says_so() -> None:
    with pytest.raises(ClipError, match="1.mp4"):
        loop.train(InMemoryParts(bad_prompts=frozenset({1})), config(on_bad_clip="stop"), START)


def test_a_resumed_run_continues_with_the_first_untrained_prompt() -> None:
    first = InMemoryParts()
    middle = loop.train(first, config(max_lag=2, num_steps=2), START)
    second = InMemoryParts()
    loop.train(second, config(max_lag=2, num_steps=5), middle)
    whole = InMemoryParts()
    loop.train(whole, config(max_lag=2, num_steps=5), START)
    assert first.trained + second.trained == whole.trained


def test_groups_without_spread_are_replaced_by_the_next_prompts_and_counted() -> None:
    parts = InMemoryParts(flat_prompts=frozenset({1, 4, 9}))
    end = loop.train(parts, config(num_steps=2, max_extra_groups=3), START)
    assert parts.trained == [["file:0", "file:2", "file:3", "file:5"], ["file:6", "file:7", "file:8", "file:10"]]
    assert [[g.group.item.prompt_id for g in step.replaced] for step in parts.steps] == [
        ["file:1", "file:4"],
        ["file:9"],
    ]
    assert parts.started == list(range(11))
    assert end.prompts_consumed == 11


def test_at_the_bound_groups_without_spread_stay_in_the_batch() -> None:
    parts = InMemoryParts(flat_prompts=frozenset(range(100)))
    end = loop.train(parts, config(num_steps=2, max_extra_groups=3), START)
    assert parts.trained == [["file:3", "file:4", "file:5", "file:6"], ["file:10", "file:11", "file:12", "file:13"]]
    assert end.prompts_consumed == 14
    assert not any(advantages.any() for advantages in parts.steps[0].batch.advantages)


def test_without_dynamic_sampling_no_group_is_replaced() -> None:
    parts = InMemoryParts(flat_prompts=frozenset({1}))
    loop.train(parts, config(num_steps=1), START)
    assert parts.trained == [["file:0", "file:1", "file:2", "file:3"]]


@pytest.mark.parametrize("max_lag", [0, 1, 3])
def test_replacing_groups_and_skipping_clips_admits_no_rollout_that_is_too_old(max_lag: int) -> None:
    rng = np.random.default_rng(max_lag)
    flat, bad = (frozenset(rng.choice(60, 12, replace=False).tolist()) for _ in range(2))
    parts = InMemoryParts(bad_prompts=bad, flat_prompts=flat)
    end = loop.train(parts, config(max_lag=max_lag, max_extra_groups=2), START)
    lags = [
        step.state.step - 1 - rollout.weight_version
        for step in parts.steps
        for scored in step.groups
        for rollout in scored.group.rollouts
    ]
    assert max(lags) <= max_lag
    trained = [int(name.removeprefix("file:")) for step in parts.trained for name in step]
    replaced = [int(g.group.item.prompt_id.removeprefix("file:")) for step in parts.steps for g in step.replaced]
    assert trained == sorted(trained)
    assert sorted(
        [*trained, *replaced, *(prompt_index for prompt_index in bad if prompt_index < end.prompts_consumed)]
    ) == list(range(end.prompts_consumed))
    assert all(len(step.replaced) <= 2 for step in parts.steps)


@pytest.mark.parametrize("max_lag", [0, 2])
def test_a_resumed_run_replaces_what_the_whole_run_would_have(max_lag: int) -> None:
    flat, bad = frozenset({0, 5, 6, 7, 13, 17}), frozenset({3, 12})
    settings = {"max_lag": max_lag, "max_extra_groups": 2}
    first, second, whole = (InMemoryParts(bad, flat) for _ in range(3))
    middle = loop.train(first, config(num_steps=2, **settings), START)
    loop.train(second, config(num_steps=5, **settings), middle)
    loop.train(whole, config(num_steps=5, **settings), START)
    assert first.trained + second.trained == whole.trained


def test_kl_is_subtracted_from_rewards_before_advantages_and_not_in_the_records() -> None:
    parts = InMemoryParts()
    loop.train(parts, config(num_steps=1, kl_coef=0.5, kl_in="reward", kl_estimator="k1", advantage="dr_grpo"), START)
    (step,) = parts.steps
    # the first response: 3 tokens x 0.1 x 0.5 off its reward 0; the group's mean falls by a quarter of it
    np.testing.assert_allclose(step.batch.advantages[0], [-0.6125, -0.4625, 0.5375, 0.5375], atol=FLOAT32)
    assert step.shaping_metrics == {"reward/kl_penalty/mean": pytest.approx(0.0375)}
    assert step.groups[0].rewards.tolist() == [0, 0, 1, 1]
    assert parts.num_reference_passes == 1
    assert set(step.seconds) == {"collect", "reference", "update", "sync"}


def test_the_reference_is_computed_only_for_a_kl_in_the_reward() -> None:
    parts = InMemoryParts()
    loop.train(parts, config(num_steps=1, kl_coef=0.5), START)
    assert parts.num_reference_passes == 0
    assert set(parts.steps[0].seconds) == {"collect", "update", "sync"}


def test_a_penalty_alone_does_not_make_spread() -> None:
    parts = InMemoryParts(flat_prompts=frozenset({0}))
    loop.train(parts, config(num_steps=1, kl_coef=0.5, kl_in="reward", max_extra_groups=1), START)
    assert parts.trained == [["file:1", "file:2", "file:3", "file:4"]]


def test_a_failed_score_is_outside_mean_and_loss() -> None:
    scored = make_scored(make_group(), [0, 2, 9, 1], [True, True, False, True])
    batch = batch_of([scored], RewardConfig(min_valid=2))
    assert batch.advantages[0][2] == 0
    np.testing.assert_allclose(batch.advantages[0][[0, 1, 3]], [-1, 1, 0], atol=1e-3)
    assert batch.is_trained[0].tolist() == [True, True, False, True]
    assert batch.num_trained_tokens == 9


def test_a_group_with_too_few_scores_is_not_trained_on() -> None:
    scored = make_scored(make_group(), [0, 2, 9, 1], [True, True, False, False])
    batch = batch_of([scored, make_scored(make_group("file:1"), [0, 0, 1, 1])], RewardConfig(min_valid=3))
    assert not batch.is_trained[0].any() and not batch.advantages[0].any()
    assert batch.num_trained_tokens == 12


def test_a_step_without_a_single_score_stops_the_run_and_says_why() -> None:
    class Unscored(InMemoryParts):
        def start(self, prompt_index: int) -> Future[ScoredGroup]:
            future: Future[ScoredGroup] = Future()
            group = make_group(f"file:{prompt_index}", weight_version=self.version)
            future.set_result(make_scored(group, [0, 0, 0, 0], [False] * 4))
            return future

    with pytest.raises(ScoringFailed, match="16 times: judge timed out"):
        loop.train(Unscored(), config(), START)


def test_the_loop_needs_neither_ray_nor_torch() -> None:
    heavy = ("ray", "torch", "vllm", "transformers", "mlflow", "decord")
    code = f"import sys, rlsys.loop.loop; print([name for name in {heavy} if name in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPO, check=True)
    assert out.stdout.strip() == "[]"


class FailingRun(InMemoryParts):
    """A whole run whose learner is lost in the updates of the given numbers, counted from 1."""

    def __init__(self, lost_in: Sequence[int], settings: RunConfig, **faults: frozenset[int]) -> None:
        super().__init__(**faults)
        self.lost_in = set(lost_in)
        self.num_updates = self.num_lost = 0
        self.objective = PolicyGradient(settings)
        self.progress: AbstractContextManager[None] = nullcontext()
        self.calls: list[str] = []

    def update(self, batch: TrainBatch) -> Mapping[str, float]:
        self.num_updates += 1
        if self.num_updates in self.lost_in:
            raise LearnerLost("rank 0 died")
        return super().update(batch)

    def load_learner(self) -> RunState:
        """Return the newest recorded state."""
        return self.steps[-1].state if self.steps else START

    def begin(self, state: RunState) -> None:
        self.calls.append(f"begin {state.step}")

    def finish(self, state: RunState) -> RunState:
        self.calls.append(f"finish {state.step}")
        return state

    def learner_lost(self, error: LearnerLost) -> None:
        self.num_lost += 1


@pytest.mark.parametrize("max_lag", [0, 2])
def test_a_step_whose_learner_is_lost_is_repeated_with_the_same_groups(max_lag: int) -> None:
    settings, whole = config(max_lag=max_lag), InMemoryParts()
    parts = FailingRun([1, 3, 6], settings)
    end = loop.run(parts, settings)
    assert end == loop.train(whole, settings, START)
    assert parts.trained == whole.trained
    assert parts.started == whole.started
    assert [step for step, _ in parts.kept] == [1, 1, 2, 2, 3, 4, 4, 5]  # before what may be lost
    assert dict(parts.kept) == dict(whole.kept)
    assert parts.calls == ["begin 0", "begin 0", "begin 1", "begin 3", "finish 5"]


@pytest.mark.parametrize("lost_in", ["load_learner", "begin", "publish", "finish"])
def test_a_learner_lost_in_any_phase_recovers_in_the_same_way(lost_in: str) -> None:
    class Once(FailingRun):
        def __getattribute__(self, name: str) -> object:
            if name == lost_in and not object.__getattribute__(self, "num_lost"):

                def lose(*_: object) -> None:
                    raise LearnerLost(lost_in)

                return lose
            return super().__getattribute__(name)

    parts, whole = Once([], config()), InMemoryParts()
    assert loop.run(parts, config()) == loop.train(whole, config(), START)
    assert (parts.num_lost, parts.trained, parts.started) == (1, whole.trained, whole.started)


@pytest.mark.parametrize("max_lag", [0, 1])
def test_rolling_back_several_steps_samples_again_what_is_too_old_or_too_new(max_lag: int) -> None:
    class GoesFarBack(FailingRun):
        def load_learner(self) -> RunState:
            if not self.num_lost:
                return START
            del self.trained[1:]
            return self.steps[0].state

    settings, whole = config(max_lag=max_lag), InMemoryParts()
    parts = GoesFarBack([4], settings)
    loop.run(parts, settings)
    loop.train(whole, settings, START)
    assert parts.trained == whole.trained
    lags = [
        step.state.step - 1 - scored.group.rollouts[0].weight_version for step in parts.steps for scored in step.groups
    ]
    assert 0 <= min(lags) <= max(lags) <= max_lag


def test_a_learner_that_dies_while_groups_wait_for_its_weights_is_noticed_and_they_are_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class WaitsInVain(FailingRun):
        """A run whose third prompt is answered once the learner has been started again."""

        def __init__(self) -> None:
            super().__init__([], config())
            self.waiting: list[tuple[Future[ScoredGroup], Future[ScoredGroup]]] = []

        def start(self, prompt_index: int) -> Future[ScoredGroup]:
            future = super().start(prompt_index)
            if prompt_index != 2:
                return future
            self.waiting.append((Future(), future))
            return self.waiting[0][0]

        def check(self) -> None:
            if not self.num_lost:
                raise LearnerLost("its weights are gone")

        def load_learner(self) -> RunState:
            if self.num_lost:
                for promised, there in self.waiting:
                    promised.set_result(there.result())
            return START

    monkeypatch.setattr("rlsys.loop.collect.POLL_S", 0.01)
    parts, whole = WaitsInVain(), InMemoryParts()
    assert loop.run(parts, config()) == loop.train(whole, config(), START)
    assert parts.num_lost == 1
    assert (parts.trained, parts.started) == (whole.trained, whole.started)


def test_a_learner_that_cannot_be_started_again_ends_the_run() -> None:
    class GivesUp(FailingRun):
        def learner_lost(self, error: LearnerLost) -> None:
            raise error

    with pytest.raises(LearnerLost, match="rank 0 died"):
        loop.run(GivesUp([2], config()), config())


def test_weights_that_are_not_those_of_the_checkpoint_stop_the_run() -> None:
    state = RunState(step=2, prompts_consumed=8, seed=0, mlflow_run_id="", weights_digest="of the checkpoint")
    with pytest.raises(WeightsDiffer, match="digest is d2, but step 2 was saved with of the checkpoint"):
        loop.train(InMemoryParts(), config(), state)


def test_a_row_that_kills_engines_is_skipped_and_distinguished_from_a_bad_clip() -> None:
    class Quarantining(InMemoryParts):
        def start(self, prompt_index: int) -> Future[ScoredGroup]:
            future = super().start(prompt_index)
            if prompt_index == 2:
                future = Future()
                future.set_exception(RowUnusable("file:2: 2 actors died while they generated it"))
            return future

    parts = Quarantining(bad_prompts=frozenset({0}))
    loop.train(parts, config(num_steps=1, on_bad_clip="skip"), START)
    assert parts.trained == [["file:1", "file:3", "file:4", "file:5"]]
    assert [(one.prompt_index, one.reason) for one in parts.steps[0].collected.skipped] == [
        (0, "bad_clip"),
        (2, "quarantined"),
    ]


def test_clips_are_decoded_ahead_of_admission_each_once_and_no_further_than_the_run_goes() -> None:
    parts = InMemoryParts()
    loop.train(parts, config(num_steps=3), START)
    assert parts.prefetched == [4, 5, 6, 7, 8, 9, 10, 11]
