"""The plots of `benchmarks.learner`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import matplotlib
import numpy as np

matplotlib.use("Agg")

from matplotlib import pyplot  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402

Rows = Sequence[Mapping[str, Any]]
COLOURS = {"packed": "tab:blue", "padded": "tab:red", "floor": "tab:gray"}
FITTED = 3
"""Number of last points that an exponent is fitted to; before them fixed costs dominate."""


def unique_tokens(row: Mapping[str, Any]) -> int:
    """Return the number of tokens of the packed sequence."""
    return row["prompt_tokens"] + row["group_size"] * (row["response_tokens"] - 1)


def slope(part: Literal["frames", "groups"], rows: Rows, form: str) -> float:
    """Return the exponent of a form's seconds over the part's size, by least squares on the last points."""
    x = np.log([SIZES[part](row) for row in rows[-FITTED:]])
    y = np.log([row[f"{form}_s"] for row in rows[-FITTED:]])
    return float(np.polyfit(x, y, 1)[0])


SIZES: Mapping[str, Callable[[Mapping[str, Any]], float]] = {
    "frames": lambda row: row["frames"],
    "groups": lambda row: row["group_size"],
}


def plot_ratios(rows: Rows, path: Path) -> Path:
    """Plot the speed-up over padded, the distance from the floor, and memory over unique tokens; return `path`."""
    figure, (faster, floor, memory) = pyplot.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
    for group_size in sorted({row["group_size"] for row in rows}):
        of_group = [row for row in rows if row["group_size"] == group_size]
        ratios = [row["prompt_tokens"] / row["response_tokens"] for row in of_group]
        label = f"G = {group_size}"
        (line,) = faster.plot(ratios, [row["padded_s"] / row["packed_s"] for row in of_group], "o-", label=label)
        copies = [row["group_size"] * (row["prompt_tokens"] + row["response_tokens"] - 1) for row in of_group]
        saved = [copied / unique_tokens(row) for copied, row in zip(copies, of_group, strict=True)]
        faster.plot(ratios, saved, "--", color=line.get_color(), alpha=0.4)
        floor.plot(ratios, [row["packed_s"] / row["floor_s"] for row in of_group], "o-", label=label)
    faster.set_ylabel("padded / packed, seconds (dashed: tokens)")
    floor.set_ylabel("packed / floor, seconds")
    floor.axhline(1.0, color="black", linewidth=0.8)
    floor.set_ylim(bottom=0.8)
    for axes in (faster, floor):
        axes.set_xscale("log", base=2)
        axes.set_xlabel("prompt tokens / response tokens")
        axes.legend()
    for key, form in (("peak_mb", "packed"), ("padded_peak_mb", "padded")):
        memory.plot(
            [unique_tokens(row) for row in rows], [row[key] for row in rows], "o", color=COLOURS[form], label=form
        )
    memory.set_xlabel("unique tokens (prompt once, all responses)")
    memory.set_ylabel("peak memory of a step, MiB")
    memory.set_xscale("log", base=2)
    memory.set_yscale("log")
    memory.legend()
    return _save(figure, (faster, floor, memory), path)


def plot_growth(frames: Rows, groups: Rows, path: Path) -> Path:
    """Plot seconds of a step over frames and over G, on logarithmic axes with fitted exponents; return `path`."""
    figure, pair = pyplot.subplots(1, 2, figsize=(10, 3.8), layout="constrained", sharey=True)
    parts: tuple[tuple[Literal["frames", "groups"], Rows, str], ...] = (
        ("frames", frames, "frames of the clip"),
        ("groups", groups, "G, responses to the prompt"),
    )
    for axes, (part, rows, name) in zip(pair, parts, strict=True):
        sizes = [SIZES[part](row) for row in rows]
        for form, colour in COLOURS.items():
            label = f"{form}: exponent {slope(part, rows, form):.2f}"
            axes.plot(sizes, [row[f"{form}_s"] for row in rows], "o-", color=colour, label=label)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xlabel(name)
        axes.legend()
    pair[0].set_ylabel("seconds of a learner step")
    return _save(figure, pair, path)


def _save(figure: Any, all_axes: Sequence[Axes], path: Path) -> Path:  # noqa: ANN401
    for axes in all_axes:
        axes.grid(alpha=0.3, which="both")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
    return path
