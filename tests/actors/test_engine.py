"""vLLM engines: reproducible seeds, banned tokens, verified weights, and a pool that loses actors.

Two engines serve all tests of this file; the last tests kill them.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from safetensors.numpy import load_file, save_file

from actors.errors import EngineAsleep, NoWeights, PromptRefused, WeightsRefused
from actors.pool import RolloutPool
from rlsys.types import Rollout
from rlsys.weights.broadcast import BroadcastSender
from rlsys.weights.delta import encode
from rlsys.weights.manifest import Bucket, Delta, NamedTensor, Rendezvous, TensorSpec, WeightTransfer, manifest_of
from rlsys.weights.tensors import HEAD, embedding_name
from tests.support.actors import SAMPLING, Asker, engine_spec, ids_and_logprobs, start_probe
from tests.support.pace import patience
from tests.support.transfers import bucket_of, transfer_of, version_of

NamedTensors = Mapping[str, NamedTensor]
EMBEDDING = "model.embed_tokens.weight"


@dataclass(frozen=True, kw_only=True)
class Engines:
    """Two engines. old: started from the tiny model.  new: started from the same model with other weights.

    Their own weights as parts: `old_tensors`, `new_tensors`.
    """

    old: Any
    new: Any
    old_tensors: NamedTensors
    new_tensors: NamedTensors
    ask: Asker
    folders: tuple[Path, Path]


def as_tensors(weights: Mapping[str, np.ndarray]) -> dict[str, NamedTensor]:
    tied = {HEAD: weights[embedding_name(weights)], **weights}
    return {
        name: NamedTensor(
            spec=TensorSpec(shape=array.shape, dtype=str(array.dtype)),
            data=np.ascontiguousarray(array).reshape(-1).view(np.uint8),
        )
        for name, array in tied.items()
    }


def changed(tensors: NamedTensors, name: str, array: np.ndarray) -> dict[str, NamedTensor]:
    """Return the tensors with other values for one tensor, and for the head if that is tied to it."""
    names = {name, HEAD} if name == EMBEDDING else {name}
    return {**tensors, **{one: as_tensors({EMBEDDING: array})[HEAD] for one in names}}


@pytest.fixture(scope="module")
def engines(actor_cluster: None, tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Engines:
    old_weights = load_file(tiny_model_dir / "model.safetensors")
    rng = np.random.default_rng(1)
    # everything moves: the vision tower, the language model, and the embedding that the head is tied to
    new_weights = {
        name: array + 0.05 * rng.standard_normal(array.shape).astype(array.dtype) for name, array in old_weights.items()
    }
    new_dir = tmp_path_factory.mktemp("engines") / "new"
    shutil.copytree(tiny_model_dir, new_dir)
    save_file(new_weights, new_dir / "model.safetensors", metadata={"format": "pt"})
    old, new = start_probe(engine_spec(tiny_model_dir)), start_probe(engine_spec(new_dir))
    ray.get([old.ping.remote(), new.ping.remote()])
    return Engines(
        old=old,
        new=new,
        old_tensors=as_tensors(old_weights),
        new_tensors=as_tensors(new_weights),
        ask=Asker(tiny_model_dir),
        folders=(tiny_model_dir, new_dir),
    )


def load(actor: Any, tensors: NamedTensors, version: int = 0) -> None:
    announced = version_of(tensors, version)
    assert ray.get(actor.load_weights.remote(transfer_of(tensors), announced)) == announced


def same(left: tuple[Rollout, ...], right: tuple[Rollout, ...]) -> bool:
    return ids_and_logprobs(left) == ids_and_logprobs(right)


def test_generation_before_the_first_acknowledged_weights_is_refused(engines: Engines) -> None:
    with pytest.raises(NoWeights, match="call load_weights first"):
        ray.get(engines.ask.ask(engines.old, 0))


def test_an_engine_asleep_has_no_cache_and_refuses_groups_until_it_is_awake_and_has_weights(engines: Engines) -> None:
    engine, ask = engines.old, engines.ask.ask
    load(engine, engines.old_tensors)
    before = ray.get(ask(engine, 0))
    assert ray.get(engine.cache_bytes.remote()) > 1 << 20
    first = ray.get(engine.sleep.remote())
    assert ray.get(engine.cache_bytes.remote()) == 0
    assert ray.get(engine.sleep.remote()) is None, "it sleeps already"
    for wakes_first in (True, False):
        with pytest.raises(EngineAsleep):
            ray.get(ask(engine, 0))
        if wakes_first:
            ray.get(engine.wake.remote())
            with pytest.raises(EngineAsleep):  # the weights were dropped
                ray.get(ask(engine, 0))
            load(engine, engines.old_tensors)
        else:
            load(engine, engines.old_tensors)
            with pytest.raises(EngineAsleep):  # the learner has not left yet
                ray.get(ask(engine, 0))
            ray.get(engine.sleep.remote())  # and goes on
            load(engine, engines.old_tensors)
            ray.get(engine.wake.remote())
        assert same(ray.get(ask(engine, 0)), before)
        second = ray.get(engine.sleep.remote())
        assert first.end_s <= second.start_s < second.end_s
        first = second
    ray.get(engine.wake.remote())
    load(engine, engines.old_tensors)


def test_sent_weights_give_exactly_the_rollouts_of_a_fresh_engine(engines: Engines) -> None:
    ask = engines.ask
    load(engines.old, engines.old_tensors, version=1)
    before = ray.get([ask.ask(engines.old, index) for index in range(3)])
    assert min(ray.get(engines.old.cache_sizes.remote()).values()) > 0
    load(engines.old, engines.new_tensors, version=2)
    assert ray.get(engines.old.cache_sizes.remote()) == {"prefix": 0, "encoder_scheduled": 0, "encoder_held": 0}
    after = ray.get([ask.ask(engines.old, index) for index in range(3)])
    ray.get(engines.new.assume.remote(version_of(engines.new_tensors)))
    fresh = ray.get([ask.ask(engines.new, index) for index in range(3)])
    for old, new, wanted in zip(before, after, fresh, strict=True):
        assert same(new, wanted)
        assert not same(old, new)
        assert [rollout.weight_version for rollout in new] == [2] * SAMPLING.num_samples


@pytest.mark.parametrize("part", [("visual.",), (EMBEDDING, HEAD)])
def test_one_changed_tensor_is_neither_lost_nor_hidden_by_a_cache(engines: Engines, part: tuple[str, ...]) -> None:
    load(engines.old, engines.old_tensors)
    before = ray.get(engines.ask.ask(engines.old, 0))
    mixed = {
        name: engines.new_tensors[name] if name.startswith(part) else tensor
        for name, tensor in engines.old_tensors.items()
    }
    load(engines.old, mixed)
    load(engines.new, mixed)
    after = ray.get(engines.ask.ask(engines.old, 0))
    assert not same(before, after)
    assert same(after, ray.get(engines.ask.ask(engines.new, 0)))


def test_a_seed_gives_the_same_rollouts_alone_batched_warm_and_on_another_engine(engines: Engines) -> None:
    ask = engines.ask
    load(engines.old, engines.old_tensors)
    load(engines.new, engines.old_tensors)
    samplings = [replace(SAMPLING, seed=1000 * index, num_samples=8) for index in range(8)]
    together = ray.get([ask.ask(engines.old, index, samplings[index]) for index in range(8)])
    for index in (0, 5):
        assert same(together[index], ray.get(ask.ask(engines.old, index, samplings[index])))
        assert same(together[index], ray.get(ask.ask(engines.new, index, samplings[index])))
    assert not same(together[0], ray.get(ask.ask(engines.new, 0, replace(samplings[0], seed=7))))


def test_response_i_uses_the_groups_seed_plus_i(engines: Engines) -> None:
    load(engines.old, engines.old_tensors)
    group = ray.get(engines.ask.ask(engines.old, 0, replace(SAMPLING, seed=50)))
    for index in (0, 3):
        alone = ray.get(engines.ask.ask(engines.old, 0, replace(SAMPLING, seed=50 + index, num_samples=1)))
        assert same(alone, (group[index],))
    assert [rollout.sample_index for rollout in group] == [0, 1, 2, 3]


def test_a_rollout_reports_the_prompt_the_end_and_the_log_probs_of_its_tokens(engines: Engines) -> None:
    item, prompt, _ = engines.ask.prompt(0)
    load(engines.old, engines.old_tensors, version=9)
    rollouts = ray.get(engines.ask.ask(engines.old, 0, replace(SAMPLING, num_samples=32, max_tokens=100)))
    assert {rollout.finish_reason for rollout in rollouts} == {"stop", "length"}
    for rollout in rollouts:
        assert rollout.prompt_ids.tolist() == prompt.prompt_ids.tolist()
        assert rollout.response_ids.shape == rollout.response_logprobs.shape
        assert rollout.response_logprobs.dtype == np.float32
        assert (rollout.response_logprobs < 0).all()
        assert (rollout.prompt_id, rollout.weight_version) == (item.prompt_id, 9)
        ended = rollout.response_ids[-1] == engines.ask.end_token_id
        assert ended == (rollout.finish_reason == "stop")
        assert engines.ask.end_token_id not in rollout.response_ids[:-1]
        assert rollout.text == engines.ask.decode(rollout.response_ids[: rollout.response_ids.size - int(ended)])


def test_greedy_takes_the_most_likely_token_for_any_seed(engines: Engines) -> None:
    load(engines.old, engines.old_tensors)
    greedy = replace(SAMPLING, temperature=0.0, num_samples=1)
    first, second = ray.get([engines.ask.ask(engines.old, 0, replace(greedy, seed=seed)) for seed in (1, 2)])
    assert same(first, second)
    sampled = ray.get(engines.ask.ask(engines.old, 0, replace(SAMPLING, num_samples=16, max_tokens=1)))
    assert first[0].response_logprobs[0] >= max(rollout.response_logprobs[0] for rollout in sampled)


def test_banned_tokens_are_never_sampled_even_if_they_have_all_the_probability(engines: Engines) -> None:
    banned = list(engines.ask.banned_token_ids)
    embedding = np.frombuffer(engines.old_tensors[EMBEDDING].data, np.float32).reshape(384, -1).copy()
    first, second = np.random.default_rng(0).standard_normal((2, embedding.shape[1])).astype(np.float32)
    # on whichever side of two directions a state lies, banned tokens get nearly all of its probability
    embedding[banned] = 2 * np.stack([first, -first, second, -second, first + second])
    load(engines.old, changed(engines.old_tensors, EMBEDDING, embedding))
    greedy = replace(SAMPLING, num_samples=1, temperature=0.0)
    sampled, [likeliest] = ray.get([engines.ask.ask(engines.old, 0, how) for how in (SAMPLING, greedy)])
    for rollout in (*sampled, likeliest):
        assert not np.isin(rollout.response_ids, banned).any()
    # the log-probs are the model's own, so what was sampled has next to none
    assert np.median(np.concatenate([rollout.response_logprobs for rollout in sampled])) < -8.0


def test_wrong_tensors_are_refused_and_the_engine_keeps_its_weights(engines: Engines) -> None:
    load(engines.old, engines.old_tensors, version=3)
    before = ray.get(engines.ask.ask(engines.old, 0))
    wrong = changed(engines.new_tensors, "model.norm.weight", np.ones(7, np.float32))
    without_head = {name: tensor for name, tensor in engines.new_tensors.items() if name != HEAD}
    broken = changed(engines.new_tensors, "model.norm.weight", np.full(128, np.nan, np.float32))
    for tensors, said in ((wrong, "model.norm.weight"), (without_head, HEAD), (broken, "NaN")):
        with pytest.raises(WeightsRefused, match=said):
            ray.get(engines.old.load_weights.remote(transfer_of(tensors), version_of(tensors, 4)))
    with pytest.raises(WeightsRefused, match="announced as"):
        other = changed(engines.old_tensors, "model.norm.weight", np.full(128, 0.5, np.float32))
        ray.get(engines.old.load_weights.remote(transfer_of(engines.new_tensors), version_of(other, 4)))
    after = ray.get(engines.ask.ask(engines.old, 0))
    assert same(before, after)
    assert after[0].weight_version == 3


def in_parts(*parts: NamedTensors, rendezvous: Rendezvous | None = None) -> WeightTransfer:
    """Return a transfer with each part in a bucket of its own."""
    return WeightTransfer(buckets=tuple(map(bucket_of, parts)), timeout_s=patience(30.0), rendezvous=rendezvous)


def split(tensors: NamedTensors) -> tuple[NamedTensors, NamedTensors]:
    """Return the tensors of the vision tower and those of the language model."""
    return tuple(
        {name: tensor for name, tensor in tensors.items() if name.startswith("visual.") == is_tower}
        for is_tower in (True, False)
    )


def num_bytes(tensors: NamedTensors) -> int:
    return sum(tensor.data.nbytes for tensor in tensors.values())


def test_only_changed_buckets_are_loaded_and_a_new_engine_loads_all(engines: Engines) -> None:
    (old_tower, _), (_, new_rest) = split(engines.old_tensors), split(engines.new_tensors)
    mixed = {**old_tower, **new_rest}
    load(engines.old, engines.old_tensors)
    transfer, version = in_parts(old_tower, new_rest), version_of(mixed, 2)
    ray.get(engines.old.load_weights.remote(transfer, version))
    taken = ray.get(engines.old.last_update.remote())
    assert (taken.stored_bytes, taken.num_loaded) == (num_bytes(new_rest), len(new_rest))
    # one that comes from other weights, as a newcomer does
    load(engines.new, engines.new_tensors)
    ray.get(engines.new.load_weights.remote(transfer, version))
    assert ray.get(engines.new.last_update.remote()).stored_bytes == num_bytes(old_tower)
    assert same(*ray.get([engines.ask.ask(engine, 1) for engine in (engines.old, engines.new)]))
    # a part of a fused projection brings the rest of it along
    name = next(name for name in mixed if name.endswith("k_proj.bias"))
    again = changed(mixed, name, np.full(mixed[name].spec.shape, 0.25, np.float32))
    load(engines.old, again, version=3)
    assert ray.get(engines.old.last_update.remote()).num_loaded == 6
    load(engines.new, engines.new_tensors)
    load(engines.new, again, version=3)
    assert same(*ray.get([engines.ask.ask(engine, 1) for engine in (engines.old, engines.new)]))


def test_a_broadcast_delivers_the_same_weights_as_the_store(engines: Engines) -> None:
    load(engines.old, engines.old_tensors)
    load(engines.new, engines.new_tensors)
    before = ray.get(engines.ask.ask(engines.new, 0))
    parts, version = split(engines.new_tensors), version_of(engines.new_tensors, 6)
    sender = BroadcastSender("127.0.0.1", 2, 60.0)
    transfer = in_parts(*parts, rendezvous=sender.rendezvous)
    taking = [engine.load_weights.remote(transfer, version) for engine in (engines.old, engines.new)]
    sent = sender.send(transfer.buckets, version.manifest, lambda bucket: ray.get(bucket.stored))
    assert ray.get(taking) == [version, version]
    assert (sent.num_receivers, sent.problem) == (2, "")
    first, second = ray.get([engine.last_update.remote() for engine in (engines.old, engines.new)])
    assert (first.broadcast_bytes, first.stored_bytes) == (num_bytes(engines.new_tensors), 0)
    assert second.broadcast_bytes == second.num_loaded == 0  # it came although it needed nothing
    assert same(ray.get(engines.ask.ask(engines.old, 0)), before)


def send_half(engine: ray.actor.ActorHandle, new: NamedTensors, old: NamedTensors) -> None:
    """Broadcast new weights to an engine; the sender goes after the first of two parts, and the store has the old."""
    tower, version = split(new)[0], version_of(new, 7)
    sender = BroadcastSender("127.0.0.1", 1, patience(60.0))
    transfer = in_parts(tower, split(old)[1], rendezvous=sender.rendezvous)

    def get(bucket: Bucket) -> NamedTensors:
        if bucket is transfer.buckets[1]:
            raise RuntimeError("the sender is gone")
        return tower

    taking = engine.load_weights.remote(transfer, version)
    assert "gone" in sender.send(transfer.buckets, version.manifest, get).problem
    with pytest.raises(WeightsRefused, match="its checksum is"):
        ray.get(taking)


def test_an_engine_with_half_a_version_samples_nothing_until_it_has_a_complete_one(engines: Engines) -> None:
    load(engines.old, engines.old_tensors)
    before = ray.get(engines.ask.ask(engines.old, 0))
    send_half(engines.old, engines.new_tensors, engines.old_tensors)
    with pytest.raises(NoWeights, match="call load_weights first"):
        ray.get(engines.ask.ask(engines.old, 0))
    load(engines.old, engines.old_tensors)
    assert same(ray.get(engines.ask.ask(engines.old, 0)), before)


def stored_with_deltas(before: NamedTensors, after: NamedTensors, **changes: Any) -> WeightTransfer:
    """A transfer in two buckets, in the object store whole and as deltas from `before`."""
    buckets = []
    for old, new in zip(split(before), split(after), strict=True):
        pieces, _ = encode(new, old)
        sent = Bucket(names=tuple(pieces), num_bytes=num_bytes(pieces), stored=ray.put(pieces))
        delta = Delta(base=manifest_of(old), entries=manifest_of(new), bucket=sent, manifest=manifest_of(pieces))
        buckets.append(Bucket(names=tuple(new), num_bytes=num_bytes(new), stored=ray.put(dict(new)), delta=delta))
    return WeightTransfer(buckets=tuple(buckets), timeout_s=patience(60.0), sends_deltas=True, **changes)


def nudged(tensors: NamedTensors, seed: int) -> dict[str, NamedTensor]:
    """The same with one number in fifty changed; the tied head changes with the embedding."""
    rng = np.random.default_rng(seed)
    made: dict[int, NamedTensor] = {}
    for tensor in tensors.values():
        if tensor.data.ctypes.data not in made:
            data = tensor.data.copy()
            where = rng.random(data.size // 4) < 0.02
            data.view(np.float32)[where] += 0.1
            made[tensor.data.ctypes.data] = replace(tensor, data=data)
    return {name: made[tensor.data.ctypes.data] for name, tensor in tensors.items()}


def test_deltas_give_the_same_engine_as_whole_weights(engines: Engines) -> None:
    """Through the store and by broadcast; an engine that misses the base takes the whole of the same version."""
    first = engines.old_tensors
    second, third = nudged(first, 1), nudged(nudged(first, 1), 2)
    for engine in (engines.old, engines.new):
        load(engine, engines.new_tensors, version=1)
    base = stored_with_deltas(first, first)
    ray.get(engines.old.load_weights.remote(base, version_of(first, 2)))
    # the other engine comes late, and skips a version
    ray.get(engines.old.load_weights.remote(stored_with_deltas(first, second), version_of(second, 3)))
    stats = ray.get(engines.old.last_update.remote())
    assert 0 < stats.delta_bytes == stats.stored_bytes < num_bytes(second) / 10
    assert stats.num_verified == len(second)
    last = version_of(third, 4)
    sender = BroadcastSender("127.0.0.1", 1, patience(60.0))
    transfer = stored_with_deltas(second, third, rendezvous=sender.rendezvous)
    taking = engines.old.load_weights.remote(transfer, last)
    assert sender.send(transfer.buckets, last.manifest, lambda bucket: ray.get(bucket.stored)).problem == ""
    assert ray.get(taking) == last
    stats = ray.get(engines.old.last_update.remote())
    assert 0 < stats.delta_bytes == stats.broadcast_bytes < num_bytes(third) / 10
    assert stats.parts_s.keys() == {"transfer", "engine_load", "verify"}
    assert all(seconds > 0 for seconds in stats.parts_s.values())
    ray.get(engines.new.load_weights.remote(transfer, last))
    stats = ray.get(engines.new.last_update.remote())
    assert (stats.delta_bytes, stats.stored_bytes) == (0, num_bytes(third))
    assert same(*ray.get([engines.ask.ask(engine, 1) for engine in (engines.old, engines.new)]))
    assert set(ray.get(engines.old.compare_weights.remote(transfer_of(third)))[1].values()) == {0.0}


def test_an_engine_reports_its_difference_from_other_weights(engines: Engines) -> None:
    load(engines.old, engines.old_tensors)
    name = "model.norm.weight"
    far = np.frombuffer(engines.old_tensors[name].data, np.float32) + 0.5
    other = changed(engines.old_tensors, name, far)
    held, differences = ray.get(engines.old.compare_weights.remote(transfer_of(other)))
    assert held == version_of(engines.old_tensors).manifest
    assert differences[name] == pytest.approx(0.5)
    # everything is read back: parts of fused layers, and the matrices that vLLM packs on CPU
    assert {difference for one, difference in differences.items() if one != name} == {0.0}


def test_a_bad_prompt_fails_alone(engines: Engines) -> None:
    load(engines.old, engines.old_tensors)
    good = [engines.ask.ask(engines.old, index) for index in range(3)]
    bad = engines.ask.ask(engines.old, 3, replace(SAMPLING, num_samples=65))
    with pytest.raises(PromptRefused, match="rollout.max_num_seqs"):
        ray.get(bad)
    assert all(len(rollouts) == SAMPLING.num_samples for rollouts in ray.get(good))


def test_images_are_read_too(engines: Engines) -> None:
    load(engines.old, engines.old_tensors)
    item, prompt, clip = engines.ask.prompt(0, kind="image")
    first, second = ray.get([engines.ask.ask(engines.old, index, kind="image") for index in range(2)])
    assert first[0].prompt_ids.tolist() == prompt.prompt_ids.tolist()
    assert not same(first, second)


def test_a_pool_of_real_engines_survives_a_killed_and_a_hung_one(engines: Engines) -> None:
    handles = {0: engines.old, 1: engines.new}
    first, second = ray.get([engines.old.ping.remote(), engines.new.ping.remote()])
    spec = engine_spec(engines.folders[0])
    pool = RolloutPool(
        lambda place: handles.pop(place, None) or start_probe(spec),
        2,
        timeout_s=patience(60.0),
        start_timeout_s=patience(200.0),
    )
    pool.load_weights(transfer_of(engines.old_tensors), version_of(engines.old_tensors, 5))

    async def with_faults() -> None:
        wanted = await _groups(pool, engines.ask, 8)
        under_way = asyncio.create_task(_groups(pool, engines.ask, 8))
        await asyncio.sleep(0.05)
        os.kill(first, signal.SIGKILL)
        assert _as_ids(await under_way) == _as_ids(wanted)
        assert pool.counters()["rollout/lost_actors"] == 1
        os.kill(second, signal.SIGSTOP)
        pool._timeout_s = patience(3.0)  # for the hung one alone: a new engine on a busy machine may take longer
        # enough groups for both, whether or not the first one's replacement is up already
        under_way = asyncio.create_task(_groups(pool, engines.ask, 4))
        while pool.counters()["rollout/lost_actors"] < 2:
            await asyncio.sleep(0.1)
        pool._timeout_s = patience(60.0)
        assert _as_ids(await under_way) == _as_ids(wanted[:4])

    try:
        asyncio.run(with_faults())
        assert pool.counters()["rollout/quarantined_prompts"] == 0
    finally:
        pool.shutdown()


async def _groups(pool: RolloutPool, ask: Asker, count: int) -> list[tuple[Rollout, ...]]:
    prompts = (ask.prompt(index) for index in range(count))
    sampling = replace(SAMPLING, max_tokens=100, num_samples=8)
    asked = (pool.generate(item, prompt, (clip,), sampling) for item, prompt, clip in prompts)
    return list(await asyncio.gather(*asked))


def _as_ids(groups: list[tuple[Rollout, ...]]) -> list[list[tuple[list[int], list[float]]]]:
    assert {rollout.weight_version for group in groups for rollout in group} == {5}
    return [ids_and_logprobs(group) for group in groups]
