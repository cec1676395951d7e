"""GRPO against supervised training on demonstrations whose boundaries are off by up to half a second.

All arms of a seed begin with the same cold start and see the same clips: supervised arms continue to imitate the noisy
demonstrations, GRPO is rewarded by the exact spans. Numbers of steps are fixed, so that results do not depend on the
machine, and chosen so that both kinds take about the same time, which is reported.

    python -m benchmarks.noisy_demonstrations --seed 0 --seed 1 --json FILE [--arm grpo --arm sft ...]

Arms that are already in FILE are not run again.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from rlsys import env
from rlsys.config import bundled
from rlsys.config.run import RunConfig, load
from rlsys.data.annotations.responses import write_responses
from rlsys.demo.grounding import demo_config, with_model
from rlsys.demo.synthetic import SyntheticSet, demonstration_text, draw_dataset
from rlsys.evaluation.metrics import best_constant_interval
from rlsys.evaluation.runner import evaluate, with_shuffled_videos
from rlsys.models.tiny import make_tiny
from rlsys.runs.assemble import Stack, open_stack
from rlsys.runs.inputs.items import held_out_items, load_items
from rlsys.runs.sft import sft
from rlsys.runs.train import train
from rlsys.types import PromptItem

log = logging.getLogger(__name__)

NUM_CLIPS = {"training": 1000, "held_out": 400}
NUM_SAMPLES = 2
JITTER_S = 0.5
COLD_START_STEPS = 2400

SUPERVISED: Mapping[str, tuple[str, ...]] = {
    "sft": (),
    "sft, rate x 2": ("train.learning_rate=2e-3",),
    "sft, rate x 0.3": ("train.learning_rate=3e-4",),
}
"""Supervised arm -> overrides of `demo_more_sft.yaml`."""

REWARDED: Mapping[str, tuple[str, ...]] = {
    "grpo": (),
    "grpo, rate x 2.7": ("train.learning_rate=4e-4",),
    "grpo, rate x 6.7": ("train.learning_rate=1e-3",),
    "dr_grpo": ("algorithm.advantage=dr_grpo", "algorithm.loss_mean=constant", "train.learning_rate=4e-4"),
    "rloo": ("algorithm.advantage=rloo", "train.learning_rate=4e-4"),
    "gdpo": ("algorithm.advantage=gdpo", "train.learning_rate=4e-4"),
    "sequence mean": ("algorithm.loss_mean=sequence", "train.learning_rate=4e-4"),
    "kl 0.02": ("algorithm.kl_coef=0.02", "train.learning_rate=4e-4"),
    "2 epochs": ("algorithm.epochs_per_batch=2", "train.learning_rate=2e-4"),
    "2 epochs, clip_high 0.28": (
        "algorithm.epochs_per_batch=2",
        "algorithm.clip_high=0.28",
        "train.learning_rate=2e-4",
    ),
    "2 epochs, cispo": ("algorithm.epochs_per_batch=2", "algorithm.policy_loss=cispo", "train.learning_rate=2e-4"),
    "2 epochs, gspo": ("algorithm.epochs_per_batch=2", "algorithm.ratio=sequence", "train.learning_rate=2e-4"),
}
"""GRPO arm -> overrides of `demo.yaml`."""


def noisy_text(item: PromptItem, rng: np.random.Generator) -> str:
    """Return a well-formed answer whose boundaries are each moved by up to `JITTER_S`, in tenths of a second."""
    while True:
        start_s, end_s = (max(0.0, round(edge + rng.uniform(-JITTER_S, JITTER_S), 1)) for edge in item.truth)
        if start_s < end_s:
            return demonstration_text(replace(item, truth=[start_s, end_s]), rng, malformed_frac=0.0)


class Seed:
    """One seed: its clips, noisy demonstrations and cold start, and the arms that begin with it."""

    def __init__(self, folder: Path, seed: int, cold_start_steps: int) -> None:
        self.seed, self._folder, self._cold_start_steps = seed, folder, cold_start_steps
        sets = {
            name: draw_dataset(folder / "data" / name, num_clips=count, seed=1000 * seed + index)
            for index, (name, count) in enumerate(NUM_CLIPS.items())
        }
        self._clips: SyntheticSet = sets["training"]
        make_tiny(folder / "models" / "untrained", seed=seed)
        self.config = demo_config("demo.yaml", folder, seed, {"grpo": sets["training"], "held_out": sets["held_out"]})
        self._held_out = held_out_items(self.config)
        rng = np.random.default_rng([seed, 1])
        items = load_items(self.config.data, self._clips.annotations, self._clips.videos)
        self._responses = write_responses(
            folder / "data" / "noisy.jsonl", ((item.prompt_id, noisy_text(item, rng)) for item in items)
        )

    def baselines(self) -> dict[str, Any]:
        """Return the metrics of the best constant answer."""
        interval, ious = best_constant_interval(self._held_out)
        return {"interval_s": list(interval), "miou": float(np.mean(ious))}

    def supervise(self, stack: Stack, name: str, config_name: str, model: Path, overrides: tuple[str, ...]) -> str:
        """Run a supervised stage from `model` and return the folder of its model."""
        config = load(
            bundled.FOLDER / config_name,
            (
                *self._common(name),
                f"model.path={model}",
                f"data.annotations={self._clips.annotations}",
                f"data.videos={self._clips.videos}",
                f"sft.responses={self._responses}",
                *overrides,
            ),
        )
        return sft(config, stack=stack).model

    def cold_start(self, stack: Stack) -> str:
        """Return the folder of the model that every arm starts from, training it if necessary."""
        name, steps = f"cold_start_{self._cold_start_steps}", self._cold_start_steps
        done = self._folder / name / "checkpoints" / f"step_{steps:06d}" / "model"
        if done.exists():
            return str(done)
        start = (f"train.num_steps={steps}",)
        return self.supervise(stack, name, "demo_cold_start.yaml", self.config.model.path, start)

    def arm(self, stack: Stack, name: str, cold_start: str) -> dict[str, Any]:
        """Run an arm and return its held-out metrics, those with another question's video, and its training time."""
        if name == "cold start":
            return self._evaluated(stack, self._load(stack, cold_start))
        folder = f"{name.replace(', ', '_').replace(' ', '_')}-{time.time():.0f}"
        started = time.monotonic()
        if name in SUPERVISED:
            self.supervise(stack, folder, "demo_more_sft.yaml", Path(cold_start), SUPERVISED[name])
            seconds = time.monotonic() - started
        else:
            overrides = (
                *self._common(folder),
                *REWARDED[name],
                "evaluation.annotations=null",
                "checkpoint.every_steps=0",
            )
            config = load(
                bundled.FOLDER / "demo.yaml", (*overrides, *self._training_rows(), f"model.path={cold_start}")
            )
            train(config, stack=stack)
            seconds = time.monotonic() - started
        return {**self._evaluated(stack, self.config), "seconds": seconds}

    def _load(self, stack: Stack, model: str) -> RunConfig:
        config = with_model(self.config, model)
        stack.load_learner(config)
        return config

    def _evaluated(self, stack: Stack, config: RunConfig) -> dict[str, Any]:
        stack.publish(0)
        evaluation = config.evaluation.model_copy(update={"num_samples": NUM_SAMPLES})
        config = config.model_copy(update={"evaluation": evaluation})
        shuffled = evaluate(stack.producer, with_shuffled_videos(self._held_out), config)
        return {**evaluate(stack.producer, self._held_out, config), "other_video": shuffled["greedy"]["miou"]}

    def _common(self, name: str) -> tuple[str, ...]:
        return (
            f"seed={self.seed}",
            f"output_dir={self._folder / name}",
            "tracking.log_model=false",
            f"tracking.uri=sqlite:///{self._folder.resolve() / 'mlflow.db'}",
        )

    def _training_rows(self) -> tuple[str, ...]:
        return (f"data.annotations={self._clips.annotations}", f"data.videos={self._clips.videos}")


