"""Answers that never look at a video."""

from __future__ import annotations

import random

import numpy as np
import pytest

from rlsys.evaluation.protocols.table import PROTOCOLS
from rlsys.evaluation.statistics.baselines import Baseline, baselines
from rlsys.evaluation.statistics.constant_interval import best_interval
from tests.rlsys.evaluation.protocols.rows import answered, chosen, grounded


def by_name(found: list[Baseline]) -> dict[str, Baseline]:
    return {baseline.name: baseline for baseline in found}


@pytest.mark.parametrize("seed", range(40))
def test_the_constant_interval_is_the_best_of_the_whole_grid(seed: int) -> None:
    generator = np.random.default_rng(seed)
    size = int(generator.integers(1, 12))
    starts = generator.uniform(0, 10, size)
    ends = starts + generator.uniform(0.05, 8, size)
    if seed % 2:  # on the grid, where ties are common
        starts = np.round(starts * 4) / 4
        ends = starts + np.maximum(np.round(ends * 4) / 4 - starts, 0.25)
    grid = np.arange(0.0, ends.max() + 0.25, 0.25)
    start, end = (values.ravel() for values in np.meshgrid(grid, grid, indexing="ij"))
    start, end = start[start < end], end[start < end]
    shared = np.minimum(end[:, None], ends) - np.maximum(start[:, None], starts)
    covered = np.maximum(end[:, None], ends) - np.minimum(start[:, None], starts)
    means = (np.clip(shared, 0, None) / covered).mean(axis=1)
    first = np.flatnonzero(means >= means.max() - 1e-12)[0]

    got_start, got_end, ious = best_interval(starts, ends, 0.25)
    assert (got_start, got_end) == (start[first], end[first])
    assert ious.mean() == pytest.approx(means.max())


def test_a_constant_interval_needs_a_span() -> None:
    with pytest.raises(ValueError, match="no spans"):
        best_interval(np.zeros(0), np.zeros(0), 0.25)


def test_baselines_of_temporal_grounding() -> None:
    # every truth is the second half of its video, which parts of the duration can say and seconds cannot
    rows = [grounded(at, 2 * at, row_id=f"f:{at}", duration_s=2.0 * at) for at in range(5, 60)]
    rows.append(answered("temporal_grounding", None, row_id="f:broken"))
    for name in ("charades_sta/paper", "charades_sta/lmms", "timelens/lmms", "temporal_grounding/strict"):
        found = by_name(baselines(rows, PROTOCOLS[name]))
        assert set(found) == {"constant_interval", "constant_fraction", "random"}
        assert found["constant_fraction"].metrics["r_at_0.7"] == pytest.approx(55 / 56)
        assert 0.2 < found["constant_interval"].metrics["miou"] < 0.8
        assert 0 < found["random"].metrics["miou"] < 0.5
        assert "known" in found["constant_interval"].how


def test_a_random_interval_agrees_with_a_simulation_of_another_kind() -> None:
    rows = [grounded(3, 9, row_id=f"f:{at}", duration_s=12.0) for at in range(300)]
    got = by_name(baselines(rows, PROTOCOLS["charades_sta/paper"]))["random"].metrics["miou"]
    rng, ious = random.Random(0), []
    for _ in range(20_000):
        start, end = sorted((rng.uniform(0, 12), rng.uniform(0, 12)))
        shared = max(0.0, min(end, 9) - max(start, 3))
        ious.append(shared / (end - start + 6 - shared))
    assert got == pytest.approx(np.mean(ious), abs=0.02)


@pytest.mark.parametrize(
    "name",
    [
        "videomme/vlmevalkit",
        "videomme/lmms",
        "mvbench",
        "mvbench/lmms",
        "perception_test",
        "r4d_bench",
        "vsi_bench",
        "multiple_choice/strict",
        "multiple_choice/lenient",
    ],
)
def test_baselines_of_multiple_choice_are_read_by_every_protocol(name: str) -> None:
    rows = [chosen(letter, row_id=f"f:{at}") for at, letter in enumerate("BBBAC")]
    protocol = PROTOCOLS[name]
    found = by_name(baselines(rows, protocol))
    assert found["most_frequent"].metrics[protocol.primary] == pytest.approx(3 / 5)
    assert found["random"].metrics[protocol.primary] == pytest.approx(1 / 4)
    assert all(row.texts for row, _ in found["most_frequent"].rows)


def test_baselines_of_grounded_questions_join_the_letter_and_the_interval() -> None:
    options = ("(A) a", "(B) b")
    rows = [
        answered(
            "grounded_qa", {"answer": "(B)", "glue": [[2.0, 6.0]]}, row_id=f"f:{at}", options=options, duration_s=10.0
        )
        for at in range(4)
    ]
    found = by_name(baselines(rows, PROTOCOLS["nextgqa/official"]))
    assert found["constant_interval"].metrics["acc_gqa"] == 1.0
    assert found["constant_interval"].rows[0][0].texts == ("<answer>(B)</answer> <glue>[(2.00, 6.00)]</glue>",)
    assert found["most_frequent"].metrics["acc_qa"] == 1.0
    assert found["most_frequent"].metrics["miou"] == 0.0
    assert 0 < found["random"].metrics["acc_qa"] < 1


def test_baselines_of_tracking_classes_and_numbers() -> None:
    box = [0.1, 0.1, 0.3, 0.3]
    tracked = [answered("tracking", [box] * 8)]
    found = by_name(baselines(tracked, PROTOCOLS["got10k/paper"]))
    assert found["still_box"].metrics["overlap"] == pytest.approx(1.0)
    assert 0 < found["random"].metrics["overlap"] < 0.5

    quality = [answered("video_quality", name, row_id=f"f:{at}") for at, name in enumerate(("low", "low", "high"))]
    assert by_name(baselines(quality, PROTOCOLS["vidtab"]))["most_frequent"].metrics["accuracy"] == pytest.approx(2 / 3)

    counted = [
        answered("numeric_qa", truth, row_id=f"f:{at}", question_type=kind)
        for at, (truth, kind) in enumerate([(2.0, "count"), (2.0, "count"), (4.0, "count"), (30.0, "size")])
    ]
    got = by_name(baselines(counted, PROTOCOLS["vsi_bench"]))["most_frequent"]
    assert got.how == "always 2 for count, 30 for size"
    assert got.metrics["accuracy/size"] == 1.0


def test_captions_and_no_rows_have_no_baseline() -> None:
    assert baselines([], PROTOCOLS["charades_sta/paper"]) == []
    assert baselines([answered("captioning", {"caption": "c"})], PROTOCOLS["dream1k/autodq"]) == []
