"""Section `learner`: ranks, what they share, what they train, and what DeepSpeed is told beyond our own fields."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from rlsys.config.part import Part

MAX_LORA_RANK = 512
"""The highest rank that vLLM serves."""

OWNED_KEYS = {
    "train_batch_size": "learner.num_ranks and learner.micro_batch_tokens",
    "train_micro_batch_size_per_gpu": "learner.micro_batch_tokens",
    "gradient_accumulation_steps": "learner.micro_batch_tokens",
    "gradient_clipping": "train.max_grad_norm",
    "bf16.enabled": "model.dtype",
    "fp16": "model.dtype",
    "data_types.grad_accum_dtype": "model.dtype and learner.zero_stage",
    "optimizer": "section train",
    "scheduler": "section train",
    "zero_allow_untested_optimizer": "section train",
    "zero_force_ds_cpu_optimizer": "section train",
    "activation_checkpointing": "learner.gradient_checkpointing",
    "zero_optimization.stage": "learner.zero_stage",
    "zero_optimization.offload_optimizer.device": "learner.offload",
    "zero_optimization.offload_param.device": "learner.offload",
    "checkpoint.load_universal": "how a checkpoint is resumed",
}
"""Keys of DeepSpeed's JSON that our own fields decide, nested ones dotted, with the fields."""


class LoraConfig(Part):
    rank: int = Field(default=0, ge=0, le=MAX_LORA_RANK)
    """Rank of the low-rank adapters on the language model's linear layers (arXiv:2106.09685), which alone are trained
    then, and alone are sent to the engines; 0 trains all weights."""
    alpha: float = Field(default=16.0, gt=0)
    """Adapters are scaled by alpha / rank."""
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    """Linear layers of the language model that get an adapter."""

    @model_validator(mode="after")
    def _targets_are_names(self) -> LoraConfig:
        if not self.targets or len(set(self.targets)) < len(self.targets):
            raise ValueError(
                f"learner.lora.targets={list(self.targets)}: name each kind of layer once, and at least one; "
                "q_proj and v_proj are the least that is usual."
            )
        return self


class LearnerConfig(Part):
    num_ranks: int = Field(default=1, ge=1)
    """DeepSpeed ranks, one process each."""
    zero_stage: Literal[0, 1, 2, 3] = 2
    """ZeRO stage: what is partitioned over ranks (1 optimiser, 2 gradients, 3 weights)."""
    micro_batch_tokens: int = Field(default=16384, ge=64)
    """Most tokens of one forward pass of a rank; a longer group is split over passes that repeat its prompt."""
    threads: int = Field(default=1, ge=1)
    """Torch threads of a rank on CPU."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, a third more time."""
    frozen_parts: tuple[Literal["vision_tower", "projector"], ...] = ()
    """Parts that are not trained. A frozen tower runs without a graph, once per clip and step."""
    lora: LoraConfig = LoraConfig()
    offload: tuple[Literal["optimizer", "parameters"], ...] = ()
    """What is kept in the host's memory between its uses: "optimizer" needs zero_stage 1 or more, "parameters" 3.
    With cluster.device=cpu everything is there anyway, and nothing is saved."""
    deepspeed: dict[str, Any] = Field(default_factory=dict)
    """Further DeepSpeed settings as in its JSON, merged into ours; a key that our own fields decide is an error."""
    timeout_s: float = Field(default=1800.0, gt=0)
    """Seconds one update may take."""
    max_restarts: int = Field(default=3, ge=0)
    """Times that ranks which died or hung are started again from the last checkpoint before a further step is done;
    0 ends the run at once."""

    @property
    def untrained_parts(self) -> tuple[str, ...]:
        """`frozen_parts`, or with adapters all of them."""
        return ("vision_tower", "projector") if self.lora.rank else self.frozen_parts

    @model_validator(mode="after")
    def _offload_has_something_to_move(self) -> LearnerConfig:
        for part, least in (("optimizer", 1), ("parameters", 3)):
            if part in self.offload and self.zero_stage < least:
                raise ValueError(
                    f"learner.offload has {part!r}, which DeepSpeed moves at learner.zero_stage {least} and above; "
                    f"zero_stage is {self.zero_stage}: raise it to {least}, or take {part!r} out."
                )
        return self

    @model_validator(mode="after")
    def _raw_settings_decide_nothing_twice(self) -> LearnerConfig:
        for key, value in flat_items(self.deepspeed):
            for owned, field in OWNED_KEYS.items():
                if f"{key}.".startswith(f"{owned}.") or f"{owned}.".startswith(f"{key}."):
                    raise ValueError(
                        f"learner.deepspeed has {key}={value!r}, which is decided by {field}; "
                        "set it there and take it out here."
                    )
        return self


def flat_items(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested mappings as (dotted key, value); an empty mapping has none."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from flat_items(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