def table(results: Mapping[str, Mapping[str, Any]]) -> Table:
    """Return a table with one line per arm: means over its seeds, and the seeds."""
    shown = Table(title=f"Held-out clips; demonstrations off by up to {JITTER_S} s", title_justify="left")
    for heading in ("arm", "greedy mIoU", "seeds", "sampled mIoU", "sampled reward", "other video", "seconds"):
        shown.add_column(heading, justify="left" if heading in ("arm", "seeds") else "right")
    arms = dict.fromkeys(arm for by_arm in results.values() for arm in by_arm if arm != "constant")
    for arm in arms:
        found = [by_arm[arm] for by_arm in results.values() if arm in by_arm]
        greedy = [one["greedy"]["miou"] for one in found]
        shown.add_row(
            arm,
            f"{np.mean(greedy):.3f}",
            " ".join(f"{value:.3f}" for value in greedy),
            f"{np.mean([one['sampled']['miou'] for one in found]):.3f}",
            f"{np.mean([one['sampled']['reward'] for one in found]):.3f}",
            f"{np.mean([one['other_video'] for one in found]):.3f}",
            f"{np.mean([one['seconds'] for one in found]):.0f}" if "seconds" in found[0] else "",
        )
    return shown


def main(
    seed: Annotated[list[int], typer.Option(help="Seed; may be given several times.")],
    json_file: Annotated[
        Path, typer.Option("--json", help="File for the results; arms that are in it are not run again.")
    ],
    arm: Annotated[
        list[str] | None, typer.Option(help="Arm to run, may be given several times; by default all.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for clips and runs.")] = Path("runs/noisy_demonstrations"),
    cold_start_steps: Annotated[int, typer.Option(help="Supervised steps of the cold start.")] = COLD_START_STEPS,
) -> None:
    """Run the arms that are missing, seed by seed, and print the table."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    env.be_quiet()
    results = json.loads(json_file.read_text()) if json_file.exists() else {}
    wanted = ["cold start", *(arm or [*SUPERVISED, *REWARDED])]
    if unknown := set(wanted[1:]) - SUPERVISED.keys() - REWARDED.keys():
        raise typer.BadParameter(f"{sorted(unknown)}; arms are {[*SUPERVISED, *REWARDED]}.")
    for number in seed:
        of_seed = results.setdefault(str(number), {})
        missing = [name for name in wanted if name not in of_seed]
        if not missing:
            continue
        prepared = Seed(out / f"seed_{number}", number, cold_start_steps)
        of_seed["constant"] = prepared.baselines()
        with open_stack(prepared.config, {"temporal_grounding"}) as stack:
            cold_start = prepared.cold_start(stack)
            for name in missing:
                of_seed[name] = prepared.arm(stack, name, cold_start)
                json_file.write_text(json.dumps(results, indent=1) + "\n")
                greedy = of_seed[name]["greedy"]["miou"]
                typer.echo(f"seed {number}, {name}: greedy mIoU {greedy:.3f}", err=True)
    Console(width=120).print(table(results))


if __name__ == "__main__":
    typer.run(main)
