"""Torch tensors to named bytes and back, and the names that tie an output head to its embedding. Imports torch."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence

import torch

from rlsys.weights.manifest import NamedTensor, TensorSpec

HEAD = "lm_head.weight"
EMBEDDING_SUFFIX = "embed_tokens.weight"
ADAPTER_PREFIX = "base_model.model."
"""What peft puts before a module's name in an adapter's file."""


def embedding_name(names: Iterable[str]) -> str | None:
    """Return the first name that is an input embedding's, to which a missing output head is tied; None without one."""
    return next((name for name in names if name.endswith(EMBEDDING_SUFFIX)), None)


def spec_of(tensor: torch.Tensor, shape: Sequence[int] | None = None) -> TensorSpec:
    """Return shape and dtype of a tensor. shape: of the whole tensor, where this is a partition of it."""
    return TensorSpec(
        shape=tuple(tensor.shape if shape is None else shape), dtype=str(tensor.dtype).removeprefix("torch.")
    )


def as_named(tensor: torch.Tensor) -> NamedTensor:
    """Return a tensor's bytes in C order; on a CPU they are shared with it if it is contiguous."""
    return NamedTensor(spec=spec_of(tensor), data=tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())


def as_tensor(named: NamedTensor) -> torch.Tensor:
    """Return a tensor over the same bytes. Never write to it: the bytes may be Ray's shared memory."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        flat = torch.from_numpy(named.data)
    return flat.view(getattr(torch, named.spec.dtype)).view(named.spec.shape)
