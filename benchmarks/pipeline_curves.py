"""Learning curves of the demo at several lags, with one cold start, one stack, and the same prompts in order."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.step import Recorded
from rlsys.config.run import RunConfig
from rlsys.data.sampler import Sampler
from rlsys.demo.grounding import NUM_CLIPS, demo_config, sft_config, with_model, write_demonstrations
from rlsys.demo.synthetic import demonstration_text, draw_dataset
from rlsys.evaluation.runner import evaluate
from rlsys.loop import loop
from rlsys.loop.parts import Step
from rlsys.loop.state import RunState
from rlsys.models.tiny import make_tiny
from rlsys.runs.assemble import Stack, open_stack
from rlsys.runs.inputs.items import held_out_items
from rlsys.runs.sft import sft
from rlsys.types import ScoredGroup

LAGS = (0, 1, 2)
WINDOW = 10  # steps that a plotted point is the mean of


class Curve(Recorded):
    """The loop's parts on a stack, which record each step's mean reward and end time."""

    def __init__(self, stack: Stack, config: RunConfig) -> None:
        super().__init__(stack, config)
        self._sampler, self._begun_at = Sampler(len(self._items), config.seed), time.monotonic()
        self.rewards: list[float] = []
        self.seconds: list[float] = []
        self.lags: list[float] = []

    def start(self, prompt_index: int) -> Future[ScoredGroup]:
        return self.start_item(prompt_index, self._items[self._sampler.index_at(prompt_index)])

    def prefetch(self, prompt_index: int) -> None:
        self._stack.producer.prefetch(self._items[self._sampler.index_at(prompt_index)])

    def record(self, step: Step) -> None:
        # not the step itself, which would keep its clips in memory
        rewards = np.concatenate([scored.rewards[scored.is_valid] for scored in step.groups])
        rollouts = [rollout for scored in step.groups for rollout in scored.group.rollouts]
        self.rewards.append(float(rewards.mean()))
        self.seconds.append(time.monotonic() - self._begun_at)
        self.lags.append(float(np.mean([step.state.step - 1 - rollout.weight_version for rollout in rollouts])))


def run_curves(
    folder: Path, json_file: Path | None, plot_dir: Path | None, *, num_steps: int, way: str, lessons: int
) -> None:
    """Train at each lag from one cold start, print a table, and write numbers and a plot on request.

    num_steps: of each run; 0 takes the demo's.  way: `pipeline.weight_update`.  lessons: number of supervised steps; 0
    takes the demo's.
    """
    clips = {
        name: draw_dataset(folder / name, num_clips=n, seed=row) for row, (name, n) in enumerate(NUM_CLIPS.items())
    }
    make_tiny(folder / "models" / "untrained", seed=0)
    config = demo_config("demo.yaml", folder, 0, clips)
    if num_steps:
        config = config.model_copy(update={"train": config.train.model_copy(update={"num_steps": num_steps})})
    config = with_lag(config, 0, way)
    results: list[dict[str, Any]] = []
    with open_stack(config, {"temporal_grounding"}) as stack:
        responses = write_demonstrations(config, clips["cold_start"], demonstration_text)
        lesson = sft_config("demo_cold_start.yaml", config, clips["cold_start"], responses, config.model.path)
        if lessons:
            lesson = lesson.model_copy(update={"train": lesson.train.model_copy(update={"num_steps": lessons})})
        config = with_model(config, sft(lesson, stack=stack).model)
        for lag in LAGS:
            results.append(_curve(stack, with_lag(config, lag, way)))
            if json_file:
                json_file.write_text(json.dumps(results, indent=1) + "\n")
    Console(width=120).print(_table(results))
    if plot_dir:
        plot(results, plot_dir / "pipeline_curves.png")


def with_lag(config: RunConfig, max_lag: int, way: str) -> RunConfig:
    """Return the config with another section `pipeline`."""
    changes = {"max_lag": max_lag, "weight_update": way}
    return config.model_copy(update={"pipeline": config.pipeline.model_copy(update=changes)})


def _curve(stack: Stack, config: RunConfig) -> dict[str, Any]:
    stack.load_learner(config)
    parts = Curve(stack, config)
    loop.train(parts, config, RunState(step=0, prompts_consumed=0, seed=0, mlflow_run_id="", weights_digest=""))
    typer.echo(f"max_lag {config.pipeline.max_lag}: {parts.seconds[-1]:.0f} s", err=True)
    return {
        "max_lag": config.pipeline.max_lag,
        "weight_update": config.pipeline.weight_update,
        "rewards": parts.rewards,
        "seconds": parts.seconds,
        "lags": parts.lags,
        "held_out": evaluate(stack.producer, held_out_items(config), config),
    }


def _table(results: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(title="The demo's GRPO at several lags", title_justify="left")
    for heading in ("max_lag", "first tenth", "last tenth", "steps", "seconds", "lag", "mIoU sampled", "mIoU greedy"):
        table.add_column(heading, justify="right")
    for one in results:
        tenth = max(1, len(one["rewards"]) // 10)
        table.add_row(
            str(one["max_lag"]),
            f"{np.mean(one['rewards'][:tenth]):.3f}",
            f"{np.mean(one['rewards'][-tenth:]):.3f}",
            str(len(one["rewards"])),
            f"{one['seconds'][-1]:.0f}",
            f"{np.mean(one['lags']):.2f}",
            f"{one['held_out']['sampled']['miou']:.3f}",
            f"{one['held_out']['greedy']['miou']:.3f}",
        )
    return table


def plot(results: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Plot the running mean of the sampled reward over steps and over seconds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, both = pyplot.subplots(1, 2, figsize=(8, 3.4), dpi=90, sharey=True, layout="constrained")
    for one in results:
        window = min(WINDOW, len(one["rewards"]))
        smooth = np.convolve(one["rewards"], np.ones(window) / window, mode="valid")
        steps = np.arange(window, len(one["rewards"]) + 1)
        for axes, places in zip(both, (steps, np.array(one["seconds"])[window - 1 :]), strict=True):
            axes.plot(places, smooth, label=f"max_lag {one['max_lag']}")
    for axes, label in zip(both, ("step", "seconds of training"), strict=True):
        axes.set(xlabel=label)
        axes.grid(alpha=0.3)
    both[0].set(ylabel=f"mean reward, {WINDOW} steps")
    both[0].legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    pyplot.close(figure)
