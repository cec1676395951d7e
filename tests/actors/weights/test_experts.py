"""The experts of a layer in vLLM: parts of workers by hand, and updates of engines of one and of two workers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import torch
from safetensors.numpy import load_file

from actors.weights import experts, in_worker
from actors.weights.held import held_parts
from rlsys.weights.manifest import manifest_of
from rlsys.weights.tensors import as_named
from tests.actors.test_engine import as_tensors
from tests.actors.test_tensor_parallel import Engines, check_equal, load
from tests.actors.test_weight_update import models
from tests.support.actors import Asker, engine_spec, start_probe

BLOCK = "model.language_model.layers.0.mlp.experts"


def layer(rank: int, size: int, gate_up: torch.Tensor, down: torch.Tensor, backend: str = "TRITON") -> torch.nn.Module:
    """A model with one layer of experts that looks like vLLM's, on a worker that holds these parameters."""
    held = torch.nn.Module()
    held.w13_weight, held.w2_weight = torch.nn.Parameter(gate_up), torch.nn.Parameter(down)
    parallel = SimpleNamespace(use_ep=False)
    held.moe_config = SimpleNamespace(tp_rank=rank, tp_size=size, moe_parallel_config=parallel)
    held.quant_method = SimpleNamespace(unquantized_backend=SimpleNamespace(name=backend), moe_kernel=object())
    model = torch.nn.Module()
    at = model
    for name in ("language_model", "model", "layers", "0", "mlp", "experts"):
        at.add_module(name, torch.nn.Module())
        at = at.get_submodule(name)
    at.add_module("routed_experts", held)
    return model


def checked(model: torch.nn.Module, sent: Mapping[str, torch.Tensor]) -> tuple[int, list[str], list[str]]:
    manifest = manifest_of({name: as_named(tensor) for name, tensor in sent.items()})
    return in_worker.check(SimpleNamespace(get_model=lambda: model), manifest)


def drawn() -> tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor]:
    """Return 3 experts of width 4 and inner width 6 as a checkpoint has them, and as vLLM does, whole."""
    gate_up, down = torch.randn(3, 12, 4), torch.randn(3, 4, 6)
    sent = {f"{BLOCK}.gate_up_proj": gate_up.transpose(1, 2), f"{BLOCK}.down_proj": down.transpose(1, 2)}
    return {name: tensor.contiguous() for name, tensor in sent.items()}, gate_up, down


def test_experts_are_read_back_in_the_checkpoints_layout_and_one_that_is_stale_is_found() -> None:
    sent, gate_up, down = drawn()
    assert checked(layer(0, 1, gate_up, down), sent) == (2, [], {})
    stale = down.clone()
    stale[2, 3, 5] += 0.5
    model = layer(0, 1, gate_up, stale)
    assert checked(model, sent) == (2, [f"{BLOCK}.down_proj"], {})
    specs = {name: as_named(tensor).spec for name, tensor in sent.items()}
    found = {part.name: part.difference(sent[part.name]) for part in held_parts(model, specs)}
    assert found == pytest.approx({f"{BLOCK}.gate_up_proj": 0.0, f"{BLOCK}.down_proj": 0.5})
    # halves the other way round, as a kernel of FlashInfer wants them, are not read back
    assert checked(layer(0, 1, gate_up, down, "FLASHINFER_CUTLASS"), sent) == (0, [], {})


def test_a_worker_holds_its_part_of_every_experts_gate_and_of_what_it_multiplies() -> None:
    sent, gate_up, down = drawn()
    specs = {name: as_named(tensor).spec for name, tensor in sent.items()}
    for rank, rows in enumerate(([0, 1, 2, 6, 7, 8], [3, 4, 5, 9, 10, 11])):
        columns = rows[:3]
        parts = list(held_parts(layer(rank, 2, gate_up[:, rows], down[:, :, columns]), specs))
        assert [part.equals(sent[part.name]) for part in parts] == [True, True]
        others = list(held_parts(layer(1 - rank, 2, gate_up[:, rows], down[:, :, columns]), specs))
        assert [part.equals(sent[part.name]) for part in others] == [False, False]


@pytest.fixture(scope="module")
def engines(actor_cluster: None, qwen3_vl_moe_dirs: Mapping[str, Path]) -> Iterator[Engines]:
    """Engines on CPU, whose kernel holds experts in an order of its own, and of two workers with padding: 80 to 96."""
    folder = qwen3_vl_moe_dirs["tiny"]
    spec = engine_spec(folder)
    rollout = spec.rollout.model_copy(update={"tensor_parallel_size": 2})
    one, two = start_probe(spec), start_probe(replace(spec, rollout=rollout))
    ray.get([one.ping.remote(), two.ping.remote()])
    yield Engines(one=one, two=two, ask=Asker(folder), model=folder)
    ray.get(two.shutdown.remote())


@pytest.mark.stack
def test_an_engine_computes_with_the_experts_that_it_was_sent_as_one_that_was_started_from_them(
    engines: Engines,
) -> None:
    weights = models(engines.model)
    own = as_tensors(load_file(engines.model / "model.safetensors"))
    load(engines.one, own, 1)
    first = engines.greedy(engines.one)
    for version, tensors in ((2, weights.new), (3, own)):
        for engine in (engines.one, engines.two):
            load(engine, tensors, version)
            stats = ray.get(engine.last_update.remote())
            assert stats.num_verified == stats.num_tensors == len(tensors)
        check_equal(engines.greedy(engines.one), engines.greedy(engines.two))
        if version == 2:
            assert [one.response_ids.tolist() for [one] in engines.greedy(engines.one)] != [
                one.response_ids.tolist() for [one] in first
            ]
    check_equal(first, engines.greedy(engines.one))


@pytest.mark.stack
def test_experts_that_the_kernel_was_given_in_another_order_are_found(engines: Engines) -> None:
    """Last in this file: vLLM's own way, which without padding is silent, is left in the engine's worker."""
    weights = models(engines.model)
    load(engines.one, weights.old, 4)
    ray.get(engines.one.in_workers.remote(keep_kernels))
    problem = ray.get(engines.one.fatal_update.remote(*weights.new_as(5)))
    assert "vLLM holds other values in" in problem and "experts.gate_up_proj" in problem


def keep_kernels(worker: Any) -> None:
    """Let vLLM 0.32 take experts as it would by itself."""
    experts.PackedAgain.begin = lambda self, model: None  # type: ignore[method-assign]
