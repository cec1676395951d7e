"""Names, reductions, and what one update's metrics say, with numbers worked out by hand."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from rlsys.config.run import RewardConfig
from rlsys.loop.collect import Collected, Skipped
from rlsys.loop.parts import Step
from rlsys.loop.state import RunState
from rlsys.tracking import metrics
from rlsys.tracking.metrics import MetricNames, step_metrics, summarise
from rlsys.types import ScoredGroup
from tests.support.factories import batch_of, make_group, make_scored
from tests.support.pace import patience

STATE = RunState(step=7, prompts_consumed=14, seed=0, mlflow_run_id="", weights_digest="")


def make_step(groups: tuple[ScoredGroup, ...], replaced: tuple[ScoredGroup, ...] = ()) -> Step:
    return Step(
        state=STATE,
        collected=Collected(
            prompt_indices=tuple(range(len(groups))),
            groups=groups,
            replaced_indices=tuple(range(10, 10 + len(replaced))),
            replaced=replaced,
            skipped=(Skipped(prompt_index=20, reason="bad_clip", detail="gone"),),
            num_stale=0,
        ),
        batch=batch_of(groups, RewardConfig(min_valid=2)),
        shaping_metrics={"reward/kl_penalty/mean": 0.5},
        learner_metrics={"loss/total": 0.25},
        seconds={"collect": 1.5, "update": 0.4, "sync": 0.1},
    )


def two_groups() -> tuple[ScoredGroup, ScoredGroup]:
    spread = make_scored(make_group("file:0", weight_version=6), [0.0, 0.5, 1.0, 0.9], [True, True, True, False])
    flat = make_scored(make_group("file:1", weight_version=5, response_tokens=5), [0.5, 0.5, 0.5, 0.5])
    return spread, flat


def test_rewards_leave_out_what_could_not_be_scored() -> None:
    found = step_metrics(make_step(two_groups()), {}, {}, {})
    assert found["reward/total/mean"] == pytest.approx((0 + 0.5 + 1 + 4 * 0.5) / 7)
    assert found["reward/iou/mean"] == found["reward/total/mean"]
    assert (found["reward/total/min"], found["reward/total/max"]) == (0.0, 1.0)
    assert found["reward/failed_frac"] == 1 / 8
    assert found["reward/group_spread/mean"] == 0.5


def test_a_group_without_spread_is_counted() -> None:
    found = step_metrics(make_step(two_groups()), {}, {}, {})
    assert found["advantage/zero_groups_frac"] == 0.5
    assert found["advantage/trained_frac"] == 7 / 8


def test_groups_that_were_replaced_are_counted_and_their_rewards_told_apart() -> None:
    spread, flat = two_groups()
    found = step_metrics(make_step((spread,), replaced=(flat,)), {}, {}, {})
    assert (found["rollout/replaced_groups"], found["rollout/replaced_reward/mean"]) == (1.0, 0.5)
    assert found["reward/total/mean"] == 0.5
    assert found["reward/kl_penalty/mean"] == 0.5
    none = step_metrics(make_step((spread,)), {}, {}, {})
    assert none["rollout/replaced_groups"] == 0.0
    assert "rollout/replaced_reward/mean" not in none


def test_lengths_lags_and_rates() -> None:
    found = step_metrics(make_step(two_groups()), {"hits": 3, "data/decodes_per_clip": 1.0}, {"restarts": 0}, {})
    assert (found["rollout/response_tokens/mean"], found["rollout/response_tokens/max"]) == (4.0, 5.0)
    # 4 responses of 3 tokens from the version trained on, 4 of 5 tokens from the one before it
    assert (found["weights/lag_updates/mean"], found["weights/lag_updates/max"]) == (20 / 32, 1.0)
    assert found["rollout/mixed_version_frac"] == 0.0
    assert found["time/step_s"] == pytest.approx(2.0)
    assert found["perf/rollouts_per_s"] == pytest.approx(4.0)
    assert found["perf/response_tokens_per_s"] == pytest.approx(16.0)
    assert (found["data/hits"], found["data/decodes_per_clip"], found["rollout/restarts"]) == (3.0, 1.0, 0.0)
    assert (found["data/bad_draws"], found["loss/total"], found["time/collect_s"]) == (1.0, 0.25, 1.5)


def test_two_sources_cannot_claim_one_name() -> None:
    with pytest.raises(ValueError, match="recorded twice in one step: time/step_s"):
        step_metrics(make_step(two_groups()), {}, {"time/step_s": 1.0}, {})


def test_truncated_responses_are_a_share() -> None:
    spread, _ = two_groups()
    first, *rest = spread.group.rollouts
    cut = replace(spread.group, rollouts=(replace(first, finish_reason="length"), *rest))
    assert step_metrics(make_step((replace(spread, group=cut),)), {}, {}, {})["rollout/truncated_frac"] == 0.25


def test_tokens_of_one_response_can_be_of_several_ages() -> None:
    spread, _ = two_groups()
    first, *rest = spread.group.rollouts
    mixed = replace(first, token_versions=np.array([4, 5, 6], np.int32))
    group = replace(spread.group, rollouts=(mixed, *rest))
    found = step_metrics(make_step((replace(spread, group=group),)), {}, {}, {})
    assert (found["weights/lag_updates/mean"], found["weights/lag_updates/max"]) == (3 / 12, 2.0)
    assert found["rollout/mixed_version_frac"] == 0.25


def test_scoring_is_hidden_while_others_generate() -> None:
    first, second = two_groups()
    first = replace(first, spans={"generate": (0.0, 2.0), "score": (2.0, 4.0)})
    second = replace(second, spans={"generate": (0.0, 3.0), "score": (3.0, 5.0)})
    found = metrics.span_metrics([first, second])
    # scored from 2 to 5; someone generated until 3
    assert found["perf/score_hidden_frac"] == pytest.approx(1 / 3)
    assert found["time/group_score_s/mean"] == 2.0
    assert found["time/group_generate_s/max"] == 3.0


def test_nothing_scored_is_missing_and_not_zero() -> None:
    group = make_scored(make_group(), [0.0] * 4, [False] * 4)
    found = step_metrics(make_step((group,)), {}, {}, {})
    assert math.isnan(found["reward/total/mean"])
    assert math.isnan(found["reward/iou/mean"])
    assert found["reward/failed_frac"] == 1.0
    assert found["advantage/zero_groups_frac"] == 1.0


def test_summaries_skip_missing_values() -> None:
    assert summarise("reward/x", [1.0, float("nan"), 3.0], "mean", "max", "sum") == {
        "reward/x/mean": 2.0,
        "reward/x/max": 3.0,
        "reward/x/sum": 4.0,
    }
    assert summarise("reward/x", np.array([0.0, 10.0]), "p50") == {"reward/x/p50": 5.0}
    assert math.isnan(summarise("reward/x", [], "mean")["reward/x/mean"])


def test_the_names_of_a_step_obey_the_rules() -> None:
    names = MetricNames()
    names.add(step_metrics(make_step(two_groups()), {}, {}, {}))
    names.add(step_metrics(make_step(two_groups()[:1]), {}, {}, {}))


@pytest.mark.parametrize("name", ["reward", "Reward/total", "speed/total", "reward/a b", "reward//x", "/reward/x", ""])
def test_a_name_outside_the_rules_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="namespace/quantity"):
        MetricNames().add([name])


@pytest.mark.parametrize(("first", "second"), [("loss/kl", "loss/kl/mean"), ("loss/kl/mean", "loss/kl")])
def test_no_metric_is_a_folder_of_another(first: str, second: str) -> None:
    names = MetricNames()
    names.add([first, "loss/kl_coef"])
    with pytest.raises(ValueError, match="a metric and a folder of metrics"):
        names.add([second])


def test_a_score_named_total_is_refused() -> None:
    group = replace(make_scored(make_group(), [0.0] * 4), score_names=("total",))
    with pytest.raises(ValueError, match="named 'total'"):
        metrics.reward_metrics([group])


def test_metrics_import_neither_mlflow_nor_torch() -> None:
    code = "import sys, rlsys.tracking.metrics; print(sorted({'mlflow', 'torch', 'ray', 'vllm'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=patience(60.0)
    )
    assert done.stdout.strip() == "[]"
