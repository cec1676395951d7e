"""`rlsys demo --tasks all`: one small model learns five tasks at once, scored by reward servers.

Synthetic clips have one question per task (grounding, tracking, grounded QA, multiple choice, captioning); captions are
scored by the embedding judge. As in `rlsys.demo.grounding`, GRPO follows a cold start on partly malformed
demonstrations.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from rlsys.clock import Clock
from rlsys.demo.grounding import demo_config, set_aside, sft_config, with_model, write_demonstrations
from rlsys.demo.synthetic_tasks import ROWS, demonstration_text, draw_mixture
from rlsys.evaluation.runner import evaluate, with_shuffled_videos
from rlsys.models.families.table import DEFAULT, FamilyName
from rlsys.models.tiny import make_tiny
from rlsys.runs.assemble import open_stack
from rlsys.runs.inputs.items import held_out_items
from rlsys.runs.run import held_out_rows, write_summary
from rlsys.runs.sft import sft
from rlsys.runs.train import train
from rlsys.tracking.tracker import Tracker

log = logging.getLogger(__name__)

NUM_CLIPS = {"cold_start": 1000, "grpo": 400, "held_out": 100}
MEASURES = {
    "temporal_grounding": ("miou", "mIoU"),
    "tracking": ("miou", "mIoU"),
    "multiple_choice": ("accuracy", "accuracy"),
    "grounded_qa": ("miou", "mIoU"),
    "captioning": ("recall", "recall"),
}
"""Task -> (key, label) of its main held-out metric."""
Results = Mapping[str, Mapping[str, Mapping[str, float]]]


def run_demo_all_tasks(out: Path, seed: int, family: FamilyName = DEFAULT) -> dict[str, Any]:
    """Run the whole demonstration in folder `out` and return the content of its `summary.json`."""
    set_aside(out)
    clock = Clock()
    with clock("total"):
        with clock("draw_clips"):
            clips = {
                name: draw_mixture(out / "data" / name, num_clips=count, seed=1000 * seed + 500 + index)
                for index, (name, count) in enumerate(NUM_CLIPS.items())
            }
        log.info("generated %s clips in %s", " + ".join(map(str, NUM_CLIPS.values())), out / "data")
        make_tiny(out / "models" / "untrained", seed=seed, words="all", family=family)
        config = demo_config("demo_all_tasks.yaml", out, seed, clips)
        with clock("start"):
            opened = open_stack(config, frozenset(ROWS))
        with opened as stack:
            with clock("cold_start"):
                lessons = clips["cold_start"]
                responses = write_demonstrations(config, lessons, demonstration_text)
                stage = sft_config("demo_all_tasks_cold_start.yaml", config, lessons, responses, config.model.path)
                cold_start = sft(stage, stack=stack)
            with clock("train"):
                summary = train(with_model(config, cold_start.model), stack=stack)
            with clock("evaluate_controls"):
                shuffled = evaluate(stack.producer, with_shuffled_videos(held_out_items(config)), config)
    results = {
        "cold_start": summary.held_out["before"],
        "grpo": summary.held_out["after"],
        "shuffled_video": shuffled,
    }
    whole = {**asdict(summary), "seconds": {**summary.seconds, **clock.seconds}, "held_out": results}
    with Tracker(config, run_id=summary.mlflow_run_id) as tracker:
        tracker.log_table("demo", held_out_rows(results))
        write_summary(out / "summary.json", whole)
        tracker.log_artifact(out / "summary.json")
    print_table(f"Held-out clips by task, seed {seed}", results, tuple(ROWS))
    for line in verdict(results, tuple(ROWS)):
        log.info(line)
    log.info(
        "%.0f s in all; MLflow run %s; open it with: %s", clock.seconds["total"], tracker.run_id, tracker.how_to_open
    )
    return whole


def print_table(title: str, results: Results, tasks: Sequence[str]) -> None:
    """Print a table by task and stage: main metric of sampled and greedy answers, format rate, reward."""
    names = {"cold_start": "cold start", "grpo": "GRPO", "shuffled_video": "other video"}
    table = Table(title=title, title_justify="left")
    for heading in ("task", "stage"):
        table.add_column(heading, no_wrap=True)
    for heading in ("sampled", "greedy", "format", "reward"):
        table.add_column(heading, justify="right")
    for task in tasks:
        key, measure = MEASURES[task]
        for label, stage in zip((task, f"  {measure}", ""), results, strict=True):
            sampled, greedy = (results[stage][f"{decoding}/{task}"] for decoding in ("sampled", "greedy"))
            cells = (
                f"{sampled[key]:.3f}",
                f"{greedy[key]:.3f}",
                f"{sampled['format']:.0%}",
                f"{sampled['reward']:.3f}",
            )
            table.add_row(label, names[stage], *cells)
        table.add_section()
    Console().print(table)


def verdict(results: Results, tasks: Sequence[str]) -> list[str]:
    """Return sentences on how GRPO changed each task's reward and whether the answers depend on the video."""
    lines = []
    for task in tasks:
        before, after, shuffled = (
            results[stage][f"sampled/{task}"] for stage in ("cold_start", "grpo", "shuffled_video")
        )
        lines.append(
            f"{task}: reward {before['reward']:.3f} -> {after['reward']:.3f} (sampled), format rate "
            f"{before['format']:.0%} -> {after['format']:.0%}; reward with another clip's video "
            f"{shuffled['reward']:.3f}"
        )
    improved = [
        task
        for task in tasks
        if results["grpo"][f"sampled/{task}"]["reward"] > results["cold_start"][f"sampled/{task}"]["reward"]
    ]
    others = sorted(set(tasks) - set(improved))
    lines.append(
        f"GRPO raised the reward of {len(improved)} of {len(tasks)} tasks"
        + (f", but not of {', '.join(others)}" if others else "")
    )
    return lines
