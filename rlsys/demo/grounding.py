"""`rlsys demo`: prepare inputs, train as `rlsys train` does, and show what GRPO improved.

A tiny model gets a supervised cold start on generated clips with partly malformed demonstrations, and GRPO trains
it through the whole stack. As a control, the cold start is continued with more supervised
steps.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from rlsys.clock import Clock
from rlsys.config import bundled
from rlsys.config.run import RunConfig, load
from rlsys.data.annotations.responses import write_responses
from rlsys.demo.synthetic import SyntheticSet, demonstration_text, draw_dataset
from rlsys.evaluation.metrics import best_constant_interval, iou_metrics
from rlsys.evaluation.report import print_held_out_table
from rlsys.evaluation.runner import evaluate, with_shuffled_videos
from rlsys.models.families.table import DEFAULT, FamilyName
from rlsys.models.tiny import make_tiny
from rlsys.runs.assemble import Stack, open_stack
from rlsys.runs.inputs.items import held_out_items, load_items
from rlsys.runs.run import Summary, held_out_rows, write_summary
from rlsys.runs.sft import sft
from rlsys.runs.train import train
from rlsys.tracking.store_address import sqlite_uri
from rlsys.tracking.tracker import Tracker
from rlsys.types import PromptItem

log = logging.getLogger(__name__)

NUM_CLIPS = {"cold_start": 1000, "grpo": 600, "held_out": 200}
MALFORMED_FRAC = 0.25
STEP_PHASES = ("collect", "update", "sync", "record")
"""Phases whose seconds add up to those of the GRPO steps, without evaluations and checkpoints."""
SFT_STAGES = ("demo_cold_start", "demo_more_sft", "demo_all_tasks_cold_start")
LEFT_BY_A_DEMO = ("data", "models", *SFT_STAGES, "checkpoints", "tracking", "summary.json", "reward_curve.png")


def run_demo(out: Path, seed: int, family: FamilyName = DEFAULT) -> dict[str, Any]:
    """Run the whole demonstration in folder `out` and return the content of its `summary.json`."""
    set_aside(out)
    clock = Clock()
    with clock("total"):
        with clock("draw_clips"):
            clips = {
                name: draw_dataset(out / "data" / name, num_clips=count, seed=1000 * seed + index)
                for index, (name, count) in enumerate(NUM_CLIPS.items())
            }
        log.info("generated %s clips in %s", " + ".join(map(str, NUM_CLIPS.values())), out / "data")
        make_tiny(out / "models" / "untrained", seed=seed, family=family)
        config = demo_config("demo.yaml", out, seed, clips)
        with ExitStack() as resources:
            with clock("start"):
                stack = resources.enter_context(open_stack(config, {"temporal_grounding"}))
            summary, results = _stages(stack, config, clips["cold_start"], clock)
    interval, constant_ious = best_constant_interval(held_out_items(config))
    results["constant_interval"] = {"sampled": iou_metrics(constant_ious)}
    return _report(config, summary, results, interval, clock)


def _stages(
    stack: Stack, config: RunConfig, clips: SyntheticSet, clock: Clock
) -> tuple[Summary, dict[str, Mapping[str, Mapping[str, float]]]]:
    """Run the cold start, GRPO, and the two controls that need a policy; return held-out metrics by stage."""
    with clock("cold_start"):
        responses = write_demonstrations(config, clips, demonstration_text)
        cold_start = sft(sft_config("demo_cold_start.yaml", config, clips, responses, config.model.path), stack=stack)
    with clock("train"):
        summary = train(with_model(config, cold_start.model), stack=stack)
    held_out = held_out_items(config)
    with clock("evaluate_controls"):
        shuffled = evaluate(stack.producer, with_shuffled_videos(held_out), config)
    with clock("more_sft"):
        more = sft(sft_config("demo_more_sft.yaml", config, clips, responses, Path(cold_start.model)), stack=stack)
    with clock("evaluate_controls"):
        stack.publish(more.num_steps)
        supervised = evaluate(stack.producer, held_out, config)
    return summary, {
        "cold_start": summary.held_out["before"],
        "grpo": summary.held_out["after"],
        "more_sft": supervised,
        "shuffled_video": shuffled,
    }


def demo_config(name: str, out: Path, seed: int, clips: Mapping[str, SyntheticSet]) -> RunConfig:
    """Return a bundled config, set to the generated clips ("grpo" to train on, "held_out") and to folder `out`."""
    return load(
        bundled.FOLDER / name,
        (
            f"seed={seed}",
            f"output_dir={out}",
            f"model.path={out / 'models' / 'untrained'}",
            f"data.annotations={clips['grpo'].annotations}",
            f"data.videos={clips['grpo'].videos}",
            f"evaluation.annotations={clips['held_out'].annotations}",
            f"evaluation.videos={clips['held_out'].videos}",
        ),
    )


def sft_config(name: str, demo: RunConfig, clips: SyntheticSet, responses: Path, model: Path) -> RunConfig:
    """Return a bundled config of a supervised stage, with its own folder and the demo's MLflow store."""
    folder = demo.output_dir / Path(name).stem
    return load(
        bundled.FOLDER / name,
        (
            f"seed={demo.seed}",
            f"output_dir={folder}",
            f"model.path={model}",
            f"data.annotations={clips.annotations}",
            f"data.videos={clips.videos}",
            f"sft.responses={responses}",
            f"tracking.uri={sqlite_uri(demo.output_dir / 'mlflow.db')}",
        ),
    )


