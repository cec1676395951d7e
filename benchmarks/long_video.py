"""Training steps on one long clip, by number of frames: `python -m benchmarks.long_video --json FILE [--frames 768]`.

Every case is `rlsys train` on a clip of that many frames (280 x 420 pixels at 2 frames a second, 75 visual tokens a
frame; 768 frames are 57,600 visual tokens and 6.4 minutes) with a tiny Qwen2.5-VL on CPU: decoding, prompt, contract,
generation of two responses, packed update, publication, twice. The second step counts. Times are those that the run
logs; memory is the largest resident set of each kind of process, which includes the pages of the object store that it
reads. The plot is `docs/long_video.png`.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import psutil
from rich.console import Console

from benchmarks.decode import KINDS, write
from rlsys.models.tiny import make_tiny
from rlsys.tracking.mlflow_store import MlflowRun

matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402

log = logging.getLogger("benchmarks.long_video")

FRAMES = (48, 96, 192, 384, 768)
FPS, SIZE = 2, (280, 420)
TOKENS_A_FRAME = SIZE[0] * SIZE[1] // (28 * 28 * 2)
TEXT_TOKENS, RESPONSE_TOKENS = 256, 16
NUM_STEPS = 2
POLL_S = 0.2
ROLES = {"actor": r"ray::RolloutActor|EngineCore", "learner": r"ray::LearnerWorker", "driver": r"rlsys\.commands\.app"}
TIMES = {
    "decode": "time/group_decode_s/mean",
    "generate": "time/group_generate_s/mean",
    "update": "time/update_s",
    "step": "time/step_s",
}
Case = dict[str, Any]


def pictures(num_frames: int) -> Iterator[np.ndarray]:
    """Yield a moving gradient, u8 [H, W, 3]."""
    across, down = np.meshgrid(np.arange(SIZE[1]), np.arange(SIZE[0]))
    for number in range(num_frames):
        yield np.stack([across + 2 * number, down + number, across + down], axis=2).astype(np.uint8)


def prepare(folder: Path, num_frames: int) -> list[str]:
    """Write the model and two rows on one clip, and return the settings of the run."""
    make_tiny(folder / "model", seed=0)
    config = json.loads((folder / "model" / "config.json").read_text())
    for tree in (config, config.get("text_config", {})):
        if "max_position_embeddings" in tree:
            tree["max_position_embeddings"] = 1 << 17  # rotary positions, of which no weight depends on the number
    (folder / "model" / "config.json").write_text(json.dumps(config))
    write(folder / "clip.mp4", KINDS[0], pictures(num_frames), fps=FPS)
    rows = {
        "duration": num_frames / FPS,
        "timestamps": [[1.0, 2.0], [3.0, 5.0]],
        "sentences": ["one moves.", "two moves."],
    }
    (folder / "rows.json").write_text(json.dumps({"clip": rows}))
    visual = num_frames * TOKENS_A_FRAME
    pixels = SIZE[0] * SIZE[1]
    settings = {
        "output_dir": folder / "run",
        "model.path": folder / "model",
        "model.max_model_len": visual + TEXT_TOKENS + RESPONSE_TOKENS,
        "data.annotations": folder / "rows.json",
        "data.videos": folder,
        "data.fps": FPS,
        "data.max_frames": num_frames,
        "data.max_pixels": pixels,
        "data.total_pixels": pixels * num_frames,
        "data.decode_workers": 1,
        "data.cache_bytes": 3 * pixels * num_frames,
        "rollout": "{num_actors: 1, group_size: 2, max_tokens: 16, kv_cache_mib: 2048}",
        "learner.num_ranks": 1,
        "learner.micro_batch_tokens": visual + 2 * TEXT_TOKENS,
        "train": f"{{num_steps: {NUM_STEPS}, prompts_per_step: 1, learning_rate: 1.0e-4, schedule: constant}}",
        "cluster.object_store_mib": 2048,
        "checkpoint.every_steps": 0,
        "tracking.log_model": "false",
        "tracking.page_every_steps": 0,
    }
    return [f"{key}={value}" for key, value in settings.items()]


def measure(num_frames: int) -> Case:
    """Train on a clip of this many frames and return seconds and memory."""
    with tempfile.TemporaryDirectory(prefix="long-", dir="/tmp") as scratch:
        folder = Path(scratch)
        command = [
            sys.executable,
            "-m",
            "rlsys.commands.app",
            "train",
            "configs/demo.yaml",
            *prepare(folder, num_frames),
        ]
        with (folder / "log").open("w") as output:
            run = subprocess.Popen(
                command, stdout=output, stderr=subprocess.STDOUT, env={**os.environ, "TMPDIR": scratch}
            )
            peaks = _peaks(run)
        if run.returncode:
            raise RuntimeError(f"{num_frames} frames: {(folder / 'log').read_text()[-3000:]}")
        run_id = json.loads((folder / "run" / "summary.json").read_text())["mlflow_run_id"]
        record = MlflowRun(f"sqlite:///{folder / 'run' / 'mlflow.db'}", run_id)
        first, last = record.metrics_of(1), record.metrics_of(NUM_STEPS)
    seconds = {name: last[metric] for name, metric in TIMES.items()}
    seconds["decode"] = max(first[TIMES["decode"]], last[TIMES["decode"]])  # the first step decodes for both
    return {
        "frames": num_frames,
        "prompt_tokens": last["rollout/prompt_tokens/mean"],
        "seconds": seconds,
        "peak_mib": peaks,
    }


def _peaks(run: subprocess.Popen[bytes]) -> dict[str, float]:
    """Wait for the run's end and return the largest resident set of each kind of process, in MiB."""
    peaks = dict.fromkeys(ROLES, 0.0)
    ended = threading.Event()

    def wait() -> None:
        run.wait()
        ended.set()

    threading.Thread(target=wait, daemon=True).start()
    root = psutil.Process(run.pid)
    while not ended.wait(POLL_S):
        try:
            found = [root, *root.children(recursive=True)]
        except psutil.Error:
            continue
        for process in found:
            try:
                name, size = " ".join(process.cmdline()), process.memory_info().rss / 2**20
            except psutil.Error:
                continue
            for role, pattern in ROLES.items():
                if re.search(pattern, name):
                    peaks[role] = max(peaks[role], size)
                    break
    return peaks


