"""What a worker of an engine holds of each tensor, read back from vLLM's model.

With tensor parallelism a worker holds a part of most tensors. Which part is worked out here from the layer's kind and
the worker's rank, independently of vLLM's loaders, so that a loader that took another part is found.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch

from actors.weights import experts
from actors.weights.packed import packed_order, unpacked
from actors.weights.weights_in import FUSED, engine_module, engine_name, fused_layer
from rlsys.weights.manifest import TensorEntry, TensorSpec
from rlsys.weights.tensors import ADAPTER_PREFIX, all_sums

BY_HEAD = ("A_log", "dt_bias")
"""Parameters of linear attention, a number for each of its heads."""
MAX_UNPACKING = 1 << 31
"""Multiplications for which a repacked matrix is read back; above it costs more than the update."""
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True, kw_only=True)
class Shard:
    """The part of a tensor that one worker holds: pieces along `dim`, one after the other, each (start, size)."""

    dim: int
    pieces: tuple[tuple[int, int], ...]
    is_whole: bool

    @property
    def size(self) -> int:
        """Length along `dim`."""
        return sum(size for _, size in self.pieces)

    def shape_of(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the part's shape, given the whole tensor's."""
        return tuple(self.size if index == self.dim else length for index, length in enumerate(shape))

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return this part of the whole tensor."""
        found = [tensor.narrow(self.dim, start, size) for start, size in self.pieces]
        return found[0] if len(found) == 1 else torch.cat(found, self.dim)


def shard_of(layer: torch.nn.Module, kind: str, shape: tuple[int, ...]) -> Shard:
    """Return the part of a checkpoint's tensor that a layer of vLLM holds.

    kind: the layer's own name in the checkpoint, such as "k_proj", or the parameter's if it is in BY_HEAD.
    shape: the whole tensor's.
    Embedding and head are split by rows of the vocabulary, with padding behind the last; query, key and value by
    heads, where a key/value head is on several workers if there are fewer of them than workers; the other matrices by
    rows, or by columns if the layer adds up what the workers compute. Everything else is on every worker.
    """
    kinds = {base.__name__ for base in type(layer).__mro__}
    if "VocabParallelEmbedding" in kinds:
        rows = layer.num_embeddings_padded // layer.tp_size
        start = min(layer.tp_rank * rows, shape[0])
        return _shard(0, shape, (start, min(rows, shape[0] - start)))
    if "QKVParallelLinear" in kinds:
        heads, kv_heads = layer.total_num_heads, layer.total_num_kv_heads
        if kind in ("q_proj", "k_proj", "v_proj"):
            return _shard(0, shape, _heads(layer, heads if kind == "q_proj" else kv_heads))
        size = layer.head_size  # one tensor with all three
        firsts = (0, heads * size, (heads + kv_heads) * size)
        parts = [_heads(layer, count) for count in (heads, kv_heads, kv_heads)]
        return _shard(0, shape, *((first + start, rows) for first, (start, rows) in zip(firsts, parts, strict=True)))
    if kind == "in_proj_qkv":  # three of the four parts of one layer, whose sizes it knows
        return _shard(0, shape, *_each_even(layer, layer.output_sizes[:3]))
    if "ColumnParallelLinear" in kinds or kind in BY_HEAD:
        return _shard(0, shape, _even(layer, shape[0]))
    if "RowParallelLinear" in kinds and len(shape) == 2:  # the bias is added once, to the sum
        return _shard(1, shape, _even(layer, shape[1]))
    return _shard(0, shape, (0, shape[0] if shape else 1))


def _shard(dim: int, shape: tuple[int, ...], *pieces: tuple[int, int]) -> Shard:
    is_whole = not shape or sum(size for _, size in pieces) == shape[dim]
    return Shard(dim=dim, pieces=((0, shape[dim] if shape else 1),) if is_whole else pieces, is_whole=is_whole)


def _even(layer: torch.nn.Module, size: int) -> tuple[int, int]:
    each = size // layer.tp_size
    return layer.tp_rank * each, each


def _each_even(layer: torch.nn.Module, sizes: Sequence[int]) -> list[tuple[int, int]]:
    """Return this worker's part of each of several matrices that are one tensor, one behind the other."""
    firsts = [sum(sizes[:index]) for index in range(len(sizes))]
    parts = [_even(layer, size) for size in sizes]
    return [(first + start, rows) for first, (start, rows) in zip(firsts, parts, strict=True)]


