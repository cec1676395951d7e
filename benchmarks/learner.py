"""Time and memory of a learner step: packed, padded and floor: `python -m benchmarks.learner [--quick] --json FILE`.

The three forms are those of `benchmarks.learner_step`, in one process with one rank. The parts are:
- ratios: video prompts of 1 to 32 times the 64 tokens of a response, G = 4, 8 and 16.
- frames: clips of 8 to 256 frames (8 visual tokens a frame), G = 8.  groups: G of 2 to 32, prompts of ten responses.
In each case the forms take turns in making updates, and the median of each is reported. A machine's speed varies, so
figures of one row are the most comparable. Peak memory is that of one further update.

A benchmark that was interrupted continues: every case that is measured goes to `FILE.partial` at once, and the same
command with the same settings measures only what is missing there. The file goes when FILE is written.

On a GPU: `--device cuda --shape 3b --dtype bfloat16 --attention flex_attention,sdpa --peak-tflops 989` with a
randomly initialised Qwen2.5-VL-3B also gives tokens per second and the share of the GPU's peak (MFU). Weights,
gradients and optimiser take some 75 GB; `--layers 18` halves the language model for GPUs of 80 GB.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from benchmarks.learner_plots import plot_growth, plot_ratios, slope
from benchmarks.learner_step import FORMS, SHAPES, Bench, Form, Setting, make_row, write_model
from learner.packing.cost import read_cost_model
from learner.packing.rows import Row

log = logging.getLogger("benchmarks.learner")

RESPONSE_TOKENS = {"cpu": 64, "cuda": 256}
RATIOS, QUICK_RATIOS = (1, 2, 4, 10, 16, 32), (1, 4, 10, 32)
GROUP_SIZES = (4, 8, 16)
AIM = (10, 8)
"""Ratio of prompt to response, and G, of the case with a target: five times as fast as padded, within 1.15 of floor."""
FRAMES = (8, 16, 32, 64, 128, 256)
GROWING_GROUPS = (2, 4, 8, 16, 32)
FLOPS_PER_MULTIPLY_ADD = 2
Result = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Case:
    """The sizes of a group. frames: of its clip, in the cases that vary it."""

    prompt_tokens: int
    response_tokens: int
    group_size: int
    frames: int | None = None


class Measured:
    """Holds the cases that are measured, in a file of JSON lines beside the benchmark's own.

    settings: what every figure depends on. A file of other settings is set aside as `FILE.partial.other`.
    """

    def __init__(self, path: Path, settings: Mapping[str, str]) -> None:
        self._path = path.with_name(f"{path.name}.partial")
        self._found: list[dict[str, Any]] = []
        header = json.dumps(settings, sort_keys=True)
        if self._path.exists():
            first, *lines = self._path.read_text().splitlines(keepends=True) or [""]
            if first.rstrip("\n") == header:
                # the last line of a benchmark that was killed may be incomplete
                self._found = [json.loads(line) for line in lines if line.endswith("\n")]
                log.info("%s: %d cases are measured already", self._path, len(self._found))
            else:
                self._path.rename(f"{self._path}.other")
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.write_text("".join(f"{line}\n" for line in (header, *map(json.dumps, self._found))))

    def get(self, key: Mapping[str, Any], measure_it: Callable[[], Result]) -> Result:
        """Return the figures of the case `key` from the file, or measure it and add it to the file."""
        for line in self._found:
            if line["key"] == key:
                return line["result"]
        result = measure_it()
        with self._path.open("a") as file:
            file.write(json.dumps({"key": key, "result": result}) + "\n")
        return result

    def remove(self) -> None:
        """Delete the file, when the benchmark is complete."""
        self._path.unlink()


def ratio_cases(response_tokens: int, quick: bool) -> list[Case]:
    """Return every ratio with every G; in a quick run every ratio with G = 8, and every G with 10:1."""
    ratios = QUICK_RATIOS if quick else RATIOS
    return [
        Case(prompt_tokens=ratio * response_tokens, response_tokens=response_tokens, group_size=group_size)
        for ratio in ratios
        for group_size in GROUP_SIZES
        if not quick or group_size == AIM[1] or ratio == AIM[0]
    ]


def frame_cases(setting: Setting, response_tokens: int, quick: bool) -> list[Case]:
    """Return cases with increasing numbers of frames; a prompt has 16 tokens beside the visual ones."""
    return [
        Case(
            prompt_tokens=16 + frames // 2 * setting.shape.tokens_per_two_frames,
            response_tokens=response_tokens,
            group_size=AIM[1],
            frames=frames,
        )
        for frames in (FRAMES[:4] if quick else FRAMES)
    ]


def group_cases(response_tokens: int, quick: bool) -> list[Case]:
    """Return cases with increasing numbers of responses to a prompt of ten times their length."""
    sizes = GROWING_GROUPS[:4] if quick else GROWING_GROUPS
    return [
        Case(prompt_tokens=AIM[0] * response_tokens, response_tokens=response_tokens, group_size=size) for size in sizes
    ]


def measure(bench: Bench, case: Case, repeats: int) -> Result:
    """Return the median seconds of an update in each form, measured in turn, and its peak memory in MiB."""
    row = make_row(
        bench.setting.shape,
        prompt_tokens=case.prompt_tokens,
        response_tokens=case.response_tokens,
        group_size=case.group_size,
    )
    taken: dict[str, list[float]] = {form: [] for form in FORMS}
    for _ in range(repeats):
        for form in FORMS:
            taken[form].append(_or_nan(bench, form, row))
    seconds = {form: float(np.median(values)) for form, values in taken.items()}
    peaks = {form: float("nan") if np.isnan(seconds[form]) else bench.peak_mb(form, row) for form in FORMS}
    log.info(
        "%5d : %d, G = %-2d  packed %.3f s  padded %.3f s  floor %.3f s",
        case.prompt_tokens,
        case.response_tokens,
        case.group_size,
        seconds["packed"],
        seconds["padded"],
        seconds["floor"],
    )
    return {
        "prompt_tokens": case.prompt_tokens,
        "response_tokens": case.response_tokens,
        "group_size": case.group_size,
        "padded_s": seconds["padded"],
        "packed_s": seconds["packed"],
        "floor_s": seconds["floor"],
        "peak_mb": peaks["packed"],
        "padded_peak_mb": peaks["padded"],
        "floor_peak_mb": peaks["floor"],
        **({"frames": case.frames} if case.frames else {}),
    }


def _or_nan(bench: Bench, form: Form, row: Row) -> float:
    try:
        return bench.seconds(form, row)
    except torch.OutOfMemoryError:
        log.warning("%s does not fit the GPU: %d tokens, G = %d", form, row.num_tokens, len(row.responses))
        torch.cuda.empty_cache()
        return float("nan")


def throughput(result: Result, setting: Setting, model_path: Path, peak_tflops: float) -> Result:
    """Return unique tokens per second, and the model FLOP utilisation (MFU) by form.

    `learner.packing.cost` counts multiply-adds from the shapes (attention by the pairs of tokens that see each other,
    nothing for recomputation), with two operations each.
    """
    sizes = {key: result[key] for key in ("prompt_tokens", "response_tokens", "group_size")}
    row = make_row(setting.shape, **sizes)
    cost = read_cost_model(model_path)
    alone = cost.row(replace(row, responses=row.responses[:1])) * len(row.responses)
    found: Result = {
        **sizes,
        "attention": setting.attention,
        "tokens_per_s": row.num_tokens / result["packed_s"],
        "padded_unique_tokens_per_s": row.num_tokens / result["padded_s"],
    }
    for form, products in (("packed", cost.row(row)), ("padded", alone)):
        tflops = FLOPS_PER_MULTIPLY_ADD * products / result[f"{form}_s"] / 1e12
        found |= {f"{form}_tflops": tflops, f"{form}_mfu": tflops / peak_tflops if peak_tflops else float("nan")}
    return found


def run(arguments: argparse.Namespace, setting: Setting, folder: Path, measured: Measured) -> Result:
    """Measure all parts that were asked for, with one kind of attention."""
    response_tokens = arguments.response_tokens or RESPONSE_TOKENS[setting.device]
    if not (folder / "config.json").exists():
        write_model(folder, setting)
    bench = Bench(setting, folder)
    warm_up = Case(prompt_tokens=4 * response_tokens, response_tokens=response_tokens, group_size=4)
    measure(bench, warm_up, repeats=1)
    parts = {
        "ratios": ratio_cases(response_tokens, arguments.quick),
        "frames": frame_cases(setting, response_tokens, arguments.quick),
        "groups": group_cases(response_tokens, arguments.quick),
    }
    results: Result = {name: [] for name in parts}
    repeats = arguments.repeats or (3 if arguments.quick else 5)
    for name in arguments.only or (("ratios",) if arguments.quick else parts):
        for case in parts[name]:
            key = {"attention": setting.attention, "part": name, **asdict(case)}
            results[name].append(measured.get(key, partial(measure, bench, case, repeats)))
    results["throughput"] = [
        throughput(result, setting, folder, arguments.peak_tflops) for name in parts for result in results[name]
    ]
    bench.close()
    return results


def markdown(rows: Sequence[Result]) -> Iterator[str]:
    """Yield the lines of the table in `docs/learner.md`."""
    yield "| prompt : response | G | padded | packed | faster | floor | of the floor | packed peak | padded peak |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for row in rows:
        yield (
            f"| {row['prompt_tokens']} : {row['response_tokens']} | {row['group_size']} | {row['padded_s']:.3f} s "
            f"| {row['packed_s']:.3f} s | {row['padded_s'] / row['packed_s']:.1f} | {row['floor_s']:.3f} s "
            f"| {row['packed_s'] / row['floor_s']:.2f} | {row['peak_mb']:.0f} MiB | {row['padded_peak_mb']:.0f} MiB |"
        )


def verdict(results: Result) -> Iterator[str]:
    """Yield the result of the target case and the growth of cost, in the run's own numbers."""
    for row in results["ratios"]:
        if (row["prompt_tokens"] // row["response_tokens"], row["group_size"]) == AIM:
            yield (
                f"{AIM[0]}:1 with G = {AIM[1]}: {row['padded_s'] / row['packed_s']:.2f} times faster than padded, "
                f"{row['packed_s'] / row['floor_s']:.2f} of the floor, "
                f"{row['padded_peak_mb'] / row['peak_mb']:.1f} times less memory."
            )
    for name in ("frames", "groups"):
        if results[name]:
            slopes = ", ".join(f"{form} {slope(name, results[name], form):.2f}" for form in FORMS)
            yield f"exponent of cost over {name}, over the last three points: {slopes}"


def settings(arguments: argparse.Namespace) -> list[Setting]:
    """Return the settings for each requested kind of attention."""
    shape = SHAPES[arguments.shape]
    if arguments.layers:
        shape = replace(shape, layers=arguments.layers)
    on_gpu = arguments.device == "cuda"
    return [
        Setting(
            shape=shape,
            device=arguments.device,
            dtype=arguments.dtype,
            attention=attention,
            threads=arguments.threads,
            padded_rows=1 if on_gpu else 0,  # all G rows at once would not fit, and one fills a GPU
            gradient_checkpointing=on_gpu and arguments.shape == "3b",
        )
        for attention in arguments.attention.split(",")
    ]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="only the part `ratios`, with fewer cases and 3 repeats")
    parser.add_argument("--json", type=Path, default=Path("runs/bench/learner.json"), help="JSON file for the results")
    parser.add_argument(
        "--plot", type=Path, help="PNG file for the plot; the growth is plotted to NAME_growth.png beside it"
    )
    parser.add_argument("--only", nargs="+", choices=("ratios", "frames", "groups"), help="these parts")
    parser.add_argument(
        "--repeats", type=int, default=0, help="updates per case and form; 0 means 5, or 3 with --quick"
    )
    parser.add_argument(
        "--response-tokens", type=int, default=0, help="tokens of each response; 0 means 64, or 256 on a GPU"
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="torch threads on a CPU")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--shape", choices=tuple(SHAPES), default="small")
    parser.add_argument(
        "--layers", type=int, default=0, help="layers of the language model; 0 means the shape's own number"
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument(
        "--attention", default="sdpa", help="attention of the packed form; several are separated by commas"
    )
    parser.add_argument(
        "--peak-tflops", type=float, default=0.0, help="dense peak of the GPU, for MFU (H100, H200: 989)"
    )
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    log.setLevel(logging.INFO)
    used = {key: str(value) for key, value in vars(arguments).items()} | {"torch": torch.__version__}
    measured = Measured(
        arguments.json, {key: value for key, value in used.items() if key not in ("json", "plot", "only")}
    )
    by_attention: dict[str, Result] = {}
    with tempfile.TemporaryDirectory() as name:
        for setting in settings(arguments):
            by_attention[setting.attention] = run(arguments, setting, Path(name), measured)
    first = next(iter(by_attention.values()))
    tree = {
        "rows": first["ratios"],
        "frames": first["frames"],
        "groups": first["groups"],
        "throughput": [entry for results in by_attention.values() for entry in results["throughput"]],
        "settings": used,
        "memory": "MiB of a step beyond weights and optimiser; CPU: resident high-water mark, GPU: the allocator's",
    }
    for attention, results in list(by_attention.items())[1:]:
        tree[f"rows_{attention}"] = results["ratios"]
    arguments.json.write_text(json.dumps(tree, indent=2) + "\n")
    measured.remove()
    console = Console(soft_wrap=True, markup=False, highlight=False)
    for attention, results in by_attention.items():
        console.print("\n".join([f"\n{attention}:", *markdown(results["ratios"]), "", *verdict(results)]))
    if arguments.plot:
        if first["ratios"]:
            console.print(f"plot: {plot_ratios(first['ratios'], arguments.plot)}")
        if first["frames"] and first["groups"]:
            growth = arguments.plot.with_name(f"{arguments.plot.stem}_growth{arguments.plot.suffix}")
            console.print(f"plot: {plot_growth(first['frames'], first['groups'], growth)}")


if __name__ == "__main__":
    main()
