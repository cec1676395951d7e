"""Step times of the real stack compared with their longest phase: how much the pipeline hides of the other phases.

    python -m benchmarks.pipeline --json FILE --plot-dir docs            # all of it, half an hour
    python -m benchmarks.pipeline --quick                                # max_lag 0 and 1, judge 0 and 3 s
    python -m benchmarks.pipeline --curves --json FILE --plot-dir docs   # learning curves instead

One actor and one learner rank of a thread each: synthetic clips of 8 frames of 112 px, a random Qwen2.5-VL of 1.5 M
parameters whose learning rate is next to nothing, so that all steps are alike; G = 8, 8 groups a step, one at a time
in the engine, so that learning takes about 0.3 of generating. Responses are as long as makes a step's generation take
four seconds on this machine, alone. The judge is the rule servers and a wait before them of so many seconds a group,
with room for all groups at once.

Alone, in the same process: generating a step's groups (from the first one's start to the last one's end), updating
on them, publishing weights to an idle actor. Then every combination, against the longest phase and against the bound
    step >= max(generate, learn, (generate + score + learn + sync) / (max_lag + 1)),
both from the phases alone just before and just after it, as a shared machine's speed changes from minute to minute.
"""

from __future__ import annotations

import asyncio
import json
import logging
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.pipeline_curves import run_curves
from benchmarks.step import Recorded
from rlsys import env
from rlsys.config.run import RunConfig, parse
from rlsys.demo.synthetic import draw_dataset
from rlsys.loop import loop
from rlsys.loop.objective import PolicyGradient
from rlsys.loop.producer import Scorer
from rlsys.loop.state import RunState
from rlsys.models.tiny import make_tiny
from rlsys.runs.assemble import Stack, open_stack
from rlsys.types import RolloutGroup, ScoredGroup

START = RunState(step=0, prompts_consumed=0, seed=0, mlflow_run_id="", weights_digest="")
LAGS, JUDGE_S = (0, 1, 2), (0.0, 1.0, 3.0)
WAYS: tuple[Literal["pause", "keep"], ...] = ("pause", "keep")
GROUPS, GROUP_SIZE, AT_ONCE = 8, 8, 1
MAX_TOKENS, FIRST_TOKENS = 320, 64
GENERATE_S = 4.0
ALONE = 2  # times that each phase is measured by itself before, and again after, every combination


class SlowJudge:
    """A scorer that scores as `scorer` does, `delay_s` later."""

    def __init__(self, scorer: Scorer) -> None:
        self._scorer, self.delay_s = scorer, 0.0

    async def score(self, group: RolloutGroup, spans: Mapping[str, tuple[float, float]]) -> ScoredGroup:
        await asyncio.sleep(self.delay_s)
        return await self._scorer.score(group, spans)

    async def close(self) -> None:
        await self._scorer.close()


@dataclass(frozen=True, kw_only=True)
class Phases:
    """The seconds of each phase of a step by itself. score: of the last group, after its generation."""

    generate: float
    score: float
    learn: float
    sync: float
    response_tokens: float

    def floor_s(self, judge_s: float) -> float:
        """Return the seconds of the longest phase."""
        return max(self.generate, self.score + judge_s, self.learn)

    def bound_s(self, judge_s: float, max_lag: int) -> float:
        """Return the lower bound on the seconds of a step at this lag."""
        around = self.generate + self.score + judge_s + self.learn + self.sync
        return max(self.generate, self.learn, around / (max_lag + 1))


def workload(folder: Path, max_tokens: int, max_lag: int = 0, weight_update: str = "pause") -> RunConfig:
    """Return the config of one measured run; clips and model are created in `folder` once."""
    clips, model = folder / "clips", folder / "model"
    if not model.exists():
        draw_dataset(clips, num_clips=64, seed=0, durations_s=(4.0,), size_px=112, num_objects=1)
        make_tiny(model, seed=0, size="bench")
    tree = {
        "output_dir": str(folder),
        "model": {"path": str(model), "dtype": "float32", "max_model_len": 1024},
        "data": {
            "annotations": str(clips / "annotations.json"),
            "videos": str(clips / "videos"),
            "prompt_style": "terse",
            "min_frames": 8,
            "max_frames": 8,
            "min_pixels": 784,
            "max_pixels": 112 * 112,
            "decode_ahead": GROUPS,
        },
        "rollout": {"group_size": GROUP_SIZE, "max_tokens": max_tokens, "max_num_seqs": AT_ONCE * GROUP_SIZE},
        "train": {"num_steps": 1, "prompts_per_step": GROUPS, "learning_rate": 1e-12, "schedule": "constant"},
        "pipeline": {"max_lag": max_lag, "weight_update": weight_update},
    }
    return parse(tree, source="benchmarks/pipeline.py")


