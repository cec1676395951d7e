"""Passes that several ranks compute together against one process: losses, gradients, log-probs and memory."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import ray
import torch
from ray import cloudpickle

from learner.group import LearnerGroup
from learner.loss.metrics import RankStats
from learner.loss.objective import total_loss
from learner.model.frozen import freeze
from learner.model.lora import add_adapters
from learner.model.policy import PackedPolicy, load_model, read_layout
from learner.packing.cost import read_cost_model
from learner.packing.packing import pack
from learner.packing.passes import plan_passes
from learner.packing.rows import Row
from learner.packing.shards import RankShard
from learner.spec import LearnerSpec
from learner.worker import LearnerWorker
from rlsys.config.algorithm import AlgorithmConfig
from rlsys.config.run import ConfigError, LoraConfig, ModelConfig, RolloutConfig
from rlsys.models.families.table import FAMILIES
from tests.support.learner import cut_of, learner_config, make_group, make_row, random_rows, train_config
from tests.support.models import lora_targets
from tests.support.pace import patience

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import this module

NUM_RANKS = 4
SAME = 1e-5
"""Largest difference from one rank: of a loss or log-prob, and of a gradient relative to the whole gradient's norm."""
PARTITIONED = {"zero_optimization": {"stage3_param_persistence_threshold": 0}}
WHOLE, SPLIT = 16384, 64


@dataclass(frozen=True)
class Case:
    """A setup of the learner. size: of a sequence group, of which there are `NUM_RANKS` / size.

    offloads: whether the state goes to host memory and back before the update, as with `cluster.colocate`.
    """

    family: str = "qwen2_5_vl"
    model: str = "tiny"
    size: int = 2
    zero_stage: int = 2
    checkpointing: bool = False
    lora: bool = False
    frozen_parts: tuple[str, ...] = ()
    budget: int = WHOLE
    attention: str = "sdpa"
    objective: Literal["grpo", "nll"] = "grpo"
    dtype: Literal["float32", "bfloat16"] = "float32"
    offloads: bool = False

    def spec(self, folder: Path) -> LearnerSpec:
        learner = learner_config(
            num_ranks=NUM_RANKS,
            sequence_parallel=self.size,
            zero_stage=self.zero_stage,
            gradient_checkpointing=self.checkpointing,
            lora=LoraConfig(rank=4, targets=lora_targets(folder)) if self.lora else LoraConfig(),
            frozen_parts=self.frozen_parts,
            micro_batch_tokens=self.budget,
            deepspeed=PARTITIONED if self.zero_stage == 3 else {},
        )
        return LearnerSpec(
            model=ModelConfig(path=folder, dtype=self.dtype, attention=self.attention),
            rollout=RolloutConfig(max_tokens=16),
            train=train_config(),
            algorithm=AlgorithmConfig(kl_coef=0.1),
            learner=learner,
        )


CASES = {
    # two blocks, one of them windowed; two groups, so that a pass may be empty
    "Qwen2.5-VL by two": Case(model="bench", budget=SPLIT),
    # more ranks than key heads
    "Qwen2.5-VL by four, LoRA": Case(size=4, zero_stage=3, lora=True, checkpointing=True, budget=SPLIT),
    "Qwen2-VL by four, frozen tower": Case(
        "qwen2_vl", size=4, zero_stage=1, frozen_parts=("vision_tower",), budget=SPLIT, attention="eager"
    ),
    "Qwen3-VL by two": Case("qwen3_vl", "bench", zero_stage=3, budget=SPLIT),
    "Qwen3-VL by four, checkpointing": Case("qwen3_vl", "bench", size=4, checkpointing=True),
    "experts by two": Case("qwen3_vl_moe", "bench", zero_stage=3, checkpointing=True, budget=SPLIT),
    "InternVL by two, checkpointing": Case("internvl", zero_stage=3, checkpointing=True, budget=SPLIT),
    "supervised training by two": Case("qwen3_vl", objective="nll", budget=SPLIT),
    "state offloaded before, by four": Case(size=4, zero_stage=3, budget=SPLIT, offloads=True),
    "linear attention by two, checkpointing": Case("qwen3_5", "bench", zero_stage=3, checkpointing=True, budget=SPLIT),
    "experts, no rank with another": Case("qwen3_vl_moe", size=1, zero_stage=3, budget=SPLIT),
}
EVERY_CASE = [
    Case(family, "tiny", size, stage, checkpointing, lora, budget=budget)
    for family, size, stage, (checkpointing, lora), budget in product(
        FAMILIES,
        (2, 4),
        (0, 2, 3),
        ((False, False), (True, False), (True, True)),
        (WHOLE, SPLIT),
    )
]


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray.init(
        address="local",
        _node_ip_address="127.0.0.1",
        include_dashboard=False,
        num_cpus=NUM_RANKS,
        _temp_dir="/tmp/rlsys_seq",
        object_store_memory=200 << 20,
    )
    yield
    ray.shutdown(wait_for_processes=True)


