"""Rounds against one round on long clips with a brief event: `python -m benchmarks.perception --seed 0 --json FILE`.

In a clip of 64 s a bar is shown for 8 to 12 s, and some time meanwhile the rest of the frame takes a colour for one
second. The question, a row of grounded QA, is which colour it was, and when the bar was shown. An even look at the
frame budget sees the bar and misses most flashes; one around the bar sees them all. Of a flash that was missed the
colour is a guess among four.

A tiny model gets a supervised cold start on five forms of each row: even looks with one, two and three times the
frames, and two second looks around clues that are off by up to the spacing of the first look's frames. It is then
evaluated in one to three rounds, against one round with as many visual tokens as all rounds together, before and after
GRPO on two rounds. Stages that are in FILE are not run again; with `--plot` the medians over the seeds are drawn.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console

from rlsys import env
from rlsys.config import bundled
from rlsys.config.run import RunConfig, load
from rlsys.data.annotations.responses import write_responses
from rlsys.demo.synthetic import COLOURS, Scene, SyntheticSet, encode, render
from rlsys.demo.synthetic_tasks import choice_of_colour, demonstration_text
from rlsys.evaluation.rounds import points_of
from rlsys.models.families.table import FamilyName
from rlsys.models.tiny import make_tiny
from rlsys.runs.evaluating.evaluate import RESULTS_FILE, EvalOptions, run_evaluation
from rlsys.runs.inputs.items import training_items
from rlsys.runs.sft import sft
from rlsys.runs.train import train
from rlsys.types import PromptItem

log = logging.getLogger("benchmarks.perception")

NUM_CLIPS = {"cold_start": 1500, "grpo": 600, "held_out": 150}
DURATION_S, SOURCE_FPS, FLASH_S = 64.0, 2, 1.0
SHORTEST_S, LONGEST_S = 8.0, 12.0
"""How long the bar is shown."""
SIZE_PX, BAR_PX = 64, 24
NUM_FRAMES = 16
QUESTION = "Which colour appears, and when?"
EVEN = {"even": 1, "twice": 2, "thrice": 3}
"""Source of a row -> how many times as many frames as those of a round it shows."""
SECOND_LOOKS = 2
COLD_START_STEPS, GRPO_STEPS, GRPO_PROMPTS = 800, 100, 8
STAGES = {"cold_start": "cold start", "grpo": "GRPO on two rounds"}
PROTOCOL, RIGHT, GROUNDED = "grounded_qa/paper", "accuracy", "miou"
"""How answers are scored, and its metrics: of the colours and of the periods of the bar."""
EQUAL = "one round, equal tokens"
FAMILY: FamilyName = "qwen3_vl"
SPACING_S = DURATION_S / NUM_FRAMES
GRID_S = 0.5
SETTINGS = (
    "model.max_model_len=1024",
    f"data.fps={NUM_FRAMES / DURATION_S}",
    f"data.min_frames={NUM_FRAMES}",
    f"data.max_frames={NUM_FRAMES}",
    "data.max_pixels=4096",
    "perception.key_ratio=0.75",
    "tracking.log_model=false",
)


def frames(times: int) -> dict[str, Any]:
    """Return the settings of a source that shows so many times as many frames as a round."""
    return {"fps": times * NUM_FRAMES / DURATION_S, "min_frames": times * NUM_FRAMES, "max_frames": times * NUM_FRAMES}


def demonstrations(items: tuple[PromptItem, ...], seed: int) -> Iterator[tuple[str, ...]]:
    """Yield the right answer to each row, and of the rows with the frames of a round also after coarse answers."""
    rng = np.random.default_rng([seed, 1])
    for item in items:
        text = demonstration_text(item, rng, malformed_frac=0.0)
        yield item.prompt_id, text
        if EVEN[item.source] == 1:
            for _ in range(SECOND_LOOKS):
                yield item.prompt_id, text, coarse(item, text, rng)


def coarse(item: PromptItem, text: str, rng: np.random.Generator) -> str:
    """Return an answer whose period has edges that are each off by up to the spacing of the first look's frames."""
    ((true_start_s, true_end_s),) = item.truth["glue"]
    while True:
        moved = [edge + rng.uniform(-SPACING_S, SPACING_S) for edge in (true_start_s, true_end_s)]
        start_s, end_s = (min(max(round(edge / GRID_S) * GRID_S, 0.0), DURATION_S) for edge in moved)
        if start_s < end_s:
            return f"{text[: text.index('<glue>')]}<glue>[({start_s:.1f}, {end_s:.1f})]</glue>"


