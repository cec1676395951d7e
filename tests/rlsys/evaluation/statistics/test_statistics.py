"""Intervals, slices, comparisons and samples, against second computations and by hand."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter

import numpy as np
import pytest

from rlsys.evaluation.protocols.table import PROTOCOLS
from rlsys.evaluation.protocols.weighted import ScoredRow, Weighted
from rlsys.evaluation.statistics.bootstrap import bootstrap, draw_counts, intervals, numbered, resampled
from rlsys.evaluation.statistics.comparison import compare
from rlsys.evaluation.statistics.reliability import reliability
from rlsys.evaluation.statistics.samples import majority, pass_at_k
from rlsys.evaluation.statistics.slices import slices
from rlsys.types import Json
from tests.rlsys.evaluation.protocols.rows import answered, chosen, grounded
from tests.support.rounding import FLOAT64

STA = PROTOCOLS["charades_sta/paper"]


def scored_rows(num: int, num_videos: int, seed: int = 0) -> list[ScoredRow]:
    rng = random.Random(seed)
    rows = [
        grounded(
            0, 10, f"<answer>0 to {rng.uniform(1, 10):.2f}</answer>", row_id=f"f:{at}", video=f"v{at % num_videos}"
        )
        for at in range(num)
    ]
    return [(row, STA.scored(row)) for row in rows]


def test_a_bootstrap_over_three_videos_equals_all_27_resamples() -> None:
    values, clusters = [0.0, 1.0, 1.0, 0.5], ["a", "b", "b", "c"]
    members = {"a": [0.0], "b": [1.0, 1.0], "c": [0.5]}
    means = [np.mean(sum((members[one] for one in draw), [])) for draw in itertools.product("abc", repeat=3)]
    low, high = bootstrap(values, clusters, num=40_000, level=0.6)
    assert (low, high) == pytest.approx(tuple(np.quantile(means, [0.2, 0.8])), abs=0.02)
    again = bootstrap(values, clusters, lambda rows: float(rows.mean()), num=500)
    assert again == pytest.approx(bootstrap(values, clusters, num=500))


def test_an_interval_of_independent_rows_is_that_of_the_normal_approximation() -> None:
    values = np.random.default_rng(0).uniform(size=3720)
    low, high = bootstrap(values, range(3720), num=2000)
    half = 1.96 * values.std() / math.sqrt(3720)
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=half / 10)


def test_rows_of_one_video_widen_the_interval() -> None:
    values = np.repeat(np.random.default_rng(0).uniform(size=100), 30)
    apart = bootstrap(values, range(3000))
    together = bootstrap(values, [at // 30 for at in range(3000)])
    assert (together[1] - together[0]) > 4 * (apart[1] - apart[0])


def test_the_bootstrap_leaves_out_nan_and_knows_no_rows() -> None:
    assert bootstrap([0.5, math.nan, 0.5], ["a", "b", "c"]) == (0.5, 0.5)
    assert all(map(math.isnan, bootstrap([], [])))
    assert all(map(math.isnan, bootstrap([math.nan], ["a"])))
    assert bootstrap([0.25], ["a"]) == (0.25, 0.25)
    with pytest.raises(ValueError, match="2 values for 1 clusters"):
        bootstrap([1.0, 2.0], ["a"])
    with pytest.raises(ValueError, match="give an aggregate"):
        bootstrap(np.ones((2, 2)), ["a", "b"])


def test_every_resampled_metric_is_the_metric_of_the_rows_that_were_drawn() -> None:
    rows = scored_rows(40, 9)
    clusters = numbered([row.labels["video"] for row, _ in rows])
    counts = draw_counts(9, 20, seed=3)
    found = STA.summarise(Weighted(rows, clusters, counts))
    for at, count in enumerate(counts):
        drawn = [row for row, cluster in zip(rows, clusters, strict=True) for _ in range(int(count[cluster]))]
        again = STA.aggregate(drawn)
        assert {name: values[at] for name, values in found.items()} == pytest.approx(
            {name: again[name] for name in found}
        )


def test_metrics_that_are_no_means_are_computed_anew_on_each_resample() -> None:
    protocol = PROTOCOLS["mvbench"]
    rows = [
        chosen("A", "AB"[at % 3 == 0], row_id=f"f:{at}", video=f"v{at % 7}", subtask=f"s{at % 2}") for at in range(30)
    ]
    scored = [(row, protocol.scored(row)) for row in rows]
    clusters = numbered([row.labels["video"] for row in rows])
    found = resampled(protocol, scored, num=50, seed=1)
    for at, count in enumerate(draw_counts(7, 50, seed=1)):
        drawn = [row for row, cluster in zip(scored, clusters, strict=True) for _ in range(int(count[cluster]))]
        subtasks = {name: [s["correct"] for r, s in drawn if r.labels["subtask"] == name] for name in ("s0", "s1")}
        means = [np.mean(one) for one in subtasks.values() if one]
        assert found["accuracy"][at] == pytest.approx(np.mean(means))


def test_intervals_cover_every_metric_and_repeat_with_their_seed() -> None:
    rows = scored_rows(200, 50)
    found = intervals(STA, rows, num=200, seed=7)
    assert found == intervals(STA, rows, num=200, seed=7)
    value = STA.aggregate(rows)
    assert all(low <= value[name] <= high for name, (low, high) in found.items())
    assert intervals(STA, []) == {}


def test_slices_by_duration_span_and_labels() -> None:
    rows = [
        grounded(0, 2, duration_s=10.0, video="a", question_type="TN"),
        grounded(14, 20, duration_s=30.0, video="b", question_type="CW"),
        grounded(40, 62, duration_s=61.0, video="c"),
        answered("grounded_qa", {"answer": "(A)", "glue": [[0.0, 5.0], [3.0, 6.0], [20.0, 22.0]]}, duration_s=2000.0),
        chosen("A"),
        answered("temporal_grounding", "broken", duration_s=-1.0),
    ]
    assert slices(rows) == {
        "duration": {"0-10 s": (0,), "10-30 s": (1,), "60-180 s": (2,), "over 1800 s": (3,)},
        "span_length": {"0-2 s": (0,), "5-10 s": (1, 3), "20-60 s": (2,)},
        "span_position": {"first third": (0, 3), "middle third": (1,), "last third": (2,)},
        "question_type": {"CW": (1,), "TN": (0,)},
    }
    assert slices([]) == {}


def test_a_label_that_tells_every_row_apart_is_no_kind() -> None:
    rows = [chosen("A", row_id=f"f:{at}", name=f"n{at}", category=f"c{at % 40}", same="x") for at in range(80)]
    assert list(slices(rows)) == ["category"]


def test_pass_at_k_equals_the_share_of_all_subsets() -> None:
    for n, c in itertools.product(range(1, 8), range(8)):
        for k in range(1, n + 1):
            if c <= n:
                subsets = list(itertools.combinations([True] * c + [False] * (n - c), k))
                assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))
    for n, c, k in ((3, 1, 4), (3, 4, 1), (0, 0, 1), (3, 1, 0)):
        with pytest.raises(ValueError, match="samples"):
            pass_at_k(n, c, k)


@pytest.mark.parametrize(
    ("values", "index"),
    [
        ([], None),
        ([None, None], None),
        (["A"], 0),
        (["A", "B", "B"], 1),
        (["B", "A", "A", "B"], 0),
        ([None, "C", "A", "A"], 2),
        ([3.0, 4.0, 4.0], 1),
        ([((0, 10),), ((1, 9),), ((50, 60),)], 0),
        ([((50, 60),), ((0, 10),), ((1, 9),), ((0, 8),)], 1),
        ([((5, 5),), ((0, 10),), ((0, 9),)], 1),
        ([((0, 1, 2, 3),), ((0, 0, 10, 10),), ((0, 0, 9, 10),)], 2),
        ([{"answer": "A", "glue": ((0, 9),)}, {"answer": "B", "glue": None}, {"answer": "B", "glue": ((0, 1),)}], 2),
        ([{"answer": None, "glue": ((0, 9),)}, {"answer": None, "glue": ((50, 60),)}], 0),
        ([(), (), ((0, 1),)], 0),
    ],
)
def test_the_majority(values: list[Json], index: int | None) -> None:
    assert majority(values) == index


def test_the_majority_of_random_letters_is_a_most_frequent_one_and_the_first_of_them() -> None:
    rng = random.Random(0)
    for _ in range(10_000):
        values = [rng.choice(["A", "B", "C", None]) for _ in range(rng.randint(1, 9))]
        counts = Counter(value for value in values if value)
        top = [value for value in counts if counts[value] == max(counts.values())] if counts else []
        assert majority(values) == (min(values.index(value) for value in top) if top else None)


def test_a_comparison_finds_the_rows_that_changed_and_a_difference_that_is_no_chance() -> None:
    before, after = [], []
    for at in range(200):
        row = chosen("A", "B" if at % 2 else "A", row_id=f"f:{at}", video=f"v{at}", category=f"c{at % 2}")
        new = chosen(
            "A", "A" if at < 150 or not at % 2 else "B", row_id=f"f:{at}", video=f"v{at}", category=f"c{at % 2}"
        )
        before.append(row)
        after.append(new)
    after[0] = chosen("A", "C", row_id="f:0", video="v0", category="c0")
    protocol = PROTOCOLS["videomme/lmms"]
    a, b = ([(row, protocol.scored(row)) for row in rows] for rows in (before, after))
    got = compare(a, list(reversed(b)), protocol)
    assert (got.overall.a, got.overall.b) == (0.5, (200 - 25 - 1) / 200)
    assert got.overall.difference == pytest.approx(74 / 200)
    assert got.overall.interval[0] > 0.29
    assert got.overall.p_value <= 2 / 1001 + FLOAT64
    assert [(row.row_id, row.text_a, row.text_b) for row in got.lost] == [("f:0", "A", "C")]
    assert len(got.gained) == 75
    assert got.slices["category"]["c0"].difference == pytest.approx(-1 / 100)
    assert got.slices["category"]["c0"].p_value > 0.3
    same = compare(a, a, protocol)
    assert (same.overall.difference, same.overall.p_value, same.gained, same.lost) == (0, 1, (), ())


def test_a_paired_interval_is_narrower_than_that_of_two_separate_evaluations() -> None:
    a = scored_rows(300, 300)
    b = [(row, {**scores, "iou": min(1.0, scores["iou"] + 0.05)}) for row, scores in a]
    got = compare(a, b, STA)
    assert got.overall.interval[1] - got.overall.interval[0] < 0.01
    low, high = intervals(STA, a)["miou"]
    assert high - low > 0.05


def test_evaluations_of_different_rows_are_refused_and_compared_where_they_agree_on_request() -> None:
    rows = scored_rows(10, 10)
    with pytest.raises(ValueError, match="no row only in a, f:0 and f:1|f:0, f:1 only in b"):
        compare(rows[2:], rows, STA)
    got = compare(rows[2:], rows[:9], STA, intersect=True)
    assert (got.overall.num_rows, got.only_a, got.only_b) == (7, ("f:9",), ("f:0", "f:1"))
    with pytest.raises(ValueError, match="no row in common"):
        compare(rows[:2], rows[5:], STA, intersect=True)
    with pytest.raises(ValueError, match="f:0 stands twice in b"):
        compare(rows[:1], [rows[0], rows[0]], STA)
    with pytest.raises(ValueError, match="another question or truth"):
        compare(rows[:1], [(grounded(0, 9, row_id="f:0"), rows[0][1])], STA)
    with pytest.raises(ValueError, match="has no metric 'f1'"):
        compare(rows, rows, STA, metric="f1")


def test_reliability_compares_confidence_with_score_in_bins() -> None:
    found = reliability([(0.95, 1.0), (0.93, 0.0), (0.31, 0.5), (1.0, 1.0), (0.5, math.nan)])
    assert [(one["low"], one["num_rows"]) for one in found["bins"]] == [(0.3, 1), (0.9, 3)]
    assert found["bins"][1]["confidence"] == pytest.approx(0.96) and found["bins"][1]["score"] == pytest.approx(2 / 3)
    assert found["calibration_error"] == pytest.approx((0.19 + 3 * (0.96 - 2 / 3)) / 4)
    assert (found["confidence"], found["score"]) == pytest.approx((0.7975, 0.625))
    assert reliability([(1.0, 0.0), (1.0, 1.0)]) == reliability([]) == {}, "an endpoint does not say its confidence"
