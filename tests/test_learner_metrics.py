from __future__ import annotations

from learner.metrics import RankStats, combine


def test_token_means_count_every_token_once_whatever_rank_had_it() -> None:
    one = RankStats(num_tokens=1)
    one.add("policy/entropy", 4.0)
    three = RankStats(num_tokens=3)
    three.add("policy/entropy", 1.0 + 1.0 + 2.0)
    assert combine([one, three]) == {"policy/entropy": 2.0}


def test_maxima_and_sums_over_passes_and_ranks() -> None:
    first, second = RankStats(num_tokens=1), RankStats(num_tokens=1)
    for stats, ratio, tokens in ((first, 1.5, 10), (first, 1.2, 20), (second, 0.9, 5)):
        stats.add("policy/ratio/max", ratio)
        stats.add("perf/learner_tokens", tokens)
    assert combine([first, second]) == {"policy/ratio/max": 1.5, "perf/learner_tokens": 35}


def test_a_maximum_of_negative_numbers_is_negative() -> None:
    stats = RankStats(num_tokens=1)
    stats.add("policy/ratio/max", -2.0)
    assert combine([stats])["policy/ratio/max"] == -2.0


def test_a_rank_without_tokens_changes_nothing() -> None:
    stats = RankStats(num_tokens=2)
    stats.add("loss/policy", 3.0)
    stats.add("optim/lr", 0.1)
    idle = RankStats()
    idle.add("optim/lr", 0.1)
    assert combine([stats, idle]) == {"loss/policy": 1.5, "optim/lr": 0.1}