def draw_clip(path: Path, rng: np.random.Generator) -> dict[str, Any]:
    """Write a clip, and return its row in the format `vtts`."""
    colour = str(rng.choice(list(COLOURS)))
    length_s = float(rng.integers(round(SHORTEST_S / GRID_S), round(LONGEST_S / GRID_S), endpoint=True)) * GRID_S
    start_s = float(rng.integers(0, round((DURATION_S - length_s) / GRID_S), endpoint=True)) * GRID_S
    flash_s = start_s + float(rng.integers(0, round((length_s - FLASH_S) / GRID_S), endpoint=True)) * GRID_S
    scene = Scene(duration_s=DURATION_S, fps=SOURCE_FPS, grey=int(rng.integers(96, 145)), objects=())
    frames = render(scene, SIZE_PX, rng)
    frames[_frames(start_s, length_s), :, :BAR_PX] = np.iinfo(np.uint8).max
    frames[_frames(flash_s, FLASH_S), :, BAR_PX:] = COLOURS[colour]
    encode(path, frames, SOURCE_FPS)
    clue = [[start_s, start_s + length_s]]
    return {
        "video": path.name,
        "duration": DURATION_S,
        "question": QUESTION,
        "clue": clue,
        **choice_of_colour(colour),
    }


def _frames(start_s: float, length_s: float) -> slice:
    return slice(round(start_s * SOURCE_FPS), round((start_s + length_s) * SOURCE_FPS))


@dataclass(frozen=True, kw_only=True)
class Seed:
    """One seed. folder: of its clips and runs."""

    folder: Path
    seed: int
    steps: int

    def clips(self, name: str) -> SyntheticSet:
        """Return a set of clips, drawn if it is not there."""
        folder, index = self.folder / "data" / name, list(NUM_CLIPS).index(name)
        if (folder / "annotations.jsonl").exists():
            return SyntheticSet(annotations=folder / "annotations.jsonl", videos=folder / "videos")
        videos, annotations = folder / "videos", folder / "annotations.jsonl"
        videos.mkdir(parents=True, exist_ok=True)
        rngs = [np.random.default_rng((1000 * self.seed + index, number)) for number in range(NUM_CLIPS[name])]
        rows = [draw_clip(videos / f"{number:05d}.mp4", rng) for number, rng in enumerate(rngs)]
        annotations.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return SyntheticSet(annotations=annotations, videos=videos)

    def config(self, name: str, stage: str, *overrides: str) -> RunConfig:
        """Return a bundled config for a stage, with the sizes of this experiment."""
        return load(
            bundled.FOLDER / name,
            (
                f"seed={self.seed}",
                f"output_dir={self.folder / stage}",
                f"tracking.uri=sqlite:///{self.folder.resolve() / 'mlflow.db'}",
                *SETTINGS,
                *overrides,
            ),
        )

    def cold_start(self) -> Path:
        """Return the model that all stages start from, trained if it is not there."""
        make_tiny(self.folder / "models" / "untrained", seed=self.seed, words="all", family=FAMILY)
        clips, responses = self.clips("cold_start"), self.folder / "data" / "demonstrations.jsonl"
        where = {"annotations": str(clips.annotations), "videos": str(clips.videos)}
        sources = [{"name": name, **where, **frames(times)} for name, times in EVEN.items()]
        config = self.config(
            "demo_all_tasks_cold_start.yaml",
            "cold_start",
            f"model.path={self.folder / 'models' / 'untrained'}",
            "data.annotations=null",
            "data.videos=null",
            f"data.sources={json.dumps(sources)}",
            f"sft.responses={responses}",
            f"train.num_steps={self.steps}",
            "perception.rounds=2",
        )
        model = config.output_dir / "checkpoints" / f"step_{self.steps:06d}" / "model"
        if not model.exists():
            write_responses(responses, demonstrations(training_items(config), self.seed))
            model = Path(sft(config).model)
        return model

    def trained(self, model: Path) -> Path:
        """Return the model after GRPO on two rounds, trained if it is not there."""
        clips, held_out = self.clips("grpo"), self.clips("held_out")
        config = self.config(
            "demo_all_tasks.yaml",
            "grpo",
            f"model.path={model}",
            f"data.annotations={clips.annotations}",
            f"data.videos={clips.videos}",
            f"evaluation.annotations={held_out.annotations}",
            f"evaluation.videos={held_out.videos}",
            f"train.num_steps={GRPO_STEPS}",
            f"train.prompts_per_step={GRPO_PROMPTS}",
            "checkpoint.every_steps=0",
            "perception.rounds=2",
        )
        found = config.output_dir / "checkpoints" / f"step_{GRPO_STEPS:06d}" / "model"
        return found if found.exists() else Path(train(config).model)

    def sampled(self) -> dict[str, dict[str, float]]:
        """Return the held-out metrics of sampled responses in two rounds before and after GRPO."""
        held_out = json.loads((self.folder / "grpo" / "summary.json").read_text())["held_out"]
        return {when: held_out[when]["sampled"] for when in ("before", "after")}

    def evaluated(self, stage: str, model: Path) -> dict[str, Any]:
        """Return the figures of a model by rounds, and of the controls."""
        clips = self.clips("held_out")
        sets = [{"name": "held_out", "annotations": str(clips.annotations), "videos": str(clips.videos)}]
        config = self.config(
            "demo_all_tasks.yaml",
            stage,
            f"model.path={model}",
            "perception.rounds=3",
            "evaluation.num_samples=1",
            "evaluation.control_prompts=0",
            f"evaluation.sets={json.dumps(sets)}",
            "evaluation.controls=[random_window, oracle_window, one_round_equal_tokens]",
        )
        out = run_evaluation(config, EvalOptions())
        (one,) = json.loads((out / RESULTS_FILE).read_text())["sets"]
        (found,) = [found for found in one["tasks"]["grounded_qa"] if found["protocol"] == PROTOCOL]
        return found["rounds"]


