"""Learner ranks on a small Ray cluster: DeepSpeed against plain torch, for any split."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import ray
import torch
from safetensors.torch import load_file
from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration

from actors.weights.host_copy import HostCopy
from learner.failures import LearnerError
from learner.group import LearnerGroup
from learner.loss.objective import total_loss
from learner.model.policy import PackedPolicy, load_model, read_layout
from learner.packing.mini_batches import part_of, plan_updates
from learner.packing.packing import pack
from learner.packing.shards import split_batch
from learner.spec import LearnerSpec
from learner.weights.weights_out import checkpoint_names, read_folder
from rlsys.config.algorithm import AlgorithmConfig
from rlsys.config.run import LoraConfig, ModelConfig, RolloutConfig, WeightsConfig
from rlsys.errors import CheckpointNotConverted, LearnerLost
from rlsys.models.sizes import read_model_sizes
from rlsys.types import RolloutGroup, TrainBatch
from rlsys.weights.manifest import NamedTensor, digest, manifest_of
from rlsys.weights.tensors import HEAD, as_tensor
from tests.support.learner import cost_model, learner_config, make_batch, make_group, make_row, train_config
from tests.support.pace import patience
from tests.support.rounding import GRADIENT, KL, LOGPROB
from tests.support.transfers import tensors_of

TINY_PASS = 64
"""Number of tokens of a pass at which almost every row of these tests needs a pass of its own."""


PARTITIONED = {"zero_optimization": {"stage3_param_persistence_threshold": 0}}
"""DeepSpeed settings without which ZeRO-3 would leave such small parameters on every rank."""
LORA = LoraConfig(rank=4, alpha=8.0)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    ray.init(
        address="local",
        _node_ip_address="127.0.0.1",
        include_dashboard=False,
        num_cpus=12,
        _temp_dir="/tmp/rlsys_lrn",
        object_store_memory=200 << 20,
    )
    yield
    ray.shutdown(wait_for_processes=True)


@pytest.fixture(scope="module")
def groups(cluster: None) -> Iterator[dict[int, LearnerGroup]]:
    """Learners of one, two and four ranks, which are loaded repeatedly as in a run of several stages."""
    launched = {
        n: LearnerGroup.launch(num_ranks=n, device="cpu", threads=1, timeout_s=patience(120.0)) for n in (1, 2, 4)
    }
    yield launched
    for group in launched.values():
        group.shutdown()


def make_spec(
    folder: Path,
    dtype: str = "float32",
    zero_stage: int = 2,
    budget: int = 16384,
    kl_coef: float = 0.0,
    **train: object,
) -> LearnerSpec:
    return LearnerSpec(
        model=ModelConfig(path=folder, dtype=dtype),
        rollout=RolloutConfig(max_tokens=8),
        train=train_config(**train),
        algorithm=AlgorithmConfig(kl_coef=kl_coef),
        learner=learner_config(
            zero_stage=zero_stage, micro_batch_tokens=budget, deepspeed=PARTITIONED if zero_stage == 3 else {}
        ),
    )


def with_learner(spec: LearnerSpec, **changes: object) -> LearnerSpec:
    return replace(spec, learner=spec.learner.model_copy(update=changes))


def mixed_groups(seed: int = 5) -> list[RolloutGroup]:
    """Return groups of unequal lengths and all kinds of media, so that ranks never have equal work."""
    rng = np.random.default_rng(seed)
    kinds = [("video",), (), ("image",), ("image", "video"), ()]
    return [make_group(rng, str(i), kind, rng.integers(1, 9, 3).tolist()) for i, kind in enumerate(kinds)]


@pytest.fixture(scope="module")
def batches() -> list[TrainBatch]:
    rng = np.random.default_rng(11)
    return [make_batch(rng, mixed_groups(seed)) for seed in (5, 6)]


def weights_of(group: LearnerGroup) -> dict[str, NamedTensor]:
    return tensors_of(group.publish(0)[0])


def flat(tensors: Mapping[str, NamedTensor], names: Iterable[str]) -> torch.Tensor:
    return torch.cat([as_tensor(tensors[name]).flatten() for name in names])


class PlainRun:
    """A run of the same updates with only torch: one process, one pass, AdamW, clipping."""

    def __init__(self, spec: LearnerSpec, batches: Sequence[TrainBatch]) -> None:
        policy = PackedPolicy(load_model(spec.model.path, dtype="float32", attention="sdpa"))
        train = spec.train
        optimizer = torch.optim.AdamW(policy.parameters(), lr=train.learning_rate, betas=train.betas, weight_decay=0.0)
        self.losses, self.grad_norms = [], []
        for step, batch in enumerate(batches):
            rows = [row for rows in split_batch(batch, 1, 1 << 20, cost_model())[0].micro_batches for row in rows]
            packed = pack(rows, read_layout(policy.model, spec.model.path), dtype=torch.float32)
            loss, _ = total_loss(batch.objective, packed, policy(packed)[0], None, spec.algorithm)
            optimizer.zero_grad()
            loss.backward()
            self.grad_norms.append(float(torch.nn.utils.clip_grad_norm_(policy.parameters(), train.max_grad_norm)))
            optimizer.param_groups[0]["lr"] = train.learning_rate * (1 - step / train.num_steps)
            optimizer.step()
            self.losses.append(loss.item())
        names = checkpoint_names(policy.model)
        self.weights = {names[name]: parameter.detach() for name, parameter in policy.model.named_parameters()}


@pytest.fixture(scope="module")
def plain_run(tiny_model_dir: Path, batches: list[TrainBatch]) -> PlainRun:
    return PlainRun(make_spec(tiny_model_dir), batches)


@pytest.mark.parametrize(
    ("num_ranks", "zero_stage", "budget", "sequence_parallel"),
    [
        (1, 2, 16384, 1),
        (1, 2, TINY_PASS, 1),
        (2, 0, TINY_PASS, 1),
        (2, 1, TINY_PASS, 1),
        (2, 2, 16384, 1),
        (2, 2, TINY_PASS, 1),
        (2, 3, TINY_PASS, 1),
        (2, 0, 16384, 2),
        (2, 3, TINY_PASS, 2),
        (4, 2, TINY_PASS, 2),
    ],
)
def test_any_split_over_ranks_and_passes_is_the_same_update(
    groups: dict[int, LearnerGroup],
    tiny_model_dir: Path,
    batches: list[TrainBatch],
    plain_run: PlainRun,
    num_ranks: int,
    zero_stage: int,
    budget: int,
    sequence_parallel: int,
) -> None:
    learner = groups[num_ranks]
    spec = make_spec(tiny_model_dir, zero_stage=zero_stage, budget=budget)
    learner.load(with_learner(spec, sequence_parallel=sequence_parallel))
    found = [learner.update(batch) for batch in batches]
    assert [m["loss/policy"] for m in found] == pytest.approx(plain_run.losses, rel=GRADIENT, abs=LOGPROB)
    assert [m["optim/grad_norm"] for m in found] == pytest.approx(plain_run.grad_norms, rel=GRADIENT)
    assert (found[0]["perf/learner_passes"] > 1) == (budget == TINY_PASS)
    start, found_weights = (
        flat(tensors, plain_run.weights) for tensors in (read_folder(tiny_model_dir), weights_of(learner))
    )
    expected = torch.cat([tensor.flatten() for tensor in plain_run.weights.values()])
    bound = update_rounding(make_spec(tiny_model_dir), len(batches))
    assert (found_weights - expected).norm() <= bound * (expected - start).norm()


def test_equal_inputs_give_equal_bits(
    groups: dict[int, LearnerGroup], tiny_model_dir: Path, batches: list[TrainBatch]
) -> None:
    digests = []
    for _ in range(2):
        groups[2].load(make_spec(tiny_model_dir))
        for batch in batches:
            groups[2].update(batch)
        digests.append(groups[2].publish(2)[1].digest)
    assert digests[0] == digests[1]


@pytest.mark.parametrize("zero_stage", [2, 3])
def test_restored_learner_continues_bit_for_bit(
    groups: dict[int, LearnerGroup], tiny_model_dir: Path, batches: list[TrainBatch], tmp_path: Path, zero_stage: int
) -> None:
    learner, spec = groups[2], make_spec(tiny_model_dir, zero_stage=zero_stage)
    learner.load(spec)
    learner.update(batches[0])
    learner.save(tmp_path / "deepspeed")
    expected = learner.update(batches[1]), learner.publish(2)[1].digest
    learner.load(spec)
    assert learner.publish(0)[1].digest == digest(read_folder(tiny_model_dir))
    learner.restore(tmp_path / "deepspeed")
    assert (learner.update(batches[1]), learner.publish(2)[1].digest) == expected
    assert expected[0]["optim/lr"] == pytest.approx(1e-3 * 0.9)


def test_learning_rate_follows_the_schedule(
    groups: dict[int, LearnerGroup], tiny_model_dir: Path, batches: list[TrainBatch]
) -> None:
    groups[1].load(make_spec(tiny_model_dir, num_steps=4, schedule="linear", warmup_steps=2))
    rates = [groups[1].update(batches[0])["optim/lr"] for _ in range(4)]
    assert rates == pytest.approx([5e-4, 1e-3, 1e-3, 5e-4])


@pytest.mark.parametrize("zero_stage", [1, 3])
def test_a_resume_clips_gradients_as_the_config_says_now(
    groups: dict[int, LearnerGroup], tiny_model_dir: Path, tmp_path: Path, zero_stage: int
) -> None:
    learner = groups[1]
    learner.load(make_spec(tiny_model_dir, zero_stage=zero_stage, max_grad_norm=1.0))
    learner.save(tmp_path / "deepspeed")
    learner.load(make_spec(tiny_model_dir, zero_stage=zero_stage, max_grad_norm=0.25))
    learner.restore(tmp_path / "deepspeed")
    (worker,) = learner._workers
    assert ray.get(worker.__ray_call__.remote(lambda self: self._engine._engine.optimizer.clip_grad)) == 0.25


@pytest.mark.parametrize("zero_stage", [2, 3])
def test_published_weights_are_the_exported_folder(
    groups: dict[int, LearnerGroup], tiny_model_dir: Path, batches: list[TrainBatch], tmp_path: Path, zero_stage: int
) -> None:
    learner = groups[2]
    learner.load(make_spec(tiny_model_dir, zero_stage=zero_stage))
    learner.update(batches[0])
    transfer, version = learner.publish(7)
    tensors = tensors_of(transfer)
    assert (version.version, version.transport, version.num_tensors) == (7, "object_store", len(tensors))
    assert version.num_bytes == sum(tensor.data.nbytes for tensor in tensors.values())
    assert learner.export(tmp_path / "model") == version.digest == digest(read_folder(tmp_path / "model"))
    source = load_file(tiny_model_dir / "model.safetensors")
    assert tensors.keys() == source.keys() | {HEAD}
    assert tensors[HEAD].data.tobytes() == tensors["model.embed_tokens.weight"].data.tobytes()
    assert version.digest != digest(read_folder(tiny_model_dir))


def test_frozen_parts_are_published_once_until_a_checkpoint_is_restored(
    groups: dict[int, LearnerGroup], tiny_model_dir: Path, batches: list[TrainBatch], tmp_path: Path
) -> None:
    learner = groups[2]
    spec = with_learner(make_spec(tiny_model_dir, zero_stage=3), frozen_parts=("vision_tower",))
    learner.load(replace(spec, weights=WeightsConfig(bucket_mib=1)))
    first, _ = learner.publish(0)
    learner.update(batches[0])
    second, version = learner.publish(1)
    kept = [one.stored == other.stored for one, other in zip(first.buckets, second.buckets, strict=True)]
    frozen = [all(n.startswith("visual.") and "merger" not in n for n in bucket.names) for bucket in first.buckets]
    assert kept == frozen
    assert 0 < sum(kept) < len(kept)
    assert version.manifest == manifest_of(tensors_of(second))
    assert learner.export(tmp_path / "model") == version.digest
    learner.save(tmp_path / "deepspeed")
    learner.restore(tmp_path / "deepspeed")
    third, restored = learner.publish(1)
    assert restored.digest == version.digest
    assert not {bucket.stored for bucket in third.buckets} & {bucket.stored for bucket in second.buckets}
    held, differences = learner.compare(tmp_path / "model", third)
    assert held == version.manifest
    assert set(differences.values()) == {0.0}


@pytest.mark.parametrize("zero_stage", [2, 3])
def test_a_step_at_a_small_rate_is_published_as_deltas_that_make_the_whole(
    groups: dict[int, LearnerGroup], tiny_model_dir: Path, batches: list[TrainBatch], zero_stage: int
) -> None:
    learner = groups[2]
    spec = make_spec(tiny_model_dir, dtype="bfloat16", zero_stage=zero_stage, learning_rate=1e-6)
    digests = []
    for delta in ("never", "always"):
        learner.load(replace(spec, weights=WeightsConfig(bucket_mib=1, delta=delta)))
        base, transfers = HostCopy(), []
        for version in range(3):
            if version:
                learner.update(batches[version - 1])
            transfer, announced = learner.publish(version)
            assert transfer.sends_deltas == (delta == "always")
            transfers.append(transfer)
            for bucket in transfer.buckets:
                whole = ray.get(bucket.stored)
                if bucket.delta is not None:
                    assert base.fits(bucket.delta)
                    made = base.changed(bucket, ray.get(bucket.delta.bucket.stored))
                    assert manifest_of(made) == manifest_of(whole)
                base.keep(whole, announced.manifest)
        digests.append(announced.digest)
        stats = announced.published
        num_deltas = sum(bucket.delta is not None for bucket in transfers[-1].buckets)
        assert (num_deltas > 0) == (delta == "always")
    assert digests[0] == digests[1]
    assert 0 < stats.sent_bytes < announced.num_bytes / 4
    assert 0 < stats.num_changed < stats.num_compared / 8
    assert stats.metrics()["weights/changed_frac"] == stats.num_changed / stats.num_compared


def test_exported_folder_is_the_policy_for_every_library(
    groups: dict[int, LearnerGroup], tiny_model_dir: Path, batches: list[TrainBatch], tmp_path: Path
) -> None:
    learner = groups[2]
    learner.load(make_spec(tiny_model_dir))
    learner.update(batches[0])
    expected = learner.logprobs(batches[0].groups)
    learner.export(tmp_path / "model")
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(tmp_path / "model", dtype=torch.float32)
    assert AutoProcessor.from_pretrained(tmp_path / "model").tokenizer.vocab_size
    rows = [make_row(group) for group in batches[0].groups]
    packed = pack(rows, read_layout(model, tmp_path / "model"), dtype=torch.float32)
    with torch.no_grad():
        found = PackedPolicy(model)(packed)[0].numpy()
    np.testing.assert_allclose(np.concatenate([one for group in expected for one in group]), found, atol=1e-5)


def test_logprobs_come_back_in_order_and_frames_may_be_references(
    groups: dict[int, LearnerGroup], tiny_model_dir: Path
) -> None:
    asked = mixed_groups()
    by_reference = [
        replace(group, clips=tuple(replace(clip, frames=ray.put(clip.frames)) for clip in group.clips))
        for group in asked
    ]
    found = []
    for num_ranks, budget, given in ((1, 16384, asked), (2, TINY_PASS, by_reference)):
        groups[num_ranks].load(make_spec(tiny_model_dir, budget=budget))
        found.append(groups[num_ranks].logprobs(given))
    for group, one, other in zip(asked, *found, strict=True):
        assert [len(a) for a in one] == [len(rollout.response_ids) for rollout in group.rollouts]
        for a, b in zip(one, other, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)


def test_sampler_difference_is_that_of_the_logprobs(groups: dict[int, LearnerGroup], tiny_model_dir: Path) -> None:
    learner, asked = groups[2], mixed_groups()
    learner.load(make_spec(tiny_model_dir))
    own = np.concatenate([one for group in learner.logprobs(asked) for one in group])
    sampler = np.concatenate([rollout.response_logprobs for group in asked for rollout in group.rollouts])
    metrics = learner.update(make_batch(np.random.default_rng(0), asked))
    assert metrics["policy/sampler_logprob_diff/mean"] == pytest.approx(np.abs(own - sampler).mean(), rel=1e-4)
    assert metrics["policy/sampler_logprob_diff/max"] == pytest.approx(np.abs(own - sampler).max(), rel=1e-4)


def test_on_policy_update_has_ratio_one_and_clips_nothing(
    groups: dict[int, LearnerGroup], tiny_model_dir: Path
) -> None:
    learner, asked = groups[2], mixed_groups()
    learner.load(make_spec(tiny_model_dir, kl_coef=0.1))
    sampled = [
        replace(
            group, rollouts=tuple(replace(r, response_logprobs=p) for r, p in zip(group.rollouts, own, strict=True))
        )
        for group, own in zip(asked, learner.logprobs(asked), strict=True)
    ]
    batch = make_batch(np.random.default_rng(0), sampled)
    metrics = learner.update(batch)
    assert metrics["policy/ratio/max"] == pytest.approx(1.0, abs=1e-4)
    assert metrics["policy/clip_frac"] == 0
    # the reference is the policy that the run starts from
    assert metrics["policy/kl_to_ref"] == pytest.approx(0.0, abs=KL)
    moved = learner.update(batch)
    assert moved["policy/kl_to_ref"] > 1e-4
    assert moved["loss/kl"] == pytest.approx(0.1 * moved["policy/kl_to_ref"])


def plain_updates(spec: LearnerSpec, batch: TrainBatch) -> tuple[list[float], torch.Tensor]:
    """Run a batch's updates with only torch and one learning rate; return the losses and all weights afterwards."""
    policy = PackedPolicy(load_model(spec.model.path, dtype="float32", attention="sdpa"))
    layout, train = read_layout(policy.model, spec.model.path), spec.train
    optimizer = torch.optim.AdamW(policy.parameters(), lr=train.learning_rate, betas=train.betas, weight_decay=0.0)
    old: list[list[np.ndarray]] = []
    for group in batch.groups:
        with torch.no_grad():
            logprobs = policy(pack([make_row(group)], layout, dtype=torch.float32))[0].numpy()
        old.append(np.split(logprobs, np.cumsum([len(rollout.response_ids) for rollout in group.rollouts])[:-1]))
    losses = []
    for indices in plan_updates(batch, spec.algorithm, spec.seed):
        (shard,) = split_batch(
            part_of(batch, indices),
            1,
            1 << 20,
            cost_model(),
            loss_mean=spec.algorithm.loss_mean,
            max_tokens=spec.rollout.max_tokens,
            old_logprobs=[old[index] for index in indices],
        )
        packed = pack([row for rows in shard.micro_batches for row in rows], layout, dtype=torch.float32)
        loss, _ = total_loss("grpo", packed, policy(packed)[0], None, spec.algorithm)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), train.max_grad_norm)
        optimizer.step()
        losses.append(loss.item())
    return losses, torch.cat([parameter.detach().flatten() for parameter in policy.model.parameters()])


