"""TRL's GRPOTrainer and rlsys side by side on one machine, alternating within one run.

Both train the same randomly initialised Qwen2.5-VL on the same frames with the same questions, group size, number of
response tokens and optimizer. The environment of TRL is made by this script (`pip install --target`, without its
dependencies, which are installed here already). Each side runs in a process of its own, one after the other, `--rounds`
times; reported are medians of the seconds per step after the first steps.

What is not equal: TRL gets the frames as images (a temporal patch of the video is one image of the same size, so that
both sides have the same number of visual tokens and of vision-tower passes), decoded ahead and at no cost, while rlsys
decodes video in its step. TRL generates by transformers in one process with all cores, since its vLLM mode needs a GPU;
rlsys has two engines and two learner ranks with a thread each. TRL computes its reward in a function of its process,
rlsys at a reward server over HTTP.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

PACKAGES = ("trl==1.16.0", "datasets", "multiprocess", "xxhash", "dill")
WARM_UP = 3
GROUP_SIZE = 8
LEARNING_RATE = 1e-6


@dataclass(frozen=True, kw_only=True)
class Workload:
    """A workload. frames of `size_px` squared; two frames are one temporal patch of the video."""

    name: str
    prompts: int
    frames: int
    size_px: int
    max_tokens: int

    @property
    def visual_tokens(self) -> int:
        """Number of visual tokens of a prompt."""
        return self.frames // 2 * (self.size_px // 28) ** 2


WORKLOADS = (
    Workload(name="small", prompts=4, frames=8, size_px=112, max_tokens=32),
    Workload(name="small, more prompts", prompts=16, frames=8, size_px=112, max_tokens=32),
    Workload(name="1,024 visual tokens", prompts=4, frames=8, size_px=448, max_tokens=64),
)


def of_rlsys(workload: Workload, folder: Path, num_steps: int) -> dict[str, Any]:
    """Return seconds per step and response tokens of rlsys."""
    from benchmarks.step import measure
    from rlsys.config.run import parse
    from rlsys.runs.assemble import open_stack

    tree = {
        "output_dir": str(folder / "rlsys"),
        "model": {"path": str(folder / "model"), "dtype": "float32", "max_model_len": 2048},
        "data": {
            "annotations": str(folder / "clips" / "annotations.json"),
            "videos": str(folder / "clips" / "videos"),
            "prompt_style": "terse",
            "min_frames": workload.frames,
            "max_frames": workload.frames,
            "min_pixels": workload.size_px**2,
            "max_pixels": workload.size_px**2,
        },
        "rollout": {
            "num_actors": 2,
            "group_size": GROUP_SIZE,
            "max_tokens": workload.max_tokens,
            "max_num_seqs": 64,
            "kv_cache_mib": 256,
        },
        "train": {
            "num_steps": num_steps,
            "prompts_per_step": workload.prompts,
            "schedule": "constant",
            "learning_rate": LEARNING_RATE,
        },
        "learner": {"num_ranks": 2},
    }
    config = parse(tree, source="benchmarks/against_trl.py")
    with open_stack(config, {"temporal_grounding"}) as stack:
        found = measure(stack, config)
    return {"step_s": found["seconds"]["step"], "tokens": found["response_tokens_mean"], "phases": found["seconds"]}


def of_trl(workload: Workload, folder: Path, num_steps: int) -> dict[str, Any]:
    """Return seconds per step and response tokens of TRL."""
    import torch
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    torch.set_num_threads(os.cpu_count() or 1)
    ends: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: object, **__: object) -> None:
            ends.append(time.perf_counter())

    def reward(completions: Sequence[Any], **_: object) -> list[float]:
        return [float(len(str(one)) % 7) / 7 for one in completions]  # spread without a cost of its own

    rows = _trl_rows(workload, folder, num_steps)
    trainer = GRPOTrainer(
        model=str(folder / "model"),
        reward_funcs=reward,
        args=GRPOConfig(
            output_dir=str(folder / "trl"),
            use_cpu=True,
            bf16=False,
            per_device_train_batch_size=workload.prompts * GROUP_SIZE,
            num_generations=GROUP_SIZE,
            max_completion_length=workload.max_tokens,
            max_steps=num_steps,
            learning_rate=LEARNING_RATE,
            lr_scheduler_type="constant",
            temperature=1.0,
            beta=0.0,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            gradient_checkpointing=False,
            model_init_kwargs={"dtype": "float32"},
        ),
        train_dataset=Dataset.from_dict(rows),
        callbacks=[Clock()],
    )
    trainer.train()
    lengths = [one["completions/mean_length"] for one in trainer.state.log_history if "completions/mean_length" in one]
    return {"step_s": float(np.median(np.diff(ends)[WARM_UP - 1 :])), "tokens": float(np.mean(lengths))}


def _trl_rows(workload: Workload, folder: Path, num_steps: int) -> dict[str, list[Any]]:
    """Return prompts and images of every step: the first frame of each temporal patch."""
    from PIL import Image

    from rlsys.data.video.decode import decode
    from rlsys.types import VideoSpec

    annotations = json.loads((folder / "clips" / "annotations.json").read_text())
    rows: dict[str, list[Any]] = {"prompt": [], "images": []}
    for video, entry in list(annotations.items())[: workload.prompts * num_steps]:
        (path,) = (folder / "clips" / "videos").glob(f"{video}.*")
        pixels = workload.size_px**2
        spec = VideoSpec(
            uri=str(path),
            fps=2.0,
            min_frames=workload.frames,
            max_frames=workload.frames,
            min_pixels=pixels,
            max_pixels=pixels,
            total_pixels=pixels * workload.frames,
        )
        rows["images"].append([Image.fromarray(frame) for frame in decode(spec).frames[::2]])
        rows["prompt"].append([{"role": "user", "content": entry["sentences"][0]}])
    return rows


def make_inputs(workload: Workload, folder: Path, num_steps: int) -> None:
    """Write the model and the clips that both sides read."""
    from rlsys.demo.synthetic import draw_dataset
    from rlsys.models.tiny import make_tiny

    draw_dataset(
        folder / "clips",
        num_clips=workload.prompts * num_steps,
        seed=workload.prompts,
        durations_s=(4.0,),
        size_px=workload.size_px,
        num_objects=1,
    )
    make_tiny(folder / "model", seed=0, size="bench")


def install(folder: Path) -> None:
    """Install TRL into `folder`, unless it is there already."""
    if (folder / "trl").is_dir():
        return
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), *PACKAGES]
    subprocess.run(command, check=True)


def run_side(side: str, workload: Workload, folder: Path, num_steps: int, packages: Path) -> dict[str, Any]:
    """Run one side in a process of its own and return its result."""
    environment = {
        **os.environ,
        "PYTHONPATH": f"{Path.cwd()}{os.pathsep}{packages}" if side == "trl" else str(Path.cwd()),
    }
    index = WORKLOADS.index(workload)
    command = [sys.executable, "-m", "benchmarks.against_trl", "--side", side, "--workload", str(index)]
    command += ["--steps", str(num_steps), "--folder", str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{side} failed on {workload.name}:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def show(results: Sequence[Mapping[str, Any]]) -> None:
    """Print a row per workload."""
    table = Table(title=f"Median of a step, G = {GROUP_SIZE}; each side alone on the machine, alternating")
    for heading in (
        "workload",
        "prompts x G",
        "visual tokens",
        "TRL s",
        "rlsys s",
        "TRL rollouts/s",
        "rlsys rollouts/s",
        "ratio",
        "TRL tokens",
        "rlsys tokens",
    ):
        table.add_column(heading, justify="right")
    for row in results:
        rollouts = row["prompts"] * GROUP_SIZE
        trl, ours = row["trl"], row["rlsys"]
        table.add_row(
            row["name"],
            f"{row['prompts']} x {GROUP_SIZE}",
            str(row["visual_tokens"]),
            f"{trl['step_s']:.2f}",
            f"{ours['step_s']:.2f}",
            f"{rollouts / trl['step_s']:.1f}",
            f"{rollouts / ours['step_s']:.1f}",
            f"{trl['step_s'] / ours['step_s']:.1f}",
            f"{trl['tokens']:.1f}",
            f"{ours['tokens']:.1f}",
        )
    Console(width=150).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=12, help="steps of each run, warm-up included")
    parser.add_argument("--rounds", type=int, default=2, help="runs of each side")
    parser.add_argument("--workload", type=int, choices=range(len(WORKLOADS)), help="one workload by its number")
    parser.add_argument("--packages", type=Path, default=Path("runs/bench/trl_packages"), help="folder for TRL")
    parser.add_argument("--json", type=Path, default=Path("runs/bench/against_trl.json"), help="file for the results")
    parser.add_argument("--side", choices=("trl", "rlsys"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.ERROR)
    if arguments.side:
        measured = of_trl if arguments.side == "trl" else of_rlsys
        result = measured(WORKLOADS[arguments.workload], arguments.folder, arguments.steps)
        sys.stdout.write(json.dumps(result) + "\n")
        return
    install(arguments.packages.resolve())
    chosen = WORKLOADS if arguments.workload is None else (WORKLOADS[arguments.workload],)
    results = [_compared(workload, arguments) for workload in chosen]
    show(results)
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(results, indent=2) + "\n")


def _compared(workload: Workload, arguments: argparse.Namespace) -> dict[str, Any]:
    found: dict[str, list[dict[str, Any]]] = {"trl": [], "rlsys": []}
    with tempfile.TemporaryDirectory() as name:
        make_inputs(workload, Path(name), arguments.steps)
        for _ in range(arguments.rounds):
            for side, runs in found.items():
                runs.append(run_side(side, workload, Path(name), arguments.steps, arguments.packages.resolve()))
    medians = {
        side: {key: float(np.median([run[key] for run in runs])) for key in ("step_s", "tokens")}
        for side, runs in found.items()
    }
    about = {"name": workload.name, "prompts": workload.prompts, "visual_tokens": workload.visual_tokens}
    return {**about, **medians, "runs": found}


if __name__ == "__main__":
    main()
