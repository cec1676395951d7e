"""`rlsys sft`: supervised fine-tuning by the loop, the learner, the packing and the record of GRPO."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from rlsys.config.run import RunConfig
from rlsys.evaluation.report import write_loss_curve
from rlsys.loop.collect import Collected
from rlsys.loop.objective import Imitation
from rlsys.loop.parts import Step
from rlsys.runs.assemble import LearnerStack, open_learner_stack, open_stack, require_machine
from rlsys.runs.continuation import FRESH, StartOptions, describe_start
from rlsys.runs.demonstrations import Demonstration, num_demonstrations, read_lessons
from rlsys.runs.inputs.hub_paths import with_local_files
from rlsys.runs.inputs.items import order_of, with_num_steps
from rlsys.runs.records.run_file import write_json
from rlsys.runs.records.run_lock import run_lock
from rlsys.runs.recovery import find_resume_point, has_ended
from rlsys.runs.run import Run, Setting, Summary, carry_out, read_summary
from rlsys.runs.supervised import demonstration_group
from rlsys.tracking.metrics import merge, summarise
from rlsys.tracking.progress import FINE_TUNING, Progress
from rlsys.types import Rollout, ScoredGroup
from rlsys.weights.version import WeightVersion

log = logging.getLogger(__name__)

LOSSES_FILE = "losses.json"
"""File in a checkpoint with the loss of each step of the run."""


def sft(config: RunConfig, options: StartOptions = FRESH, *, stack: LearnerStack | None = None) -> Summary:
    """Fine-tune on demonstrations as configured and write `summary.json`.

    options: whether to resume or to fork; see `recovery.find_resume_point`.
    stack: an open stack for the same clips and prompts; None starts only what is needed: the learner, plus actors and
    reward servers if there are held-out rows to evaluate.
    """
    with run_lock(config.output_dir):
        config = with_local_files(config, options.resume and config.output_dir)
        config = with_num_steps(config, num_demonstrations)
        point = find_resume_point(config, options, "sft")
        if has_ended(config, point):
            return read_summary(config)
        if stack is None:
            require_machine(config)
        lessons = read_lessons(config)
        lessons.report.raise_problems()
        for fact in lessons.report.facts:
            log.info("%s", fact)
        items = [one.item for one in lessons.demonstrations]
        start = describe_start(
            config,
            point,
            items,
            command="sft",
            allow_changes=options.allow_changes,
            more_identity=responses_identity(lessons.demonstrations),
        )
        start = replace(start, tables=lessons.tables)
        tasks = {item.task for item in lessons.held_out}
        opened: AbstractContextManager[LearnerStack]
        if stack is not None:
            opened = nullcontext(stack)
        else:
            has_actors = lessons.held_out or config.evaluation.every_steps
            opened = open_stack(config, tasks) if has_actors else open_learner_stack(config)
        summary = carry_out(
            opened, config, point, lessons.held_out, lambda setting: SftRun(setting, lessons.demonstrations), start
        )
    log.info("the model is in %s; continue with `rlsys train CONFIG model.path=%s`", summary.model, summary.model)
    return summary


class SftRun(Run[LearnerStack]):
    """A run whose groups are demonstrations: nothing is sampled or scored, and no actor needs the weights."""

    title = "Fine-tuned in"
    publishes = False

    def __init__(self, setting: Setting[LearnerStack], demonstrations: Sequence[Demonstration]) -> None:
        super().__init__(setting)
        config, point = setting.config, setting.point
        self.objective = Imitation()
        self.progress = Progress(FINE_TUNING, point.state.step, config.train.num_steps, {})
        self._demonstrations = demonstrations
        self._order = order_of(config, [one.item for one in demonstrations])
        self.losses = _read_losses(point.checkpoint) if point.checkpoint else {}

    def start(self, prompt_index: int) -> Future[ScoredGroup]:
        one = self._demonstrations[self._order.index_at(prompt_index)]
        return self._stack.preparer.put_together(one.item, partial(demonstration_group, one), one.response_ids.size)

    def prefetch(self, prompt_index: int) -> None:
        self._stack.preparer.prefetch(self._demonstrations[self._order.index_at(prompt_index)].item)

    def check(self) -> None:
        """Do nothing: no group waits for weights."""

    def keep(self, step: int, collected: Collected) -> None:
        """Do nothing: demonstrations are read from their file."""

    def publish(self, version: int) -> WeightVersion:
        return WeightVersion(version=version, transport="none", num_tensors=0, num_bytes=0, digest="")

    def _record(self, step: Step) -> None:
        number, demonstrations = step.state.step, [scored.group.rollouts[0] for scored in step.groups]
        seconds = {"prepare": step.seconds["collect"], "update": step.seconds["update"]}
        metrics = merge(
            step.learner_metrics,
            data_metrics(
                demonstrations, len(step.collected.skipped), step.state.prompts_consumed, len(self._demonstrations)
            ),
            speed_metrics(demonstrations, step.learner_metrics, seconds),
            {name if "/" in name else f"data/{name}": n for name, n in self._stack.clips.counters().items()},
            self.recovery.metrics(),
            self.evaluated,
        )
        self._tracker.log_step(number, metrics)
        self.losses[number] = metrics["loss/nll"]
        if self.recovery.step_done(number):
            self.progress.step(number, metrics, len(demonstrations))

    def write_extras(self, folder: Path) -> None:
        write_json(folder / LOSSES_FILE, {str(step): loss for step, loss in sorted(self.losses.items())})

    def _write_curve(self) -> Path:
        by_step = sorted(self.losses)
        losses = [self.losses[step] for step in by_step]
        return write_loss_curve(losses, self._config.output_dir / "loss_curve.png", by_step[0])


def responses_identity(demonstrations: Sequence[Demonstration]) -> Mapping[str, str]:
    """Return the part of a run's identity that the imitated responses are, by their tokens."""
    sha = hashlib.sha256()
    for one in demonstrations:
        sha.update(one.item.prompt_id.encode() + b"\n" + np.asarray(one.response_ids, np.int64).tobytes())
    return {"demonstrations (sft.responses)": f"{len(demonstrations)} responses, {sha.hexdigest()[:16]}"}


