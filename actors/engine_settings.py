"""How an engine runs on each device, chosen here and not left to vLLM's defaults. No vLLM here: the driver imports it.

The reasons are in docs/gpu.md, "Engine settings".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

BATCH_TOKENS = 8192
"""Tokens of one step at least: prompts that arrive together are read together."""


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """What decides how an engine computes the same tokens.

    model_runner: version of vLLM's model runner.  async_scheduling: whether a step is planned while another runs.
    chunked_prefill: whether a prompt may be read in several steps.  cuda_graphs: whether steps are captured and
    compiled.  prefix_cache: whether prompts that begin alike share keys and values.  block_size: tokens of a block of
    that cache.
    """

    model_runner: Literal[1, 2]
    async_scheduling: bool
    chunked_prefill: bool
    cuda_graphs: bool
    prefix_cache: bool
    block_size: int

    def batch_tokens(self, max_model_len: int, largest_clip_tokens: int, max_num_seqs: int) -> int:
        """Return how many tokens one step may read.

        vLLM's vision tower reads a clip whole and refuses one that is longer than a step. Without chunked prefill it
        also reads a prompt whole.  largest_clip_tokens: 0 if unknown; then a clip may be as long as a prompt.
        """
        longest = max_model_len
        if self.chunked_prefill and largest_clip_tokens:
            longest = min(longest, largest_clip_tokens)
        return max(BATCH_TOKENS, longest, max_num_seqs)


SETTINGS: Mapping[str, EngineSettings] = MappingProxyType(
    {
        "cpu": EngineSettings(
            model_runner=1,
            async_scheduling=False,
            chunked_prefill=False,
            cuda_graphs=False,
            prefix_cache=True,
            block_size=32,
        ),
        "cuda": EngineSettings(
            model_runner=1,
            async_scheduling=False,
            chunked_prefill=True,
            cuda_graphs=True,
            prefix_cache=True,
            block_size=16,
        ),
    }
)
"""By `cluster.device`."""