def test_mini_batches_and_epochs_are_updates_one_after_the_other(
    groups: dict[int, LearnerGroup], tiny_model_dir: Path, batches: list[TrainBatch]
) -> None:
    algorithm = AlgorithmConfig(
        mini_batches=2, epochs_per_batch=2, old_policy="learner", sampler_correction="tis", loss_mean="sequence"
    )
    spec = replace(make_spec(tiny_model_dir, budget=TINY_PASS), algorithm=algorithm)
    groups[2].load(spec)
    found = groups[2].update(batches[0])
    losses, expected = plain_updates(spec, batches[0])
    assert found["optim/updates"] == len(losses) == 4
    assert found["loss/total"] == pytest.approx(np.mean(losses), rel=GRADIENT, abs=LOGPROB)
    model = load_model(tiny_model_dir, dtype="float32", attention="sdpa")
    names = [checkpoint_names(model)[name] for name, _ in model.named_parameters()]
    start = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    assert (flat(weights_of(groups[2]), names) - expected).norm() <= 1e-4 * (expected - start).norm()
    assert found["optim/lr"] == pytest.approx(1e-3)
    assert groups[2].update(batches[1])["optim/lr"] == pytest.approx(1e-3 * 0.9)


def test_before_a_single_update_the_learners_old_policy_is_itself_and_the_reference_stays(
    groups: dict[int, LearnerGroup], tiny_model_dir: Path, batches: list[TrainBatch]
) -> None:
    algorithm = AlgorithmConfig(old_policy="learner", kl_coef=0.1, kl_in="reward")
    groups[1].load(replace(make_spec(tiny_model_dir), algorithm=algorithm))
    before = groups[1].logprobs(batches[0].groups)
    found = groups[1].update(batches[0])
    assert (found["policy/ratio/mean"], found["policy/ratio/max"], found["policy/clip_frac"]) == (1.0, 1.0, 0.0)
    assert 0 < found["policy/effective_sample_frac"] < 1
    assert found["policy/sampler_kl"] > 0
    # the penalty is in the reward, so the update has no use for the reference
    assert not {"policy/kl_to_ref", "loss/kl"} & set(found)
    reference = groups[1].logprobs(batches[0].groups, reference=True)
    for one, other in zip(sum(reference, []), sum(before, []), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_supervised_steps_lower_the_loss(groups: dict[int, LearnerGroup], tiny_model_dir: Path) -> None:
    rng = np.random.default_rng(0)
    batch = make_batch(rng, [make_group(rng, str(i), ("video",), [6]) for i in range(3)], "nll")
    groups[2].load(make_spec(tiny_model_dir, learning_rate=2e-3))
    losses = [groups[2].update(batch)["loss/nll"] for _ in range(8)]
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("zero_stage", [0, 2, 3])
def test_bfloat16_trains_and_publishes_bfloat16(
    groups: dict[int, LearnerGroup], tiny_model_dir: Path, batches: list[TrainBatch], tmp_path: Path, zero_stage: int
) -> None:
    learner = groups[2]
    learner.load(make_spec(tiny_model_dir, dtype="bfloat16", zero_stage=zero_stage, budget=TINY_PASS, kl_coef=0.1))
    before = weights_of(learner)
    metrics = learner.update(batches[0])
    assert 0 < metrics["optim/grad_norm"] < 100
    after = weights_of(learner)
    assert {tensor.spec.dtype for tensor in after.values()} == {"bfloat16"}
    assert digest(after) != digest(before)
    assert learner.export(tmp_path / "model") == digest(after) == digest(read_folder(tmp_path / "model"))


def updated(
    learner: LearnerGroup, spec: LearnerSpec, batches: Sequence[TrainBatch]
) -> tuple[dict[str, NamedTensor], float]:
    """Return the weights after an update on each batch, and the norm of the first gradient."""
    learner.load(spec)
    norms = [learner.update(batch)["optim/grad_norm"] for batch in batches]
    return weights_of(learner), norms[0]


GRADIENT_ROUNDING = 1e-5
"""Rounding of a gradient relative to its size, from sums of thousands of float32 terms in another order."""
ADAMW_EPS = 1e-8


def update_rounding(spec: LearnerSpec, num_steps: int) -> float:
    """Return how far equal updates may differ, relative to their size, if gradients differ only by rounding.

    A step of AdamW, g / (|g| + eps), has the slope eps / (|g| + eps)^2. Where n gradients of size s lie evenly about 0,
    a rounding error of r s in each moves the step by r sqrt(s / (3 eps)) of its norm (the integral of the squared
    slope): near 0 rounding becomes steps of the learning rate, so single numbers have no useful bound. Clipping bounds
    s by max_grad_norm / sqrt(n). A rank's missing share or a lost moment changes the update by tens of percent.
    """
    size = spec.train.max_grad_norm / read_model_sizes(spec.model.path).trained(spec.learner) ** 0.5
    return num_steps * GRADIENT_ROUNDING * (size / (3 * ADAMW_EPS)) ** 0.5


def relative_difference(
    found: Mapping[str, NamedTensor], wanted: Mapping[str, NamedTensor], start: Mapping[str, NamedTensor]
) -> float:
    """Return the distance between two results of an update from `start`, divided by its length."""
    assert found.keys() == wanted.keys() == start.keys()
    ends = (flat(tensors, wanted) for tensors in (found, wanted, start))
    found_end, wanted_end, begin = ends
    return float((found_end - wanted_end).norm() / (wanted_end - begin).norm())


def test_1_2_and_4_ranks_at_zero_2_and_3_give_the_same_weights_after_three_updates(
    groups: dict[int, LearnerGroup], tiny_model_dir: Path, batches: list[TrainBatch]
) -> None:
    """For any split of the work the weights equal those of one rank; `update_rounding` gives the bound."""
    three = [batches[0], batches[1], batches[0]]
    start = read_folder(tiny_model_dir)
    wanted, norm = updated(groups[1], make_spec(tiny_model_dir, learning_rate=1e-5), three)
    for num_ranks, zero_stage in ((1, 3), (2, 2), (2, 3), (4, 2), (4, 3)):
        spec = make_spec(tiny_model_dir, zero_stage=zero_stage, budget=TINY_PASS, learning_rate=1e-5)
        found, found_norm = updated(groups[num_ranks], spec, three)
        assert relative_difference(found, wanted, start) <= update_rounding(spec, 3), (num_ranks, zero_stage)
        assert found_norm == pytest.approx(norm, rel=GRADIENT)


@pytest.mark.parametrize(
    ("zero_stage", "changes"),
    [
        (2, {"lora": LORA}),
        (3, {"lora": LORA}),
        (3, {"frozen_parts": ("vision_tower",)}),
        (2, {"frozen_parts": ("vision_tower", "projector")}),
        (3, {"gradient_checkpointing": True}),
        (3, {"lora": LORA, "gradient_checkpointing": True}),
        (3, {"offload": ("optimizer", "parameters")}),
    ],
)
def test_two_ranks_equal_one_for_all_trained_parts(
    groups: dict[int, LearnerGroup],
    tiny_model_dir: Path,
    batches: list[TrainBatch],
    zero_stage: int,
    changes: dict[str, object],
) -> None:
    alone = with_learner(make_spec(tiny_model_dir, learning_rate=1e-4), **{**changes, "offload": ()})
    shared = with_learner(
        make_spec(tiny_model_dir, zero_stage=zero_stage, budget=TINY_PASS, learning_rate=1e-4), **changes
    )
    wanted, norm = updated(groups[1], alone, batches)
    found, found_norm = updated(groups[2], shared, batches)
    assert found_norm == pytest.approx(norm, rel=GRADIENT)
    start = read_folder(tiny_model_dir)
    assert relative_difference(found, wanted, start) <= update_rounding(shared, len(batches))
    moved = {name for name in start if found[name].data.tobytes() != start[name].data.tobytes()}
    if "lora" in changes:
        assert moved == {name for name in start if ".layers." in name and "proj.weight" in name}
    else:
        parts = changes.get("frozen_parts", ())
        tower = {name for name in start if name.startswith("visual.") and not name.startswith("visual.merger.")}
        projector = {name for name in start if name.startswith("visual.merger.")}
        still = (tower if "vision_tower" in parts else set()) | (projector if "projector" in parts else set())
        assert not moved & still
        assert len(moved) >= len(start) - len(still) - 3


@pytest.mark.parametrize(
    ("saved", "resumed", "changes"),
    [
        ((2, 2), (1, 2), {}),
        ((1, 2), (2, 2), {}),
        ((2, 3), (1, 3), {}),
        ((1, 3), (4, 3), {}),
        ((2, 2), (1, 3), {}),
        ((2, 3), (2, 1), {}),
        ((2, 3), (1, 2), {"lora": LORA}),
        ((2, 2), (1, 3), {"frozen_parts": ("vision_tower",)}),
    ],
)
def test_a_checkpoint_is_resumed_by_other_ranks_and_at_another_stage(
    groups: dict[int, LearnerGroup],
    tiny_model_dir: Path,
    batches: list[TrainBatch],
    tmp_path: Path,
    saved: tuple[int, int],
    resumed: tuple[int, int],
    changes: dict[str, object],
) -> None:
    """The next update equals that of an uninterrupted run, which needs the moments and the learning rate."""
    specs = [
        with_learner(make_spec(tiny_model_dir, zero_stage=stage, learning_rate=1e-4), **changes)
        for _, stage in (saved, resumed)
    ]
    before, after = groups[saved[0]], groups[resumed[0]]
    before.load(specs[0])
    for batch in batches:
        before.update(batch)
    before.save(tmp_path / "deepspeed")
    files = sorted(path.name for path in (tmp_path / "deepspeed").iterdir())
    saved_digest = before.publish(2)[1].digest
    at_save = {name: replace(one, data=one.data.copy()) for name, one in weights_of(before).items()}
    wanted_metrics, wanted = before.update(batches[0]), weights_of(before)
    after.load(specs[1])
    # a copy for other ranks is written elsewhere: the checkpoint may be read-only
    after.restore(tmp_path / "deepspeed", tmp_path / "scratch" / "new")
    assert after.publish(2)[1].digest == saved_digest
    found_metrics, found = after.update(batches[0]), weights_of(after)
    assert relative_difference(found, wanted, at_save) <= update_rounding(specs[1], 1)
    for name in ("optim/lr", "optim/grad_norm", "loss/policy"):
        assert found_metrics[name] == pytest.approx(wanted_metrics[name], rel=1e-4)
    # what resharding made is gone again
    assert sorted(path.name for path in (tmp_path / "deepspeed").iterdir()) == files
    assert [path.name for path in tmp_path.rglob("scratch/*/*")] == []


def test_a_copy_for_other_ranks_that_no_disk_takes_is_named_and_the_ranks_continue(
    groups: dict[int, LearnerGroup], tiny_model_dir: Path, batches: list[TrainBatch], tmp_path: Path
) -> None:
    groups[1].load(make_spec(tiny_model_dir, zero_stage=2))
    groups[1].update(batches[0])
    groups[1].save(tmp_path / "deepspeed")
    saved_digest = groups[1].publish(0)[1].digest
    groups[2].load(make_spec(tiny_model_dir, zero_stage=2))
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointNotConverted) as caught:
        groups[2].restore(tmp_path / "deepspeed", tmp_path / "file")
    assert str(caught.value).startswith(
        f"{tmp_path}/deepspeed: its copy for 2 ranks at learner.zero_stage=2 could not be written to {tmp_path}/file ("
    )
    groups[2].restore(tmp_path / "deepspeed", tmp_path)
    assert groups[2].publish(0)[1].digest == saved_digest


