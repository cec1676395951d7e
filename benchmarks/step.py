"""Seconds per step by phase, on a fixed workload and the real stack: `make bench`.

Workload: synthetic clips of 8 frames of 112 px, a randomly initialised Qwen2.5-VL of 1.5 M
parameters, G = 8, up to 32 response tokens, 4 and 16 prompts a step, one reward server,
two rollout actors and two learner ranks of one thread each. The first steps warm up and
are skipped. Every prompt of the run is a clip that was not seen before, so each is decoded.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from rlsys.config.run import RunConfig, parse
from rlsys.demo.synthetic import draw_dataset
from rlsys.errors import LearnerLost
from rlsys.loop import loop
from rlsys.loop.collect import Collected
from rlsys.loop.parts import Step
from rlsys.loop.producer import sampling_seed
from rlsys.loop.state import RunState
from rlsys.models.tiny import make_tiny
from rlsys.runs.assemble import Stack, open_stack
from rlsys.runs.inputs.items import training_items
from rlsys.tracking.metrics import union
from rlsys.types import PromptItem, RolloutGroup, Sampling, ScoredGroup, TrainBatch
from rlsys.weights.version import WeightVersion

PHASES = ("decode", "prompt", "generate", "score", "collect", "update", "sync", "step")
WARM_UP = 3


class Recorded:
    """The loop's parts on a stack, which record each step."""

    def __init__(self, stack: Stack, config: RunConfig) -> None:
        self._stack, self._config, self._items = stack, config, training_items(config)
        self.steps: list[Step] = []
        self.weights: WeightVersion | None = None

    def start(self, prompt_index: int) -> Future[ScoredGroup]:
        return self.start_item(prompt_index, self._items[prompt_index % len(self._items)])

    def start_item(self, prompt_index: int, item: PromptItem) -> Future[ScoredGroup]:
        rollout = self._config.rollout
        sampling = Sampling(
            num_samples=rollout.group_size,
            temperature=1.0,
            top_p=1.0,
            max_tokens=rollout.max_tokens,
            seed=sampling_seed(self._config.seed, prompt_index, item.prompt_id),
        )
        return self._stack.producer.start(item, sampling)

    def prefetch(self, prompt_index: int) -> None:
        self._stack.producer.prefetch(self._items[prompt_index % len(self._items)])

    def check(self) -> None:
        self._stack.pool.raise_if_weights_gone()

    def keep(self, step: int, collected: Collected) -> None:
        """Do nothing: the benchmark resumes no run."""

    def recover(self, error: LearnerLost) -> RunState:
        raise error

    def reference_logprobs(self, groups: Sequence[RolloutGroup]) -> Sequence[Sequence[np.ndarray]]:
        return self._stack.learner.logprobs(groups, reference=True)

    def update(self, batch: TrainBatch) -> Mapping[str, float]:
        return self._stack.learner.update(batch)

    def publish(self, version: int) -> WeightVersion:
        self.weights = self._stack.publish(version)
        return self.weights

    def record(self, step: Step) -> None:
        self.steps.append(step)


def workload(folder: Path, prompts_per_step: int, num_steps: int) -> RunConfig:
    """Return the config of one measured run, whose clips and model are made in `folder`."""
    clips = draw_dataset(
        folder / f"clips{prompts_per_step}",
        num_clips=prompts_per_step * num_steps,
        seed=prompts_per_step,
        durations_s=(4.0,),
        size_px=112,
        num_objects=1,
    )
    model = folder / "model"
    if not model.exists():
        make_tiny(model, seed=0, size="bench")
    tree = {
        "output_dir": str(folder),
        "model": {"path": str(model), "dtype": "float32", "max_model_len": 512},
        "data": {
            "annotations": str(clips.annotations),
            "videos": str(clips.videos),
            "prompt_style": "terse",
            "min_frames": 8,
            "max_frames": 8,
            "min_pixels": 784,
            "max_pixels": 112 * 112,
        },
        "rollout": {"num_actors": 2, "group_size": 8, "max_tokens": 32, "max_num_seqs": 64},
        "train": {"num_steps": num_steps, "prompts_per_step": prompts_per_step, "schedule": "constant"},
        "learner": {"num_ranks": 2},
    }
    return parse(tree, source="benchmarks/step.py")


def measure(stack: Stack, config: RunConfig) -> dict[str, Any]:
    """Return medians over the steps after the warm-up. Phases overlap: `collect` covers decode to score."""
    before = stack.clips.counters()
    stack.load_learner(config)
    run = Recorded(stack, config)
    loop.train(run, config, RunState(step=0, prompts_consumed=0, seed=0, mlflow_run_id="", weights_digest=""))
    after = stack.clips.counters()
    steps = run.steps[WARM_UP:]
    rows = [_phases(step) for step in steps]
    rollouts = config.train.prompts_per_step * config.rollout.group_size
    seconds = {phase: float(np.median([row[phase] for row in rows])) for phase in PHASES}
    clips = [clip for step in run.steps for scored in step.groups for clip in scored.group.clips]
    tokens = [r.response_ids.size for step in steps for s in step.groups for r in s.group.rollouts]
    return {
        "prompts_per_step": config.train.prompts_per_step,
        "group_size": config.rollout.group_size,
        "steps_measured": len(steps),
        "seconds": seconds,
        "rollouts_per_s": rollouts / seconds["step"],
        "response_tokens_mean": float(np.mean(tokens)),
        "decodes_per_clip": (after["decodes"] - before["decodes"]) / len({clip.info.digest for clip in clips}),
        "clip_bytes_moved": float(np.mean([clip.info.num_bytes for clip in clips])),
        "weight_bytes_moved": run.weights.num_bytes if run.weights else 0,
    }


def _phases(step: Step) -> dict[str, float]:
    """Return the wall seconds in which at least one group was in each phase, and those of the loop's phases."""
    spans = {
        phase: sum(end - start for start, end in union(scored.spans[phase] for scored in step.groups))
        for phase in ("decode", "prompt", "generate", "score")
    }
    return {**spans, **step.seconds, "step": sum(step.seconds.values())}


def show(results: list[dict[str, Any]]) -> None:
    table = Table(title="Median seconds of a step in which a phase was running (decode to score overlap)")
    table.add_column("prompts x G")
    for heading in (*PHASES, "rollouts/s", "tokens", "decodes/clip", "bytes/clip"):
        table.add_column(heading, justify="right")
    for row in results:
        table.add_row(
            f"{row['prompts_per_step']} x {row['group_size']}",
            *(f"{row['seconds'][phase]:.3f}" for phase in PHASES),
            f"{row['rollouts_per_s']:.1f}",
            f"{row['response_tokens_mean']:.1f}",
            f"{row['decodes_per_clip']:.2f}",
            f"{row['clip_bytes_moved']:.0f}",
        )
    Console(width=150).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=15, help="steps per workload, warm-up included")
    parser.add_argument("--json", type=Path, default=Path("runs/bench/step.json"), help="JSON file for the results")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    with tempfile.TemporaryDirectory() as name:
        configs = [workload(Path(name), prompts, arguments.steps) for prompts in (4, 16)]
        with open_stack(configs[-1], {"temporal_grounding"}) as stack:
            results = [measure(stack, config) for config in configs]
    show(results)
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
