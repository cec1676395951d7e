"""Steps that compare a learner with itself: ZeRO stages with one another, packed passes with padded ones."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from benchmarks.gpu_check.figures import Check, Figure, at_most, found
from benchmarks.learner_step import LOOPBACK, SHAPES, Setting, Shape, SwitchedPolicy, alone, make_row, write_model
from learner.engine import LearnerEngine, find_store, join_ranks, open_store
from learner.model.policy import load_model, read_layout
from learner.packing.packing import pack
from learner.packing.rows import Row
from learner.packing.shards import RankShard
from learner.spec import LearnerSpec
from rlsys import env
from rlsys.config.run import AlgorithmConfig, LearnerConfig, ModelConfig, RolloutConfig, TrainConfig
from rlsys.weights.sockets import rank_sockets

Dtype = Literal["float32", "bfloat16"]
STAGES: tuple[Literal[0, 1, 2, 3], ...] = (2, 0, 1, 3)  # the others are compared with the first
MOST_RANKS = 4
ANSWER_S = 120.0
BEFORE = {"float32": 1e-5, "bfloat16": 1e-3}
"""Mean difference of log-probs between stages. With a bf16 RoPE, which ZeRO-3 once had, it is 0.017 and more."""
AFTER = 1e-3
"""The same after an update at this learning rate; AdamW turns rounding in small gradients into whole steps."""
LEARNING_RATE = 1e-6


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """Processes of a stage's run. port: of the store where they meet.  rows: one for each rank."""

    size: int
    port: int
    device: str
    dtype: Dtype
    model: Path
    rows: tuple[Row, ...]


def _setting(check: Check, shape: Shape, dtype: Dtype) -> Setting:
    attention: Literal["sdpa", "flex_attention"] = "sdpa" if check.is_toy else "flex_attention"
    return Setting(shape=shape, device=check.device, dtype=dtype, attention=attention, threads=1)


def zero(check: Check) -> Iterator[Figure]:
    """Log-probs of long prompts before and after an update, at every stage, on all GPUs (two ranks on a CPU)."""
    size = 2 if check.is_toy else min(torch.cuda.device_count(), MOST_RANKS)
    shape = SHAPES["tiny" if check.is_toy else "small"]
    prompt, response = (300, 12) if check.is_toy else (4000, 128)
    rows = tuple(
        make_row(shape, prompt_tokens=prompt, response_tokens=response, group_size=4, seed=rank) for rank in range(size)
    )
    yield found("ranks", float(size))
    dtypes: tuple[Dtype, ...] = ("float32",) if check.is_toy else ("float32", "bfloat16")
    for dtype in dtypes:
        model = check.scratch / dtype
        write_model(model, _setting(check, shape, dtype))
        yield from _compare_stages(check, dtype, model, rows)


def _compare_stages(check: Check, dtype: Dtype, model: Path, rows: tuple[Row, ...]) -> Iterator[Figure]:
    store = open_store(len(rows), LOOPBACK, ANSWER_S)
    ranks = Ranks(size=len(rows), port=store.port, device=check.device, dtype=dtype, model=model, rows=rows)
    context = torch.multiprocessing.get_context("spawn")
    answers = context.Queue()
    processes = []
    visible = (env.read("CUDA_VISIBLE_DEVICES") or "").split(",")
    for rank in range(ranks.size):
        # each rank sees its own GPU as the first, as under Ray
        own = visible[rank] if len(visible) > rank and visible[rank] else str(rank)
        os.environ["CUDA_VISIBLE_DEVICES"] = own
        processes.append(context.Process(target=_rank, args=(rank, ranks, answers), daemon=True))
        processes[-1].start()
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(visible)
    if visible == [""]:
        del os.environ["CUDA_VISIBLE_DEVICES"]
    reference: dict[str, np.ndarray] = {}
    for stage in STAGES:
        found_stage, logprobs, seconds = answers.get(timeout=ANSWER_S)
        assert found_stage == stage
        reference = reference or logprobs
        yield found(f"{dtype}, ZeRO {stage}: an update", seconds, "s")
        for when, limit in (("before", BEFORE[dtype]), ("after", AFTER)):
            difference = float(np.abs(logprobs[when] - reference[when]).mean())
            yield at_most(f"{dtype}, ZeRO {stage}: log-probs {when} the update, difference", difference, limit)
    for process in processes:
        process.join(ANSWER_S)


