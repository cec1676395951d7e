"""Each metric against a second computation on random cases, and metrics of rows worked out by hand."""

from __future__ import annotations

import json
import math
import random

import numpy as np
import pytest

from rlsys.evaluation.answered import Answered
from rlsys.evaluation.protocols.boxes import rect_ious
from rlsys.evaluation.protocols.numbers import mean_relative_accuracy
from rlsys.evaluation.protocols.spans import hull_iou, iou_and_iop
from rlsys.evaluation.protocols.table import PROTOCOLS, protocols_for
from rlsys.tasks.table import TASKS
from rlsys.types import Json
from tests.rlsys.evaluation.protocols.rows import answered, chosen, grounded
from tests.support.rounding import FLOAT64

NUM_CASES = 10_000


def cells(spans: list[tuple[int, int]], size: int = 64) -> np.ndarray:
    """Time cut into cells of one unit, and which of them the spans cover."""
    covered = np.zeros(size, dtype=bool)
    for start, end in spans:
        covered[start:end] = True
    return covered


def random_span(rng: random.Random) -> tuple[int, int]:
    start = rng.randrange(60)
    return start, rng.randrange(start + 1, 64)


def test_hull_iou_iop_and_the_iou_of_unions_equal_counts_of_cells() -> None:
    rng = random.Random(0)
    for _ in range(NUM_CASES):
        truth, ours = random_span(rng), random_span(rng)
        truth_cells, our_cells = cells([truth]), cells([ours])
        shared, covered = (truth_cells & our_cells).sum(), (truth_cells | our_cells).sum()
        # spans apart share nothing, so that the time between them does not matter
        assert hull_iou(ours, truth) == pytest.approx(shared / covered)
        iou, iop = iou_and_iop(truth, ours)
        assert max(iou, 0) == pytest.approx(shared / covered)
        assert max(iop, 0) == pytest.approx(shared / our_cells.sum())


def test_scores_of_grounded_questions_equal_counts_of_cells() -> None:
    rng = random.Random(1)
    for _ in range(NUM_CASES):
        truth = [random_span(rng) for _ in range(rng.randint(1, 3))]
        ours = [random_span(rng) for _ in range(rng.randint(0, 3))]
        right = float(rng.random() < 0.5)
        row = answered("grounded_qa", {"answer": "(B)", "glue": [list(span) for span in truth]})
        glue = "[" + ", ".join(f"({start}, {end})" for start, end in ours) + "]"
        text = f"<answer>({'B' if right else 'A'})</answer> <glue>{glue}</glue>"

        union = PROTOCOLS["nextgqa/paper"].row_scores(row, text)
        shared, covered = (cells(truth) & cells(ours)).sum(), (cells(truth) | cells(ours)).sum()
        assert union == pytest.approx({"iou": shared / covered, "correct": right, "read": 1})

        best = {"iou": 0.0, "iop": 0.0}
        if ours:
            hull = cells([(min(span[0] for span in ours), max(span[1] for span in ours))])
            for span in truth:
                one = cells([span])
                best["iou"] = max(best["iou"], (one & hull).sum() / (one | hull).sum())
                best["iop"] = max(best["iop"], (one & hull).sum() / hull.sum())
        grounded_too = right * float(best["iop"] >= 0.5)
        expected = {**best, "correct": right, "correct_and_grounded": grounded_too, "read": 1}
        assert PROTOCOLS["nextgqa/official"].row_scores(row, text) == pytest.approx(expected)


def pixels(box: list[int], size: int = 20) -> np.ndarray:
    covered = np.zeros((size, size), dtype=bool)
    x0, y0, x1, y1 = (min(max(value, 0), size) for value in box)
    covered[y0:y1, x0:x1] = True
    return covered


def random_box(rng: random.Random) -> list[int]:
    x0, y0 = rng.randrange(19), rng.randrange(19)
    return [x0, y0, rng.randrange(x0 + 1, 21), rng.randrange(y0 + 1, 21)]


