"""Log-probs of given tokens, with at most one chunk of tokens x vocabulary in memory in float32."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

MAX_CHUNK_NUMBERS = 1 << 26
"""Largest number of logits in one chunk, 256 MiB in float32. A pass holds three tensors of this size at its peak, and
between forward and backward one if there is a single chunk, else none."""


class TokenHead(nn.Linear):
    """A model's output head as a function to log-probs, in one call of the module however many chunks there are.

    At ZeRO-3 every call of a module is a collective, because it gathers the weights from all ranks, and ranks have
    different numbers of chunks.
    """

    def forward(self, hidden: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what `token_logprobs` returns."""
        return token_logprobs(hidden, self, targets, MAX_CHUNK_NUMBERS)


def token_logprobs(
    hidden: torch.Tensor, lm_head: nn.Linear, targets: torch.Tensor, max_numbers: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return each target's log-prob under softmax(lm_head(hidden)), and the entropy there, both f32 [T], in nats.

    hidden: [T, H], the states that predict the targets.  targets: i64 [T].
    Gradients flow through the log-probs, not through the entropies.
    The head computes in the model's number format and the softmax in float32, as in vLLM.
    Several chunks are recomputed in the backward pass, so that no logits are kept between the passes.
    """
    num_tokens = len(targets)
    chunk = max(1, max_numbers // lm_head.out_features)
    if num_tokens <= chunk:
        return _chunk_logprobs(hidden, lm_head, targets)
    parts = []
    for start in range(0, num_tokens, chunk):
        stop = start + chunk
        parts.append(checkpoint(_chunk_logprobs, hidden[start:stop], lm_head, targets[start:stop], use_reentrant=False))
    return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])


def _chunk_logprobs(
    hidden: torch.Tensor, lm_head: nn.Linear, targets: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    # not by calling the module, see `TokenHead`
    all_logprobs = nn.functional.linear(hidden, lm_head.weight, lm_head.bias).float().log_softmax(dim=-1)
    with torch.no_grad():
        # in place, which saves a third tensor of the chunk's size
        entropy = -all_logprobs.exp().mul_(all_logprobs).sum(dim=-1)
    return all_logprobs.gather(-1, targets[:, None]).squeeze(-1), entropy
