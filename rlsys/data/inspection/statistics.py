"""The numbers of an annotation file: durations, spans, tokens and answers, printed and drawn."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rlsys.data.annotations.rows import AnnotationRow
from rlsys.data.video.budgets import MERGED
from rlsys.data.video.errors import ClipError
from rlsys.files import in_memory, write_output
from rlsys.types import Json, MediaSpec, PromptItem

QUANTILES = (0, 5, 25, 50, 75, 95, 100)
SHOWN_ANSWERS = 12
PLOT_SUFFIXES = (".png", ".pdf", ".svg")


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """The distributions of a file's clean rows.

    num_rows, num_dirty: of the file.  tasks: rows by task.  values: name of a quantity -> f64 [N], one value a row, a
    video or a span; a quantity that the file does not have is absent.  answers: number of rows by right letter or
    class, by task.  labels: number of rows by value, of labels with few values.
    """

    num_rows: int
    num_dirty: int
    tasks: Mapping[str, int]
    values: Mapping[str, np.ndarray]
    answers: Mapping[str, Mapping[str, int]]
    labels: Mapping[str, Mapping[str, int]]


def statistics_of(rows: Sequence[AnnotationRow], tokens: Sequence[int] = ()) -> Statistics:
    """Return the statistics of rows. tokens: visual tokens of each clip, as far as they are known."""
    clean = [row for row in rows if not row.problems]
    durations = {row.video: row.duration_s for row in clean if row.duration_s is not None}
    spans = [(span, row.duration_s) for row in clean for span in _spans(row)]
    placed = [((start + end) / 2 / length, (end - start) / length) for (start, end), length in spans if length]
    numbers = [row.truth for row in clean if row.task == "numeric_qa"]
    found = {
        "duration of a video, s": list(durations.values()),
        "length of a span, s": [end - start for (start, end), _ in spans],
        "length of a span, share of the video": [share for _, share in placed],
        "middle of a span, share of the video": [middle for middle, _ in placed],
        "words of a question": [len(row.question.split()) for row in clean],
        "rows of a video": list(Counter(row.video for row in clean).values()),
        "right number": numbers,
        "visual tokens of a clip": list(tokens),
    }
    answers: dict[str, Counter[str]] = {}
    for row in clean:
        answer = row.truth.get("answer") if isinstance(row.truth, Mapping) else row.truth
        if isinstance(answer, str):
            answers.setdefault(row.task, Counter())[answer] += 1
    names = sorted({name for row in clean for name in row.labels if name not in ("qid", "split")})
    labels = {name: Counter(str(row.labels[name]) for row in clean if name in row.labels) for name in names}
    return Statistics(
        num_rows=len(rows),
        num_dirty=len(rows) - len(clean),
        tasks=Counter(row.task for row in clean),
        values={name: np.asarray(values, np.float64) for name, values in found.items() if values},
        answers=answers,
        labels={name: values for name, values in labels.items() if len(values) <= 40},
    )


def statistics_lines(found: Statistics) -> Iterator[str]:
    """Yield the statistics as text: quantiles of each quantity, and counts of answers and labels."""
    tasks = ", ".join(f"{count} {task}" for task, count in sorted(found.tasks.items())) or "none"
    yield f"{found.num_rows} rows, {found.num_dirty} of them dirty and not counted below; tasks: {tasks}"
    width = max((len(name) for name in found.values), default=0)
    yield f"{'':{width}}  {'n':>7}  {'mean':>9}" + "".join(f"{f'{q} %':>9}" for q in QUANTILES)
    for name, values in found.values.items():
        quantiles = "".join(f"{value:9.4g}" for value in np.percentile(values, QUANTILES))
        yield f"{name:{width}}  {values.size:7d}  {values.mean():9.4g}{quantiles}"
    for title, groups in (("right answers of", found.answers), ("label", found.labels)):
        for name, counts in groups.items():
            total = sum(counts.values())
            most = sorted(counts.items(), key=lambda one: (-one[1], one[0]))
            shown = ", ".join(f"{value} {count} ({100 * count / total:.1f} %)" for value, count in most[:SHOWN_ANSWERS])
            yield f"{title} {name}: {shown}" + (", …" if len(most) > SHOWN_ANSWERS else "")


def draw(found: Statistics, path: Path) -> Path:
    """Write a figure with a panel for each quantity and for the answers of each task, and return its path."""
    from matplotlib.figure import Figure  # pyplot takes twice as long to import

    panels = len(found.values) + len(found.answers)
    columns = min(3, max(1, panels))
    rows = max(1, math.ceil(panels / columns))
    figure = Figure(figsize=(4.2 * columns, 3 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    axes = iter(grid.flat)
    for name, values in found.values.items():
        panel = next(axes)
        panel.hist(values, bins=min(50, max(5, values.size // 5)), color="tab:blue")
        panel.set_xlabel(name)
        panel.set_ylabel("number")
    for task, counts in found.answers.items():
        panel = next(axes)
        most = sorted(counts.items(), key=lambda one: (-one[1], one[0]))[:SHOWN_ANSWERS]
        panel.bar([_plain(value) for value, _ in most], [count for _, count in most], color="tab:green")
        panel.tick_params(axis="x", labelrotation=45 if any(len(value) > 4 for value, _ in most) else 0)
        panel.set_xlabel(f"right answers of {task}")
    for panel in axes:
        panel.set_visible(False)
    write_output(path, in_memory(lambda file: figure.savefig(file, format=path.suffix[1:], dpi=110)))
    return path


def _plain(text: str) -> str:
    return text[:24].replace("$", r"\$")  # which would begin a formula


def _spans(row: AnnotationRow) -> list[list[float]]:
    truth: Json = row.truth
    if row.task == "temporal_grounding":
        return [truth]
    if not isinstance(truth, Mapping):
        return []
    return [truth["period"]] if "period" in truth else list(truth.get("glue", ()))


def clip_tokens(
    items: Sequence[PromptItem], *, workers: int, track: Callable[[Sequence[Any]], Iterable[Any]] = lambda one: one
) -> list[int]:
    """Return the visual tokens of every row's media, from the headers of its files; rows whose files fail are skipped.

    workers: files opened at once.  track: passes a list through and shows how much of it is done.
    """
    specs = list(dict.fromkeys(spec for item in items for spec in item.media))
    with ThreadPoolExecutor(workers) as pool:
        futures = [pool.submit(_tokens, spec) for spec in specs]
        counts = dict(zip(specs, [future.result() for future in track(futures)], strict=True))
    return [sum(counts[spec] for spec in item.media) for item in items if all(counts[spec] for spec in item.media)]


def _tokens(spec: MediaSpec) -> int:
    from rlsys.data.video.decode import plan_grid

    try:
        return math.prod(plan_grid(spec)) // MERGED**2
    except ClipError:
        return 0