def generate_alone(stack: Stack, config: RunConfig) -> list[ScoredGroup]:
    """Generate and return a step's groups, with their clips decoded before and nothing else running."""
    parts = Recorded(stack, config)
    for prompt_index in range(GROUPS):
        parts.start(prompt_index).result()
    groups = [parts.start(prompt_index) for prompt_index in range(GROUPS)]
    return [group.result() for group in groups]


def generated_in(groups: Sequence[ScoredGroup]) -> float:
    """Return the seconds from the start of the first generation to the end of the last."""
    spans = [scored.spans["generate"] for scored in groups]
    return max(end for _, end in spans) - min(start for start, _ in spans)


def tokens_for(stack: Stack, folder: Path) -> int:
    """Return the number of response tokens at which a step's generation takes `GENERATE_S` on this machine."""
    stack.load_learner(workload(folder, MAX_TOKENS))
    stack.publish(0)
    tokens = FIRST_TOKENS
    for _ in range(2):  # the second time from close by, as some responses end by themselves
        taken = min(generated_in(generate_alone(stack, workload(folder, tokens))) for _ in range(ALONE))
        tokens = int(np.clip(round(tokens * GENERATE_S / taken), 16, MAX_TOKENS))
    return tokens


def measure_alone(stack: Stack, config: RunConfig) -> Phases:
    """Measure the phases one by one."""
    stack.load_learner(config)
    stack.publish(0)
    rounds = [generate_alone(stack, config) for _ in range(ALONE)]
    groups = rounds[-1]
    objective = PolicyGradient(config)
    batch = objective.batch(tuple(groups), objective.advantages(groups))
    stack.learner.update(batch)  # the first one compiles and allocates
    learn = [_timed(partial(stack.learner.update, batch)) for _ in range(ALONE)]
    sync = [_timed(partial(stack.publish, version)) for version in range(1, ALONE + 1)]
    scored = [scored.spans["score"] for groups in rounds for scored in groups]
    return Phases(
        generate=float(np.mean([generated_in(groups) for groups in rounds])),
        score=float(np.mean([end - start for start, end in scored])),
        learn=float(np.mean(learn)),
        sync=float(np.mean(sync)),
        response_tokens=float(np.mean([r.response_ids.size for one in groups for r in one.group.rollouts])),
    )


def between(before: Phases, after: Phases) -> Phases:
    """Return the means of two measurements of the phases, as an estimate for the time between them."""
    later = asdict(after)
    return Phases(**{name: (value + later[name]) / 2 for name, value in asdict(before).items()})


def _timed(action: Callable[[], object]) -> float:
    start = time.monotonic()
    action()
    return time.monotonic() - start


def measure(stack: Stack, config: RunConfig, num_steps: int) -> dict[str, float]:
    """Return the step seconds (mean and 90th percentile) with a full pipeline, and the rollouts' staleness."""
    max_lag = config.pipeline.max_lag
    warm_up = max_lag + 2
    total = warm_up + num_steps + max_lag
    config = config.model_copy(update={"train": config.train.model_copy(update={"num_steps": total})})
    stack.load_learner(config)
    parts = Recorded(stack, config)
    loop.train(parts, config, START)
    steps = parts.steps[warm_up : warm_up + num_steps]
    seconds = [sum(step.seconds.values()) for step in steps]
    lags = [
        step.state.step - 1 - rollout.weight_version
        for step in steps
        for scored in step.groups
        for rollout in scored.group.rollouts
    ]
    phases = {name: float(np.median([step.seconds[name] for step in steps])) for name in ("collect", "update", "sync")}
    return {
        "step_s": float(np.mean(seconds)),
        "step_p90_s": float(np.percentile(seconds, 90)),
        "mean_lag": float(np.mean(lags)),
        **{f"{name}_s": value for name, value in phases.items()},
    }


