"""How responses are sampled."""

from __future__ import annotations

from pydantic import Field, model_validator

from rlsys.config.part import Part

MIN_TEMPERATURE = 0.01
"""vLLM samples at no lower temperature, except 0, which is greedy."""


class RolloutConfig(Part):
    num_actors: int = Field(default=1, ge=1)
    """Rollout actors, each with an engine of its own."""
    group_size: int = Field(default=8, ge=1)
    """G, responses per prompt."""
    shuffled_group_size: int = Field(default=0, ge=0)
    """Responses per prompt to the same frames in another order, for the score `order_contrast`; half of group_size."""
    temperature: float = Field(default=1.0, ge=0)
    """Sampling temperature."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus sampling; 1 leaves it off."""
    max_tokens: int = Field(default=1024, ge=1)
    """Most tokens of a response."""
    max_num_seqs: int = Field(default=256, ge=1)
    """Responses that one engine generates at once."""
    tensor_parallel_size: int = Field(default=1, ge=1)
    """GPUs that share one engine's weights."""
    gpu_memory_utilization: float = Field(default=0.9, gt=0, le=1)
    """Share of the GPU's memory that the engine takes; ignored on CPU."""
    kv_cache_mib: int = Field(default=64, ge=1)
    """Key/value cache of an engine on CPU, MiB; ignored on GPU."""
    threads: int = Field(default=1, ge=1)
    """Threads of an engine on CPU."""
    timeout_s: float = Field(default=600.0, gt=0)
    """Seconds one group may take before its actor counts as dead."""
    start_timeout_s: float = Field(default=900.0, gt=0)
    """Seconds an actor may take to load its model."""

    @model_validator(mode="after")
    def _a_group_fits_its_engine(self) -> RolloutConfig:
        if self.group_size < 2:
            raise ValueError(
                f"rollout.group_size={self.group_size}: advantages need at least 2 rollouts per prompt; "
                "set it to 2 or more (8 is usual)."
            )
        if self.group_size > self.max_num_seqs:
            raise ValueError(
                f"rollout.group_size={self.group_size} is above rollout.max_num_seqs={self.max_num_seqs}; "
                "raise max_num_seqs."
            )
        if self.temperature < MIN_TEMPERATURE:
            raise ValueError(
                f"rollout.temperature={self.temperature:g}: a group of equal responses has no advantages; use 1.0."
            )
        return self