@pytest.mark.parametrize(("saved", "resumed"), [((2, 2), (1, 3)), ((1, 3), (2, 2))])
def test_float32_masters_of_bfloat16_weights_are_resharded_too(
    groups: dict[int, LearnerGroup],
    tiny_model_dir: Path,
    batches: list[TrainBatch],
    tmp_path: Path,
    saved: tuple[int, int],
    resumed: tuple[int, int],
) -> None:
    before, after = groups[saved[0]], groups[resumed[0]]
    before.load(make_spec(tiny_model_dir, dtype="bfloat16", zero_stage=saved[1]))
    before.update(batches[0])
    before.save(tmp_path / "deepspeed")
    at_save = weights_of(before)
    at_save = {name: replace(tensor, data=tensor.data.copy()) for name, tensor in at_save.items()}
    before.update(batches[1])
    wanted = weights_of(before)
    after.load(make_spec(tiny_model_dir, dtype="bfloat16", zero_stage=resumed[1]))
    after.restore(tmp_path / "deepspeed")
    assert digest(weights_of(after)) == digest(at_save)
    after.update(batches[1])
    found, old, new = (flat(tensors, wanted).float() for tensors in (weights_of(after), at_save, wanted))
    # other ranks round other sums to bfloat16, which alone makes a fifth of an update
    assert (found - new).norm() <= 0.3 * (new - old).norm()


