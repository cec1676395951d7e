"""Conversion of torch tensors to named bytes and back, and the names of tied weights. Imports torch."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence

import numpy as np
import torch

from rlsys.weights.checksum import BLOCK, BLOCK_BYTES, Sums, block_weights, sums_of, word_weights
from rlsys.weights.manifest import NamedTensor, TensorEntry, TensorSpec

HEAD = "lm_head.weight"
"""Name of the output head, in some checkpoints behind a prefix."""
EMBEDDING_SUFFIX = "embed_tokens.weight"
ADAPTER_PREFIX = "base_model.model."
"""Prefix that peft puts before a module's name in an adapter's file."""
_DEVICE_BLOCKS = (32 << 20) // BLOCK_BYTES  # blocks at a time on a device


def embedding_name(names: Iterable[str]) -> str | None:
    """Return the name of the input embedding, to which a missing output head is tied; None if there is none."""
    return next((name for name in names if name.endswith(EMBEDDING_SUFFIX)), None)


def has_head(names: Iterable[str]) -> bool:
    """Return whether the output head is among tensors of a checkpoint, under any prefix."""
    return any(name == HEAD or name.endswith(f".{HEAD}") for name in names)


def spec_of(tensor: torch.Tensor, shape: Sequence[int] | None = None) -> TensorSpec:
    """Return the shape and dtype of a tensor. shape: of the whole tensor, if `tensor` is a partition of it."""
    return TensorSpec(
        shape=tuple(tensor.shape if shape is None else shape), dtype=str(tensor.dtype).removeprefix("torch.")
    )


def as_named(tensor: torch.Tensor) -> NamedTensor:
    """Return a tensor's bytes in C order, shared with the tensor if it is contiguous and on a CPU."""
    data = tensor.detach().contiguous().view(-1).view(torch.uint8)
    if data.is_cuda:  # torch keeps page-locked memory for the next copy, which is several times as fast as another
        data = torch.empty_like(data, device="cpu", pin_memory=True).copy_(data)
    return NamedTensor(spec=spec_of(tensor), data=data.numpy())


def as_tensor(named: NamedTensor) -> torch.Tensor:
    """Return a tensor over the same bytes. Never write to it, because the bytes may be Ray's shared memory."""
    dtype = getattr(torch, named.spec.dtype)
    if not named.data.size:  # torch takes no other view of nothing
        return torch.empty(named.spec.shape, dtype=dtype)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        flat = torch.from_numpy(named.data)
    return flat.view(dtype).view(named.spec.shape)


def sums_on_device(tensor: torch.Tensor, start: int = 0) -> torch.Tensor:
    """Return `rlsys.weights.checksum.sums_of` of a tensor's bytes, i64 [2], computed and left on its device.

    start: of its first byte, in bytes from the beginning of the tensor of which it is a piece. Needs 64 MiB beside the
    tensor, and a copy of it if it is not contiguous.
    """
    data = tensor.detach().contiguous().view(-1).view(torch.uint8)
    in_first, in_second, of_half = torch.from_numpy(word_weights().view(np.int64)).to(data.device)
    block, lead = divmod(start, BLOCK_BYTES)
    num_blocks = -(-(lead + data.numel()) // BLOCK_BYTES)
    of_blocks = torch.from_numpy(block_weights(block, num_blocks).view(np.int64)).to(data.device)
    buffer = torch.empty((min(_DEVICE_BLOCKS, num_blocks), BLOCK), dtype=torch.int64, device=data.device)
    product, total = torch.empty_like(buffer), torch.zeros(2, dtype=torch.int64, device=data.device)
    at, row = 0, 0
    while at < data.numel():
        rows = min(len(buffer), num_blocks - row)
        words, weighted = buffer[:rows], product[:rows]
        into = words.view(-1).view(torch.uint8)
        size = min(into.numel() - lead, data.numel() - at)
        into[:lead] = 0
        into[lead : lead + size] = data[at : at + size]
        into[lead + size :] = 0
        second = torch.mul(words, in_second, out=weighted).sum(1)
        first = torch.mul(words, in_first, out=weighted).sum(1)
        upper = words.bitwise_right_shift_(32).bitwise_and_(0xFFFF_FFFF)  # the shift repeats the sign
        first += torch.mul(upper, of_half, out=weighted).sum(1)
        total += (torch.stack([first, second]) * of_blocks[:, row : row + rows]).sum(1)
        at, row, lead = at + size, row + rows, 0
    return total


def all_sums(tensors: Sequence[torch.Tensor], starts: Sequence[int] | None = None) -> list[Sums]:
    """Return the sums of each tensor's bytes, computed where it is, with one wait for the device at the end.

    starts: place of each one's first byte in the tensor of which it is a piece; None if they are whole.
    """
    placed = list(zip(tensors, starts or [0] * len(tensors), strict=True))
    on_gpu = iter(fetched_sums([sums_on_device(one, start) for one, start in placed if one.is_cuda]))
    return [next(on_gpu) if one.is_cuda else sums_of(as_named(one).data, start) for one, start in placed]


def fetched_sums(found: Iterable[torch.Tensor]) -> list[Sums]:
    """Return results of `sums_on_device`, all fetched at once."""
    waiting = list(found)
    rows = torch.stack(waiting).tolist() if waiting else []
    return [Sums(first % (1 << 64), second % (1 << 64)) for first, second in rows]


def entries_of(tensors: Sequence[torch.Tensor]) -> list[TensorEntry]:
    """Return each tensor's entry in a manifest, with the checksum computed where the tensor is."""
    return [
        TensorEntry(spec=spec_of(tensor), checksum=sums.hex)
        for tensor, sums in zip(tensors, all_sums(tensors), strict=True)
    ]


def is_finite(tensor: torch.Tensor) -> bool:
    """Return whether no number of the tensor is infinite or NaN, in one pass and without a copy."""
    if not tensor.numel():
        return True
    extremes = torch.stack(tensor.aminmax())  # both are NaN if one number is
    return bool(torch.isfinite(extremes).all())
