"""Section `train`: steps, batch size and optimiser."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from rlsys.config.part import Part

Decay = Annotated[float, Field(ge=0, lt=1)]


class TrainConfig(Part):
    """The settings of steps, batches and the optimiser."""

    num_steps: int = Field(default=100, ge=1)
    """Number of training steps; each has one optimiser update per mini-batch and epoch of section `algorithm`."""
    epochs: float | None = Field(default=None, gt=0)
    """Number of passes over the training rows, in place of `num_steps`: as many steps as use that many prompts, rounded
    up. Of a weighted mix, one pass has as many prompts as all sources together have rows. null: `num_steps` counts."""
    prompts_per_step: int = Field(default=16, ge=1)
    """Number of groups (prompts) per step."""
    learning_rate: float = Field(default=1e-6, gt=0, le=1)
    """Peak learning rate of AdamW."""
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    """Learning rate after the warm-up: constant, linear decay to 0, or cosine decay to a tenth of the peak."""
    warmup_steps: int = Field(default=0, ge=0)
    """Number of steps over which the learning rate rises linearly to its peak."""
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    """Decay rates of AdamW's first and second moments."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Weight decay of AdamW."""
    no_signal_steps: int = Field(default=5, ge=1)
    """Number of consecutive steps without a gradient (no group with different rewards) after which a warning shows
    sampled responses."""
    stop_without_signal: bool = False
    """Whether the run ends with an error instead of that warning."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Global gradient norm above which gradients are scaled down to it."""

    @model_validator(mode="after")
    def _has_one_length(self) -> TrainConfig:
        if self.epochs is not None and "num_steps" in self.model_fields_set:
            raise ValueError(
                f"train.epochs={self.epochs:g} and train.num_steps={self.num_steps} are both given; keep one and set "
                "the other to null (epochs) or remove it (num_steps)."
            )
        return self
