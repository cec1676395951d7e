"""Steps, batches and the optimiser."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from rlsys.config.part import Part

Decay = Annotated[float, Field(ge=0, lt=1)]


class TrainConfig(Part):
    num_steps: int = Field(default=100, ge=1)
    """Steps: batches learned from, each with one optimiser update unless `algorithm` says more."""
    prompts_per_step: int = Field(default=16, ge=1)
    """Groups per step."""
    learning_rate: float = Field(default=1e-6, gt=0, le=1)
    """Peak learning rate of AdamW."""
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    """After the warm-up: stay, fall to 0 linearly, or fall to a tenth along a cosine."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps over which the learning rate rises linearly."""
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    """AdamW's decay of first and second moments."""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW's weight decay."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are scaled down to this global norm."""