def test_lora_publishes_its_adapter_and_exports_the_whole_model(
    groups: dict[int, LearnerGroup], tiny_model_dir: Path, batches: list[TrainBatch], tmp_path: Path
) -> None:
    learner = groups[2]
    spec = with_learner(make_spec(tiny_model_dir, zero_stage=3, kl_coef=0.1), lora=LORA)
    learner.load(replace(spec, sync="adapter"))
    first = learner.update(batches[0])
    # the reference is the model with its adapter off
    assert first["policy/kl_to_ref"] == pytest.approx(0.0, abs=KL)
    assert learner.update(batches[1])["policy/kl_to_ref"] > 1e-6
    base = learner.logprobs(batches[0].groups[:1], reference=True)[0][0]
    tensors, version = (lambda found: (tensors_of(found[0]), found[1]))(learner.publish(3))
    assert version.kind == "adapter"
    assert len(tensors) == version.num_tensors == 3 * 7 * 2
    assert version.num_bytes == sum(tensor.data.nbytes for tensor in tensors.values())
    folder = tmp_path / "model"
    whole = learner.export(folder)
    assert whole == digest(read_folder(folder)) != version.digest
    assert digest(read_folder(folder / "adapter")) == version.digest
    merged = learner.logprobs(batches[0].groups)
    groups[1].load(make_spec(folder))
    for one, other in zip(merged, groups[1].logprobs(batches[0].groups), strict=True):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)
    groups[1].load(make_spec(tiny_model_dir))
    np.testing.assert_allclose(base, groups[1].logprobs(batches[0].groups[:1])[0][0], atol=1e-5)


