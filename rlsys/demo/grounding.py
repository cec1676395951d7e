"""`rlsys demo`: prepare inputs, train as `rlsys train` does, and show what GRPO bought.

Clips are drawn and encoded, a tiny Qwen2.5-VL is made and given a supervised cold start
with partly malformed demonstrations, GRPO trains it through the whole stack, and the same
time goes into more supervised steps as a control.
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
from rlsys.models.tiny import make_tiny
from rlsys.runs.assemble import Stack, open_stack
from rlsys.runs.items import held_out_items, load_items
from rlsys.runs.run import Summary, held_out_rows, write_summary
from rlsys.runs.sft import sft
from rlsys.runs.train import train
from rlsys.tracking.tracker import Tracker
from rlsys.types import PromptItem

log = logging.getLogger(__name__)

NUM_CLIPS = {"cold_start": 1000, "grpo": 600, "held_out": 200}
MALFORMED_FRAC = 0.25
SFT_STAGES = ("demo_cold_start", "demo_more_sft", "demo_all_tasks_cold_start")
LEFT_BY_A_DEMO = ("data", "models", *SFT_STAGES, "checkpoints", "tracking", "summary.json", "reward_curve.png")


def run_demo(out: Path, seed: int) -> dict[str, Any]:
    """The whole demonstration in folder `out`; returns what its `summary.json` holds."""
    set_aside(out)
    clock = Clock()
    with clock("total"):
        with clock("draw_clips"):
            clips = {
                name: draw_dataset(out / "data" / name, num_clips=count, seed=1000 * seed + index)
                for index, (name, count) in enumerate(NUM_CLIPS.items())
            }
        log.info("drew and encoded %s clips in %s", " + ".join(map(str, NUM_CLIPS.values())), out / "data")
        make_tiny(out / "models" / "untrained", seed=seed)
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
    """Cold start, GRPO, and both controls that need a policy; held-out metrics by stage."""
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
    """The config of that name in `configs/`, on drawn clips ("grpo" to train on, "held_out") and in folder `out`."""
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
    """The supervised stage of that name in `configs/`, in a folder of its own and in the demo's MLflow store."""
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
            f"tracking.uri=sqlite:///{demo.output_dir.resolve() / 'mlflow.db'}",
        ),
    )


def with_model(config: RunConfig, model: str) -> RunConfig:
    """The config with another checkpoint folder to start from."""
    return config.model_copy(update={"model": config.model.model_copy(update={"path": Path(model)})})


def write_demonstrations(
    config: RunConfig, clips: SyntheticSet, text: Callable[[PromptItem, np.random.Generator, float], str]
) -> Path:
    """A file of what `text` answers to each row of `clips`, a share `MALFORMED_FRAC` of it malformed on purpose."""
    rng = np.random.default_rng([config.seed, 1])
    items = load_items(config.data, clips.annotations, clips.videos)
    answers = ((item.prompt_id, text(item, rng, MALFORMED_FRAC)) for item in items)
    return write_responses(clips.annotations.with_name("demonstrations.jsonl"), answers)


def set_aside(out: Path) -> None:
    """Move what an earlier demo left in `out` to `out/previous/N`; its MLflow store is shared and stays."""
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
    log.info("MLflow run %s; look at it: %s", tracker.run_id, tracker.how_to_open)
    return whole


def verdict(results: Mapping[str, Mapping[str, Mapping[str, float]]], seconds: Mapping[str, float]) -> list[str]:
    """What GRPO bought and what it did not, in sentences made of the run's own numbers."""
    before, after, more = (results[stage] for stage in ("cold_start", "grpo", "more_sft"))
    shuffled, constant = results["shuffled_video"]["sampled"]["miou"], results["constant_interval"]["sampled"]["miou"]
    grpo_s = sum(seconds[phase] for phase in ("collect", "update", "sync", "record"))
    sampled_gain = after["sampled"]["miou"] - before["sampled"]["miou"]
    greedy_gain = after["greedy"]["miou"] - before["greedy"]["miou"]
    return [
        f"GRPO ({grpo_s:.0f} s) took answers sampled at temperature 1 from mIoU {before['sampled']['miou']:.3f} to "
        f"{after['sampled']['miou']:.3f}, and those in the asked form from {before['sampled']['format']:.0%} to "
        f"{after['sampled']['format']:.0%}.",
        f"The most likely answer went from mIoU {before['greedy']['miou']:.3f} to {after['greedy']['miou']:.3f}: "
        + (
            "GRPO repaired the form and sharpened the policy, it hardly taught it to see more."
            if greedy_gain < sampled_gain / 2
            else "GRPO also taught it to locate better, not only to answer in form."
        ),
        f"As much time in more supervised steps on the same demonstrations ({seconds['more_sft']:.0f} s) gives mIoU "
        f"{more['sampled']['miou']:.3f} sampled and {more['greedy']['miou']:.3f} greedy, and keeps their flaws: "
        f"{more['sampled']['format']:.0%} in the asked form, reward {more['sampled']['reward']:.3f} against GRPO's "
        f"{after['sampled']['reward']:.3f}.",
        f"Shown another question's video it falls to mIoU {shuffled:.3f}, and the best constant answer has "
        f"{constant:.3f}: "
        + (
            "its skill comes from the video."
            if shuffled < constant < after["sampled"]["miou"]
            else "no skill is shown."
        ),
    ]
