from __future__ import annotations

import math

import torch
from torch import nn

from learner.logprobs import token_logprobs

VOCABULARY = 50


def inputs() -> tuple[torch.Tensor, nn.Linear, torch.Tensor]:
    torch.manual_seed(0)
    hidden = torch.randn(23, 8, requires_grad=True)
    return hidden, nn.Linear(8, VOCABULARY, bias=False), torch.randint(0, VOCABULARY, (23,))


def test_logprobs_equal_torch_cross_entropy() -> None:
    hidden, head, targets = inputs()
    found, _ = token_logprobs(hidden, head, targets)
    torch.testing.assert_close(found, -nn.functional.cross_entropy(head(hidden), targets, reduction="none"))


def test_chunks_change_neither_values_nor_gradients() -> None:
    hidden, head, targets = inputs()
    results = []
    for max_numbers in (1 << 20, 5 * VOCABULARY):
        hidden.grad = head.weight.grad = None
        logprobs, entropy = token_logprobs(hidden, head, targets, max_numbers)
        (logprobs * torch.arange(23)).sum().backward()
        results.append((logprobs.detach(), entropy, hidden.grad, head.weight.grad))
    for whole, chunked in zip(*results, strict=True):
        torch.testing.assert_close(chunked, whole, rtol=1e-6, atol=1e-6)


def test_chunks_never_hold_more_logits_than_they_may() -> None:
    hidden, head, targets = inputs()
    seen: list[int] = []
    head.register_forward_hook(lambda module, args, output: seen.append(output.numel()))
    token_logprobs(hidden, head, targets, 5 * VOCABULARY)
    assert seen == [5 * VOCABULARY] * 4 + [3 * VOCABULARY]


def test_entropy_of_known_distributions() -> None:
    head = nn.Linear(2, 4, bias=False)
    # all equal: ln 4; one certain token (others impossible): 0; two of four: ln 2
    head.weight.data = torch.tensor([[0.0, 0.0], [0.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    hidden = torch.tensor([[1.0, 0.0], [0.0, -1e4]])
    _, entropy = token_logprobs(hidden, head, torch.tensor([0, 1]))
    torch.testing.assert_close(entropy, torch.tensor([math.log(4), math.log(2)]))


def test_entropy_carries_no_gradient() -> None:
    hidden, head, targets = inputs()
    logprobs, entropy = token_logprobs(hidden, head, targets)
    assert logprobs.requires_grad
    assert not entropy.requires_grad


def test_softmax_is_in_float32_for_a_bfloat16_model() -> None:
    hidden, head, targets = inputs()
    logprobs, entropy = token_logprobs(hidden.bfloat16(), head.bfloat16(), targets)
    assert logprobs.dtype == entropy.dtype == torch.float32
