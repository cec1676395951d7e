"""The prompts and responses of a forward pass as light records, which the driver can create and send."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rlsys.types import ClipRef, Prompt


@dataclass(frozen=True, kw_only=True, eq=False)
class Response:
    """One response.

    ids: i32 [R].  sampler_logprobs: f32 [R].  advantage: of all its tokens.
    weight: of each of its tokens in the loss, which is the weighted sum over the tokens of all ranks and passes.
    old_logprobs: f32 [R], the denominator of the ratio; None if that is the sampler's or, in the first update on a
    batch, the policy's own.
    """

    ids: np.ndarray
    sampler_logprobs: np.ndarray
    advantage: float
    weight: float = 0.0
    old_logprobs: np.ndarray | None = None

    @property
    def num_read(self) -> int:
        """Number of tokens that the model reads: all but the last, which is only predicted."""
        return max(len(self.ids) - 1, 0)


@dataclass(frozen=True, kw_only=True, eq=False)
class Row:
    """A prompt, its clips with their frames at hand (`ClipRef.frames` is the array) and the responses to compute."""

    prompt_id: str
    prompt: Prompt
    clips: tuple[ClipRef, ...]
    responses: tuple[Response, ...]

    @property
    def num_tokens(self) -> int:
        """Length of the packed row in tokens."""
        return len(self.prompt.prompt_ids) + sum(response.num_read for response in self.responses)

    @property
    def num_targets(self) -> int:
        """Number of response tokens, which are those with a log-prob."""
        return sum(len(response.ids) for response in self.responses)