def test_a_rank_that_cannot_import_what_it_needs_is_an_error_and_no_loss(cluster: None, tiny_model_dir: Path) -> None:
    learner = LearnerGroup.launch(num_ranks=1, device="abacus", threads=1, timeout_s=patience(120.0))
    with pytest.raises(LearnerError, match="rank 0: ValueError: .*abacus"):
        learner.load(make_spec(tiny_model_dir))


def stub_group(behaviours: Sequence[str], timeout_s: float) -> LearnerGroup:
    """Ranks with faults that real ones cannot be made to show on command."""

    class Stub:  # in here, so that it is sent by value: workers cannot import this module
        def __init__(self, behaviour: str) -> None:
            self._behaviour = behaviour

        def prepare(self) -> None:
            """Do nothing."""

        def where(self) -> tuple[str, str]:
            return "node", "127.0.0.1"

        def open_store(self, host: str) -> int:
            return 0

        def join(self, host: str, port: int, engines_join: bool) -> None: ...

        def load(self, spec: object) -> None:
            if self._behaviour == "raise":
                raise MemoryError("no room for the model")
            time.sleep(600)

    workers = [ray.remote(Stub).options(num_cpus=0).remote(behaviour) for behaviour in behaviours]
    ray.get([worker.__ray_ready__.remote() for worker in workers])
    return LearnerGroup(workers, timeout_s)


