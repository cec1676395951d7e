"""Rows per second of an evaluation against generation alone, and the memory of long videos.

`python -m benchmarks.evaluation` measures two things:

- Rows: the same rows are answered by the same actors in two ways that alternate: as `rlsys eval` answers them (files
  are decoded ahead of generation, answers are written one by one), and with all clips decoded before the clock starts.
  Answers must be equal. The engines' own caches of prompts and pictures are warm in both, so that generation alone is
  as fast as it can be.
- Long files: videos of one minute, ten minutes and an hour (320 x 180, 25 frames a second) are sampled at `--frames`
  frames, each in a process of its own: seconds, and the peak of its resident memory above what it had before. An MP4
  takes the fast path, a transport stream, which has no index, is decoded from its start to its end.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import count, cycle, islice
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from benchmarks.decode import KINDS, Kind, numbered, write
from rlsys.config import bundled
from rlsys.config.run import RunConfig, load
from rlsys.data.video.clips import ClipStore
from rlsys.data.video.decode import decode
from rlsys.evaluation.answering.answers import AnswersFile
from rlsys.evaluation.answering.modes import modes_of
from rlsys.evaluation.answering.responders import ActorResponder, collect_answers
from rlsys.loop.producer import Answerer
from rlsys.models.tiny import make_tiny
from rlsys.runs.evaluating.responder import open_answering_pool
from rlsys.runs.inputs.items import load_items
from rlsys.types import PromptItem, Sampling, VideoSpec

LONG_FPS, LONG_SIZE = 25, (180, 320)
LONG_KINDS = (
    Kind(name="h264.mp4", codec="libx264", options={"preset": "ultrafast", "g": "250"}),
    Kind(name="h264.ts", codec="libx264", options={"preset": "ultrafast", "g": "250"}),
)
MEBIBYTE = 1 << 20

log = logging.getLogger(__name__)

Rows = Sequence[tuple[PromptItem, Sampling]]


def write_rows(folder: Path, num_clips: int, num_rows: int) -> Path:
    """Write clips of 30 s (480 x 272, H.264), and an annotation file with the same number of questions about each.

    There is one clip more than `num_clips`, with one question, the last one.
    """
    queries = {}
    for index in range(num_clips + 1):
        write(folder / f"clip{index}.mp4", KINDS[0], map(numbered, range(index, index + 900)))
        each = num_rows // num_clips if index < num_clips else 1
        queries[f"clip{index}"] = {
            "duration": 30.0,
            "timestamps": [[1.0, 2.0 + row] for row in range(each)],
            "sentences": [f"question {row} is asked." for row in range(each)],
        }
    (folder / "rows.json").write_text(json.dumps(queries))
    return folder / "rows.json"


def make_config(folder: Path, num_actors: int, max_tokens: int) -> RunConfig:
    make_tiny(folder / "model", seed=0, size="wide")
    settings = {
        "output_dir": folder / "out",
        "model.path": folder / "model",
        "model.max_model_len": 1024,
        "data.max_frames": 16,
        "data.max_pixels": 14112,
        "data.decode_workers": 1,
        "rollout.num_actors": num_actors,
        "rollout.max_tokens": max_tokens,
        "rollout.max_num_seqs": 16,
    }
    return load(bundled.FOLDER / "demo.yaml", [f"{key}={value}" for key, value in settings.items()])


def measure_rows(folder: Path, given: argparse.Namespace) -> dict[str, Any]:
    """Return rows per second of both ways, a value for each repetition."""
    annotations = write_rows(folder, given.clips, given.rows)
    config = make_config(folder, given.actors, given.tokens)
    *items, other = load_items(config.data, annotations, folder)
    (mode,) = modes_of(items, seed=0, max_tokens=given.tokens, num_samples=1, controls=(), control_prompts=0)
    at_once = given.actors * config.rollout.max_num_seqs
    speeds: dict[str, list[float]] = {"evaluation": [], "generation": []}
    texts: dict[str, tuple[str, ...]] = {}
    names = count()

    with open_answering_pool(config) as (prompts, pool):

        def answered(responder: ActorResponder) -> None:
            with AnswersFile(folder / "answers" / f"{next(names)}.jsonl", {}) as file:
                collect_answers(responder, mode.rows, file, at_once=at_once, ahead=config.data.decode_ahead)
            found = {name: answer.texts for name, answer in file.answers.items()}
            if (texts or found) != found:
                raise RuntimeError("the two ways give different answers to the same rows.")
            texts.update(found)

        for repetition in range(given.repetitions + 1):
            for name in speeds:
                answerer = Answerer(ClipStore(config.data), prompts, pool)
                responder = ActorResponder(answerer, pool.raise_if_weights_gone)
                responder.answer(other, mode.rows[0][1]).result()  # starts the decoding processes
                if name == "generation":
                    answered(responder)  # decodes every clip; its time does not count
                seconds = timed(lambda: answered(responder))  # noqa: B023 - called at once
                answerer.close()
                if repetition:  # the first one warms up
                    speeds[name].append(len(mode.rows) / seconds)
    return {
        "part": "rows",
        "rows": len(mode.rows),
        "clips": given.clips,
        "tokens": given.tokens,
        "actors": given.actors,
        **{f"{name}_rows_per_s": values for name, values in speeds.items()},
        "ratio": median(a / b for a, b in zip(speeds["evaluation"], speeds["generation"], strict=True)),
    }


def timed(call: Callable[[], None]) -> float:
    started = time.monotonic()
    call()
    return time.monotonic() - started


def measure_long(folder: Path, lengths_s: Sequence[int], num_frames: int) -> Iterator[dict[str, Any]]:
    """Yield seconds and peak memory of sampling `num_frames` frames from files of each length and kind."""
    pictures = [numbered(index)[: LONG_SIZE[0], : LONG_SIZE[1]] for index in range(64)]
    for length_s in lengths_s:
        for kind in LONG_KINDS:
            path = folder / f"{length_s}_{kind.name}"
            write(path, kind, islice(cycle(pictures), LONG_FPS * length_s), LONG_FPS)
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:  # a peak of its own
                found = process.submit(sample_frames, path, num_frames).result()
            yield {"part": "long", "file": kind.name, "length_s": length_s, "bytes": path.stat().st_size, **found}
            path.unlink()


def sample_frames(path: Path, num_frames: int) -> dict[str, float]:
    """Return what sampling frames evenly from a file costs this process."""
    spec = VideoSpec(
        uri=str(path),
        fps=2.0,
        min_frames=4,
        max_frames=num_frames,
        min_pixels=28 * 28,
        max_pixels=16 * 28 * 28,
        total_pixels=1 << 40,
    )
    process = psutil.Process()
    start_mib, start_cpu_s = process.memory_info().rss / MEBIBYTE, time.process_time()
    started = time.monotonic()
    clip = decode(spec)
    wall_s = time.monotonic() - started
    return {
        "frames": len(clip.frames),
        "clip_mib": clip.frames.nbytes / MEBIBYTE,
        "peak_mib": peak_mib() - start_mib,
        "wall_s": wall_s,
        "cpu_s": time.process_time() - start_cpu_s,
    }


def peak_mib() -> float:
    """Return the peak of this process's resident memory; `getrusage` would count that of its parent, too."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024


