"""`rlsys replay`: repeat a recorded step from its saved rollouts, either the learner's update or the scoring."""

from __future__ import annotations

import asyncio
import logging
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rlsys.config.run import RunConfig
from rlsys.errors import UserError
from rlsys.loop.objective import PolicyGradient
from rlsys.runs.assemble import LearnerStack, open_learner_stack, open_scorer
from rlsys.runs.inputs.items import order_of, training_items
from rlsys.runs.records import ledger
from rlsys.runs.records.checkpoint import complete_checkpoints, load_state
from rlsys.runs.records.checkpoint_manifest import verify
from rlsys.runs.records.rollout_store import SavedStep, read_step, step_file
from rlsys.runs.records.run_file import RunFile, read_run_file
from rlsys.runs.records.saved_group import FOLDER, SavedGroup, as_it_was
from rlsys.tracking.metrics import advantage_metrics, merge, reward_metrics
from rlsys.tracking.mlflow_store import MlflowRun
from rlsys.tracking.store_address import store_uri
from rlsys.tracking.unsent import current_id, send_command
from rlsys.tracking.uploader import StoreError
from rlsys.types import Prompt, PromptItem, RolloutGroup, ScoredGroup
from rlsys.urls import masked_url
from rlsys.weights.manifest import are_different

log = logging.getLogger(__name__)


class ReplayError(UserError):
    """The step cannot be replayed; the message says which steps can."""


@dataclass(frozen=True, kw_only=True)
class Compared:
    """A metric as recorded and as replayed, NaN where one is missing."""

    recorded: float
    replayed: float

    @property
    def is_same(self) -> bool:
        return self.recorded == self.replayed or (math.isnan(self.recorded) and math.isnan(self.replayed))


@dataclass(frozen=True, kw_only=True)
class Replayed:
    """The result of a replay.

    from_step: step of the checkpoint that the learner started from, 0 for the model.
    digests: of the weights after the step, recorded and replayed; "" if unknown.  metrics: of the step, by name.
    """

    step: int
    from_step: int
    digests: tuple[str, str]
    metrics: Mapping[str, Compared]

    def lines(self) -> list[str]:
        """Return the result as a table for people."""
        width = max(map(len, self.metrics), default=0)
        rows = [
            f"{name:{width}}  {one.recorded:>14.7g}  {one.replayed:>14.7g}  {'' if one.is_same else 'differs'}".rstrip()
            for name, one in sorted(self.metrics.items())
        ]
        recorded, replayed = self.digests
        is_known = bool(recorded and replayed) and (recorded == replayed or are_different(recorded, replayed))
        verdict = "not compared" if not is_known else "equal" if recorded == replayed else "DIFFERENT"
        return [
            f"step {self.step}, from the weights of step {self.from_step}",
            f"{'':{width}}  {'recorded':>14}  {'replayed':>14}",
            *rows,
            f"weights after the step: {verdict} (recorded {recorded or 'none'}, replayed {replayed or 'none'})",
        ]

    def tree(self) -> dict[str, Any]:
        """Return the result for a JSON file."""
        metrics = {name: [one.recorded, one.replayed] for name, one in self.metrics.items()}
        return {"step": self.step, "from_step": self.from_step, "digests": self.digests, "metrics": metrics}


@dataclass(frozen=True, kw_only=True)
class Rescored:
    """A response whose scores changed. before, after: by score name."""

    prompt_index: int
    prompt_id: str
    sample_index: int
    text: str
    before: Mapping[str, float]
    after: Mapping[str, float]


def possible_steps(run_folder: Path) -> dict[int, Path | None]:
    """Return the steps that can be replayed, each with the checkpoint to start from (None for the model)."""
    saved = {int(file.stem.removeprefix("step_")) for file in (Path(run_folder) / FOLDER).glob("step_*.npz")}
    starts: dict[int, Path | None] = {0: None}
    starts |= {load_state(path).step: path for path in complete_checkpoints(Path(run_folder) / "checkpoints")}
    found: dict[int, Path | None] = {}
    for start, path in sorted(starts.items()):
        step = start + 1
        while step in saved:
            found[step] = path
            step += 1
    return found


def replay(run_folder: Path, step: int) -> Replayed:
    """Repeat all updates from the newest checkpoint before `step` up to `step`, on learner ranks alone."""
    run, start = _read(run_folder, step)
    recorded = _recorded(run, run_folder, step)
    if start:
        verify(start)
    config, items = run.config, training_items(run.config)
    from_step = load_state(start).step if start else 0
    with open_learner_stack(config) as stack:
        stack.load_learner(config)
        if start:
            stack.learner.restore(start / "deepspeed")
        metrics: Mapping[str, float] = {}
        for number in range(from_step + 1, step + 1):
            log.info("step %d of %d", number, step)
            metrics = _update(stack, config, items, read_step(step_file(run_folder / FOLDER, number)))
        digest = "" if config.learner.lora.rank else _digest(stack)
    recorded_digest = next((one.weights_digest for one in ledger.read(run_folder) if one.step == step), "")
    nan = math.nan
    return Replayed(
        step=step,
        from_step=from_step,
        digests=("" if config.learner.lora.rank else recorded_digest, digest),
        metrics={
            name: Compared(recorded=recorded.get(name, nan), replayed=value)
            for name, value in metrics.items()
            if not name.startswith("perf/")
        },
    )