def _read_losses(checkpoint: Path) -> dict[int, float]:
    """Return the losses by step, {} if the checkpoint is not from a supervised run."""
    file = checkpoint / LOSSES_FILE
    return {int(step): loss for step, loss in json.loads(file.read_text()).items()} if file.exists() else {}


def data_metrics(
    demonstrations: Sequence[Rollout], num_skipped: int, prompts_consumed: int, num_rows: int
) -> dict[str, float]:
    """Return the lengths of a batch's demonstrations and the progress through them. num_rows: of all demonstrations."""
    return {
        **summarise("data/prompt_tokens", [one.prompt_ids.size for one in demonstrations], "mean", "max"),
        **summarise("data/response_tokens", [one.response_ids.size for one in demonstrations], "mean", "max"),
        "data/bad_draws": float(num_skipped),
        "data/drawn": float(prompts_consumed),
        "data/epochs": prompts_consumed / num_rows,
    }


def speed_metrics(
    demonstrations: Sequence[Rollout], learner_metrics: Mapping[str, float], seconds: Mapping[str, float]
) -> dict[str, float]:
    """Return seconds by phase, and tokens per second: those that are trained on, and all that were computed."""
    total_s = sum(seconds.values())
    num_trained = sum(one.response_ids.size for one in demonstrations)
    return {
        **{f"time/{phase}_s": value for phase, value in seconds.items()},
        "time/step_s": total_s,
        "perf/response_tokens_per_s": num_trained / total_s,
        "perf/learner_tokens_per_s": learner_metrics["perf/learner_tokens"] / total_s,
    }