def with_model(config: RunConfig, model: str) -> RunConfig:
    """Return the config with another model folder to start from."""
    return config.model_copy(update={"model": config.model.model_copy(update={"path": Path(model)})})


def write_demonstrations(
    config: RunConfig, clips: SyntheticSet, text: Callable[[PromptItem, np.random.Generator, float], str]
) -> Path:
    """Write the responses of `text` to each row of `clips`, a share `MALFORMED_FRAC` of them deliberately malformed."""
    rng = np.random.default_rng([config.seed, 1])
    items = load_items(config.data, clips.annotations, clips.videos)
    answers = ((item.prompt_id, text(item, rng, MALFORMED_FRAC)) for item in items)
    return write_responses(clips.annotations.with_name("demonstrations.jsonl"), answers)


def set_aside(out: Path) -> None:
    """Move the files of an earlier demo in `out` to `out/previous/N`; its MLflow store is shared and stays."""
    earlier = [out / name for name in LEFT_BY_A_DEMO]
    earlier = [path for path in earlier if path.exists()]
    if not earlier:
        return
    number = next(n for n in itertools.count(1) if not (out / "previous" / str(n)).exists())
    target = out / "previous" / str(number)
    target.mkdir(parents=True)
    for path in earlier:
        path.rename(target / path.name)
    log.info("moved the earlier demo in %s to %s", out, target)


def _report(
    config: RunConfig,
    summary: Summary,
    results: Mapping[str, Mapping[str, Mapping[str, float]]],
    interval: tuple[float, float],
    clock: Clock,
) -> dict[str, Any]:
    held_out = {
        stage: {**by["sampled"], **({"greedy": by["greedy"]} if "greedy" in by else {})}
        for stage, by in results.items()
    }
    whole = {**asdict(summary), "seconds": {**summary.seconds, **clock.seconds}, "held_out": held_out}
    with Tracker(config, run_id=summary.mlflow_run_id) as tracker:
        tracker.log_table("demo", held_out_rows(results))
        write_summary(config.output_dir / "summary.json", whole)
        tracker.log_artifact(config.output_dir / "summary.json")
    names = {"constant_interval": f"const {interval[0]:g}-{interval[1]:g} s", "shuffled_video": "other video"}
    rows = [
        (names.get(stage, stage), decoding, metrics)
        for stage, by in results.items()
        for decoding, metrics in by.items()
    ]
    print_held_out_table(f"Held-out clips, seed {config.seed}", rows)
    for line in verdict(results, whole["seconds"]):
        log.info(line)
    log.info("reward curve: %s", config.output_dir / "reward_curve.png")
    log.info("MLflow run %s; open it with: %s", tracker.run_id, tracker.how_to_open)
    return whole


def verdict(results: Mapping[str, Mapping[str, Mapping[str, float]]], seconds: Mapping[str, float]) -> list[str]:
    """Return sentences on what GRPO improved and what it did not, from the run's own numbers."""
    before, after, more = (results[stage] for stage in ("cold_start", "grpo", "more_sft"))
    shuffled, constant = results["shuffled_video"]["sampled"]["miou"], results["constant_interval"]["sampled"]["miou"]
    grpo_s = sum(seconds[phase] for phase in STEP_PHASES)
    sampled_gain = after["sampled"]["miou"] - before["sampled"]["miou"]
    greedy_gain = after["greedy"]["miou"] - before["greedy"]["miou"]
    return [
        f"GRPO ({grpo_s:.0f} s) raised the mIoU of answers sampled at temperature 1 from "
        f"{before['sampled']['miou']:.3f} to {after['sampled']['miou']:.3f}, and their format rate from "
        f"{before['sampled']['format']:.0%} to {after['sampled']['format']:.0%}.",
        f"The mIoU of greedy answers changed from {before['greedy']['miou']:.3f} to {after['greedy']['miou']:.3f}: "
        + (
            "GRPO mostly corrected the format and sharpened the policy; it hardly improved localisation."
            if greedy_gain < sampled_gain / 2
            else "GRPO improved localisation as well as the format."
        ),
        f"More supervised steps with the same demonstrations instead of GRPO ({seconds['more_sft']:.0f} s) "
        f"give mIoU {more['sampled']['miou']:.3f} sampled and {more['greedy']['miou']:.3f} greedy and reproduce "
        f"their malformed answers: format rate {more['sampled']['format']:.0%}, reward "
        f"{more['sampled']['reward']:.3f} against GRPO's {after['sampled']['reward']:.3f}.",
        f"With another question's video the mIoU falls to {shuffled:.3f}; the best constant answer reaches "
        f"{constant:.3f}: "
        + (
            "the skill comes from the video."
            if shuffled < constant < after["sampled"]["miou"]
            else "no skill is shown."
        ),
    ]
