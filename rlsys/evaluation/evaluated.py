"""A data set with the answers to its rows, and the figures that its protocols make of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from rlsys.config.data import Source
from rlsys.evaluation.answered import Answered
from rlsys.evaluation.answering.answers import Answer
from rlsys.evaluation.answering.modes import ModeName
from rlsys.evaluation.protocols.protocol import Protocol_
from rlsys.evaluation.protocols.table import PROTOCOLS, protocols_for
from rlsys.evaluation.protocols.weighted import ScoredRow
from rlsys.evaluation.rounds import rounds_of
from rlsys.evaluation.statistics.baselines import baselines
from rlsys.evaluation.statistics.bootstrap import intervals
from rlsys.evaluation.statistics.reliability import reliability
from rlsys.evaluation.statistics.samples import majority, pass_at_k
from rlsys.evaluation.statistics.slices import slices
from rlsys.types import Json, PromptItem

PASS_SCORE = 0.5
"""Row score from which a sample passes: a right answer, or an IoU of 0.5."""
THRESHOLDS = tuple(round(0.05 * step, 2) for step in range(1, 20))
"""IoU thresholds of the recall curves."""
CONTROLS: tuple[ModeName, ...] = ("other_video", "text_only")
MAX_LISTED = 200
"""Rows without an answer that the results list; all are in the files of answers."""


@dataclass(frozen=True, kw_only=True, eq=False)
class EvaluatedSet:
    """A data set with what was answered to its rows, by mode.

    source: its files and budgets.  digest: of its annotations.  num_rows: of its whole file.
    items: the rows that can be asked, by id.
    protocols: names of those that score it, () for those of its format.
    """

    name: str
    source: Source
    digest: str
    protocols: tuple[str, ...]
    num_rows: int
    items: Mapping[str, PromptItem]
    answered: Mapping[ModeName, Sequence[Answered]]
    answers: Mapping[ModeName, Mapping[str, Answer]]

    def tasks(self) -> list[str]:
        """Return the tasks of the rows, in the file's order."""
        return list(dict.fromkeys(row.task for row in self.answered["greedy"] if row.task))

    def metric_names(self) -> set[str]:
        """Return the names of all metrics that the set has by any of its protocols."""
        return {
            name
            for task in self.tasks()
            for protocol in self.protocols_of(task)
            for name in protocol.aggregate(scored(self.answered["greedy"], protocol))
        }

    def protocols_of(self, task: str) -> list[Protocol_]:
        """Return the protocols that score the rows of a task, the headline's first."""
        names = self.protocols or protocols_for(self.source.data.format, task)
        return [PROTOCOLS[name] for name in names if task in PROTOCOLS[name].tasks]


def results_of(one: EvaluatedSet, seed: int) -> dict[str, Json]:
    """Return the figures of a set as JSON; docs/evaluation.md describes the keys.

    seed: of the bootstrap.
    """
    greedy, answers = one.answered["greedy"], list(one.answers["greedy"].values())
    unanswered = [{"row": row.row_id, "reason": row.reason} for row in greedy if not row.texts]
    data = one.source.data
    return {
        "name": one.name,
        "format": data.format,
        "num_rows_of_file": one.num_rows,
        "num_rows": len(greedy),
        "num_unanswered": len(unanswered),
        "unanswered": unanswered[:MAX_LISTED],
        "setting": {}
        if not answers
        else {
            "frames": f"{data.fps:g} fps, {data.min_frames} to {data.max_frames}",
            "pixels": f"{data.min_pixels} to {data.max_pixels} a frame, {data.total_pixels} in all",
            "prompt": f"{data.prompt_style}, {'with' if data.think else 'without'} <think>",
            "decoding": "greedy",
        },
        "shown": _shown(answers),
        "tasks": {
            task: [_by_protocol(one, task, protocol, seed) for protocol in one.protocols_of(task)]
            for task in one.tasks()
        },
    }


def _shown(answers: Sequence[Answer]) -> dict[str, float]:
    """Return the means of what was shown and written, over the rows that were answered; {} without answers."""
    if not answers:
        return {}
    found = [answer for answer in answers if answer.texts]
    count = max(1, len(found))
    return {
        "prompt_tokens": sum(answer.prompt_tokens for answer in found) / count,
        "frames": sum(answer.num_frames for answer in found) / count,
        "frame_pixels": sum(answer.frame_pixels for answer in found) / count,
        "cut_off_frac": sum(answer.finish_reasons[0] == "length" for answer in found) / count,
    }


def scored(rows: Sequence[Answered], protocol: Protocol_) -> list[ScoredRow]:
    """Return the rows of the protocol's tasks whose truth can be read, with their scores by the first text."""
    return [(row, protocol.scored(row)) for row in rows if row.task in protocol.tasks and row.truth is not None]


