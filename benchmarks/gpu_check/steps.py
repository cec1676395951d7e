"""The steps of the check: names, time limits and where their code is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Step:
    """A step. code: module and function, which yields figures.  limit_s: of its process.  needs_stack: vLLM and Ray."""

    name: str
    code: str
    limit_s: float
    needs_stack: bool = False


LEARNER_LIMIT_S = 540.0
"""Bound on the sum of the limits of the steps of `--learner`, in seconds."""

STEPS = (
    Step(name="machine", code="transfers:machine", limit_s=20),
    Step(name="copies", code="transfers:copies", limit_s=30),
    Step(name="ipc", code="transfers:ipc", limit_s=25),
    Step(name="attention", code="attention:attention", limit_s=80),
    Step(name="zero", code="exactness:zero", limit_s=70),
    Step(name="packing", code="exactness:packing", limit_s=55),
    Step(name="3b_lora", code="shapes:lora_3b", limit_s=60),
    Step(name="3b_full", code="shapes:full_3b", limit_s=60),
    Step(name="7b_lora", code="shapes:lora_7b", limit_s=75),
    Step(name="7b_full", code="shapes:full_7b", limit_s=65),
    Step(name="parity", code="stack:parity", limit_s=600, needs_stack=True),
    Step(name="parity_v1", code="stack:parity_v1", limit_s=600, needs_stack=True),
    Step(name="parity_v2", code="stack:parity_v2", limit_s=600, needs_stack=True),
    Step(name="sync_store", code="sync:store", limit_s=900, needs_stack=True),
    Step(name="sync_nccl", code="sync:nccl", limit_s=900, needs_stack=True),
    Step(name="sync_tp2", code="sync:tensor_parallel", limit_s=900, needs_stack=True),
    Step(name="sync_lora", code="sync:lora", limit_s=900, needs_stack=True),
    Step(name="colocated", code="colocated:colocated", limit_s=900, needs_stack=True),
    Step(name="run", code="run:run", limit_s=3600, needs_stack=True),
)
