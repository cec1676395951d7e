"""`rlsys train`: a config's parts in the main loop, recorded, checkpointed, evaluated."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from rlsys.clock import Clock
from rlsys.config.run import RunConfig
from rlsys.errors import LearnerLost, NotWritten
from rlsys.evaluation.report import write_reward_curve
from rlsys.loop import loop
from rlsys.loop.state import RunState
from rlsys.runs import ledger
from rlsys.runs.assemble import Stack, open_stack
from rlsys.runs.check import check
from rlsys.runs.items import held_out_items, training_items
from rlsys.runs.recovery import Origin, evaluated, evaluated_before, find_origin, has_ended
from rlsys.runs.run_file import SUMMARY_FILE, forget_summary, write_json, write_run_file
from rlsys.runs.training_run import TrainingRun
from rlsys.tracking.progress import TRAINING, Progress, Story, show_table
from rlsys.tracking.tracker import Tracker
from rlsys.types import PromptItem

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What `summary.json` says of a run.

    held_out: {} when no held-out rows were given.  model: "" where the last checkpoint could not be written.
    ledger: {} after supervised training.
    """

    weights_digest: str
    num_steps: int
    mlflow_run_id: str
    seconds: Mapping[str, float]
    held_out: Mapping[str, Mapping[str, Mapping[str, float]]]
    model: str
    ledger: Mapping[str, Any] = field(default_factory=dict)


def train(config: RunConfig, *, resume: Path | None = None, stack: Stack | None = None) -> Summary:
    """Run GRPO as `config` says, on `stack` when one is open already, and write `summary.json`.

    resume: a checkpoint folder, or a run folder whose newest checkpoint is taken; see `recovery.find_origin`.
    Returns the summary that is there where the run has ended already.
    """
    origin = find_origin(config, resume)
    if has_ended(config, origin):
        return read_summary(config)
    check(config).raise_problems()
    items = training_items(config)
    held_out = held_out_items(config)
    tasks = {item.task for item in (*items, *held_out)}
    with open_stack(config, tasks) if stack is None else nullcontext(stack) as opened:
        summary = _train_on(opened, config, origin, items, held_out)
    write_summary(config.output_dir / SUMMARY_FILE, asdict(summary))  # the last of all; see `has_ended`
    return summary


def _train_on(
    stack: Stack, config: RunConfig, origin: Origin, items: tuple[PromptItem, ...], held_out: tuple[PromptItem, ...]
) -> Summary:
    clock = Clock()
    forget_summary(config)
    with Tracker(config, run_id=origin.state.mlflow_run_id or None) as tracker:
        write_run_file(config, tracker.run_id)
        progress = Progress(
            TRAINING, origin.state.step, config.train.num_steps, {"judge queue": lambda: stack.scorer.num_waiting}
        )
        origin = replace(origin, state=replace(origin.state, mlflow_run_id=tracker.run_id))
        run = TrainingRun(config, stack, items, tracker, progress, origin)
        with clock("load"):
            state = run.load_learner()
        results: dict[str, Any] = {}
        with clock("evaluate"):
            if held_out:
                state, results["before"] = evaluated_before(stack, held_out, config, state, run.recover)
        end = _to_the_end(run, config, state, progress)
        with clock("evaluate"):
            if held_out:
                _, results["after"] = evaluated(stack, held_out, config, end.state, run.recover, is_published=True)
        summary = Summary(
            weights_digest=end.state.weights_digest,
            num_steps=end.state.step,
            mlflow_run_id=tracker.run_id,
            seconds={**run.clock.seconds, **clock.seconds},
            held_out=results,
            model=str(end.checkpoint / "model") if end.checkpoint else "",
            ledger=ledger_result(run, end.state),
        )
        curve = _record_outputs(config, run, tracker, summary)
        if end.problem:
            write_summary(config.output_dir / SUMMARY_FILE, asdict(summary))
            raise run.recovery.why_not_saved(end.problem) from end.problem
    show_table(f"Trained in {config.output_dir}", end_rows(progress.story, summary, tracker, curve))
    return summary


@dataclass(frozen=True, kw_only=True)
class _End:
    """problem: why there is no checkpoint of the end, None where there is one."""

    state: RunState
    checkpoint: Path | None
    problem: Exception | None


def _to_the_end(run: TrainingRun, config: RunConfig, state: RunState, progress: Progress) -> _End:
    """All steps and the last checkpoint, however often the learner is lost on the way."""
    with progress:
        while True:
            try:
                state = loop.run(run, config, state)
                return _End(state=state, checkpoint=run.save(state), problem=None)
            except LearnerLost as error:
                state = run.recover(error)
            except (OSError, NotWritten) as error:
                return _End(state=state, checkpoint=None, problem=error)


def ledger_result(run: TrainingRun, state: RunState) -> dict[str, Any]:
    """For the summary: what the draws were used for, and what is wrong with that, which is nothing."""
    found = ledger.problems(run.ledger.entries, state.drawn)
    for problem in found:
        log.error("ledger: %s", problem)
    return {"counts": ledger.count(run.ledger.entries), "problems": found}


def _record_outputs(config: RunConfig, run: TrainingRun, tracker: Tracker, summary: Summary) -> Path:
    """The reward curve."""
    rewards = [one.reward for one in run.ledger.entries]
    curve = write_reward_curve(rewards, config.output_dir / "reward_curve.png")
    tracker.log_artifact(curve)
    if summary.held_out:
        tracker.log_table("held_out", held_out_rows(summary.held_out))
    if config.tracking.log_model and summary.model:
        tracker.log_model_folder(Path(summary.model))
    return curve


def end_rows(story: Story, summary: Summary, tracker: Tracker, curve: Path) -> list[tuple[str, str]]:
    """What the table at the end of a run says: how it went, and where things are."""
    unsent = f"; {tracker.num_unsent} records are not there yet" if tracker.num_unsent else ""
    return [
        *story.rows(summary.seconds),
        *_ledger_rows(summary),
        ("model", summary.model),
        ("curve", str(curve)),
        ("MLflow run", f"{tracker.run_id}{unsent}"),
        ("look at it", tracker.how_to_open),
    ]


def _ledger_rows(summary: Summary) -> list[tuple[str, str]]:
    if not summary.ledger:
        return []
    problems = summary.ledger["problems"]
    verdict = f"{len(problems)} PROBLEMS, {problems[0]}" if problems else "each draw was used once"
    return [("ledger", f"{summary.ledger['counts']}; {verdict}")]


def held_out_rows(results: Mapping[str, Mapping[str, Mapping[str, float]]]) -> list[dict[str, Any]]:
    """One row per (stage, decoding, task) for the before/after table; task "all" is over every row."""
    return [
        {"stage": stage, "decoding": decoding, "task": task or "all", **metrics}
        for stage, by_decoding in results.items()
        for key, metrics in by_decoding.items()
        for decoding, _, task in [key.partition("/")]
    ]


def write_summary(path: Path, summary: Mapping[str, Any]) -> None:
    write_json(path, summary)
    log.info("summary in %s", path)


def read_summary(config: RunConfig) -> Summary:
    """Of a run that has ended."""
    file = config.output_dir / SUMMARY_FILE
    tree = json.loads(file.read_text())
    log.info("the run has ended, with all of its %d steps: %s; raise train.num_steps to go on", tree["num_steps"], file)
    return Summary(**{one.name: tree[one.name] for one in fields(Summary)})