def _by_protocol(one: EvaluatedSet, task: str, protocol: Protocol_, seed: int) -> dict[str, Json]:
    """Return the figures of one protocol on the rows of one task."""

    def rows_of(mode: ModeName) -> list[ScoredRow]:
        return [pair for pair in scored(one.answered.get(mode, ()), protocol) if pair[0].task == task]

    rows = rows_of("greedy")
    values = protocol.aggregate(rows)
    bounds = intervals(protocol, rows, seed=seed) if rows else {}
    controls: dict[str, list[ScoredRow]] = {name: found for name in CONTROLS if (found := rows_of(name))}
    bases = baselines([row for row, _ in rows], protocol, seed=seed)
    rounds = rounds_of(one.answered, one.answers, task, protocol)
    return {
        **({"rounds": rounds} if rounds else {}),
        "protocol": protocol.name,
        "source": protocol.source,
        "rule": protocol.rule,
        "primary": protocol.primary,
        "metrics": {name: _figure(value, bounds.get(name)) for name, value in values.items()},
        "sampled": _sampled(protocol, [row for row, _ in rows_of("sampled")]),
        "controls": {name: protocol.aggregate(found) for name, found in controls.items()},
        "controls_same_rows": dict(_on_same_rows(protocol, rows, controls)),
        "baselines": [{"name": base.name, "how": base.how, "metrics": dict(base.metrics)} for base in bases],
        "curves": _curves({"model": rows, **controls, **{base.name: base.rows for base in bases}}),
        "slices": _slices(protocol, rows, seed),
        "reliability": _reliability(protocol, rows, one.answers["greedy"]),
        "published": [asdict(figure) for figure in protocol.published],
    }


def _curves(sides: Mapping[str, Sequence[ScoredRow]]) -> dict[str, list[float]]:
    """Return the share of rows with an IoU of at least each of `THRESHOLDS`; {} for scores that are none."""
    columns = {name: [scores["iou"] for _, scores in rows if "iou" in scores] for name, rows in sides.items()}
    return {
        name: [sum(value >= threshold for value in values) / len(values) for threshold in THRESHOLDS]
        for name, values in columns.items()
        if values
    }


def _figure(value: float, bounds: tuple[float, float] | None) -> dict[str, float]:
    return {"value": value} if bounds is None else {"value": value, "low": bounds[0], "high": bounds[1]}


def _slices(protocol: Protocol_, rows: Sequence[ScoredRow], seed: int) -> dict[str, Json]:
    """Return the primary metric of each slice, by kind, with its number of rows."""
    found: dict[str, Json] = {}
    for kind, members in slices([row for row, _ in rows]).items():
        parts = {name: [rows[index] for index in indices] for name, indices in members.items()}
        found[kind] = {
            name: {
                "num_rows": len(part),
                **_figure(
                    protocol.aggregate(part).get(protocol.primary, math.nan),
                    intervals(protocol, part, seed=seed).get(protocol.primary),
                ),
            }
            for name, part in parts.items()
        }
    return found


def _reliability(protocol: Protocol_, rows: Sequence[ScoredRow], answers: Mapping[str, Answer]) -> dict[str, Json]:
    """Return the confidence of the answers against their scores; {} if no confidence is known."""
    return reliability(
        [
            (answers[row.row_id].confidence, scores[protocol.row_score])
            for row, scores in rows
            if row.row_id in answers and row.texts
        ]
    )


def _sampled(protocol: Protocol_, rows: Sequence[Answered]) -> dict[str, Json]:
    """Return figures over the samples: the mean, pass@k, and the metrics of the majority's answer; {} without samples.

    A sample passes with a row score of at least `PASS_SCORE`.
    """
    num_samples = min((len(row.texts) for row in rows if row.texts), default=0)
    if not num_samples:
        return {}
    scores = [[protocol.row_scores(row, text)[protocol.row_score] for text in row.texts[:num_samples]] for row in rows]
    passed = [sum(score >= PASS_SCORE for score in row) for row in scores]
    chosen = []
    for row in rows:
        index = majority([protocol.read(row, text) for text in row.texts[:num_samples]])
        chosen.append(replace(row, texts=(row.texts[index],) if index is not None else row.texts[:1]))
    first = [(row, protocol.scored(row)) for row in rows]
    return {
        "num_samples": num_samples,
        "first": protocol.aggregate(first),
        "mean_score": sum(sum(row) / num_samples for row in scores if row) / len(rows),
        "pass_at_k": {
            str(k): sum(pass_at_k(num_samples, count, k) for count in passed) / len(rows) for k in _powers(num_samples)
        },
        "majority": protocol.aggregate([(row, protocol.scored(row)) for row in chosen]),
    }


def _powers(most: int) -> list[int]:
    """Return 1, 2, 4, … up to `most`, and `most` itself."""
    return sorted({most, *(2**power for power in range(most.bit_length()) if 2**power <= most)})


def _on_same_rows(
    protocol: Protocol_, rows: Sequence[ScoredRow], controls: Mapping[str, Sequence[ScoredRow]]
) -> Iterator[tuple[str, dict[str, float]]]:
    """Yield each control's name with the model's own metrics on the rows of the control, which it is compared with."""
    for name, found in controls.items():
        ids = {row.row_id for row, _ in found}
        yield name, protocol.aggregate([pair for pair in rows if pair[0].row_id in ids])
