"""Section `learner`: ranks, partitioning, trained parts, and further DeepSpeed settings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from rlsys.config.part import Part

MAX_LORA_RANK = 512
"""The highest rank of adapters that vLLM serves."""

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
    "checkpoint.load_universal": "the checkpoint that is resumed",
}
"""Keys of DeepSpeed's JSON (nested ones dotted) that fields of the config decide -> those fields."""


class LoraConfig(Part):
    """The settings of LoRA adapters."""

    rank: int = Field(default=0, ge=0, le=MAX_LORA_RANK)
    """Rank of the low-rank adapters (LoRA, arXiv:2106.09685) on the language model's linear layers. Only adapters are
    then trained and sent to the engines; 0 trains all weights."""
    alpha: float = Field(default=16.0, gt=0)
    """Scale of the adapters: their output is multiplied by alpha / rank."""
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    """Names of the language model's linear layers that get an adapter."""

    @model_validator(mode="after")
    def _targets_are_names(self) -> LoraConfig:
        if not self.targets or len(set(self.targets)) < len(self.targets):
            raise ValueError(
                f"learner.lora.targets={list(self.targets)}: name at least one kind of layer, each once; "
                "q_proj and v_proj are the usual minimum."
            )
        return self


class LearnerConfig(Part):
    """The settings of the learner."""

    num_ranks: int = Field(default=1, ge=1)
    """Number of DeepSpeed ranks, one process each."""
    zero_stage: Literal[0, 1, 2, 3] = 2
    """ZeRO stage: what is partitioned over ranks (1 optimiser, 2 also gradients, 3 also weights)."""
    sequence_parallel: int = Field(default=1, ge=1)
    """Number of ranks that compute every pass together, each with an equal part of its tokens and frames, so that the
    activations of a long video are divided among them. It must divide `num_ranks` and the model's attention heads;
    1 gives every rank passes of its own."""
    micro_batch_tokens: int = Field(default=16384, ge=64)
    """Largest number of tokens in one forward pass of a rank, or of `sequence_parallel` ranks together; a longer group
    is split over passes that repeat its prompt."""
    threads: int | None = Field(default=None, ge=1)
    """Number of torch threads of one rank. null: 1 on CPU; with GPUs, the cores of its machine divided by `num_ranks`,
    because an offloaded optimiser runs on them."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    frozen_parts: tuple[Literal["vision_tower", "projector"], ...] = ()
    """Parts of the model that are not trained. A frozen vision tower runs once per clip and step, without gradients."""
    lora: LoraConfig = LoraConfig()
    offload: tuple[Literal["optimizer", "parameters"], ...] = ()
    """What is offloaded to host memory between uses: "optimizer" needs zero_stage 1 or higher, "parameters" 3.
    Has no benefit with cluster.device=cpu."""
    deepspeed: dict[str, Any] = Field(default_factory=dict)
    """Further DeepSpeed settings, in its JSON format, merged into the generated ones; a key that another field
    decides is an error."""
    timeout_s: float = Field(default=1800.0, gt=0)
    """Time limit for one update, in seconds."""
    max_restarts: int = Field(default=3, ge=0)
    """Largest number of restarts in a row, from the newest checkpoint after ranks died or hung, without a new step
    being completed; 0 ends the run at the first failure."""

    @property
    def untrained_parts(self) -> tuple[str, ...]:
        """The parts whose weights are not trained: `frozen_parts`, or with adapters all parts."""
        return ("vision_tower", "projector") if self.lora.rank else self.frozen_parts

    @property
    def data_parallel(self) -> int:
        """The number of passes that are computed at a time: ranks, or groups of `sequence_parallel` ranks."""
        return self.num_ranks // self.sequence_parallel

    @model_validator(mode="after")
    def _ranks_divide_into_sequence_groups(self) -> LearnerConfig:
        if self.num_ranks % self.sequence_parallel:
            raise ValueError(
                f"learner.sequence_parallel={self.sequence_parallel} does not divide learner.num_ranks="
                f"{self.num_ranks}, but every rank is in a group of that many; change one of them."
            )
        return self

    @model_validator(mode="after")
    def _offload_has_something_to_move(self) -> LearnerConfig:
        for part, least in (("optimizer", 1), ("parameters", 3)):
            if part in self.offload and self.zero_stage < least:
                raise ValueError(
                    f"learner.offload has {part!r}, which DeepSpeed moves at learner.zero_stage {least} and above; "
                    f"zero_stage is {self.zero_stage}: raise it to {least}, or remove {part!r}."
                )
        return self

    @model_validator(mode="after")
    def _raw_settings_decide_nothing_twice(self) -> LearnerConfig:
        for key, value in flat_items(self.deepspeed):
            for owned, field in OWNED_KEYS.items():
                if f"{key}.".startswith(f"{owned}.") or f"{owned}.".startswith(f"{key}."):
                    raise ValueError(
                        f"learner.deepspeed has {key}={value!r}, which is decided by {field}; "
                        "set it there and remove it here."
                    )
        return self


def flat_items(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the leaves of nested mappings as (dotted key, value)."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from flat_items(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
