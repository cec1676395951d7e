"""Writing of *.safetensors files one tensor at a time, so that at most two tensors are in memory.

The format, from https://github.com/huggingface/safetensors, is the length of a JSON header (u64, little endian), the
header with dtype, shape and byte range of every tensor, and the bytes.
"""

from __future__ import annotations

import itertools
import json
import struct
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from rlsys.weights.manifest import NamedTensor, TensorSpec, plan_buckets

DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
ALIGNMENT = 8


def write_tensors(
    folder: Path, specs: Mapping[str, TensorSpec], tensors: Iterable[tuple[str, NamedTensor]], max_file_bytes: int
) -> None:
    """Write files of at most `max_file_bytes` each, named and indexed as `save_pretrained` does.

    tensors: exactly those of `specs`, in its order. A tensor above `max_file_bytes` has a file to itself.
    Raises ValueError for other tensors.
    """
    shards = plan_files(specs, max_file_bytes)
    remaining = iter(tensors)
    for file, names in shards.items():
        with (folder / file).open("wb") as stream:
            _write_header(stream, {name: specs[name] for name in names})
            for wanted, (name, tensor) in zip(names, itertools.islice(remaining, len(names)), strict=True):
                if (name, tensor.spec) != (wanted, specs[wanted]):
                    raise ValueError(f"{name} {tensor.spec} came where {wanted} {specs[wanted]} was announced.")
                stream.write(np.ascontiguousarray(tensor.data).data)
    if extra := [name for name, _ in remaining]:
        raise ValueError(f"{extra[:3]} came after all that was announced.")
    if len(shards) > 1:
        file_of = {name: file for file, names in shards.items() for name in names}
        total = sum(spec.num_bytes for spec in specs.values())
        index = {"metadata": {"total_size": total}, "weight_map": file_of}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def plan_files(specs: Mapping[str, TensorSpec], max_file_bytes: int) -> dict[str, Sequence[str]]:
    """Return the tensors of each file by its name, in order; each file is filled before the next begins."""
    shards = plan_buckets({name: spec.num_bytes for name, spec in specs.items()}, max_file_bytes)
    if len(shards) == 1:
        return {"model.safetensors": shards[0]}
    return {f"model-{i:05}-of-{len(shards):05}.safetensors": names for i, names in enumerate(shards, start=1)}


def _write_header(stream: BinaryIO, specs: Mapping[str, TensorSpec]) -> None:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name, spec in specs.items():
        stop = start + spec.num_bytes
        header[name] = {"dtype": DTYPES[spec.dtype], "shape": spec.shape, "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    stream.write(struct.pack("<Q", len(text)) + text)
