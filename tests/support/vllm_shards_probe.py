"""Which part of a tensor vLLM's own loaders give to each worker, beside what `shard_of` says: run as a process.

Its own process, because vLLM changes torch's threading for everything else in a process.
The sums of what all workers hold are compared with the whole tensor's checksum, too.
stdout's last line: {"num_compared": how many, "num_summed": tensors, "wrong": [what differs, …]}.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from unittest.mock import patch

os.environ.update(VLLM_LOGGING_LEVEL="ERROR", VLLM_CPU_OMP_THREADS_BIND="nobind", HF_HUB_OFFLINE="1")

import torch  # noqa: E402
from vllm.config import VllmConfig, set_current_vllm_config  # noqa: E402
from vllm.model_executor.layers import linear, vocab_parallel_embedding  # noqa: E402

from actors.weights.held import HeldPart, shard_of  # noqa: E402
from actors.weights.placed import PlacedSums, are_whole, placed_sums  # noqa: E402
from rlsys.weights.manifest import TensorEntry, entry_of  # noqa: E402
from rlsys.weights.tensors import as_named  # noqa: E402

HIDDEN, HEADS, KV_HEADS, HEAD_SIZE, INNER, VOCAB = 24, 8, 2, 4, 40, 100


def parts() -> Iterator[tuple[torch.nn.Module, str, str, object, tuple[int, ...], int]]:
    """Yield layer, its parameter, the checkpoint's name for it, vLLM's id of the part, its shape, and its first row."""
    for disable in (False, True):
        qkv = linear.QKVParallelLinear(HIDDEN, HEAD_SIZE, HEADS, KV_HEADS, bias=True, disable_tp=disable)
        first = 0
        for shard, kind, heads, held in (
            ("q", "q_proj", HEADS, qkv.num_heads),
            ("k", "k_proj", KV_HEADS, qkv.num_kv_heads),
            ("v", "v_proj", KV_HEADS, qkv.num_kv_heads),
        ):
            yield qkv, "weight", kind, shard, (heads * HEAD_SIZE, HIDDEN), first
            yield qkv, "bias", kind, shard, (heads * HEAD_SIZE,), first
            first += held * HEAD_SIZE
        whole = linear.QKVParallelLinear(HIDDEN, HEAD_SIZE, HEADS, HEADS, bias=True, disable_tp=disable)
        yield whole, "weight", "qkv", None, (3 * HEADS * HEAD_SIZE, HIDDEN), 0
        yield whole, "bias", "qkv", None, (3 * HEADS * HEAD_SIZE,), 0
        merged = linear.MergedColumnParallelLinear(HIDDEN, [INNER, INNER], bias=True, disable_tp=disable)
        for index, kind in enumerate(("gate_proj", "up_proj")):
            yield merged, "weight", kind, index, (INNER, HIDDEN), index * INNER // merged.tp_size
            yield merged, "bias", kind, index, (INNER,), index * INNER // merged.tp_size
        column = linear.ColumnParallelLinear(HIDDEN, INNER, bias=True, disable_tp=disable)
        yield column, "weight", "0", None, (INNER, HIDDEN), 0
        yield column, "bias", "0", None, (INNER,), 0
        row = linear.RowParallelLinear(INNER, HIDDEN, bias=True, disable_tp=disable)
        yield row, "weight", "o_proj", None, (HIDDEN, INNER), 0
        yield row, "bias", "o_proj", None, (HIDDEN,), 0
    embedding = vocab_parallel_embedding.VocabParallelEmbedding(VOCAB, HIDDEN)
    yield embedding, "weight", "embed_tokens", None, (VOCAB, HIDDEN), 0
    head = vocab_parallel_embedding.ParallelLMHead(VOCAB, HIDDEN)
    yield head, "weight", "lm_head", None, (VOCAB, HIDDEN), 0


def main() -> None:
    wrong, num_compared, num_summed = [], 0, 0
    for size in (1, 2, 4):
        summed: dict[int, tuple[str, TensorEntry, list[PlacedSums]]] = {}
        for rank in range(size):
            names = [f"{module.__name__}.get_tensor_model_parallel" for module in (linear, vocab_parallel_embedding)]
            patches = [patch(f"{name}_rank", lambda rank=rank: rank) for name in names]
            patches += [patch(f"{name}_world_size", lambda size=size: size) for name in names]
            patches += [
                patch("vllm.model_executor.parameter.get_tensor_model_parallel_rank", lambda rank=rank: rank),
                patch("vllm.model_executor.parameter.get_tensor_model_parallel_world_size", lambda size=size: size),
            ]
            with set_current_vllm_config(VllmConfig()), torch.no_grad():
                for each in patches:
                    each.start()
                for index, (layer, leaf, kind, shard_id, shape, first) in enumerate(parts()):
                    torch.manual_seed(index)  # the same on every worker
                    sent = torch.randn(shape)
                    parameter = getattr(layer, leaf)
                    arguments = () if shard_id is None else (shard_id,)
                    parameter.weight_loader(parameter, sent, *arguments)
                    shard, entry = shard_of(layer, kind, shape), entry_of(as_named(sent))
                    wanted = shard.of(sent)
                    held = parameter[first : first + wanted.shape[0]]
                    part = HeldPart(name=kind, layer=layer, shard=shard, value=held, unpacked=None)
                    summed.setdefault(index, (kind, entry, []))[2].append(placed_sums(part, entry))
                    num_compared += 1
                    if not torch.equal(held, wanted):
                        wrong.append(f"{type(layer).__name__} {kind} {leaf}, worker {rank} of {size}")
                for each in patches:
                    each.stop()
        for kind, entry, by_worker in summed.values():
            num_summed += 1
            if are_whole(by_worker, entry) is not True:
                wrong.append(f"{kind}, sums of {size} workers")
    print(json.dumps({"num_compared": num_compared, "num_summed": num_summed, "wrong": wrong}))  # noqa: T201


if __name__ == "__main__":
    main()