@pytest.fixture(scope="module")
def group(cluster: None) -> Iterator[LearnerGroup]:
    launched = LearnerGroup.launch(num_ranks=NUM_RANKS, device="cpu", threads=1, timeout_s=patience(120.0))
    yield launched
    launched.shutdown()


@pytest.fixture(scope="module")
def folders(
    tiny_model_dir: Path,
    bench_model_dir: Path,
    qwen2_vl_dirs: Mapping[str, Path],
    qwen3_vl_dirs: Mapping[str, Path],
    qwen3_vl_moe_dirs: Mapping[str, Path],
    internvl_dirs: Mapping[str, Path],
    qwen3_5_dirs: Mapping[str, Path],
) -> dict[tuple[str, str], Path]:
    found = {("qwen2_5_vl", "tiny"): tiny_model_dir, ("qwen2_5_vl", "bench"): bench_model_dir}
    dirs_of = {
        "qwen2_vl": qwen2_vl_dirs,
        "qwen3_vl": qwen3_vl_dirs,
        "qwen3_vl_moe": qwen3_vl_moe_dirs,
        "internvl": internvl_dirs,
        "qwen3_5": qwen3_5_dirs,
    }
    for family, dirs in dirs_of.items():
        found |= {(family, size): folder for size, folder in dirs.items()}
    return found


def on_ranks(group: LearnerGroup, function: Any, arguments: Sequence[tuple]) -> list[Any]:  # noqa: ANN401
    """Call a function with each rank's worker and arguments, in the ranks' processes."""
    calls = [
        worker.__ray_call__.remote(function, *given) for worker, given in zip(group._workers, arguments, strict=True)
    ]
    return ray.get(calls, timeout=patience(120.0))


