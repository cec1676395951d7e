"""Reports of a finished run: a table of held-out metrics, and curves of reward and loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from rlsys.files import in_memory, write_whole

COLUMNS = {
    "miou": "mIoU",
    "r_at_0.3": "R@0.3",
    "r_at_0.5": "R@0.5",
    "r_at_0.7": "R@0.7",
    "box_iou": "box IoU",
    "accuracy": "accuracy",
    "recall": "recall",
    "format": "format",
    "reward": "reward",
}


def print_held_out_table(title: str, rows: Sequence[tuple[str, str, Mapping[str, float]]]) -> None:
    """Print held-out metrics as a table.

    rows: (stage, decoding, metrics). A metric that a row lacks is blank; a column that all rows lack is omitted.
    """
    columns = {key: heading for key, heading in COLUMNS.items() if any(key in metrics for _, _, metrics in rows)}
    table = Table(title=title, title_justify="left")
    table.add_column("stage")
    table.add_column("decoding")
    for heading in columns.values():
        table.add_column(heading, justify="right")
    for stage, decoding, metrics in rows:
        table.add_row(stage, decoding, *(f"{metrics[key]:.3f}" if key in metrics else "" for key in columns))
    Console().print(table)


def write_reward_curve(rewards: Sequence[float], path: Path, window: int = 10) -> Path:
    """Write a PNG of each step's mean reward with its running mean over `window` steps; return `path`."""
    return _write_curve(rewards, path, "mean reward of the step", "reward of sampled responses", window)


def write_loss_curve(losses: Sequence[float], path: Path, first_step: int = 1) -> Path:
    """Write a PNG of each step's supervised loss with its running mean; return `path`."""
    window = max(10, len(losses) // 20)
    return _write_curve(losses, path, "loss of the step", "negative log-likelihood per token", window, first_step)


def _write_curve(values: Sequence[float], path: Path, label: str, axis: str, window: int, first_step: int = 1) -> Path:
    from matplotlib.figure import Figure  # pyplot takes twice as long to import

    steps = np.arange(first_step, first_step + len(values))
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.subplots()
    axes.plot(steps, values, color="tab:blue", alpha=0.35, label=label)
    if len(values) >= window:
        smooth = np.convolve(values, np.ones(window) / window, mode="valid")
        axes.plot(steps[window - 1 :], smooth, color="tab:blue", label=f"mean of {window} steps")
    axes.set_xlabel("step")
    axes.set_ylabel(axis)
    axes.grid(alpha=0.3)
    axes.legend()
    write_whole(path, in_memory(lambda file: figure.savefig(file, format="png", dpi=150)))
    return path