def plot(cases: Sequence[Case], path: Path) -> Path:
    """Plot seconds and memory over frames on logarithmic axes; return `path`."""
    figure, (times, memory) = pyplot.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    frames = [case["frames"] for case in cases]
    for name in ("decode", "generate", "update"):
        seconds = [case["seconds"][name] for case in cases]
        times.plot(frames, seconds, "o-", label=f"{name}: exponent {exponent(frames, seconds):.2f}")
    for role in ROLES:
        memory.plot(frames, [case["peak_mib"][role] for case in cases], "o-", label=role)
    times.set_ylabel("seconds")
    memory.set_ylabel("largest resident set, MiB")
    for axes in (times, memory):
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xlabel("frames of the clip")
        axes.grid(alpha=0.3, which="both")
        axes.legend()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
    return path


def exponent(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """Return the exponent of the growth over the last three sizes, by least squares."""
    return float(np.polyfit(np.log(sizes[-3:]), np.log(seconds[-3:]), 1)[0]) if len(sizes) > 1 else float("nan")


def lines(cases: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield the table of the documentation."""
    yield "| frames | prompt tokens | decode | generate 2 responses | update | step | actor | learner | driver |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for case in cases:
        times = " | ".join(f"{case['seconds'][name]:.2f} s" for name in TIMES)
        peaks = " | ".join(f"{case['peak_mib'][role]:.0f} MiB" for role in ROLES)
        yield f"| {case['frames']} | {case['prompt_tokens']:.0f} | {times} | {peaks} |"


def main() -> None:
    """Measure the cases that FILE does not have yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="file of the results; cases that it has are kept")
    parser.add_argument("--frames", type=int, nargs="+", default=FRAMES)
    parser.add_argument("--plot", type=Path, help="file of the plot")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO)
    found: dict[int, Case] = {}
    if arguments.json.exists():
        found = {case["frames"]: case for case in json.loads(arguments.json.read_text())}
    for num_frames in arguments.frames:
        if num_frames not in found:
            found[num_frames] = measure(num_frames)
            arguments.json.write_text(json.dumps(list(found.values()), indent=1))
            log.info("%s", found[num_frames])
    cases = [found[number] for number in sorted(found)]
    for line in lines(cases):
        Console(width=200).print(line, markup=False, soft_wrap=True)
    if arguments.plot:
        plot(cases, arguments.plot)


if __name__ == "__main__":
    main()
