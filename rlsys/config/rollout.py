"""Section `rollout`: actors, engines and sampling."""

from __future__ import annotations

from pydantic import Field, model_validator

from rlsys.config.part import Part

MIN_TEMPERATURE = 0.01
"""Lowest temperature at which vLLM samples; 0 is greedy decoding."""


class RolloutConfig(Part):
    """The settings of rollout actors and sampling."""

    num_actors: int = Field(default=1, ge=1)
    """Number of rollout actors, each with its own engine."""
    group_size: int = Field(default=8, ge=1)
    """Number of responses per prompt (G)."""
    shuffled_group_size: int = Field(default=0, ge=0)
    """Number of further responses per prompt to shuffled frames, for the score `order_contrast`; half of group_size is
    usual, 0 samples none."""
    temperature: float = Field(default=1.0, ge=0, le=100)
    """Sampling temperature."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus sampling; 1 disables it."""
    max_tokens: int = Field(default=1024, ge=1)
    """Largest number of tokens in a response."""
    max_num_seqs: int = Field(default=256, ge=1)
    """Largest number of responses that one engine generates concurrently."""
    tensor_parallel_size: int = Field(default=1, ge=1)
    """Number of GPUs that share one engine's weights."""
    gpu_memory_utilization: float = Field(default=0.9, gt=0, le=1)
    """Fraction of the GPU's memory that the engine uses; ignored on CPU."""
    kv_cache_mib: int = Field(default=64, ge=1)
    """Size of the key/value cache of an engine on CPU, in MiB; ignored on GPU."""
    threads: int = Field(default=1, ge=1)
    """Number of threads of an engine on CPU."""
    timeout_s: float = Field(default=600.0, gt=0)
    """Time limit for generating one group, in seconds; an actor that exceeds it counts as dead."""
    start_timeout_s: float = Field(default=900.0, gt=0)
    """Time limit for an actor to start and load its model, in seconds."""

    @model_validator(mode="after")
    def _a_group_fits_its_engine(self) -> RolloutConfig:
        if self.group_size < 2:
            raise ValueError(
                f"rollout.group_size={self.group_size}: advantages need at least 2 rollouts per prompt; "
                "set it to 2 or more (8 is usual)."
            )
        for name in ("group_size", "shuffled_group_size"):
            if (size := getattr(self, name)) > self.max_num_seqs:
                raise ValueError(
                    f"rollout.{name}={size} is above rollout.max_num_seqs={self.max_num_seqs}; raise max_num_seqs."
                )
        if self.temperature < MIN_TEMPERATURE:
            raise ValueError(
                f"rollout.temperature={self.temperature:g}: a group of equal responses has no advantages; use 1.0."
            )
        return self
