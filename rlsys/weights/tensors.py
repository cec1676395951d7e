"""Conversion of torch tensors to named bytes and back, and the names of tied weights. Imports torch."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence

import torch

from rlsys.weights.manifest import NamedTensor, TensorSpec

HEAD = "lm_head.weight"
EMBEDDING_SUFFIX = "embed_tokens.weight"
ADAPTER_PREFIX = "base_model.model."
"""Prefix that peft puts before a module's name in an adapter's file."""


def embedding_name(names: Iterable[str]) -> str | None:
    """Return the name of the input embedding, to which a missing output head is tied; None if there is none."""
    return next((name for name in names if name.endswith(EMBEDDING_SUFFIX)), None)


def spec_of(tensor: torch.Tensor, shape: Sequence[int] | None = None) -> TensorSpec:
    """Return the shape and dtype of a tensor. shape: of the whole tensor, if `tensor` is a partition of it."""
    return TensorSpec(
        shape=tuple(tensor.shape if shape is None else shape), dtype=str(tensor.dtype).removeprefix("torch.")
    )


def as_named(tensor: torch.Tensor) -> NamedTensor:
    """Return a tensor's bytes in C order, shared with the tensor if it is contiguous and on a CPU."""
    return NamedTensor(spec=spec_of(tensor), data=tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())


def as_tensor(named: NamedTensor) -> torch.Tensor:
    """Return a tensor over the same bytes. Never write to it, because the bytes may be Ray's shared memory."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        flat = torch.from_numpy(named.data)
    return flat.view(getattr(torch, named.spec.dtype)).view(named.spec.shape)