def _channels(layer: torch.nn.Module, attention: torch.nn.Module) -> list[tuple[int, int]]:
    """Return this worker's channels of the convolution before linear attention: of queries, of keys and of values."""
    return _each_even(layer, (attention.key_dim, attention.key_dim, attention.value_dim))


def _heads(layer: torch.nn.Module, total: int) -> tuple[int, int]:
    """Return start and size of this worker's heads, in rows."""
    each = max(1, total // layer.tp_size)
    first = layer.tp_rank * total // layer.tp_size  # several workers share a head if there are fewer than workers
    return first * layer.head_size, each * layer.head_size


@dataclass(frozen=True, kw_only=True, eq=False)
class HeldPart:
    """One tensor as a worker holds it, each reading of the shard's shape; at least one of them is there.

    layer: vLLM's, without what an adapter wraps around it.  value: the parameter.
    unpacked: the matrix by which the CPU's kernel multiplies; it has no negative zeros.
    """

    name: str
    layer: torch.nn.Module
    shard: Shard
    value: torch.Tensor | None
    unpacked: torch.Tensor | None

    @property
    def readings(self) -> tuple[torch.Tensor, ...]:
        """What there is of the two."""
        return tuple(reading for reading in (self.value, self.unpacked) if reading is not None)

    def equals(self, sent: torch.Tensor) -> bool:
        """Return whether every reading is this worker's part of the whole tensor `sent`, to the last bit."""
        wanted = self.shard.of(sent)
        if any(not torch.equal(held, wanted.to(held.device, held.dtype)) for held in self.readings):
            return False
        # a CPU kernel may want a bias in float32: then the values alone can be compared
        held = self.value
        return held is None or held.dtype != wanted.dtype or torch.equal(_words(held), _words(wanted.to(held.device)))

    def difference(self, sent: torch.Tensor) -> float:
        """Return the largest absolute difference from this worker's part of `sent`."""
        wanted = self.shard.of(sent).double()
        return max((held.cpu().double() - wanted).abs().max().item() for held in self.readings)

    def checksums(self) -> tuple[str, ...]:
        """Return the checksum of each reading, computed where it is."""
        return tuple(sums.hex for sums in all_sums(self.readings))

    def is_identified_by(self, entry: TensorEntry) -> bool:
        """Return whether a manifest's checksum is enough to compare: of a whole parameter in its own dtype."""
        if self.value is None or self.unpacked is not None:
            return False
        return self.shard.is_whole and str(self.value.dtype) == f"torch.{entry.spec.dtype}"


def _words(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(_INTEGERS[tensor.element_size()])


def held_parts(
    model: torch.nn.Module, specs: Mapping[str, TensorSpec], names: Collection[str] | None = None
) -> Iterator[HeldPart]:
    """Yield what is readable of each tensor, by checkpoint name; parts of fused layers as slices.

    specs: of the whole model, because a part's place in a fused layer depends on the other parts.
    names: the tensors to read; None for all.
    Not readable: on CPU the large matrices of linear layers, which vLLM repacks and frees; experts in a layout of
    FlashInfer.
    """
    layers = dict(model.named_modules(remove_duplicate=False))
    last: tuple[str, list[torch.Tensor | None]] = ("", [])  # parts of a fused layer follow each other
    for name, spec in specs.items():
        module, leaf, kind = engine_module(name), name.rpartition(".")[2], engine_name(name).split(".")[-2]
        layer = layers.get(module)
        if layer is None or (names is not None and name not in names):
            continue
        layer = layer._modules.get("base_layer") or layer
        if (of_layer := experts.experts_of(layer)) is not None:
            yield from _expert_part(name, leaf, of_layer, spec.shape)
            continue
        place = _place(name, kind, layer, specs)
        if place is None:
            continue
        if last[0] != f"{module}.{leaf}":
            last = (f"{module}.{leaf}", [_parameter(layer, leaf), _unpacked(layer, leaf)])
        if kind == "conv1d":
            shard = _shard(0, spec.shape, *_channels(layer, layers[module.rpartition(".")[0]]))
        else:
            shard = shard_of(layer, leaf if leaf in BY_HEAD else kind, spec.shape)
        value, unpacked = (_cut(held, place, shard.shape_of(spec.shape)) for held in last[1])
        if value is not None or unpacked is not None:
            yield HeldPart(name=name, layer=layer, shard=shard, value=value, unpacked=unpacked)


def _expert_part(name: str, kind: str, layer: torch.nn.Module, shape: tuple[int, ...]) -> Iterator[HeldPart]:
    """Yield what is readable of one tensor with all experts of a layer."""
    axis, pieces = experts.pieces_of(layer, kind, shape)
    shard = _shard(axis, shape, *pieces)
    value = experts.read(layer, kind, shard.shape_of(shape))
    if value is not None:
        yield HeldPart(name=name, layer=layer, shard=shard, value=value, unpacked=None)


def _place(name: str, kind: str, layer: torch.nn.Module, specs: Mapping[str, TensorSpec]) -> tuple[int, int] | None:
    """Return first row and number of rows in the fused layer, (0, 0) if it is not fused; None without the others."""
    found_in = fused_layer(engine_name(name).rpartition(".")[0])
    if found_in is None:
        return 0, 0
    fused, index = found_in
    parts = [part for part, (whole, _) in FUSED.items() if whole == fused]
    found = [specs.get(name.replace(f".{kind}.", f".{part}.")) for part in parts]
    sizes = [
        shard_of(layer, part, spec.shape).size for part, spec in zip(parts, found, strict=True) if spec is not None
    ]
    return (sum(sizes[:index]), sum(sizes)) if len(sizes) == len(parts) else None


def _parameter(layer: torch.nn.Module, leaf: str) -> torch.Tensor | None:
    held = layer._parameters.get(leaf)
    if held is None or not held.numel():
        return None
    plain = layer.__dict__.get("_cpu_unpacked_conv_weight")
    if leaf != "weight" or plain is None or held.is_meta:
        return held.detach()
    return unpacked(held.detach().flatten(), _convolution_order(tuple(plain.shape))).view(len(plain), 1, -1)


@lru_cache(maxsize=8)
def _convolution_order(shape: tuple[int, int]) -> torch.Tensor:
    """Return where each number of a packed convolution of [channels, kernel] comes from, which vLLM has in bfloat16."""
    return packed_order(torch.ops._C.causal_conv1d_weight_pack, shape, torch.bfloat16)


def _unpacked(layer: torch.nn.Module, leaf: str) -> torch.Tensor | None:
    """Return the matrix that vLLM repacked for the CPU's products: its products with unit vectors, which are exact."""
    product = layer.__dict__.get("cpu_linear")
    if leaf != "weight" or product is None:
        return None
    # a router is on every worker, and has no parts
    inputs = getattr(layer, "input_size_per_partition", None) or layer.input_size
    outputs = getattr(layer, "output_size_per_partition", None) or layer.output_size
    if inputs * inputs * outputs > MAX_UNPACKING:
        return None
    with torch.no_grad():
        return product(torch.eye(inputs, dtype=layer.weight.dtype), layer.weight, None).t()


def _cut(held: torch.Tensor | None, place: tuple[int, int], shape: tuple[int, ...]) -> torch.Tensor | None:
    """Return the rows of one part; None if the layer is not what its kind says."""
    first, total = place
    if held is None or tuple(held.shape[1:]) != shape[1:] or (total and held.shape[0] != total):
        return None
    if not shape:
        return held
    # an embedding is padded to a multiple of 64 rows
    return held.narrow(0, first, shape[0]) if held.shape[0] >= first + shape[0] else None


def stale_adapter(model: torch.nn.Module, tensors: Mapping[str, torch.Tensor], scale: float) -> tuple[int, list[str]]:
    """Return how many matrices of an adapter a worker holds, and which of them differ from what was sent.

    scale: alpha over rank, by which vLLM multiplies the "B" matrices. They are split as the rows of the layer that
    they belong to, the "A" matrices as its columns.
    """
    layers = dict(model.named_modules(remove_duplicate=False))
    num_read, stale = 0, []
    for name, sent in tensors.items():
        module, _, matrix = name.removeprefix(ADAPTER_PREFIX).removesuffix(".weight").rpartition(".")
        parent, _, kind = engine_name(module).rpartition(".")
        fused, index = FUSED.get(kind, (kind, 0))
        layer = layers[f"{parent}.{fused}"]
        base = layer._modules.get("base_layer", layer)
        is_a = matrix == "lora_A"
        shard = shard_of(base, kind, tuple(sent.shape))  # columns of "A" are the layer's, and so are rows of "B"
        is_split = shard.dim == (1 if is_a else 0)
        wanted = shard.of(sent) if is_split else sent
        wanted = wanted if is_a else wanted * scale
        stacked = layer.lora_a_stacked if is_a else layer.lora_b_stacked
        held = stacked[index][0, 0]
        num_read += 1
        if not torch.equal(held[: wanted.shape[0], : wanted.shape[1]].cpu(), wanted):
            stale.append(name)
    return num_read, stale