def by_rank(rows: Sequence[Row], case: Case, folder: Path) -> list[tuple[tuple[Row, ...], ...]]:
    """Return the passes of each rank, the same for all of a sequence group."""
    plan = plan_passes(rows, NUM_RANKS // case.size, case.budget, read_cost_model(folder))
    return [tuple(plan[rank // case.size]) for rank in range(NUM_RANKS)]


def accumulated(worker: LearnerWorker, shard: RankShard) -> tuple[RankStats, dict[str, np.ndarray]]:
    """Return the metrics of an update's passes and the gradients that the optimizer would be given."""
    from deepspeed.utils import safe_get_full_grad

    engine, stats = worker._engine, RankStats()
    if engine.spec.learner.lora.rank:
        with_adapters_of_ones(engine._policy)
    engine._set_training(True)
    for index, rows in enumerate(shard.micro_batches):
        engine._engine.set_gradient_accumulation_boundary(index == len(shard.micro_batches) - 1)
        engine._backward(shard, rows, stats)
    engine._policy.forget_features()
    found = {}
    for name, parameter in engine._policy.model.named_parameters():
        if parameter.requires_grad:
            whole = parameter.grad if engine.spec.learner.zero_stage == 0 else safe_get_full_grad(parameter)
            found[name] = whole.detach().float().numpy().copy()
    return stats, found if worker._rank == 0 else {}


def with_adapters_of_ones(policy: PackedPolicy) -> None:
    """Give the adapters' second factor values, without which they do nothing: the same on all ranks."""
    import deepspeed

    for name, parameter in policy.model.named_parameters():
        if "lora_B" in name:
            partitioned = hasattr(parameter, "ds_id")
            with deepspeed.zero.GatheredParameters([parameter] if partitioned else [], modifier_rank=0):
                if not partitioned or torch.distributed.get_rank() == 0:
                    parameter.data.fill_(0.02)


def by_one_process(
    rows: Sequence[Row], spec: LearnerSpec, objective: Literal["grpo", "nll"] = "grpo"
) -> tuple[float, dict[str, torch.Tensor]]:
    """Return the loss and the gradients of one pass over all rows, without DeepSpeed."""
    reference = PackedPolicy(load_model(spec.model.path, dtype=spec.model.dtype, attention="sdpa"))
    model = load_model(spec.model.path, dtype=spec.model.dtype, attention="sdpa")
    if spec.learner.lora.rank:
        torch.manual_seed(spec.seed)
        add_adapters(model, spec.learner.lora)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.data.fill_(0.02)
    freeze(model, spec.learner.frozen_parts)
    policy = PackedPolicy(model)
    batch = pack(rows, read_layout(model, spec.model.path), dtype=getattr(torch, spec.model.dtype))
    with torch.no_grad():
        of_reference = reference(batch)[0]
    loss, _ = total_loss(objective, batch, policy(batch)[0], of_reference, spec.algorithm)
    loss.backward()
    return loss.item(), {name: p.grad.float() for name, p in model.named_parameters() if p.grad is not None}


def by_ranks(
    group: LearnerGroup, case: Case, folder: Path, rows: Sequence[Row]
) -> tuple[float, dict[str, torch.Tensor]]:
    """Return the loss and the gradients of all ranks' passes."""
    group.load(case.spec(folder))
    if case.offloads:
        group.offload(keeps_parameters=False)
        group.reload()
    shards = [(RankShard(objective=case.objective, micro_batches=passes),) for passes in by_rank(rows, case, folder)]
    found = on_ranks(group, accumulated, shards)
    assert sum(stats.num_tokens for stats, _ in found) == sum(row.num_targets for row in rows)
    name = "loss/total" if case.objective == "grpo" else "loss/nll"
    loss = sum(stats.values.get(name, 0.0) for stats, _ in found)
    return loss, {name: torch.tensor(array) for name, array in found[0][1].items()}


def distance(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> float:
    """Return the norm of the difference of two models' gradients, relative to the second one's."""
    assert one.keys() == other.keys()
    norm = torch.cat([tensor.flatten() for tensor in other.values()]).norm()
    assert norm > 0
    return float(torch.cat([(one[name] - tensor).flatten() for name, tensor in other.items()]).norm() / norm)


def assert_same_update(group: LearnerGroup, case: Case, folder: Path, seed: int) -> None:
    rows = random_rows(seed, cut_of(folder))
    found, of_ranks = by_ranks(group, case, folder, rows)
    loss, gradients = by_one_process(rows, case.spec(folder), case.objective)
    assert found == pytest.approx(loss, abs=SAME)
    assert distance(of_ranks, gradients) <= SAME


@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradients_are_those_of_one_process(
    name: str, group: LearnerGroup, folders: dict[tuple[str, str], Path]
) -> None:
    case = CASES[name]
    assert_same_update(group, case, folders[case.family, case.model], seed=list(CASES).index(name))


@pytest.mark.parametrize(
    "case",
    [
        Case(model="bench", zero_stage=3, budget=SPLIT, dtype="bfloat16"),
        pytest.param(Case("qwen3_vl", size=4, dtype="bfloat16", checkpointing=True), marks=pytest.mark.long),
    ],
    ids=str,
)
def test_in_bfloat16_ranks_are_about_as_far_from_float32_as_one_process(
    case: Case, group: LearnerGroup, folders: dict[tuple[str, str], Path]
) -> None:
    folder = folders[case.family, case.model]
    rows = random_rows(60, cut_of(folder))
    _, exact = by_one_process(rows, replace(case, dtype="float32").spec(folder))
    _, of_one = by_one_process(rows, case.spec(folder))
    _, of_ranks = by_ranks(group, case, folder, rows)
    # both are float32's gradients with the rounding errors of as many operations, and the ranks' are also summed
    assert distance(of_ranks, exact) <= 2 * distance(of_one, exact)


@pytest.mark.long
@pytest.mark.parametrize("number", range(len(EVERY_CASE)), ids=lambda number: str(EVERY_CASE[number]))
def test_loss_and_gradients_of_every_combination_are_those_of_one_process(
    number: int, group: LearnerGroup, folders: dict[tuple[str, str], Path]
) -> None:
    case = EVERY_CASE[number]
    assert_same_update(group, case, folders[case.family, case.model], seed=100 + number)


def test_logprobs_of_policy_and_reference_are_those_of_one_process_for_passes_of_any_size(
    group: LearnerGroup, tiny_model_dir: Path
) -> None:
    rng = np.random.default_rng(3)
    # fewer tokens than ranks, fewer targets than ranks, only text, and no pass for the second group
    asked = [
        make_group(rng, "0", (), [1], num_text=1),
        make_group(rng, "1", (), [2, 1], num_text=2),
        make_group(rng, "2", ("image",), [3]),
        make_group(rng, "3", ("video", "image"), [5, 9, 1]),
    ]
    policy = PackedPolicy(load_model(tiny_model_dir, dtype="float32", attention="sdpa"))
    layout = read_layout(policy.model, tiny_model_dir)
    for size, budget in ((2, WHOLE), (4, SPLIT)):
        group.load(Case(size=size, budget=budget).spec(tiny_model_dir))
        for chosen, reference in ((asked[:1], False), (asked[1:2], False), (asked, False), (asked, True)):
            found = np.concatenate([one for by in group.logprobs(chosen, reference=reference) for one in by])
            with torch.no_grad():
                batch = pack([make_row(one) for one in chosen], layout, dtype=torch.float32)
                expected = policy(batch)[0].numpy()
            np.testing.assert_allclose(found, expected, rtol=0, atol=SAME)


def with_small_chunks(worker: LearnerWorker, max_numbers: int) -> int:
    """Set the number of logits of a chunk in a rank's process and return the one before."""
    from learner.loss import logprobs

    before, logprobs.MAX_CHUNK_NUMBERS = logprobs.MAX_CHUNK_NUMBERS, max_numbers
    return before


@pytest.mark.parametrize("size", [1, pytest.param(2, marks=pytest.mark.long)])
def test_ranks_with_different_numbers_of_chunks_of_logits_do_not_wait_for_each_other_at_zero_3(
    size: int, group: LearnerGroup, folders: dict[tuple[str, str], Path]
) -> None:
    (before, *_) = on_ranks(group, with_small_chunks, [(2 * 384,)] * NUM_RANKS)  # two tokens each
    try:
        assert_same_update(group, Case(size=size, zero_stage=3), folders["qwen2_5_vl", "tiny"], seed=40)
    finally:
        on_ranks(group, with_small_chunks, [(before,)] * NUM_RANKS)


def saved(worker: LearnerWorker, rows: Sequence[Row]) -> int:
    """Return the bytes that a pass keeps for its backward pass, without parameters."""
    engine = worker._engine
    parameters = {p.untyped_storage().data_ptr() for p in engine._policy.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    engine._set_training(True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logprobs, _ = engine._engine(engine._pack(rows))
    found = sum(kept.values())
    engine._engine.backward(0.0 * logprobs.sum())
    return found


@pytest.mark.parametrize("family", ["qwen2_5_vl", pytest.param("qwen3_vl", marks=pytest.mark.long)])
def test_each_rank_keeps_its_share_of_the_activations(
    family: str, group: LearnerGroup, folders: dict[tuple[str, str], Path]
) -> None:
    folder, rng = folders[family, "tiny"], np.random.default_rng(0)
    made = make_group(rng, "0", ("video", "video"), [40, 60, 50], num_text=400, cut=cut_of(folder))
    rows = [make_row(made)]
    kept = {}
    for size in (1, 2, 4):
        spec = Case(family, size=size).spec(folder)
        group.load(replace(spec, algorithm=AlgorithmConfig()))
        kept[size] = on_ranks(group, saved, [(rows,)] * NUM_RANKS)
    for size in (2, 4):
        # pads, a patch of a video more or less, and what `activation_bytes` of the plan adds
        assert max(kept[size]) <= (1.08 if size == 2 else 1.15) * kept[1][0] / size
        assert min(kept[size]) >= 0.95 * kept[1][0] / size


def test_ranks_and_heads_that_cannot_be_divided_are_refused(
    group: LearnerGroup, bench_model_dir: Path, qwen3_5_dirs: Mapping[str, Path]
) -> None:
    spec = Case().spec(bench_model_dir)
    too_many = replace(spec, learner=spec.learner.model_copy(update={"sequence_parallel": 4}))
    with pytest.raises(ConfigError, match=r"sequence_parallel=4: .* the model has 6; set it to one of 1, 2, 3, 6\."):
        group.load(too_many)
    uneven = replace(spec, learner=spec.learner.model_copy(update={"sequence_parallel": 3}))
    with pytest.raises(ConfigError, match="sequence_parallel=3 does not divide the learner's 4 ranks"):
        group.load(uneven)
    few = replace(Case("qwen3_5", size=4).spec(qwen3_5_dirs["bench"]))
    with pytest.raises(ConfigError, match=r"has 6, and 4 of keys in linear attention; set it to one of 1, 2\."):
        group.load(few)