def _rank(rank: int, ranks: Ranks, answers: torch.multiprocessing.Queue) -> None:
    os.environ.update(rank_sockets(LOOPBACK, ranks_share_node=True, engines_join=False))
    torch.set_num_threads(1)
    store = find_store(ranks.size, LOOPBACK, ranks.port, ANSWER_S)
    join_ranks(rank, ranks.size, store, device=ranks.device, timeout_s=ANSWER_S)
    for stage in STAGES:
        engine = LearnerEngine(_spec(ranks, stage))
        passes = ((ranks.rows[rank],),)
        before = engine.logprobs(passes)
        started = time.perf_counter()
        engine.update(RankShard(objective="grpo", micro_batches=passes))
        seconds = time.perf_counter() - started
        after = engine.logprobs(passes)
        engine.close()
        if rank == 0:
            answers.put(
                (stage, {"before": np.concatenate(before[0][0]), "after": np.concatenate(after[0][0])}, seconds)
            )


def _spec(ranks: Ranks, stage: Literal[0, 1, 2, 3]) -> LearnerSpec:
    attention: Literal["sdpa", "flex_attention"] = "sdpa" if ranks.device == "cpu" else "flex_attention"
    return LearnerSpec(
        model=ModelConfig(path=ranks.model, dtype=ranks.dtype, attention=attention),
        rollout=RolloutConfig(max_tokens=1024),
        train=TrainConfig(learning_rate=LEARNING_RATE, schedule="constant"),
        algorithm=AlgorithmConfig(),
        learner=LearnerConfig(num_ranks=ranks.size, zero_stage=stage),
        device=ranks.device,
    )


FP32_LOGPROBS = 1e-4
BF16_SLACK = 1.25
"""How much larger the packed form's mean error in bf16 may be than that of the padded form."""
BF16_ROUNDING = 1e-4


def packing(check: Check) -> Iterator[Figure]:
    """Packed and padded log-probs in float32 and bf16, each against the padded ones in float32."""
    shape = SHAPES["tiny"] if check.is_toy else replace(SHAPES["3b"], layers=6)
    sizes = ((60, 9, 3),) if check.is_toy else ((1200, 100, 8), (4000, 200, 4))
    setting = _setting(check, shape, "float32")
    write_model(check.scratch / "model", setting)
    rows = [
        make_row(shape, prompt_tokens=prompt, response_tokens=response, group_size=group, seed=index)
        for index, (prompt, response, group) in enumerate(sizes)
    ]
    results = {dtype: _both_forms(check, setting, dtype, rows) for dtype in ("float32", "bfloat16")}
    exact = results["float32"]["padded"]
    packed_error = np.abs(results["float32"]["packed"] - exact)
    yield at_most("float32: packed against padded, largest difference", float(packed_error.max()), FP32_LOGPROBS)
    packed, padded = (float(np.abs(results["bfloat16"][form] - exact).mean()) for form in ("packed", "padded"))
    yield found("bf16: padded against float32, mean error", padded)
    yield at_most("bf16: packed against float32, mean error", packed, BF16_SLACK * padded + BF16_ROUNDING)


@torch.no_grad()
def _both_forms(check: Check, setting: Setting, dtype: str, rows: list[Row]) -> dict[str, np.ndarray]:
    """f32 log-probs of all responses, packed and padded."""
    folder = check.scratch / "model"
    model = load_model(folder, dtype=dtype, attention=setting.attention)
    policy, layout = SwitchedPolicy(model).to(check.device).eval(), read_layout(model, folder)
    made: dict[str, list[np.ndarray]] = {"packed": [], "padded": []}
    for row in rows:
        copies = [alone(row, index) for index in range(len(row.responses))]
        for form, parts, num_rows in (("packed", [row], 0), ("padded", copies, len(copies))):
            policy.num_rows = num_rows
            batch = pack(parts, layout, dtype=getattr(torch, dtype), device=check.device)
            made[form].append(policy(batch)[0].float().cpu().numpy())
            policy.forget_features()
    return {form: np.concatenate(values) for form, values in made.items()}