def table(results: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Yield the lines of a table by stage: medians over the seeds, and the accuracy of each seed."""
    yield "| stage | asked | visual tokens | accuracy | seeds | mIoU of the bar |"
    yield "|---|---|---|---|---|---|"
    for stage, title in STAGES.items():
        grounded = _points(results, stage, GROUNDED)
        for name, points in _points(results, stage, RIGHT).items():
            for number in range(len(points[0])):
                asked = f"round {number + 1}" if name == "model" else name
                tokens, right = (np.array([one[number][axis] for one in points]) for axis in (0, 1))
                periods = np.median([one[number][1] for one in grounded[name]])
                yield f"| {title} | {asked} | {np.median(tokens):.0f} | {_seeds(right)} | {periods:.3f} |"
    for when, title in zip(("before", "after"), STAGES.values(), strict=True):
        sampled = [of_seed["sampled"][when] for of_seed in results.values() if "sampled" in of_seed]
        if sampled:
            right = np.array([one[RIGHT] for one in sampled])
            periods = np.median([one[GROUNDED] for one in sampled])
            yield f"| {title} | round 2, sampled at temperature 1 |  | {_seeds(right)} | {periods:.3f} |"


def _seeds(values: np.ndarray) -> str:
    return f"{np.median(values):.3f} | {' '.join(f'{value:.3f}' for value in values)}"


def _points(
    results: Mapping[str, Mapping[str, Any]], stage: str, metric: str
) -> dict[str, list[list[tuple[float, float]]]]:
    """Return (visual tokens, metric) of rounds and controls, by name and seed."""
    found: dict[str, list[list[tuple[float, float]]]] = {}
    for of_seed in results.values():
        if stage in of_seed:
            for name, points in points_of({"primary": metric, "rounds": of_seed[stage]}).items():
                found.setdefault(name, []).append(points)
    return found


def plot(results: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Draw the accuracy against the visual tokens of a row, by stage: the median of the seeds, and their range."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4), layout="constrained")
    for colour, (stage, title) in zip(("tab:blue", "tab:orange"), STAGES.items(), strict=True):
        series = {name: np.array(points) for name, points in _points(results, stage, RIGHT).items()}
        for name, points in series.items():
            if name == EQUAL:
                points = np.concatenate([series["model"][:, :1], points], axis=1)  # the first round is one round
            middle = np.median(points, axis=0)
            below, above = middle[:, 1] - points[..., 1].min(axis=0), points[..., 1].max(axis=0) - middle[:, 1]
            axes.errorbar(
                middle[:, 0],
                middle[:, 1],
                yerr=[below, above],
                capsize=3,
                color=colour,
                marker={"model": "o", EQUAL: "s", "oracle window": "^"}.get(name, "x"),
                linestyle="-" if name == "model" else "--",
                label=f"{title}: {'rounds' if name == 'model' else name}",
            )
    axes.set_xlabel("visual tokens of a row, all rounds so far")
    axes.set_ylabel("accuracy: median and range of the seeds")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right center", fontsize="small")
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def main(
    seed: Annotated[list[int], typer.Option(help="Seed; may be given several times.")],
    json_file: Annotated[Path, typer.Option("--json", help="File for the results; what is in it is not run again.")],
    out: Annotated[Path, typer.Option(help="Folder for clips and runs.")] = Path("runs/perception"),
    steps: Annotated[int, typer.Option(help="Supervised steps of the cold start.")] = COLD_START_STEPS,
    stage: Annotated[list[str] | None, typer.Option(help="cold_start or grpo; by default both.")] = None,
    plot_file: Annotated[Path | None, typer.Option("--plot", help="PNG for the curves.")] = None,
) -> None:
    """Run the stages that are missing, seed by seed, and print the table."""
    wanted = stage or list(STAGES)
    if unknown := set(wanted) - STAGES.keys():
        raise typer.BadParameter(f"{sorted(unknown)}; stages are {list(STAGES)}.")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    env.be_quiet()
    results: dict[str, dict[str, Any]] = json.loads(json_file.read_text()) if json_file.exists() else {}
    for number in seed:
        of_seed = results.setdefault(str(number), {})
        one = Seed(folder=out / f"seed_{number}", seed=number, steps=steps)
        for name in wanted:
            if name not in of_seed:
                model = one.cold_start()
                model = one.trained(model) if name == "grpo" else model
                of_seed[name] = one.evaluated(f"{name}_evaluation", model)
            if name == "grpo":
                of_seed["sampled"] = one.sampled()
            json_file.write_text(json.dumps(results, indent=1) + "\n")
    Console(soft_wrap=True, markup=False, highlight=False).print("\n".join(table(results)))
    if plot_file is not None:
        plot(results, plot_file)


if __name__ == "__main__":
    typer.run(main)
