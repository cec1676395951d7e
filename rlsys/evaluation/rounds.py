"""What each round of an evaluation gained and cost, as figures and as a plot."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from rlsys.config.evaluation import WINDOWS, Control
from rlsys.evaluation.answered import Answered
from rlsys.evaluation.answering.answers import Answer
from rlsys.evaluation.protocols.protocol import Protocol_
from rlsys.evaluation.protocols.weighted import ScoredRow
from rlsys.files import in_memory, write_whole
from rlsys.types import Json

MAX_LISTED = 50
"""Rows that a round made worse, of which results list the ones that lost most."""


EQUAL_TOKENS: Control = "one_round_equal_tokens"
AnsweredByMode = Mapping[str, Sequence[Answered]]


def round_names(answered: Mapping[str, object]) -> list[str]:
    """Return the modes of a set that are rounds, the first one first; [] if its rows were asked once."""
    return [name for number in range(1, len(answered) + 1) if (name := f"round_{number}") in answered]


def equal_tokens_name(number: int) -> str:
    """Return the mode of one round with the visual tokens of the first `number` rounds."""
    return f"{EQUAL_TOKENS}_{number}"


def rounds_of(
    answered: AnsweredByMode, answers: Mapping[str, Mapping[str, Answer]], task: str, protocol: Protocol_
) -> dict[str, Json]:
    """Return the figures of each round of the rows of one task, and of the controls; {} if there is one round.

    answered, answers: of a set, by mode, as in `EvaluatedSet`.
    Costs are means over the rows; a row that stopped before a round costs nothing in it.
    """
    names = round_names(answered)
    if not names:
        return {}
    controls = (*WINDOWS, *map(equal_tokens_name, range(2, len(names) + 1)))
    scored = {name: _rows(answered[name], task, protocol) for name in (*names, *controls) if name in answered}
    rounds: list[Json] = []
    before: Sequence[ScoredRow] = ()
    total = 0.0
    for number, name in enumerate(names, start=1):
        rows = scored[name]
        cost = _cost(answers[name], rows)
        total += cost["visual_tokens"]
        rounds.append(
            {
                "round": number,
                "metrics": protocol.aggregate(rows),
                **cost,
                "total_visual_tokens": total,
                **_changes(protocol, before, rows),
            }
        )
        before = rows
    return {"by_round": rounds, "controls": _controls(scored, answers, protocol)}


def _rows(answered: Sequence[Answered], task: str, protocol: Protocol_) -> list[ScoredRow]:
    return [(row, protocol.scored(row)) for row in answered if row.task == task and row.truth is not None]


def _cost(answers: Mapping[str, Answer], rows: Sequence[ScoredRow]) -> dict[str, float]:
    """Return means over the rows that have an answer, and how many of them were not asked or looked evenly."""
    found = [answer for row, _ in rows if (answer := answers.get(row.row_id)) is not None and answer.texts]
    count = max(1, len(found))
    looks = [answer.look or {} for answer in found]
    return {
        "visual_tokens": sum(look.get("visual_tokens", 0) for look in looks) / count,
        "frames": sum(answer.num_frames for answer in found) / count,
        "decode_s": sum(look.get("decode_s", 0.0) for look in looks) / count,
        "seconds": sum(answer.seconds for answer in found) / count,
        "num_stopped": sum(bool(look.get("stopped")) for look in looks),
        "num_without_clue": sum(bool(look.get("reason")) and not look.get("stopped") for look in looks),
    }


def _changes(protocol: Protocol_, before: Sequence[ScoredRow], rows: Sequence[ScoredRow]) -> dict[str, Json]:
    """Return how many rows scored better and worse than in the round before, and the worst of the latter."""
    known = {row.row_id: scores[protocol.row_score] for row, scores in before}
    moved = [
        (scores[protocol.row_score] - known[row.row_id], row.row_id, known[row.row_id], scores[protocol.row_score])
        for row, scores in rows
        if row.row_id in known and not math.isnan(scores[protocol.row_score] - known[row.row_id])
    ]
    worse = sorted(one for one in moved if one[0] < 0)
    return {
        "num_better": sum(one[0] > 0 for one in moved),
        "num_worse": len(worse),
        "worse": [{"row": row, "before": old, "after": new} for _, row, old, new in worse[:MAX_LISTED]],
    }


def _controls(
    scored: Mapping[str, Sequence[ScoredRow]], answers: Mapping[str, Mapping[str, Answer]], protocol: Protocol_
) -> dict[str, Json]:
    """Return the controls of rounds, each with the model's own rounds on the same rows."""
    found: dict[str, Json] = {}
    for name, rows in scored.items():
        is_window = name in WINDOWS
        if not rows or not (is_window or name.startswith(EQUAL_TOKENS)):
            continue
        number = 2 if is_window else int(name.rpartition("_")[2])
        ids = {row.row_id for row, _ in rows}
        own = {one: [pair for pair in scored[one] if pair[0].row_id in ids] for one in ("round_1", f"round_{number}")}
        cost = _cost(answers[name], rows)
        before = _cost(answers["round_1"], own["round_1"])["visual_tokens"] if is_window else 0.0
        found[name] = {
            "rounds": number,
            "metrics": protocol.aggregate(rows),
            **{key: cost[key] for key in ("frames", "visual_tokens", "decode_s", "seconds")},
            "total_visual_tokens": before + cost["visual_tokens"],
            "same_rows": {one: protocol.aggregate(pairs) for one, pairs in own.items()},
        }
    return found


def points_of(found: Mapping[str, Json]) -> dict[str, list[tuple[float, float]]]:
    """Return (total visual tokens, primary metric) of the rounds and of the controls, by name.

    found: the figures of a protocol, as `results_of` makes them.
    """
    primary = found["primary"]
    series = {"model": [_point(one, primary) for one in found["rounds"]["by_round"]]}
    for name, one in found["rounds"]["controls"].items():
        series.setdefault(control_title(name), []).append(_point(one, primary))
    return series


def control_title(name: str) -> str:
    """Return the name of a control of rounds in words, the same for any number of rounds."""
    return "one round, equal tokens" if name.startswith(EQUAL_TOKENS) else name.replace("_", " ")


def _point(one: Mapping[str, Json], primary: str) -> tuple[float, float]:
    return one["total_visual_tokens"], one["metrics"].get(primary, math.nan)


def write_rounds_curve(path: Path, title: str, found: Mapping[str, Json]) -> Path:
    """Write a PNG of the primary metric against the visual tokens of all rounds so far; return `path`."""
    from matplotlib.figure import Figure  # pyplot takes twice as long to import

    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.subplots()
    for name, points in points_of(found).items():
        axes.plot(*zip(*points, strict=True), marker="o" if len(points) > 1 else "x", label=name)
    axes.set_title(title)
    axes.set_xlabel("visual tokens a row, all rounds so far")
    axes.set_ylabel(found["primary"])
    axes.grid(alpha=0.3)
    axes.legend()
    write_whole(path, in_memory(lambda file: figure.savefig(file, format="png", dpi=150)))
    return path
