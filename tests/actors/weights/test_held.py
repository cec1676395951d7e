"""What a worker holds of each tensor: read back, compared bit by bit, split as vLLM splits it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from types import SimpleNamespace

import pytest
import torch

from actors.weights import in_worker
from actors.weights.held import held_parts, shard_of, stale_adapter
from rlsys.weights.manifest import manifest_of
from rlsys.weights.tensors import as_named
from tests.support.pace import patience
from tests.support.paths import REPO

EMBEDDING = "model.embed_tokens.weight"
LAYER = "language_model.model.layers.0."


def modules(**paths: torch.nn.Module) -> torch.nn.Module:
    """A model with the given modules; "__" stands for the dots of a path."""
    model = torch.nn.Module()
    for path, module in paths.items():
        *parents, leaf = path.split("__")
        at = model
        for name in parents:
            if name not in dict(at.named_children()):
                at.add_module(name, torch.nn.Module())
            at = getattr(at, name)
        at.add_module(leaf, module)
    return model


def checked(model: torch.nn.Module, sent: Mapping[str, torch.Tensor]) -> tuple[int, list[str], list[str]]:
    manifest = manifest_of({name: as_named(tensor) for name, tensor in sent.items()})
    return in_worker.check(SimpleNamespace(get_model=lambda: model), manifest)


def test_a_parameter_that_was_not_updated_is_found() -> None:
    model = modules(language_model__model__norm=torch.nn.RMSNorm(3))
    model.language_model.model.add_module("embed_tokens", torch.nn.Embedding(8, 3))  # padded from 4 rows
    embedding = model.language_model.model.embed_tokens.weight.detach()[:4].clone()
    sent = {"model.norm.weight": torch.ones(3), EMBEDDING: embedding}
    assert checked(model, sent) == (2, [], {})
    with torch.no_grad():
        model.language_model.model.norm.weight[1] = 3.0
    assert checked(model, sent) == (2, ["model.norm.weight"], {})


def test_parts_of_a_fused_projection_are_read_back_as_slices() -> None:
    fused = torch.nn.Linear(4, 8)
    model = modules(language_model__model__layers__0__self_attn__qkv_proj=fused)
    rows = {"q": slice(0, 4), "k": slice(4, 6), "v": slice(6, 8)}
    sent = {
        f"model.layers.0.self_attn.{kind}_proj.{leaf}": getattr(fused, leaf).detach()[where].clone()
        for kind, where in rows.items()
        for leaf in ("weight", "bias")
    }
    assert checked(model, sent) == (6, [], {})
    with torch.no_grad():
        fused.weight[5, 0] += 0.5
    assert checked(model, sent) == (6, ["model.layers.0.self_attn.k_proj.weight"], {})
    specs = {name: as_named(tensor).spec for name, tensor in sent.items()}
    key = {name: tensor for name, tensor in sent.items() if "k_proj" in name}
    parts = list(held_parts(model, specs, key))
    assert [part.difference(key[part.name]) for part in parts] == pytest.approx([0.5, 0.0])
    # without the others nothing says where a part lies
    assert checked(model, key) == (0, [], {})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_matrix_that_was_repacked_is_read_through_its_product(dtype: torch.dtype) -> None:
    matrix = torch.randn(6, 4).to(dtype)
    layer = torch.nn.Module()
    layer.input_size_per_partition, layer.output_size_per_partition = 4, 6
    layer.weight = torch.nn.Parameter(torch.empty(0, dtype=dtype))
    layer.cpu_linear = lambda x, weight, bias: torch.nn.functional.linear(x, matrix, bias)
    model = modules(language_model__model__layers__0__mlp__down_proj=layer)
    sent = {"model.layers.0.mlp.down_proj.weight": matrix.clone()}
    assert checked(model, sent) == (1, [], {})
    matrix[5, 3] *= 1.01
    assert checked(model, sent) == (1, list(sent), {})


def test_zeros_of_different_sign_differ() -> None:
    model = modules(language_model__model__norm=torch.nn.RMSNorm(2))
    with torch.no_grad():
        model.language_model.model.norm.weight.copy_(torch.tensor([0.0, 1.0]))
    [part] = held_parts(model, {"model.norm.weight": as_named(torch.ones(2)).spec})
    assert part.equals(torch.tensor([0.0, 1.0]))
    assert not part.equals(torch.tensor([-0.0, 1.0]))


def test_an_adapter_that_was_not_loaded_is_found() -> None:
    fused = torch.nn.Module()
    # [adapters, 1, rank that there is room for, inputs] and [adapters, 1, outputs, rank], for q, k and v
    fused.lora_a_stacked = tuple(torch.zeros(1, 1, 8, 4) for _ in range(3))
    fused.lora_b_stacked = tuple(torch.zeros(1, 1, 6, 8) for _ in range(3))
    model = modules(language_model__model__layers__0__self_attn__qkv_proj=fused)
    name = "base_model.model.model.language_model.layers.0.self_attn.v_proj"
    sent = {f"{name}.lora_A.weight": torch.ones(2, 4), f"{name}.lora_B.weight": torch.ones(6, 2)}
    assert stale_adapter(model, sent, 2.0) == (2, list(sent))
    fused.lora_a_stacked[2][0, 0, :2] = 1.0
    assert stale_adapter(model, sent, 2.0) == (2, [f"{name}.lora_B.weight"])
    fused.lora_b_stacked[2][0, 0, :, :2] = 2.0  # times the scale
    assert stale_adapter(model, sent, 2.0) == (2, [])


def parallel(kind: str, rank: int, size: int, **attributes: int) -> torch.nn.Module:
    """A layer that looks like vLLM's of that kind."""
    layer = type(kind, (torch.nn.Module,), {})()
    layer.tp_rank, layer.tp_size = rank, size
    for name, value in attributes.items():
        setattr(layer, name, value)
    return layer