def test_a_failure_does_not_wait_for_ranks_that_hang(cluster: None, tiny_model_dir: Path) -> None:
    limit_s = patience(50.0)
    group = stub_group(["hang", "raise"], timeout_s=limit_s)
    started = time.monotonic()
    with pytest.raises(
        LearnerError, match="learner.load: all ranks were stopped, because rank 1: MemoryError: no room"
    ):
        group.load(make_spec(tiny_model_dir))
    assert time.monotonic() - started < limit_s  # which waiting would take


def test_a_call_past_its_deadline_names_the_late_ranks(cluster: None, tiny_model_dir: Path) -> None:
    group = stub_group(["hang", "hang"], timeout_s=0.5)
    with pytest.raises(LearnerLost, match=r"ranks \[0, 1\] took over learner.timeout_s=0.5 s"):
        group.load(make_spec(tiny_model_dir))


def test_updates_need_a_model(cluster: None, batches: list[TrainBatch]) -> None:
    with pytest.raises(RuntimeError, match="call load"):
        stub_group(["hang"], timeout_s=1.0).update(batches[0])


def test_a_learner_whose_state_is_offloaded_refuses_to_work_and_comes_back_as_it_was(
    groups: dict[int, LearnerGroup], tiny_model_dir: Path, tmp_path: Path
) -> None:
    group = groups[2]
    group.load(make_spec(tiny_model_dir))
    before = group.publish(0)[1].digest
    first = group.offload()
    refused = (
        lambda: group.publish(1),
        lambda: group.logprobs(mixed_groups()),
        lambda: group.update(make_batch(np.random.default_rng(0), mixed_groups())),
        lambda: group.save(tmp_path / "checkpoint"),
        lambda: group.export(tmp_path / "model"),
    )
    for call in refused:
        with pytest.raises(RuntimeError, match=r"offloaded .* call reload\(\) first"):
            call()
    group.require_alive()
    group.reload()
    assert group.publish(1)[1].digest == before
    second = group.offload()
    assert [turn.holder for turn in second] == ["rank 0", "rank 1"]
    assert all(one.end_s <= other.start_s for one, other in zip(first, second, strict=True))
    group.load(make_spec(tiny_model_dir))  # which needs nothing of the old state
    assert group.publish(0)[1].digest == before


def test_a_rank_that_fails_is_named_and_ends_the_group(groups: dict[int, LearnerGroup], tiny_model_dir: Path) -> None:
    """Last in this file: the two ranks are gone after it."""
    learner = groups[2]
    learner.load(make_spec(tiny_model_dir))
    rng = np.random.default_rng(0)
    asked = [make_group(rng, f"file:{i}", ("video",), [4, 4]) for i in range(2)]
    asked[1].rollouts[0].response_logprobs[2] = np.nan
    started = time.monotonic()
    with pytest.raises(LearnerError, match=r"rank 1: FloatingPointError: loss nan on file:1"):
        learner.update(make_batch(rng, asked))
    assert time.monotonic() - started < learner._timeout_s  # which the other rank's wait for it would take
    with pytest.raises(LearnerError, match="have been ended"):
        learner.publish(1)
