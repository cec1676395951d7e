"""Step times of the real loop in virtual time, by the judge's latency, the number of actors, and faults.

    python -m benchmarks.simulation --plot-dir docs --json simulate.json

Needs no Ray, no model and no accelerator. Every figure's assumptions are the constants below.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from benchmarks.simulation.simulation import Report, balanced, divisions, simulate
from benchmarks.simulation.system import Faults, Phases, System

LAGS = (0, 1, 2)
JUDGE_S = (0.1, 1.0, 3.0, 5.0, 10.0, 15.0, 20.0, 30.0)
ACTORS = (8, 16, 24, 32, 48, 64, 96, 128)
NUM_STEPS = 12
FAULT_STEPS = 24

LARGE = System(num_actors=64, num_ranks=8, prompts_per_step=128, decode_workers=64, checkpoint_every=5)
"""Two rounds of groups for the actors in each step, 16 groups for each rank."""
EVEN = Phases(generate_s=10, score_s=3, update_s=0.6, optimizer_s=0.4, sync_s=0.5)
"""Equal groups: per step, generation takes 20 s and learning 10 s."""
UNEVEN = replace(
    EVEN, decode_s=1, generate_spread=0.4, straggler_frac=0.02, straggler_times=4, score_spread=0.5, update_spread=0.3
)
"""Long-tailed response lengths and judge latencies, and one group in fifty that takes four times as long."""
FAULTS = Faults(
    unscored_frac=0.02,
    bad_clip_frac=0.01,
    flat_frac=0.1,
    lost_frac=0.002,
    restart_s=60,
    hung_frac=0.0005,
    hung_s=300,
)
LEARNER_FAULTS = replace(FAULTS, learner_lost_frac=0.05, learner_restart_s=60)

WAYS: tuple[Literal["pause", "keep", "abort"], ...] = ("pause", "keep", "abort")
"""Values of `pipeline.weight_update`."""
COLUMNS = (
    "what",
    "max_lag",
    "step, s (p95)",
    "longest phase, s",
    "capacity, s",
    "actors busy",
    "learner busy",
    "lag, mean (max)",
    "lost: actors, learners",
)
Rows = list[dict[str, Any]]


def _row(part: str, what: str, lag: int, report: Report) -> dict[str, Any]:
    return {"part": part, "what": what, "max_lag_allowed": lag, "floor_s": report.floor_s, **asdict(report)}


def against_judge() -> Iterator[dict[str, Any]]:
    """Equal groups and no faults: what the judge's latency costs."""
    for lag in LAGS:
        for judge_s in JUDGE_S:
            report = simulate(replace(LARGE, max_lag=lag), replace(EVEN, score_s=judge_s), num_steps=NUM_STEPS)
            yield _row("judge", f"{judge_s:g}", lag, report)


def against_actors() -> Iterator[dict[str, Any]]:
    """Equal groups and no faults: what more actors bring."""
    for lag in LAGS:
        for count in ACTORS:
            report = simulate(replace(LARGE, max_lag=lag, num_actors=count), EVEN, num_steps=NUM_STEPS)
            yield _row("actors", f"{count}", lag, report)


def against_decoding() -> Iterator[dict[str, Any]]:
    """Equal groups: decoding, seconds a clip, with 16 decoders for a step's 128 clips, and so many decoded ahead."""
    for lag in (0, 1):
        for decode_s in (0.0, 0.5, 1.0, 2.0):
            for ahead in (0, 16, 128):
                system = replace(LARGE, max_lag=lag, decode_workers=16, decode_ahead=ahead)
                report = simulate(system, replace(EVEN, decode_s=decode_s), num_steps=NUM_STEPS)
                yield _row("decoding", f"{decode_s:g} s, {ahead} ahead", lag, report)


def under_faults() -> Iterator[dict[str, Any]]:
    """Stragglers, failed scores, unusable clips, flat groups that are replaced, actors that die or hang; pause."""
    for lag in LAGS:
        for judge_s in (0.1, 3.0, 30.0):
            yield _under(FAULTS, "faults", lag, judge_s)


