"""What supervised fine-tuning imitates."""

from __future__ import annotations

from pathlib import Path

from rlsys.config.part import Part


class SftConfig(Part):
    """Read by `rlsys sft` alone; batches, steps and optimiser are those of `train`."""

    responses: Path | None = None
    """JSON lines {"prompt_id": "<annotation file's stem>:<row>", "response": "…"}, as many per prompt as wanted; rows
    without one are left out. null imitates each row's true answer in the form its task asks (data.think=false)."""
