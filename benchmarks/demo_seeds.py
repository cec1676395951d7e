"""Run a demo with several seeds and print its tables: `python -m benchmarks.demo_seeds [--tasks all] [--out FOLDER]`.

Every seed is one `rlsys demo`, controls included, in a folder of its own. A seed whose `summary.json` is there is not
run again, so that a benchmark that was interrupted continues. The tables are those of `README.md` and
`docs/demo_all_tasks.md`; a cell has one number per seed. A seed repeats its numbers on one make of CPU.
"""

from __future__ import annotations

import argparse
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from rlsys.demo.all_tasks import MEASURES, run_demo_all_tasks
from rlsys.demo.grounding import STEP_PHASES, demo_config, run_demo
from rlsys.demo.synthetic import SyntheticSet
from rlsys.evaluation.metrics import best_constant_interval
from rlsys.runs.inputs.items import held_out_items
from rlsys.tasks.geometry import mean_box_iou

log = logging.getLogger("benchmarks.demo_seeds")
Summaries = Sequence[Mapping[str, Any]]
Form = Callable[[float], str]

STAGES = {
    "cold_start": "cold start",
    "grpo": "**GRPO**",
    "more_sft": "more supervised steps",
    "shuffled_video": "GRPO, another question’s video",
    "constant_interval": "best constant answer",
}
THREE = ("cold_start", "grpo", "shuffled_video")


def summaries_of(tasks: str, seeds: Sequence[int], out: Path) -> Summaries:
    """Return the summary of each seed's demo, from its folder or by running it."""
    demo = run_demo_all_tasks if tasks == "all" else run_demo
    found = []
    for seed in seeds:
        folder = out / f"{tasks}_{seed}"
        file = folder / "summary.json"
        # a demo writes its summary last, and the training inside it an earlier one without the cold start
        if not file.exists() or "cold_start" not in json.loads(file.read_text())["held_out"]:
            demo(folder, seed)
        found.append(json.loads(file.read_text()))
    return found


def grounding_table(summaries: Summaries) -> Iterator[str]:
    """Return the lines of the table of stages by metric."""
    yield "| stage | sampled mIoU | sampled R@0.5 | format rate | sampled reward (of 2) | greedy mIoU | seconds |"
    yield "|---|---|---|---|---|---|---|"
    forms = {"miou": _share, "r_at_0.5": _share, "format": _percent, "reward": _two}
    for stage, name in STAGES.items():
        found = [summary["held_out"][stage] for summary in summaries]
        cells = [_cell([metrics.get(key) for metrics in found], form) for key, form in forms.items()]
        cells.append(_cell([metrics.get("greedy", {}).get("miou") for metrics in found], _share))
        cells.append(_cell([_seconds(summary["seconds"], stage) for summary in summaries], "{:.0f}".format))
        yield f"| {name} | {' | '.join(cells)} |"


def all_tasks_tables(summaries: Summaries) -> Iterator[str]:
    """Return the lines of the table of rewards and of the table of each task's measure, by task and stage."""
    yield "| task | sampled reward, before | after GRPO | with another clip's video | format rate |"
    yield "|---|---|---|---|---|"
    for task in MEASURES:
        reward = [_stage(summaries, stage, "sampled", task, "reward", _two) for stage in THREE]
        before, after = (_stage(summaries, stage, "sampled", task, "format", _percent) for stage in THREE[:2])
        yield f"| {task} | {' | '.join(reward)} | {before} → {after} |"
    yield ""
    yield "| measure | sampled, before | sampled, after | greedy, before | greedy, after | with another clip's video |"
    yield "|---|---|---|---|---|---|"
    for task, (key, measure) in MEASURES.items():
        cells = [
            _stage(summaries, stage, decoding, task, key, _two)
            for decoding in ("sampled", "greedy")
            for stage in THREE[:2]
        ]
        yield f"| {task}, {measure} | {' | '.join(cells)} | {_stage(summaries, THREE[2], 'sampled', task, key, _two)} |"


def constant_answers(seeds: Sequence[int], out: Path) -> Iterator[str]:
    """Return a line for each answer that ignores the video, chosen with the truths of the held-out rows known."""
    by_seed: list[dict[str, float]] = []
    for seed in seeds:
        folder = out / f"all_{seed}"
        clips = {
            name: SyntheticSet(
                annotations=folder / "data" / name / "annotations.jsonl", videos=folder / "data" / name / "videos"
            )
            for name in ("grpo", "held_out")
        }
        items = held_out_items(demo_config("demo_all_tasks.yaml", folder, seed, clips))
        of_task = {task: [item for item in items if item.task == task] for task in MEASURES}
        tracks = [item.truth for item in of_task["tracking"]]
        frequent = {
            "multiple_choice": Counter(item.truth for item in of_task["multiple_choice"]),
            "grounded_qa": Counter(item.truth["answer"] for item in of_task["grounded_qa"]),
        }
        by_seed.append(
            {
                "best constant interval, mIoU": best_constant_interval(of_task["temporal_grounding"])[1].mean(),
                "first box eight times, mIoU": sum(mean_box_iou(boxes[:1] * len(boxes), boxes) for boxes in tracks)
                / len(tracks),
            }
            | {f"most frequent letter, {task}": max(of.values()) / of.total() for task, of in frequent.items()}
        )
    for name in by_seed[0]:
        yield f"{name}: {' / '.join(_two(row[name]) for row in by_seed)}"


def _stage(summaries: Summaries, stage: str, decoding: str, task: str, key: str, form: Form) -> str:
    return _cell([summary["held_out"][stage][f"{decoding}/{task}"].get(key) for summary in summaries], form)


def _cell(values: Sequence[float | None], form: Form) -> str:
    return " / ".join(form(value) for value in values if value is not None)


def _seconds(seconds: Mapping[str, float], stage: str) -> float | None:
    return sum(seconds[phase] for phase in STEP_PHASES) if stage == "grpo" else seconds.get(stage)


def _share(value: float) -> str:
    return f"{value:.3f}".lstrip("0")


def _two(value: float) -> str:
    return f"{value:.2f}"


def _percent(value: float) -> str:
    return f"{value:.0%}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", choices=("grounding", "all"), default="grounding", help="which demo")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/demo_seeds"), help="a folder for the demos' folders")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    summaries = summaries_of(arguments.tasks, arguments.seeds, arguments.out)
    lines = (
        [*all_tasks_tables(summaries), "", *constant_answers(arguments.seeds, arguments.out)]
        if arguments.tasks == "all"
        else [*grounding_table(summaries)]
    )
    Console(soft_wrap=True, markup=False, highlight=False).print("\n".join(lines))


if __name__ == "__main__":
    main()