def under_learner_faults() -> Iterator[dict[str, Any]]:
    """The same, and a learner that is lost in one update of twenty and resumes from the last of every 5 steps."""
    for lag in LAGS:
        for judge_s in (0.1, 3.0, 30.0):
            yield _under(LEARNER_FAULTS, "learner_faults", lag, judge_s)


def _under(faults: Faults, part: str, lag: int, judge_s: float) -> dict[str, Any]:
    system = replace(LARGE, max_lag=lag, max_extra_groups=32, judge_slots=256)
    report = simulate(system, replace(UNEVEN, score_s=judge_s), faults, num_steps=FAULT_STEPS)
    return _row(part, f"judge {judge_s:g} s", lag, report)


def ways_of_updating() -> Iterator[dict[str, Any]]:
    """Stragglers without faults: what a new version does to groups that run."""
    for way in WAYS:
        for lag in LAGS:
            report = simulate(replace(LARGE, max_lag=lag, weight_update=way), UNEVEN, num_steps=20)
            yield _row("ways", way, lag, report)


def of_divisions() -> Iterator[dict[str, Any]]:
    """72 devices, split between actors and learner."""
    found = list(divisions(replace(LARGE, max_lag=1), EVEN, num_devices=72, num_steps=8))
    best = balanced(found)
    for one in found:
        mark = " (balanced)" if one is best else ""
        yield _row("division", f"{one.num_actors} actors : {one.num_ranks} ranks{mark}", 1, one.report)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the rows as a Markdown table."""
    lines = [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    lines += [
        f"| {row['what']} | {row['max_lag_allowed']} | {row['step_s']:.1f} ({row['step_p95_s']:.1f}) | "
        f"{row['floor_s']:.1f} | {row['capacity_s']:.1f} | {row['actors_busy']:.0%} | {row['learner_busy']:.0%} | "
        f"{row['mean_lag']:.2f} ({row['max_lag']}) | {row['actors_lost']}, {row['learners_lost']} |"
        for row in rows
    ]
    return "\n".join(lines)


def plot(rows: Sequence[dict[str, Any]], part: str, label: str, path: Path) -> None:
    """Plot step times by lag, with the longest phase as a dashed line."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 3.6), dpi=90)
    chosen = [row for row in rows if row["part"] == part]
    for lag in LAGS:
        points = [row for row in chosen if row["max_lag_allowed"] == lag]
        places, steps = [float(row["what"]) for row in points], [row["step_s"] for row in points]
        # where lines lie on each other, the lower one shows at both sides of the upper one
        axes.plot(places, steps, "o-", label=f"max_lag {lag}", linewidth=5 - 1.7 * lag, markersize=9 - 2.5 * lag)
    points = [row for row in chosen if row["max_lag_allowed"] == LAGS[0]]
    floors = [row["floor_s"] for row in points]
    axes.plot([float(row["what"]) for row in points], floors, "k--", linewidth=1, label="longest phase")
    axes.set(xlabel=label, ylabel="step, s (simulated)", ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)


def main(
    json_file: Annotated[Path | None, typer.Option("--json", help="JSON file for the results.")] = None,
    plot_dir: Annotated[Path | None, typer.Option(help="Folder for the plots.")] = None,
) -> None:
    """Print tables, and write numbers and plots on request."""
    rows: Rows = []
    parts = (against_judge, against_actors, against_decoding, under_faults, under_learner_faults, ways_of_updating)
    for part in (*parts, of_divisions):
        found = list(part())
        rows += found
        typer.echo(f"\n{(part.__doc__ or '').strip()}\n\n{table(found)}")
    if json_file:
        json_file.write_text(json.dumps(rows, indent=1) + "\n")
    if plot_dir:
        plot_dir.mkdir(parents=True, exist_ok=True)
        plot(rows, "judge", "judge latency of a group, s", plot_dir / "simulated_judge_latency.png")
        plot(rows, "actors", "actors", plot_dir / "simulated_actors.png")