def test_a_worker_holds_its_columns_of_an_adapters_first_matrix_or_its_rows_of_the_second() -> None:
    row, column = parallel("RowParallelLinear", 1, 2), parallel("ColumnParallelLinear", 1, 2)
    first, second = torch.randn(2, 8), torch.randn(6, 2)  # rank 2
    for base, kind, held in (
        (row, "down_proj", (first[:, 4:], second)),
        (column, "other", (first, second[3:])),
    ):
        base.lora_a_stacked, base.lora_b_stacked = (held[0][None, None],), (held[1][None, None] * 0.5,)
        model = modules(language_model__model__layers__0__mlp=torch.nn.Module())
        model.language_model.model.layers.get_submodule("0").mlp.add_module(kind, base)
        name = f"base_model.model.model.language_model.layers.0.mlp.{kind}"
        sent = {f"{name}.lora_A.weight": first, f"{name}.lora_B.weight": second}
        assert stale_adapter(model, sent, 0.5) == (2, [])
        # the parts of the other worker
        base.tp_rank = 0
        _, stale = stale_adapter(model, sent, 0.5)
        assert stale == [list(sent)[0 if kind == "down_proj" else 1]]


def test_key_and_value_heads_are_shared_where_there_are_fewer_than_workers() -> None:
    def pieces(rank: int, kind: str, rows: int) -> tuple[tuple[int, int], ...]:
        heads = {"total_num_heads": 8, "total_num_kv_heads": 2, "head_size": 16}
        return shard_of(parallel("QKVParallelLinear", rank, 4, **heads), kind, (rows, 5)).pieces

    assert [pieces(rank, "q_proj", 128) for rank in range(4)] == [((32 * rank, 32),) for rank in range(4)]
    assert [pieces(rank, "k_proj", 32) for rank in range(4)] == [((0, 16),), ((0, 16),), ((16, 16),), ((16, 16),)]
    # one tensor with query, key and value, as the vision tower has it
    assert pieces(3, "qkv", 192) == ((96, 32), (128 + 16, 16), (160 + 16, 16))


def test_the_last_workers_rows_of_an_embedding_end_with_the_vocabulary() -> None:
    def pieces(rank: int) -> tuple[tuple[int, int], ...]:
        return shard_of(parallel("VocabParallelEmbedding", rank, 2, num_embeddings_padded=128), "w", (100, 3)).pieces

    assert (pieces(0), pieces(1)) == (((0, 64),), ((64, 36),))


@pytest.mark.stack
def test_every_layer_is_split_as_vllm_loads_it() -> None:
    """vLLM's own layers and loaders at 1, 2 and 4 workers: each holds exactly the part that `shard_of` says."""
    command = [sys.executable, "-m", "tests.support.vllm_shards_probe"]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=patience(300.0))
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["wrong"] == []
    assert found["num_compared"] > 60
    assert found["num_summed"] == 3 * found["num_compared"] // 7
