from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from learner.loss.logprobs import MAX_CHUNK_NUMBERS, token_logprobs
from tests.support.memory import MemoryMeter

VOCABULARY = 50


def inputs() -> tuple[torch.Tensor, nn.Linear, torch.Tensor]:
    torch.manual_seed(0)
    hidden = torch.randn(23, 8, requires_grad=True)
    return hidden, nn.Linear(8, VOCABULARY, bias=False), torch.randint(0, VOCABULARY, (23,))


def test_logprobs_equal_torch_cross_entropy() -> None:
    hidden, head, targets = inputs()
    found, _ = token_logprobs(hidden, head, targets, MAX_CHUNK_NUMBERS)
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
        torch.testing.assert_close(chunked, whole)  # to rounding: a product of fewer rows is summed in another order


class Products(TorchDispatchMode):
    """A record of the sizes of matrix products computed since it was entered."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: object, args: tuple = (), kwargs: dict | None = None
    ) -> object:
        made = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.mm.default:
            self.sizes.append(made.numel())
        return made


def test_chunks_never_hold_more_logits_than_they_may() -> None:
    hidden, head, targets = inputs()
    with Products() as products:
        token_logprobs(hidden, head, targets, 5 * VOCABULARY)
    assert products.sizes == [5 * VOCABULARY] * 4 + [3 * VOCABULARY]


def test_entropy_of_known_distributions() -> None:
    head = nn.Linear(2, 4, bias=False)
    # all equal: ln 4; one certain token (others impossible): 0; two of four: ln 2
    head.weight.data = torch.tensor([[0.0, 0.0], [0.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    hidden = torch.tensor([[1.0, 0.0], [0.0, -1e4]])
    _, entropy = token_logprobs(hidden, head, torch.tensor([0, 1]), MAX_CHUNK_NUMBERS)
    torch.testing.assert_close(entropy, torch.tensor([math.log(4), math.log(2)]))


def test_entropy_carries_no_gradient() -> None:
    hidden, head, targets = inputs()
    logprobs, entropy = token_logprobs(hidden, head, targets, MAX_CHUNK_NUMBERS)
    assert logprobs.requires_grad
    assert not entropy.requires_grad


def test_softmax_is_in_float32_for_a_bfloat16_model() -> None:
    hidden, head, targets = inputs()
    logprobs, entropy = token_logprobs(hidden.bfloat16(), head.bfloat16(), targets, MAX_CHUNK_NUMBERS)
    assert logprobs.dtype == entropy.dtype == torch.float32


@pytest.mark.parametrize(("num_tokens", "num_chunks"), [(400, 1), (400, 10), (395, 40)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_memory_is_that_of_a_chunk_forward_and_backward(num_tokens: int, num_chunks: int, dtype: torch.dtype) -> None:
    vocabulary = 5000
    head = nn.Linear(8, vocabulary, bias=False, dtype=dtype)
    hidden = torch.randn(num_tokens, 8, dtype=dtype, requires_grad=True)
    targets = torch.randint(0, vocabulary, (num_tokens,))
    chunk_numbers = -(-num_tokens // num_chunks) * vocabulary
    with MemoryMeter() as meter:
        logprobs, _ = token_logprobs(hidden, head, targets, chunk_numbers)
        held = meter.alive
        logprobs.sum().backward()
    # the head's weights are seen, copied and given a gradient, and so are the hidden states
    small = 6 * head.weight.nbytes + 4 * hidden.nbytes
    assert meter.peak <= 3 * 4 * chunk_numbers + small
    assert held <= (4 * chunk_numbers if num_chunks == 1 else 0) + small
