"""What the workers of one engine divide among themselves, and the numbers of workers that can."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

from rlsys.models.model_config import ModelConfig, read_model_config

SHOWN = 64
"""Largest number of workers that is suggested."""


def tensor_parallel_problem(model_path: Path, size: int) -> str | None:
    """Return why the engine of `rollout.tensor_parallel_size` workers cannot be built; None if it can."""
    model = read_model_config(model_path)
    problem = next(_problems(model, size), None)
    if problem is None:
        return None
    possible = [str(number) for number in range(1, SHOWN + 1) if next(_problems(model, number), None) is None]
    return (
        f"rollout.tensor_parallel_size={size}: the workers of an engine share each layer of the model equally, and "
        f"{model_path} has {problem}; set it to {' or '.join(possible)}."
    )


def _problems(model: ModelConfig, size: int) -> Iterator[str]:
    vision, linear = model.vision, model.linear
    heads, kv_heads = model.queries // model.head_size, model.kv // model.head_size
    divided = {
        f"{heads} attention heads": heads,
        f"MLPs of width {vision.mlp} in its vision tower": vision.mlp,
        f"{vision.heads} attention heads in its vision tower": vision.heads,
    }
    if model.experts is None or model.experts.layers < model.layers:
        divided[f"MLPs of width {model.mlp}"] = model.mlp
    if model.experts is not None:
        divided[f"experts of width {model.experts.mlp}"] = model.experts.mlp
        if size > model.experts.count:
            yield f"{model.experts.count} experts, fewer than workers"
    if linear is not None:
        shared = math.gcd(linear.key_heads, linear.value_heads)
        divided[f"{linear.key_heads} heads of keys and {linear.value_heads} of values in linear attention"] = shared
    yield from (what for what, number in divided.items() if number % size)
    # a head of keys and values is on several workers if there are fewer heads than workers
    if kv_heads % size and size % kv_heads:
        yield f"{kv_heads} heads of keys and values"
