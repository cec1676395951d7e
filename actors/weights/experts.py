"""The experts of a layer in vLLM: the part of their tensors that a worker holds, and how an update reaches its kernel.

A checkpoint has `gate_up_proj` [experts, width, 2 x inner] and `down_proj` [experts, inner, width]; vLLM holds them
with the last two axes swapped, and its CPU kernel in an order of its own.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch

from actors.weights.packed import packed_order, unpacked

PARAMETERS = {"gate_up_proj": "w13_weight", "down_proj": "w2_weight"}
"""Name of a tensor in the checkpoint -> vLLM's parameter."""
IN_ORDER = ("TRITON", "BATCHED_TRITON")
"""Backends of vLLM that hold the parameters in the order in which they are loaded."""


def experts_of(layer: torch.nn.Module) -> torch.nn.Module | None:
    """Return what holds the weights of a layer's experts; None for a layer without any."""
    return layer._modules.get("routed_experts")


def pieces_of(experts: torch.nn.Module, kind: str, shape: tuple[int, ...]) -> tuple[int, tuple[tuple[int, int], ...]]:
    """Return the axis along which a checkpoint's tensor is split, and (start, size) of this worker's pieces.

    Every worker has a part of the inner width of all experts, of the gate and of what it multiplies.
    """
    size, rank = experts.moe_config.tp_size, experts.moe_config.tp_rank
    if kind == "down_proj":
        each = shape[1] // size
        return 1, ((rank * each, each),)
    inner = shape[2] // 2
    each = inner // size
    return 2, ((rank * each, each), (inner + rank * each, each))


def read(experts: torch.nn.Module, kind: str, shape: tuple[int, ...]) -> torch.Tensor | None:
    """Return this worker's part, of `shape`, in the checkpoint's layout; None if it cannot be read back.

    While the layer still waits for tensors there are no values, only the shape.
    """
    held, method = experts._parameters[PARAMETERS[kind]], experts.quant_method
    if held is None or experts.moe_config.moe_parallel_config.use_ep:
        return None
    if held.is_meta:
        return torch.empty(shape, device="meta", dtype=held.dtype)
    backend = method.unquantized_backend.name if hasattr(method, "unquantized_backend") else ""
    if backend == "CPU":
        value = _without_padding(_unpacked(held.detach(), method.moe_kernel.fused_experts), kind, shape)
    elif backend in IN_ORDER:
        value = held.detach()
    else:
        return None
    value = value.transpose(1, 2)
    return value if tuple(value.shape) == shape else None


def _unpacked(held: torch.Tensor, kernel: Any) -> torch.Tensor:  # noqa: ANN401 - vLLM's
    if kernel._use_zentorch:
        return held
    return unpacked(held.flatten(1), _order(kernel.isa, tuple(held.shape[1:]), held.dtype)).view(held.shape)


@lru_cache(maxsize=8)
def _order(isa: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Return where each number of an expert's packed matrix comes from: i64 [rows x columns]."""

    def pack(numbers: torch.Tensor) -> torch.Tensor:
        packed = torch.empty_like(numbers)
        torch.ops._C.prepack_moe_weight(numbers, packed, isa)
        return packed

    return packed_order(pack, (1, *shape), dtype)


def _without_padding(value: torch.Tensor, kind: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Cut off the inner width that the CPU's kernel adds, so that it is a multiple of 32."""
    if kind == "down_proj":
        return value[:, :, : shape[1]]
    inner, padded = shape[2] // 2, value.shape[1] // 2
    return value if inner == padded else torch.cat([value[:, :inner], value[:, padded : padded + inner]], 1)


class PackedAgain:
    """Makes vLLM's CPU kernel pack the experts of an update as it packed the first ones.

    Of a layer that has a kernel already vLLM 0.32 takes the new tensors as they came
    (`UnquantizedFusedMoEMethod._setup_kernel`), and the kernel would multiply by scrambled matrices.
    """

    def __init__(self) -> None:
        self._kernels: dict[Any, Any] = {}

    def begin(self, model: torch.nn.Module) -> None:
        """Take the kernels away before an update, so that layers that are loaded make new ones."""
        for layer in model.modules():
            method: Any = getattr(layer, "quant_method", None)
            backend = getattr(method, "unquantized_backend", None)
            if backend is not None and backend.name == "CPU" and method.moe_kernel is not None:
                self._kernels[method], method.moe_kernel = method.moe_kernel, None

    def finish(self) -> None:
        """Give layers that were not loaded their kernels again."""
        for method, kernel in self._kernels.items():
            if method.moe_kernel is None:
                method.moe_kernel = kernel
        self._kernels = {}
