"""No rank holds a second copy of the weights at any moment: peaks of real ranks, as the kernel counts them.

The bounds are sums of what a rank has to hold, by Rajbhandari et al., arXiv:1910.02054, and of what it needs for a
while, of which every part is a fraction of the weights here: DeepSpeed's limits are set to the numbers of one layer.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from benchmarks.resident import RETURNED, Usage, Watch
from tests.support.pace import patience
from tests.support.paths import REPO

NUM_RANKS, NUM_LAYERS, MIB = 2, 24, 1 << 20
HIDDEN, MLP, KEYS = 192, 1408, 64
LAYER = 4 * (HIDDEN * (2 * HIDDEN + 2 * KEYS) + 3 * HIDDEN * MLP)
"""Bytes of the matrices of a language layer in float32."""
BUCKET = 4 * MIB
"""Bytes of a bucket in which weights are published (`bucket_mib` of `memory_probe`)."""
SLACK = 60 * MIB
"""What is not counted by hand: modules and hooks, activations, gloo's buffers, and freed tensors that glibc keeps.

It keeps those below 256 KiB, which attention's weights and most activations are. Less than three quarters of the
weights: a rank with a copy more would exceed its bound.
"""
STEPS = ("load", "update 1", "update 2", "publish", "broadcast", "save", "export")
LIMITS = {
    "stage3_max_live_parameters": LAYER // 4,
    "stage3_max_reuse_distance": LAYER // 4,
    "stage3_prefetch_bucket_size": LAYER // 4,
    "stage3_param_persistence_threshold": 0,
    "sub_group_size": LAYER // 4,
    "reduce_bucket_size": LAYER // 4,
    "allgather_bucket_size": LAYER // 4,
}
"""DeepSpeed's limits, in numbers: those of one layer. They are up to 10^9 by default, more than these models have."""
CASES = {
    f"ZeRO {stage}, {trained}": (stage, 0 if trained == "all weights" else 4)
    for stage, trained in (
        (3, "all weights"),
        (2, "all weights"),
        (1, "all weights"),
        (2, "adapters"),
        (1, "adapters"),
    )
}


@pytest.fixture(scope="module")
def deep_model_dir(bench_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the benchmark's model with 24 layers of a wider MLP: 85 MiB of weights, of which a layer is a 25th."""
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

    config = AutoConfig.from_pretrained(bench_model_dir)
    text = config.text_config
    text.num_hidden_layers, text.intermediate_size, text.layer_types = NUM_LAYERS, MLP, ["full_attention"] * NUM_LAYERS
    folder = tmp_path_factory.mktemp("models") / "deep"
    torch.manual_seed(0)
    AutoModelForImageTextToText.from_config(config).save_pretrained(folder)
    AutoProcessor.from_pretrained(bench_model_dir).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def usages(
    deep_model_dir: Path, tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Mapping[str, list[Mapping[str, Usage]]]:
    """Run all cases in two processes, and return what each rank held in each step, by case."""
    from tests.support.memory_probe import Case

    folder = tmp_path_factory.mktemp("memory")
    cases = {"warm": Case(folder=str(tiny_model_dir), zero_stage=3, lora_rank=0, deepspeed=LIMITS)}
    cases |= {
        name: Case(folder=str(deep_model_dir), zero_stage=stage, lora_rank=rank, deepspeed=LIMITS)
        for name, (stage, rank) in CASES.items()
    }
    (folder / "cases.json").write_text(json.dumps({name: asdict(case) for name, case in cases.items()}))
    environment = {**os.environ, **RETURNED, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    watch = Watch(os.getpid(), {str(rank): rf"memory_probe {rank} " for rank in range(NUM_RANKS)})
    ranks, outputs = [], [folder / f"output_{rank}" for rank in range(NUM_RANKS)]
    for rank, output in enumerate(outputs):
        command = [sys.executable, "-m", "tests.support.memory_probe", str(rank), str(folder)]
        with output.open("w") as stream:
            ranks.append(subprocess.Popen(command, cwd=REPO, env=environment, stdout=stream, stderr=stream))
    try:
        codes = [process.wait(patience(400.0)) for process in ranks]
    finally:
        watch.stop()
        for process in ranks:
            process.kill()
    assert codes == [0] * NUM_RANKS, "\n".join(output.read_text()[-2000:] for output in outputs)
    found: dict[str, list[dict[str, Usage]]] = {name: [{} for _ in ranks] for name in cases}
    for rank in range(NUM_RANKS):
        for line in (folder / f"rank_{rank}.jsonl").read_text().splitlines():
            step: dict[str, Any] = json.loads(line)
            found[step["case"]][rank][step["step"]] = watch.usage(step["start"], step["end"])[str(rank)][0]
    return found


def held_by(rank: int, stage: int, weights: int, *, all_trained: bool) -> float:
    """Return the bytes that a rank holds between steps, of its own: frozen weights of rank 0 stay the mapped file.

    DeepSpeed writes them on the other ranks, as rank 0 sends them.
    """
    if not all_trained:  # adapters are less than a hundredth of the weights
        return weights if rank else 0
    own = weights / NUM_RANKS
    # a copy of its part of the weights in float32, AdamW's two moments, and at ZeRO-3 its part of the gradients
    return (2 * own if stage == 3 else weights) + 3 * own


def needed_by(step: str, stage: int, weights: int, *, all_trained: bool) -> float:
    """Return the bytes that a step needs beside what is held."""
    if step.startswith("update"):
        if not all_trained:
            return 0
        if stage == 3:  # a layer gathered; a bucket of gradients, and twice its size to reduce it; AdamW's copies
            return 7 * LAYER
        # the gradients of its part, once more as the optimiser reads them, and AdamW's two temporaries are three parts
        return 3 * weights / NUM_RANKS
    # a tensor gathered beside a bucket that is collected, stored or packed
    return 2 * BUCKET if step in ("publish", "broadcast", "export") else 0


@pytest.mark.stack
@pytest.mark.long
@pytest.mark.parametrize("name", CASES)
def test_no_rank_holds_a_second_copy_of_the_weights(
    usages: Mapping[str, list[Mapping[str, Usage]]], deep_model_dir: Path, name: str
) -> None:
    weights = (deep_model_dir / "model.safetensors").stat().st_size
    assert 3 / 4 * weights > SLACK
    assert weights > 20 * LAYER
    stage, lora_rank = CASES[name]
    trains_all = not lora_rank
    for rank, usage in enumerate(usages[name]):
        held = held_by(rank, stage, weights, all_trained=trains_all)
        assert tuple(usage) == STEPS
        before = usage["load"].before
        for step, measured in usage.items():
            beside = needed_by(step, stage, weights, all_trained=trains_all)
            assert measured.peak - before < held + beside + SLACK, step
            assert measured.after - before < held + SLACK, step