def show(results: Sequence[dict[str, Any]]) -> None:
    console = Console()
    rows = [one for one in results if one["part"] == "rows"]
    for one in rows:
        table = Table("rows", "clips", "evaluation, rows/s", "generation alone, rows/s", "ratio")
        speeds = (f"{median(one[f'{name}_rows_per_s']):.2f}" for name in ("evaluation", "generation"))
        table.add_row(str(one["rows"]), str(one["clips"]), *speeds, f"{one['ratio']:.3f}")
        console.print(table)
    table = Table("file", "length, s", "size, MiB", "frames", "clip, MiB", "peak above start, MiB", "CPU s", "seconds")
    for one in results:
        if one["part"] == "long":
            sizes = (f"{one['bytes'] / MEBIBYTE:.0f}", str(one["frames"]), f"{one['clip_mib']:.0f}")
            costs = (f"{one['peak_mib']:.0f}", f"{one['cpu_s']:.1f}", f"{one['wall_s']:.1f}")
            table.add_row(one["file"], str(one["length_s"]), *sizes, *costs)
    console.print(table)


def main(arguments: Sequence[str] | None = None) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few rows and short files, to see that it works")
    parser.add_argument("--part", choices=("rows", "long"), help="one of the two parts")
    parser.add_argument("--rows", type=int, default=192, help="number of rows, a multiple of --clips")
    parser.add_argument("--clips", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=128, help="tokens of each answer")
    parser.add_argument("--actors", type=int, default=1)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--frames", type=int, default=768, help="frames of a long file")
    parser.add_argument("--json", type=Path, help="JSON file for the results")
    given = parser.parse_args(arguments)
    lengths_s: tuple[int, ...] = (60, 600, 3600)
    if given.quick:
        given.rows, given.clips, given.tokens, given.repetitions, lengths_s = 8, 4, 24, 1, (20, 60)
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        if given.part != "long":
            results.append(measure_rows(Path(folder), given))
        if given.part != "rows":
            results += measure_long(Path(folder), lengths_s, given.frames)
    show(results)
    if given.json:
        given.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
