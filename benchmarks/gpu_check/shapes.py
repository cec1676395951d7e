"""A learner step at the sizes of the published models: time, share of the GPU's rate, and memory against the plan."""

from __future__ import annotations

import gc
import statistics
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from benchmarks.gpu_check.figures import GIB, Check, Figure, at_most, found
from benchmarks.gpu_check.transfers import matrix_tflops
from benchmarks.learner_step import MIB, SHAPES, Bench, Setting, Shape, make_row, model_config, write_model
from learner.packing.cost import BACKWARD_TIMES_FORWARD, read_cost_model
from learner.packing.rows import Row
from rlsys.config.run import LearnerConfig, RunConfig, parse
from rlsys.models.sizes import read_model_sizes
from rlsys.planning.plan import Assumptions
from rlsys.planning.plan_learner import RankMemory, rank_memory

PROMPTS = {"3b": 5000, "7b": 7424}
RESPONSE, GROUP = 256, 8
TOY = (60, 9, 3)
LORA_RANK = 16
PACKED_REPEATS = 3
FLOP_PER_MULTIPLY_ADD = 2


def shape_step(check: Check, *, name: str, is_lora: bool) -> Iterator[Figure]:
    """Updates on one group, packed and padded. A model that does not fit as a whole gets as many layers as fit."""
    shape = SHAPES["tiny"] if check.is_toy else SHAPES[name]
    prompt, response, group = TOY if check.is_toy else (PROMPTS[name], RESPONSE, GROUP)
    row = make_row(shape, prompt_tokens=prompt, response_tokens=response, group_size=group)
    folder = check.scratch / "model"
    folder.mkdir()
    setting = fitting(_setting(check, shape, is_lora), folder, row, _room_gib(check))
    yield found("layers", float(setting.shape.layers), f"of {shape.layers}")
    yield found("tokens of a pass", float(row.num_tokens), f"with {group} responses")
    write_model(folder, setting)
    _empty_cache(check)
    plan = planned(setting, folder, row)
    bench = Bench(setting, folder)
    bench.seconds("packed", row)  # compiles kernels
    held = torch.cuda.memory_allocated() / GIB if not check.is_toy else 0.0
    peak = held + bench.peak_mb("packed", row) * MIB / GIB
    if check.is_toy:
        yield found("peak of an update, beyond what was held", peak, "GiB")
    else:
        reserve = Assumptions().rank_reserve_gib
        yield found("held between updates", held, "GiB")
        yield found("peak that the plan estimates", plan.device / GIB, "GiB")
        yield at_most("peak of an update", peak, plan.device / GIB + reserve, "GiB")
    packed_s = statistics.median(bench.seconds("packed", row) for _ in range(PACKED_REPEATS))
    yield from _speed("packed", packed_s, check, setting, folder, row)
    padded_s = bench.seconds("padded", row)
    yield from _speed("padded", padded_s, check, setting, folder, row)
    yield found("padded takes", padded_s / packed_s, "times as long")
    bench.close()


lora_3b = partial(shape_step, name="3b", is_lora=True)
full_3b = partial(shape_step, name="3b", is_lora=False)
lora_7b = partial(shape_step, name="7b", is_lora=True)
full_7b = partial(shape_step, name="7b", is_lora=False)


def _setting(check: Check, shape: Shape, is_lora: bool) -> Setting:
    return Setting(
        shape=shape,
        device=check.device,
        dtype="float32" if check.is_toy else "bfloat16",
        attention="sdpa" if check.is_toy else "flex_attention",
        threads=1,
        padded_rows=1,
        gradient_checkpointing=not check.is_toy,
        lora_rank=LORA_RANK if is_lora else 0,
    )


def _room_gib(check: Check) -> float:
    """What the plan may fill: the GPU's memory without the plan's reserve."""
    if check.is_toy:
        return float("inf")
    return torch.cuda.mem_get_info()[1] / GIB - Assumptions().rank_reserve_gib


def fitting(setting: Setting, folder: Path, row: Row, room_gib: float) -> Setting:
    """Return the setting with as many of its layers as the plan finds room for. Raises ValueError if none fits."""
    for layers in range(setting.shape.layers, 0, -1):
        smaller = replace(setting, shape=replace(setting.shape, layers=layers))
        model_config(smaller).save_pretrained(folder)
        if planned(smaller, folder, row).device / GIB <= room_gib:
            return smaller
    raise ValueError(f"{room_gib:.1f} GiB hold not even one layer of the model; use a larger GPU.")


def planned(setting: Setting, folder: Path, row: Row) -> RankMemory:
    """The memory that `rlsys plan` estimates for this update."""
    visual = sum(clip.info.grid_thw[0] * clip.info.grid_thw[1] * clip.info.grid_thw[2] // 4 for clip in row.clips)
    return rank_memory(_run_config(setting, folder), read_model_sizes(folder), row.num_tokens, visual / row.num_tokens)


def _run_config(setting: Setting, folder: Path) -> RunConfig:
    tree = {
        "output_dir": str(folder),
        "model": {"path": str(folder), "dtype": setting.dtype},
        "learner": setting.learner_config().model_dump(include=set(LearnerConfig.model_fields) - {"deepspeed"}),
        "cluster": {"device": setting.device},
    }
    return parse(tree, source="benchmarks/gpu_check/shapes.py")


def _speed(form: str, seconds: float, check: Check, setting: Setting, folder: Path, row: Row) -> Iterator[Figure]:
    """Tokens per second, and the share of the GPU's rate that the model's own operations are (MFU)."""
    yield found(f"{form}: an update", seconds, "s")
    yield found(f"{form}: tokens per second", row.num_tokens / seconds, "of the packed row")
    rate = flop(setting, folder, row, form) / seconds / 1e12
    yield found(f"{form}: rate", rate, "TFLOP/s without recomputation")
    if check.peak_tflops:
        yield found(f"{form}: MFU", rate / check.peak_tflops, f"of {check.peak_tflops:g} TFLOP/s")
    if not check.is_toy and form == "packed":
        one, two = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
        measured = matrix_tflops(one, two, "cuda")
        yield found(f"{form}: share of a large matrix product's rate", rate / measured, f"of {measured:.0f} TFLOP/s")


def flop(setting: Setting, folder: Path, row: Row, form: str) -> float:
    """Operations of an update. With LoRA no gradient to the model's own weights is computed: two thirds."""
    frozen = ("vision_tower", "projector") if setting.lora_rank else ()
    cost = read_cost_model(folder, frozen)
    prompt, grids = len(row.prompt.prompt_ids), [clip.info.grid_thw for clip in row.clips]
    responses = [len(response.ids) for response in row.responses]
    groups = [responses] if form == "packed" else [[length] for length in responses]
    text = sum(cost.group(prompt, (), lengths) for lengths in groups)
    vision = sum(cost.group(prompt, grids, lengths) for lengths in groups) - text
    if setting.lora_rank:
        text *= BACKWARD_TIMES_FORWARD / (1 + BACKWARD_TIMES_FORWARD)
    return FLOP_PER_MULTIPLY_ADD * (text + vision)


def _empty_cache(check: Check) -> None:
    gc.collect()
    if not check.is_toy:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
