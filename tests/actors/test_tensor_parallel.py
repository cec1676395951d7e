"""Engines of two worker processes: the weights of an update, whole, split and verified."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import ray
import torch

from actors.errors import NoWeights
from rlsys.temporary import short_temp_dir
from rlsys.types import Rollout
from rlsys.weights.manifest import NamedTensors
from rlsys.weights.tensors import HEAD
from tests.actors.test_engine import EMBEDDING, changed, send_half
from tests.actors.test_weight_update import LORA, adapters, models
from tests.support.actors import SAMPLING, Asker, engine_spec, ids_and_logprobs, start_probe
from tests.support.transfers import transfer_of, version_of

GREEDY = replace(SAMPLING, num_samples=1, temperature=0.0, max_tokens=24)
LOGPROB_OF_TWO = 1e-4  # two workers add up their halves of each sum in another order
O_PROJ = "model.layers.0.self_attn.o_proj.weight"


@dataclass(frozen=True, kw_only=True)
class Engines:
    """one: an engine in one process.  two: an engine of two workers.  Both from the tiny model, with adapters."""

    one: Any
    two: Any
    ask: Asker
    model: Path

    def greedy(self, engine: Any) -> list[tuple[Rollout, ...]]:
        return ray.get([self.ask.ask(engine, index, GREEDY, kind="video") for index in range(3)])


@pytest.fixture(scope="module")
def engines(actor_cluster: None, tiny_model_dir: Path) -> Iterator[Engines]:
    spec = engine_spec(tiny_model_dir, lora=LORA)
    rollout = spec.rollout.model_copy(update={"tensor_parallel_size": 2})
    one, two = start_probe(spec), start_probe(replace(spec, rollout=rollout))
    start = time.perf_counter()
    ray.get([one.ping.remote(), two.ping.remote()])
    sizes = [mib for engine in (one, two) for mib in ray.get(engine.in_workers.remote(resident_mib))]
    print(f"started in {time.perf_counter() - start:.1f} s; resident MiB of the workers: {sizes}")  # noqa: T201
    yield Engines(one=one, two=two, ask=Asker(tiny_model_dir), model=tiny_model_dir)
    ray.get(two.shutdown.remote())


def load(engine: Any, tensors: NamedTensors, version: int, max_bytes: int = 1 << 18) -> None:
    start = time.perf_counter()
    announced = version_of(tensors, version)
    assert ray.get(engine.load_weights.remote(transfer_of(tensors, max_bytes), announced)) == announced
    print(f"version {version} in {time.perf_counter() - start:.3f} s: {ray.get(engine.last_update.remote())}")  # noqa: T201


def check_equal(ones: list[tuple[Rollout, ...]], others: list[tuple[Rollout, ...]]) -> None:
    """The same tokens; the log-probs of sums in another order."""
    for [one], [other] in zip(ones, others, strict=True):
        assert one.response_ids.tolist() == other.response_ids.tolist()
        np.testing.assert_allclose(one.response_logprobs, other.response_logprobs, atol=LOGPROB_OF_TWO)


def test_an_adapter_reaches_both_workers_and_is_read_back_from_them(engines: Engines) -> None:
    weights = adapters(engines.model)  # before any whole model: an engine that got one takes no adapters
    found = {}
    for version, update in ((1, weights.old_as(1)), (2, weights.new_as(2))):
        for engine in (engines.one, engines.two):
            ray.get(engine.load_weights.remote(*update))
            stats = ray.get(engine.last_update.remote())
            assert stats.num_verified == stats.num_tensors == len(weights.old)
        found[version] = engines.greedy(engines.two)
        check_equal(engines.greedy(engines.one), found[version])
    assert [ids_and_logprobs(one) for one in found[1]] != [ids_and_logprobs(one) for one in found[2]]


def test_both_workers_hold_every_tensor_of_an_update_and_sample_as_one_does(engines: Engines) -> None:
    weights = models(engines.model)
    for version, tensors in ((3, weights.old), (4, weights.new), (5, weights.new)):
        # buckets of a quarter megabyte: modules lie across them
        for engine in (engines.one, engines.two):
            load(engine, tensors, version)
            stats = ray.get(engine.last_update.remote())
            assert stats.num_verified == stats.num_tensors == len(tensors)
            assert stats.num_loaded == (0 if version == 5 else len(tensors))
        check_equal(engines.greedy(engines.one), engines.greedy(engines.two))
    held, differences = ray.get(engines.two.compare_weights.remote(transfer_of(weights.new)))
    assert held == version_of(weights.new).manifest
    assert set(differences.values()) == {0.0}
    name = "model.layers.0.mlp.down_proj.weight"
    other = np.frombuffer(weights.new[name].data, np.float32).reshape(weights.new[name].spec.shape).copy()
    other[3, -1] += 0.5  # a column of the second worker's
    far = changed(weights.new, name, other)
    _, differences = ray.get(engines.two.compare_weights.remote(transfer_of(far)))
    assert differences.pop(name) == pytest.approx(0.5)
    assert set(differences.values()) == {0.0}


def test_a_broadcast_that_fails_midway_leaves_two_workers_without_weights(engines: Engines) -> None:
    weights = models(engines.model)
    load(engines.two, weights.old, 6)
    before = engines.greedy(engines.two)
    send_half(engines.two, weights.new, weights.old)
    with pytest.raises(NoWeights, match="call load_weights first"):
        engines.greedy(engines.two)
    load(engines.two, weights.old, 8)
    check_equal(before, engines.greedy(engines.two))


def test_memory_that_changed_after_an_update_is_found_at_the_next(engines: Engines) -> None:
    weights = models(engines.model)
    load(engines.two, weights.old, 9)
    ray.get(engines.two.in_workers.remote(spoil_a_norm, 1))
    assert "holds other values in ['model.norm.weight']" in ray.get(
        engines.two.fatal_update.remote(*weights.old_as(10))
    )
    load(engines.two, weights.new, 11)


@pytest.mark.parametrize("names", [(O_PROJ,), ("model.layers.0.self_attn.k_proj.weight",), (EMBEDDING, HEAD)])
def test_a_worker_that_took_another_part_of_a_matrix_is_found(engines: Engines, names: tuple[str, ...]) -> None:
    weights = models(engines.model)
    load(engines.two, weights.old, 12)
    ray.get(engines.two.in_workers.remote(take_another_part, 1, names))
    problem = ray.get(engines.two.fatal_update.remote(*weights.new_as(13)))
    ray.get(engines.two.in_workers.remote(take_the_right_part, 1))
    assert f"vLLM holds other values in {sorted(names)}" in problem
    with pytest.raises(NoWeights, match="call load_weights first"):
        engines.greedy(engines.two)
    load(engines.two, weights.new, 14)
    load(engines.one, weights.new, 14)
    check_equal(engines.greedy(engines.one), engines.greedy(engines.two))


def resident_mib(worker: Any) -> int:
    return psutil.Process().memory_info().rss >> 20


def spoil_a_norm(worker: Any, rank: int) -> None:
    if worker.rank == rank:
        worker.get_model().language_model.model.norm.weight.data[5] *= 1.0001


def take_another_part(worker: Any, rank: int, names: tuple[str, ...]) -> None:
    """Let one worker's loader take the first half of a matrix for the second."""
    if worker.rank != rank:
        return
    model = worker.get_model()
    loader = model.load_weights

    def flipped(tensor: torch.Tensor, dim: int) -> torch.Tensor:
        return torch.cat(tensor.chunk(2, dim)[::-1], dim)

    def load_weights(tensors: Any) -> Any:
        return loader((name, flipped(one, int(name == O_PROJ)) if name in names else one) for name, one in tensors)

    model.load_weights = load_weights


def take_the_right_part(worker: Any, rank: int) -> None:
    if worker.rank == rank:
        del worker.get_model().load_weights


def test_temporary_files_of_workers_lie_in_a_folder_that_goes_with_the_engine(engines: Engines) -> None:
    (folder,) = {Path(named) for named in ray.get(engines.two.in_workers.remote(temporary_folder))}
    assert [path for path in folder.iterdir() if path.is_socket()]
    assert folder.parent == short_temp_dir()
    ray.get(engines.two.shutdown.remote())  # the last test: the others need the engine
    assert not folder.exists()


def temporary_folder(worker: Any) -> str:
    return tempfile.gettempdir()
