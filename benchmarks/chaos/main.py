"""Training on two nodes while processes are killed and stopped: `python -m benchmarks.chaos`.

Workload: synthetic clips, a randomly initialised Qwen2.5-VL of 0.7 M parameters, 4 prompts of 4 responses a step,
two rollout actors, two learner ranks, reward servers with a judge whose language model is a local stand-in.
It is run without kills, then with kills, and then at `max_lag` 1 with a third as many kills.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.chaos import scorer as chaos_scorer
from benchmarks.chaos.cluster import TwoNodes
from benchmarks.chaos.kills import ALL, Kill, by_kind, median_step_s, plan_kills, steps_for
from benchmarks.chaos.run import ChaosFailed, ChaosRun, Run, check_run, finish
from benchmarks.judged_step import draw_rows
from rlsys.config.run import RunConfig
from rlsys.demo.grounding import write_demonstrations
from rlsys.demo.synthetic import SyntheticSet, draw_dataset
from rlsys.demo.synthetic_tasks import demonstration_text
from rlsys.models.tiny import make_tiny
from rlsys.runs.records.checkpoint import find
from tests.support.judge_fault_server import FaultServer

SILENCE_S = 300.0  # for patience 1
NUM_LESSONS = 120
LESSONS = {
    "num_steps": NUM_LESSONS,
    "prompts_per_step": 16,
    "learning_rate": 2e-3,
    "warmup_steps": 10,
    "schedule": "cosine",
}
TASKS = ("temporal_grounding", "captioning", "multiple_choice")


def config(
    folder: Path, name: str, num_steps: int, *, patience: float = 1.0, **sections: dict[str, Any]
) -> dict[str, Any]:
    """Return the config of a small run in `folder/name` on `folder/tiny` and `folder/clips`.

    sections: merged into its own sections. Deadlines are just long enough that on two idle cores no healthy process
    counts as hung.  patience: factor of the deadlines.
    """
    clips = folder / "clips"
    own: dict[str, Any] = {
        "model": {"path": str(folder / "tiny"), "dtype": "float32", "max_model_len": 512},
        "data": {
            "annotations": str(clips / "annotations.json"),
            "videos": str(clips / "videos"),
            "prompt_style": "terse",
            "max_frames": 8,
            "min_pixels": 784,
            "max_pixels": 3136,
            "decode_timeout_s": 20.0 * patience,
            "cache_bytes": 1 << 20,  # a few clips: decoders have work in every step
        },
        "rollout": {
            "num_actors": 2,
            "group_size": 4,
            "max_tokens": 12,
            "max_num_seqs": 64,
            "timeout_s": 20.0 * patience,
            "start_timeout_s": 90.0 * patience,
        },
        "reward": {
            "timeout_s": 120.0 * patience,
            "scorers": {chaos_scorer.NAME: chaos_scorer.REFERENCE},
            "weights": {task: {chaos_scorer.NAME: 1.0} for task in TASKS},
        },
        "train": {"num_steps": num_steps, "prompts_per_step": 4, "learning_rate": 1e-3, "schedule": "constant"},
        "learner": {"num_ranks": 2, "timeout_s": 45.0 * patience, "max_restarts": 10},
        "checkpoint": {"every_steps": 2},
        "tracking": {"samples_per_step": 2, "log_model": False},
    }
    merged = {key: {**own.get(key, {}), **sections.get(key, {})} for key in own | sections}
    return {"seed": 3, "output_dir": str(folder / name), **merged}


def prepare(folder: Path, *, judged: bool) -> dict[str, dict[str, Any]]:
    """Write the model and clips into `folder`, and return the config sections that refer to them."""
    make_tiny(folder / "tiny", seed=0, words="all" if judged else "grounding")
    if not judged:
        draw_dataset(folder / "clips", num_clips=12, seed=5)
        return {}
    # captions are scored by the judge, choices by rule
    drawn = draw_rows(folder / "clips", 60, {"captioning", "multiple_choice"})
    return {
        "data": {"format": "vtts", "annotations": str(drawn.annotations)},
        "rollout": {"max_tokens": 40},
    }


def teach(folder: Path, sections: dict[str, dict[str, Any]], cluster: TwoNodes, patience: float) -> Path:
    """Train a model to answer mostly in the correct format, without which nothing is judged; return its folder."""
    lessons: dict[str, Any] = {"train": LESSONS, "rollout": {"max_tokens": 40}, "data": sections["data"]}
    settings = config(folder, "taught", NUM_LESSONS, patience=patience, **lessons)
    clips = SyntheticSet(annotations=Path(settings["data"]["annotations"]), videos=Path(settings["data"]["videos"]))
    settings["sft"] = {
        "responses": str(write_demonstrations(RunConfig.model_validate(settings), clips, demonstration_text))
    }
    taught = ChaosRun(cluster, settings, (), SILENCE_S * patience, command="sft").run()
    return find(taught.folder) / "model"


def measure(folder: Path, kills: Sequence[Kill], lag_kills: Sequence[Kill], patience: float) -> dict[str, Any]:
    """Run without and with kills, and return what was killed, what it cost, and the problems found at the end."""
    sections = prepare(folder, judged=True)
    with FaultServer() as endpoint, TwoNodes(folder / "nodes") as cluster:
        judge = {"urls": [endpoint.url], "cache_path": str(folder / "verdicts.sqlite")}
        sections["reward"] = {"judge": judge}
        sections["model"] = {"path": str(teach(folder, sections, cluster, patience))}
        num_steps = steps_for(kills or lag_kills)
        settings = config(folder, "quiet", num_steps, patience=patience, **sections)
        quiet = ChaosRun(cluster, settings, (), SILENCE_S * patience).run()
        median_s = median_step_s(quiet.step_times_s)
        problems = check_run(quiet, None, num_steps)
        results = {"median_step_s": median_s, "problems": problems, "quiet": report(quiet)}
        for name, chosen, max_lag, reference in (("killed", kills, 0, quiet), ("lagged", lag_kills, 1, None)):
            if not chosen:
                continue
            num_steps, pipeline = steps_for(chosen), {"max_lag": max_lag}
            settings = config(folder, name, num_steps, patience=patience, **sections, pipeline=pipeline)
            try:
                run = finish(ChaosRun(cluster, settings, chosen, SILENCE_S * patience).run(), cluster, median_s)
            except ChaosFailed as error:  # what the other run showed still counts
                problems.append(f"max_lag {max_lag}: {error}")
                continue
            problems += [f"max_lag {max_lag}: {problem}" for problem in check_run(run, reference, num_steps)]
            results[f"max_lag {max_lag}"] = report(run)
    return results


def report(run: Run) -> dict[str, Any]:
    """Return the results of a run as JSON values."""
    return {
        "steps": len(run.step_times_s),
        "wall_s": run.wall_s,
        "digest": run.digest,
        "driver_starts": run.starts,
        "by_kind": by_kind(run.deeds),
        "kills": [
            {**asdict(deed), "kill": {**asdict(deed.kill), "signal": deed.kill.signal.name}} for deed in run.deeds
        ],
    }


def show(results: dict[str, Any]) -> None:
    """Print a table for each run with kills."""
    console = Console()
    for name in ("max_lag 0", "max_lag 1"):
        if name not in results:
            continue
        run = results[name]
        done = sum(row["kills"] for row in run["by_kind"])
        table = Table(
            title=f"{name}: {done} kills in {run['steps']} steps, {run['wall_s']:.0f} s", title_justify="left"
        )
        for heading in ("victim", "signal", "kills", "recovered", "mean s lost", "most s lost"):
            table.add_column(heading, justify="left" if heading in ("victim", "signal") else "right")
        for row in run["by_kind"]:
            cells = (str(row["kills"]), str(row["recovered"]), f"{row['mean_lost_s']:.1f}", f"{row['max_lost_s']:.1f}")
            table.add_row(row["victim"], row["signal"], *cells)
        console.print(table)
    for problem in results["problems"]:
        console.print(f"PROBLEM: {problem}")
    console.print(f"median step {results['median_step_s']:.2f} s; problems: {len(results['problems'])}")


def main() -> None:
    """Run the benchmark; exit with code 1 if any problem was found."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=30, help="number of kills in the synchronous run; 0 skips it")
    parser.add_argument(
        "--lag-kills", type=int, default=10, help="number of kills in the run with max_lag 1; 0 skips it"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of victims and times")
    parser.add_argument("--patience", type=float, default=1.0, help="factor of all deadlines, for slow machines")
    parser.add_argument("--only", nargs="*", help="victims, such as actor:SIGKILL; every kind by default")
    parser.add_argument("--json", type=Path, help="JSON file for the results")
    parser.add_argument(
        "--folder", type=Path, help="folder for runs and logs, which is kept; by default a temporary one"
    )
    given = parser.parse_args()
    victims = [one for one in ALL if not given.only or f"{one[0]}:{one[1].name}" in given.only]
    kills = plan_kills(given.seed, list(islice(cycle(victims), given.kills)))
    lag_kills = plan_kills(given.seed + 1, list(islice(cycle(victims), given.lag_kills)))
    if not (kills or lag_kills):
        parser.error("--kills 0 --lag-kills 0: nothing to do.")
    folder = given.folder or Path(tempfile.mkdtemp(prefix="chaos-"))
    results = {"seed": given.seed, **measure(folder, kills, lag_kills, given.patience)}
    show(results)
    if given.json:
        given.json.write_text(json.dumps(results, indent=1) + "\n")
    if results["problems"]:
        sys.exit(1)
    if not given.folder:
        shutil.rmtree(folder, ignore_errors=True)
