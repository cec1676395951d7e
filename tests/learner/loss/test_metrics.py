from __future__ import annotations

import pytest

from learner.loss.metrics import OVER_UPDATES, REDUCTIONS, RankStats, combine
from rlsys.tracking.metrics import MetricNames


def stats_of(num_tokens: int, **values: float) -> RankStats:
    """Return stats with these metrics; a double underscore in a name stands for a slash."""
    stats = RankStats(num_tokens=num_tokens)
    for name, value in values.items():
        stats.add(name.replace("__", "/"), value)
    return stats


def test_token_means_count_every_token_once_on_any_rank() -> None:
    one, three = stats_of(1, policy__entropy=4.0), stats_of(3, policy__entropy=1.0 + 1.0 + 2.0)
    assert combine([[one, three]]) == {"policy/entropy": 2.0, "optim/updates": 1.0}


def test_maxima_and_sums_over_passes_and_ranks() -> None:
    first, second = RankStats(num_tokens=1), RankStats(num_tokens=1)
    for stats, ratio, tokens in ((first, 1.5, 10), (first, 1.2, 20), (second, 0.9, 5)):
        stats.add("policy/ratio/max", ratio)
        stats.add("perf/learner_tokens", tokens)
    assert combine([[first, second]]) == {"policy/ratio/max": 1.5, "perf/learner_tokens": 35, "optim/updates": 1.0}


def test_a_maximum_of_negative_numbers_is_negative() -> None:
    assert combine([[stats_of(1, policy__ratio__max=-2.0)]])["policy/ratio/max"] == -2.0


def test_a_rank_without_tokens_changes_nothing() -> None:
    stats, idle = stats_of(2, policy__entropy=3.0, optim__lr=0.1), stats_of(0, optim__lr=0.1)
    assert combine([[stats, idle]]) == {"policy/entropy": 1.5, "optim/lr": 0.1, "optim/updates": 1.0}


def test_weighted_losses_of_ranks_add_up_to_the_loss() -> None:
    assert combine([[stats_of(2, loss__total=0.5), stats_of(1, loss__total=0.25)]])["loss/total"] == 0.75


def test_updates_of_a_batch_are_combined() -> None:
    first = [
        stats_of(2, policy__entropy=3.0, loss__total=1.0, perf__learner_tokens=10),
        stats_of(1, policy__entropy=3.0, loss__total=2.0, perf__learner_tokens=5),
    ]
    second = [stats_of(1, policy__entropy=2.0, loss__total=5.0, perf__learner_tokens=20)]
    for rank, (lr, norm, passes) in ((first[0], (0.1, 3.0, 2)), (first[1], (0.1, 3.0, 2)), (second[0], (0.2, 1.0, 1))):
        rank.add("optim/lr", lr)
        rank.add("optim/grad_norm", norm)
        rank.add("perf/learner_passes", passes)
    assert combine([first, second]) == {
        "policy/entropy": 8 / 4,
        "loss/total": (3.0 + 5.0) / 2,
        "perf/learner_tokens": 35,
        "perf/learner_passes": 3,
        "optim/lr": 0.2,
        "optim/grad_norm": 3.0,
        "optim/updates": 2.0,
    }


def test_effective_samples_by_hand_for_any_split() -> None:
    # ratios 1, 1 and 2: (1 + 1 + 2)^2 / (3 x (1 + 1 + 4))
    names = ("policy/sampler_ratio/mean", "policy/sampler_ratio_squared/mean")
    for ranks in ([(1, 1, 2)], [(1,), (1, 2)], [(2, 1, 1), ()]):
        by_rank = []
        for ratios in ranks:
            stats = RankStats(num_tokens=len(ratios))
            for ratio in ratios:  # one pass each
                stats.add(names[0], ratio)
                stats.add(names[1], ratio**2)
            by_rank.append(stats)
        found = combine([by_rank])
        assert found["policy/effective_sample_frac"] == pytest.approx(8 / 9)
        assert found["policy/sampler_ratio/mean"] == pytest.approx(4 / 3)
        assert names[1] not in found


def test_learner_and_sampler_are_compared_before_any_update() -> None:
    first = stats_of(2, policy__sampler_kl=1.0, policy__sampler_logprob_diff__max=0.1, policy__entropy=2.0)
    later = stats_of(3, policy__sampler_kl=9.0, policy__sampler_logprob_diff__max=0.5, policy__entropy=8.0)
    found = combine([[first], [later]])
    assert (found["policy/sampler_kl"], found["policy/sampler_logprob_diff/max"]) == (0.5, 0.1)
    assert found["policy/entropy"] == 2.0


def test_every_sum_has_a_reduction_over_updates() -> None:
    assert {name for name, reduction in REDUCTIONS.items() if reduction == "sum"} <= set(OVER_UPDATES)


def test_names_are_metric_names_and_none_is_a_prefix_folder_of_another() -> None:
    MetricNames().add([*REDUCTIONS, "policy/effective_sample_frac", "optim/updates"])
