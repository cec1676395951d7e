"""Training steps whose captions a slow language model judges, and how much of the judging other groups hide."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.step import Recorded
from rlsys.config import bundled
from rlsys.config.run import EvaluationConfig, RunConfig, SftConfig, TrainConfig, load
from rlsys.data.annotations.vtts import VttsEntry
from rlsys.demo.grounding import with_model, write_demonstrations
from rlsys.demo.synthetic import SyntheticSet
from rlsys.demo.synthetic_tasks import demonstration_text, draw_mixture
from rlsys.loop import loop
from rlsys.loop.state import RunState
from rlsys.models.tiny import make_tiny
from rlsys.runs.assemble import Stack, open_stack
from rlsys.runs.sft import sft
from rlsys.tracking.metrics import span_metrics, union
from tests.support.judge_fault_server import FaultServer

NUM_STEPS, WARM_UP = 6, 2
LESSONS = {"num_steps": 200, "prompts_per_step": 16, "learning_rate": 2e-3, "warmup_steps": 10, "schedule": "cosine"}


def draw_rows(folder: Path, num_clips: int, tasks: Collection[str]) -> SyntheticSet:
    """Draw clips and keep only the rows of some tasks."""
    drawn = draw_mixture(folder, num_clips=num_clips, seed=7)
    lines = [
        line
        for line in drawn.annotations.read_text().splitlines()
        if VttsEntry.model_validate_json(line).row("").task in tasks
    ]
    drawn.annotations.write_text("\n".join(lines) + "\n")
    return drawn


def judged_config(folder: Path, clips: SyntheticSet, *overrides: str) -> RunConfig:
    """Return the demo's config for these clips, in `folder`."""
    make_tiny(folder / "untrained", seed=0, words="all")
    settings = {
        "output_dir": folder / "run",
        "model.path": folder / "untrained",
        "data.format": "vtts",
        "data.annotations": clips.annotations,
        "data.videos": clips.videos,
        "rollout.max_tokens": 40,
        "train.num_steps": NUM_STEPS,
        "checkpoint.every_steps": 0,
        "tracking.log_model": False,
    }
    return load(bundled.FOLDER / "demo.yaml", [*(f"{key}={value}" for key, value in settings.items()), *overrides])


def teach(stack: Stack, config: RunConfig, clips: SyntheticSet, folder: Path) -> RunConfig:
    """Return the config with a model that answers these rows in the correct format, after a few supervised steps."""
    changes = {
        "output_dir": folder,
        "train": TrainConfig.model_validate(LESSONS),
        "evaluation": EvaluationConfig(),
        "sft": SftConfig(responses=write_demonstrations(config, clips, demonstration_text)),
    }
    return with_model(config, sft(config.model_copy(update=changes), stack=stack).model)


def measure_training(folder: Path, call_s: float) -> list[dict[str, Any]]:
    """Return the share of judging time in which other groups of the step were still being generated, by lag."""
    clips = draw_rows(folder / "clips", 100, {"captioning"})
    with FaultServer(delay_s=call_s) as endpoint:
        config = judged_config(
            folder,
            clips,
            f"reward.judge.urls=[{endpoint.url}]",
            f"reward.judge.cache_path={folder / 'training.sqlite'}",
            "reward.judge.max_concurrency=1000",
        )
        with open_stack(config, {"captioning"}) as stack:
            taught = teach(stack, config, clips, folder / "taught")
            return [_measured(stack, taught, max_lag) for max_lag in (0, 1)]


def _measured(stack: Stack, config: RunConfig, max_lag: int) -> dict[str, Any]:
    stack.load_learner(config)
    parts = Recorded(stack, config.model_copy(update={"seed": max_lag}))
    lagged = config.model_copy(update={"pipeline": config.pipeline.model_copy(update={"max_lag": max_lag})})
    loop.train(parts, lagged, RunState(step=0, prompts_consumed=0, seed=0, mlflow_run_id="", weights_digest=""))
    groups = [scored for step in parts.steps[WARM_UP:] for scored in step.groups]
    seconds = [sum(step.seconds.values()) for step in parts.steps[WARM_UP:]]
    judging = sum(end - start for start, end in union([scored.spans["score"] for scored in groups])) / len(seconds)
    return {
        "part": "training",
        "what": f"max_lag={max_lag}: {config.train.prompts_per_step} x {config.rollout.group_size} captions a step, "
        f"judged in {judging:.1f} s",
        "rows_per_s": sum(len(scored.group.rollouts) for scored in groups) / sum(seconds),
        "seconds": float(np.mean(seconds)),
        "hidden_frac": span_metrics(groups)["perf/score_hidden_frac"],
    }