def rescore(run_folder: Path, step: int) -> tuple[int, list[Rescored]]:
    """Score the saved responses of a step again; return their number and those whose scores changed.

    A score that compares with responses to shuffled frames is not recomputed, because those responses are not saved.
    """
    run = _read_run(run_folder)
    _require(step, {int(file.stem.removeprefix("step_")): None for file in (run_folder / FOLDER).glob("step_*.npz")})
    saved = read_step(step_file(run_folder / FOLDER, step))
    items = training_items(run.config)
    groups = [
        (part, _item(run.config, items, group))
        for group in saved.groups.values()
        for part in (group, *(one.group for one in group.later))
    ]
    with open_scorer(run.config, {item.task for _, item in groups}) as scorer:

        async def score_all() -> list[ScoredGroup]:
            try:
                return list(await asyncio.gather(*(scorer.score(_texts(group, item), {}) for group, item in groups)))
            finally:
                await scorer.close()

        scored = asyncio.run(score_all())
    found = [one for (group, _), now in zip(groups, scored, strict=True) for one in _changes(group, now)]
    return sum(len(group.rollouts) for group, _ in groups), found


def _read_run(run_folder: Path) -> RunFile:
    run = read_run_file(run_folder)
    # the folder may have been moved
    return RunFile(
        mlflow_run_id=run.mlflow_run_id, config=run.config.model_copy(update={"output_dir": Path(run_folder)})
    )


def _read(run_folder: Path, step: int) -> tuple[RunFile, Path | None]:
    run, possible = _read_run(run_folder), possible_steps(run_folder)
    _require(step, possible)
    return run, possible[step]


def _require(step: int, possible: Mapping[int, Path | None]) -> None:
    if step not in possible:
        steps = ", ".join(map(str, sorted(possible))) or "none"
        raise ReplayError(
            f"step {step} cannot be replayed: that needs the saved rollouts of all steps since a checkpoint "
            f"(checkpoint.save_rollouts, checkpoint.keep). Possible steps: {steps}."
        )


def _item(config: RunConfig, items: Sequence[PromptItem], group: SavedGroup) -> PromptItem:
    if config.data.curriculum == "none":
        item = items[order_of(config, items).index_at(group.prompt_index)]
    else:  # the order follows the pass rates of the run, and the group says which row it was
        item = next((one for one in items if one.prompt_id == group.prompt_id), items[0])
    if item.prompt_id != group.prompt_id:
        raise ReplayError(
            f"prompt {group.prompt_index} was {group.prompt_id} in the run, but is {item.prompt_id} now; "
            "restore the annotations that the run used."
        )
    return item


def _update(
    stack: LearnerStack, config: RunConfig, items: Sequence[PromptItem], saved: SavedStep
) -> Mapping[str, float]:
    found = [saved.groups[prompt_index] for prompt_index in saved.prompt_indices]
    futures = [as_it_was(group, _item(config, items, group), stack.preparer, config) for group in found]
    groups = tuple(future.result() for future in futures)
    objective, reference = PolicyGradient(config), None
    if objective.needs_reference:
        rounds = [group for scored in groups for group in scored.groups]
        reference = stack.learner.logprobs(rounds, reference=True)
    shaped = objective.shape(groups, reference)
    batch = objective.batch(shaped.groups, objective.advantages(shaped.groups))
    learner_metrics = stack.learner.update(batch)
    return merge(reward_metrics(groups), advantage_metrics(batch), shaped.metrics, learner_metrics)


def _digest(stack: LearnerStack) -> str:
    with tempfile.TemporaryDirectory() as folder:
        return stack.learner.export(Path(folder) / "model")


def _recorded(run: RunFile, run_folder: Path, step: int) -> Mapping[str, float]:
    uri = store_uri(run.config.model_copy(update={"output_dir": Path(run_folder)}))  # the folder may have moved
    try:
        return MlflowRun(uri, current_id(run_folder, run.mlflow_run_id)).metrics_of(step)
    except StoreError as error:
        raise ReplayError(
            f"MLflow store {masked_url(uri)}: {error}. There is no record to compare with; "
            f"recreate a run that the store has lost: {send_command(run_folder)}"
        ) from error


def _texts(group: SavedGroup, item: PromptItem) -> RolloutGroup:
    """Return what reward servers need of a group: a question, a truth and texts."""
    none = np.zeros(0, np.int32)
    prompt = Prompt(engine_ids=none, prompt_ids=none, position_ids=np.zeros((3, 0), np.int32), next_position=0)
    return RolloutGroup(item=item, prompt=prompt, clips=(), rollouts=group.rollouts)


def _changes(group: SavedGroup, now: ScoredGroup) -> list[Rescored]:
    shared = [name for name in now.score_names if name in group.score_names]
    found = []
    for index, rollout in enumerate(group.rollouts):
        before = {name: float(group.scores[index, group.score_names.index(name)]) for name in shared}
        after = {name: float(now.scores[index, now.score_names.index(name)]) for name in shared}
        if not np.array_equal(list(before.values()), list(after.values()), equal_nan=True):
            found.append(
                Rescored(
                    prompt_index=group.prompt_index,
                    prompt_id=group.prompt_id,
                    sample_index=index,
                    text=rollout.text,
                    before=before,
                    after=after,
                )
            )
    return found