def test_overlaps_of_boxes_equal_counts_of_pixels() -> None:
    rng = random.Random(2)
    for _ in range(NUM_CASES // 8):
        truth, ours = ([random_box(rng) for _ in range(8)] for _ in range(2))
        ious = []
        for true_box, box in zip(truth, ours, strict=True):
            shared = (pixels(true_box) & pixels(box)).sum()
            ious.append(shared / (pixels(true_box) | pixels(box)).sum())
        visible = [rng.random() < 0.7 for _ in truth]
        row = answered(
            "tracking",
            [[value / 20 for value in box] for box in truth],
            cover=" ".join("8" if seen else "0" for seen in visible),
        )
        text = f"<answer>{json.dumps([[value / 20 for value in box] for box in ours])}</answer>"
        assert PROTOCOLS["got10k/paper"].row_scores(row, text)["overlap"] == pytest.approx(np.mean(ious))
        seen_ious = [iou for iou, seen in zip(ious[1:], visible[1:], strict=True) if seen]
        scores = PROTOCOLS["got10k/toolkit"].row_scores(row, text)
        assert scores["num_frames"] == len(seen_ious)
        if seen_ious:
            assert scores["ao"] == pytest.approx(np.mean(seen_ious))
            for threshold in (0.5, 0.75):  # where rounding decides, neither count is wrong
                least, most = ((np.array(seen_ious) > threshold + slack).mean() for slack in (FLOAT64, -FLOAT64))
                assert least - FLOAT64 <= scores[f"sr_{threshold:g}"] <= most + FLOAT64


def test_the_toolkit_moves_a_box_that_begins_outside_the_frame_before_it_cuts_it() -> None:
    # left -0.2 with width 0.4 becomes left 0 with width 0.4, not 0.2
    assert rect_ious(np.array([[-0.2, 0, 0.2, 1]]), np.array([[0, 0, 0.4, 1.0]])) == pytest.approx([1.0])


def test_ao_counts_frames_of_all_videos_together_and_thresholds_are_strict() -> None:
    still = [0.0, 0.0, 0.5, 0.5]
    half = [0.0, 0.0, 0.5, 0.25]
    short = answered("tracking", [still] * 2, f"<answer>{[still] * 2}</answer>")
    long = answered("tracking", [still] * 4, f"<answer>{[still, half, half, half]}</answer>", row_id="f:1")
    toolkit = PROTOCOLS["got10k/toolkit"]
    got = toolkit.aggregate([(row, toolkit.scored(row)) for row in (short, long)])
    assert got["ao"] == pytest.approx((1 + 3 * 0.5) / 4)  # the first frame of each is left out
    assert got["sr_0.5"] == pytest.approx(1 / 4)  # 0.5 is not above 0.5


def test_mean_relative_accuracy_equals_a_count_of_tolerances() -> None:
    rng = random.Random(3)
    for _ in range(NUM_CASES):
        truth, value = rng.uniform(0.1, 30), rng.uniform(0, 40)
        error = abs(value - truth) / truth
        count = sum(error <= (100 - percent) / 100 for percent in range(50, 100, 5))
        assert mean_relative_accuracy(value, truth) == pytest.approx(count / 10)
    assert [mean_relative_accuracy(value, 0.0) for value in (0.0, 1.0)] == [1.0, 0.0]
    assert mean_relative_accuracy(math.nan, 3.0) == 0.0


def test_recall_counts_ious_at_or_above_the_threshold_and_unread_rows_count_as_wrong() -> None:
    texts = ["<answer>0 to 10</answer>", "<answer>0 to 5</answer>", "<answer>0 to 3</answer>", "no idea", ""]
    protocol = PROTOCOLS["charades_sta/paper"]
    rows = [grounded(0, 10, text, row_id=f"f:{number}") for number, text in enumerate(texts)]
    rows.append(grounded(0, 10, row_id="f:9"))
    got = protocol.aggregate([(row, protocol.scored(row)) for row in rows])
    expected = {"miou": 1.8 / 6, "r_at_0.3": 3 / 6, "r_at_0.5": 2 / 6, "r_at_0.7": 1 / 6, "read_frac": 3 / 6}
    assert {name: got[name] for name in expected} == pytest.approx(expected)
    assert (got["num_rows"], got["num_unanswered"], got["num_failed"]) == (6, 1, 0)


def test_the_truth_may_run_past_the_clip_and_an_empty_one_scores_nothing() -> None:
    protocol = PROTOCOLS["charades_sta/lmms"]
    past = grounded(20, 40, duration_s=30.0)
    assert protocol.row_scores(past, "20 - 30")["iou"] == pytest.approx(0.5)
    assert protocol.row_scores(grounded(5, 5), "0 - 10")["iou"] == 0.0
    assert protocol.row_scores(grounded(5, 5), "5 - 5")["iou"] == 0.0
    assert protocol.row_scores(answered("temporal_grounding", None), "0 - 10")["iou"] == 0.0


def test_vsi_bench_averages_the_levels_of_direction_first() -> None:
    kinds = [f"object_rel_direction_{level}" for level in ("easy", "medium", "hard")] + ["route_planning"]
    protocol = PROTOCOLS["vsi_bench"]
    rows = [
        chosen("A", "A" if right else "B", question_type=kind) for kind, right in zip(kinds, (1, 0, 0, 1), strict=True)
    ]
    rows.append(answered("numeric_qa", 10.0, "8.1", question_type="object_counting"))
    got = protocol.aggregate([(row, protocol.scored(row)) for row in rows])
    assert got["accuracy/object_rel_direction"] == pytest.approx(1 / 3)
    assert got["accuracy/object_counting"] == pytest.approx(0.7)  # 0.5, 0.45, ..., 0.2 allow an error of 0.19
    assert got["overall"] == pytest.approx((1 / 3 + 1 + 0.7) / 3)


def test_mvbench_averages_subtasks_and_gives_the_micro_average_beside() -> None:
    protocol = PROTOCOLS["mvbench"]
    rows = [chosen("A", text, subtask=name) for name, text in (("x", "A"), ("x", "A"), ("x", "B"), ("y", "B"))]
    got = protocol.aggregate([(row, protocol.scored(row)) for row in rows])
    assert got["accuracy"] == pytest.approx((2 / 3 + 0) / 2)
    assert got["micro"] == pytest.approx(2 / 4)


def test_video_mme_is_divided_by_duration_and_perception_test_by_area() -> None:
    protocol = PROTOCOLS["videomme/lmms"]
    rows = [chosen("A", "A", duration_s=60.0), chosen("A", "B", duration_s=700.0), chosen("A", "A", duration="long")]
    got = protocol.aggregate([(row, protocol.scored(row)) for row in rows])
    assert (got["accuracy/short"], got["accuracy/medium"], got["accuracy/long"]) == (1, 0, 1)
    perception = PROTOCOLS["perception_test"]
    areas = [chosen("A", "A", area="physics"), chosen("A", "B", area="memory")]
    by_area = perception.aggregate([(row, perception.scored(row)) for row in areas])
    assert (by_area["accuracy/physics"], by_area["accuracy/memory"], by_area["accuracy"]) == (1, 0, 0.5)


def test_r4d_bench_has_two_splits_and_nine_categories() -> None:
    protocol = PROTOCOLS["r4d_bench"]
    labelled = [("VG", "A"), ("Dimension Measurement", "B"), ("Speed & Acceleration", "A"), ("fp", "A"), ("C", "B")]
    rows = [chosen("A", text, category=name) for name, text in labelled]
    got = protocol.aggregate([(row, protocol.scored(row)) for row in rows])
    assert (got["accuracy"], got["accuracy/static"]) == (3 / 5, 1 / 2)
    assert got["accuracy/dynamic"] == pytest.approx(2 / 3)
    assert {name for name in got if name.startswith("accuracy/")} >= {f"accuracy/{name}" for name in ("VG", "DM", "SA")}


def judged(row_id: str, recall: list[bool | None], precision: list[bool | None] | None, subtask: str) -> Answered:
    def verdicts(listed: list[bool | None] | None) -> Json:
        return listed and [{"event": "e", "entailed": one, "reason": ""} for one in listed]

    return Answered(
        row_id=row_id,
        task="captioning",
        question="q",
        options=(),
        truth={"caption": "c"},
        labels={"subtask": subtask},
        texts=("a caption",),
        verdicts={"recall": verdicts(recall), "precision": [] if precision == [] else verdicts(precision)},
    )


def test_autodq_takes_f1_of_the_averages_over_subtasks_and_leaves_out_failed_rows() -> None:
    protocol = PROTOCOLS["dream1k/autodq"]
    rows = [
        judged("f:0", [True, False], [True], "film"),
        judged("f:1", [False, False], [False, False], "film"),
        judged("f:2", [True], [True, False], "stock"),
        judged("f:3", [True, None], [True], "stock"),  # the judge cannot tell: failed
        judged("f:4", [True], None, "stock"),  # no verdicts on its own events: failed
    ]
    got = protocol.aggregate([(row, protocol.scored(row)) for row in rows])
    recall, precision = (0.25 + 1) / 2, (0.5 + 0.5) / 2
    assert (got["recall"], got["precision"]) == pytest.approx((recall, precision))
    assert got["f1"] == pytest.approx(2 * recall * precision / (recall + precision))
    assert (got["num_failed"], got["num_rows"]) == (2, 5)
    assert got["f1/film"] == pytest.approx(2 * 0.25 * 0.5 / 0.75)


def test_autodq_counts_a_caption_without_events_as_precise_and_a_row_without_caption_as_wrong() -> None:
    protocol = PROTOCOLS["dream1k/autodq"]
    no_events = judged("f:0", [False], [], "film")
    assert protocol.scored(no_events)["precision"] == 1.0
    unanswered = answered("captioning", {"caption": "c"})
    assert protocol.scored(unanswered) == {"recall": 0, "precision": 0, "over_limit": 0, "read": 0}
    assert protocol.scored(judged("f:0", [True] * 11, [True], "film"))["over_limit"] == 1.0
    failed = protocol.aggregate([(row, protocol.scored(row)) for row in [judged("f:0", [None], [None], "film")]])
    assert math.isnan(failed["f1"])
    assert failed["num_failed"] == 1


TRUTHS: dict[str, Json] = {
    "temporal_grounding": [1.0, 2.0],
    "tracking": [[0.1, 0.1, 0.2, 0.2]] * 8,
    "spatial_grounding": {"box": [0.1, 0.1, 0.2, 0.2]},
    "spatiotemporal_grounding": {"period": [1.0, 2.0], "box": [0.1, 0.1, 0.2, 0.2]},
    "multiple_choice": "(A)",
    "grounded_qa": {"answer": "(A)", "glue": [[1.0, 2.0]]},
    "spatial_qa": {"answer": "(A)", "box": [0.1, 0.1, 0.2, 0.2]},
    "spatiotemporal_qa": {"answer": "(A)", "glue": [[1.0, 2.0]], "box": [0.1, 0.1, 0.2, 0.2]},
    "numeric_qa": 3.0,
    "video_quality": "low",
    "captioning": {"caption": "c"},
}
ODD_TEXTS = ["", " ", "?", "<answer>", "<answer></answer>", "nan", "inf", "９", "to" * 500, "((((" * 500, "A" * 2000]


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_protocol_scores_any_text_with_the_same_names_and_has_its_own_metrics(name: str) -> None:
    protocol = PROTOCOLS[name]
    for task in protocol.tasks:
        options = tuple(f"({letter}) {letter}" for letter in "ABCD") if task in ("multiple_choice",) else ()
        row = answered(task, TRUTHS[task], options=options)
        broken = answered(task, None, options=options)
        names = set(protocol.scored(row))
        scored = [(row, protocol.row_scores(one, text)) for one in (row, broken) for text in ODD_TEXTS]
        for _, scores in scored:
            assert set(scores) == names
            assert all(math.isnan(value) or 0 <= value <= 8 for value in scores.values())
        metrics = protocol.aggregate(scored[:1])
        assert {protocol.primary, "read_frac", "num_rows"} <= set(metrics)
        assert metrics[protocol.primary] == 0.0
    assert protocol.aggregate([]) == {"num_rows": 0.0}
    assert protocol.row_score in names


@pytest.mark.parametrize("name", [name for name in PROTOCOLS if PROTOCOLS[name].published])
def test_published_figures_are_fractions_of_metrics_that_the_protocol_can_have(name: str) -> None:
    for figure in PROTOCOLS[name].published:
        assert 0 <= figure.value <= 1
        assert figure.metric.partition("/")[0] in {"accuracy", "overlap", "miou", "f1", "precision", "recall"} or (
            figure.metric.startswith("r_at_")
        )
        assert figure.source


def test_a_few_published_figures() -> None:
    found = {(one.model, one.metric): one.value for one in PROTOCOLS["charades_sta/paper"].published}
    assert found["VideoChat-R1", "r_at_0.7"] == 0.502
    assert found["Qwen2.5-VL-7B", "miou"] == 0.29
    r4d = {(one.model, one.metric): one.value for one in PROTOCOLS["r4d_bench"].published}
    assert r4d["4D-RGPT-8B", "accuracy/SR"] == 0.522


def test_every_data_set_has_its_protocol_first_and_our_readings_last() -> None:
    assert protocols_for("charades_sta", "temporal_grounding")[:2] == ("charades_sta/paper", "charades_sta/lmms")
    assert protocols_for("NExT-GQA", "grounded_qa")[0] == "nextgqa/official"
    assert protocols_for("got10k_folder", "tracking")[0] == "got10k/toolkit"
    assert protocols_for("vsi_bench", "numeric_qa") == (
        "vsi_bench",
        "vsi_bench/lmms",
        "numeric_qa/strict",
        "numeric_qa/lenient",
    )
    assert protocols_for("mine", "quality") == tuple(f"video_quality/{one}" for one in ("paper", "strict", "lenient"))
    for task in TASKS:
        assert all(task in PROTOCOLS[name].tasks for name in protocols_for("mine", task))
    with pytest.raises(ValueError, match="unknown task 'dance'"):
        protocols_for("mine", "dance")
