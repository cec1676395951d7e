"""Section `sft`: the demonstrations of supervised fine-tuning."""

from __future__ import annotations

from pathlib import Path

from rlsys.config.part import Part


class SftConfig(Part):
    """Settings of `rlsys sft` only; steps, batch size and optimiser come from section `train`."""

    responses: Path | None = None
    """JSON lines {"prompt_id": "<annotation file's stem>:<row>", "response": "…"}, any number per prompt; rows without
    a response are skipped. A response to a later round lists the responses before it in "earlier" and is shown what
    section `perception` makes of them. null imitates each row's true answer in its task's format, after the row's own
    reasoning (`think` of format vtts) if `data.think` is set."""