def run_all(
    folder: Path, ways: Sequence[str], lags: Sequence[int], judges: Sequence[float], num_steps: int
) -> Iterator[dict[str, Any]]:
    """Yield a row for each combination. At max_lag 0 all ways of updating are equal, so only one is run."""
    tokens = 0
    for way in ways:
        with open_stack(workload(folder, MAX_TOKENS, weight_update=way), {"temporal_grounding"}) as stack:
            judge = SlowJudge(stack.scorer)
            stack.producer.use_scorer(judge)
            tokens = tokens or tokens_for(stack, folder)
            quiet = workload(folder, tokens, weight_update=way)
            after = measure_alone(stack, quiet)
            for lag in (lag for lag in lags if lag or way == ways[0]):
                for judge_s in judges:
                    judge.delay_s = judge_s
                    found = measure(stack, workload(folder, tokens, lag, way), num_steps)
                    judge.delay_s = 0.0
                    before, after = after, measure_alone(stack, quiet)
                    alone = between(before, after)
                    floor, bound = alone.floor_s(judge_s), alone.bound_s(judge_s, lag)
                    yield {
                        "weight_update": way,
                        "max_lag": lag,
                        "judge_s": judge_s,
                        "max_tokens": tokens,
                        **found,
                        "floor_s": floor,
                        "bound_s": bound,
                        "alone": asdict(alone),
                    }


def show(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print the table of results."""
    console = Console(width=130)
    table = Table(title="Seconds of a step, mean; of generating and learning alone", title_justify="left")
    headings = (
        "way",
        "max_lag",
        "judge, s",
        "step",
        "p90",
        "generate",
        "learn",
        "longest phase",
        "step / it",
        "bound",
        "step / bound",
        "lag",
    )
    for heading in headings:
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(
            row["weight_update"] if row["max_lag"] else "",
            str(row["max_lag"]),
            f"{row['judge_s']:g}",
            f"{row['step_s']:.2f}",
            f"{row['step_p90_s']:.2f}",
            f"{row['alone']['generate']:.2f}",
            f"{row['alone']['learn']:.2f}",
            f"{row['floor_s']:.2f}",
            f"{row['step_s'] / row['floor_s']:.2f}",
            f"{row['bound_s']:.2f}",
            f"{row['step_s'] / row['bound_s']:.2f}",
            f"{row['mean_lag']:.2f}",
        )
    console.print(table)


def plot(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Plot step times relative to their longest phase over the judge's latency, by lag and way of updating."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 3.6), dpi=90)
    for way, style in zip(WAYS, ("o-", "s:"), strict=True):
        for lag in LAGS:
            points = [row for row in rows if row["max_lag"] == lag and row["weight_update"] == way]
            if points:
                label = f"max_lag {lag}, {way}" if lag else "max_lag 0"
                ratios = [row["step_s"] / row["floor_s"] for row in points]
                axes.plot([row["judge_s"] for row in points], ratios, style, label=label, color=f"C{lag}")
    axes.axhline(1.0, color="black", linestyle="--", linewidth=1)
    axes.set(xlabel="judge latency of a group, s", ylabel="step / longest phase alone", ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8)
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)


def main(
    quick: Annotated[bool, typer.Option("--quick", help="Only max_lag 0 and 1, judge 0 and 3 s, pause.")] = False,
    curves: Annotated[bool, typer.Option("--curves", help="Learning curves of the demo at max_lag 0, 1, 2.")] = False,
    steps: Annotated[
        int, typer.Option(help="Measured steps per run, or all steps with --curves; 0 is the default.")
    ] = 0,
    json_file: Annotated[Path | None, typer.Option("--json", help="JSON file for the results.")] = None,
    plot_dir: Annotated[Path | None, typer.Option(help="Folder for the plots.")] = None,
    weight_update: Annotated[str, typer.Option(help="pipeline.weight_update with --curves.")] = "keep",
    cold_start_steps: Annotated[int, typer.Option(help="Supervised steps with --curves; 0 means the demo's.")] = 0,
) -> None:
    """Measure, print a table, and write numbers and a plot on request."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    env.be_quiet()
    with tempfile.TemporaryDirectory(prefix="rlsys-pipeline-") as name:
        if curves:
            run_curves(Path(name), json_file, plot_dir, num_steps=steps, way=weight_update, lessons=cold_start_steps)
            return
        ways, lags, judges = (WAYS[:1], LAGS[:2], JUDGE_S[::2]) if quick else (WAYS, LAGS, JUDGE_S)
        rows: list[dict[str, Any]] = []
        for row in run_all(Path(name), ways, lags, judges, steps or (5 if quick else 8)):
            rows.append(row)
            typer.echo(f"max_lag {row['max_lag']}, judge {row['judge_s']:g} s: {row['step_s']:.2f} s", err=True)
            if json_file:
                json_file.write_text(json.dumps(rows, indent=1) + "\n")
    show(rows)
    if plot_dir:
        plot_dir.mkdir(parents=True, exist_ok=True)
        plot(rows, plot_dir / "pipeline.png")


if __name__ == "__main__":
    typer.run(main)
