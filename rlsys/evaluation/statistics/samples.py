"""Several samples of one row: pass@k, and the sample that a majority of them agrees with."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence

from rlsys.tasks.geometry import mean_box_iou, spans_iou
from rlsys.types import Json


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Return the unbiased estimate of the probability that one of k samples is correct.

    It is 1 - C(n - c, k) / C(n, k), the share of sets of k of the n samples that hold a correct one.
    Raises ValueError unless 1 <= k <= n and 0 <= c <= n. Source: Chen et al., arXiv:2107.03374, eq. 1.
    """
    if not 1 <= k <= num_samples or not 0 <= num_correct <= num_samples:
        raise ValueError(f"pass@{k} of {num_samples} samples, {num_correct} correct: k needs at least k samples.")
    missed = 1.0
    for number in range(num_samples - num_correct + 1, num_samples + 1):
        missed *= 1.0 - k / number
    return 1.0 - max(missed, 0.0)


def majority(values: Sequence[Json]) -> int | None:
    """Return the index of the sample that stands for all; None if none of them holds an answer.

    values: what a protocol read from each sample, None where it read nothing, which has no vote.
    Letters, words and numbers: the most frequent value. Time spans and boxes: the medoid, the sample with the highest
    mean IoU with the others; equal answers strengthen each other and an outlier is never chosen. Values by block: the
    first block decides, the next ones among the samples that agree on it. Of equals the first sample counts.
    """
    votes = [index for index, value in enumerate(values) if value is not None]
    if not votes:
        return None
    if all(isinstance(values[index], Mapping) for index in votes):
        for block in dict.fromkeys(name for index in votes for name in values[index]):
            winner = majority([values[index].get(block) for index in votes])
            if winner is not None:
                chosen = values[votes[winner]].get(block)
                votes = [
                    votes[winner],
                    *(one for one in votes if one != votes[winner] and values[one].get(block) == chosen),
                ]
        return votes[0]
    chosen = [values[index] for index in votes]
    similarity = _similarity(chosen)
    return votes[_most_frequent(chosen) if similarity is None else _medoid(chosen, similarity)]


def _most_frequent(values: Sequence[Hashable]) -> int:
    counts: dict[Hashable, int] = {}
    for value in values:
        counts[value] = counts.get(value, 0) + 1
    return values.index(max(counts, key=lambda value: counts[value]))


def _similarity(values: Sequence[Json]) -> Callable[[Json, Json], float] | None:
    """Return the IoU that fits lists of spans or of boxes; None for values that are equal or not."""
    widths = {len(member) for value in values if isinstance(value, tuple) for member in value}
    if widths == {2}:
        return _spans_iou
    return _boxes_iou if widths == {4} else None


def _spans_iou(first: Json, second: Json) -> float:
    return spans_iou(first, second) if second and all(start < end for start, end in second) else float(first == second)


def _boxes_iou(first: Json, second: Json) -> float:
    has_area = all(x0 < x1 and y0 < y1 for x0, y0, x1, y1 in second)
    return mean_box_iou(first, second) if second and has_area else float(first == second)


def _medoid(values: Sequence[Json], similarity: Callable[[Json, Json], float]) -> int:
    means = [
        sum(similarity(other, value) for at, other in enumerate(values) if at != index)
        for index, value in enumerate(values)
    ]
    return means.index(max(means))
