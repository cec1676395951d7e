"""FlexAttention's compiled kernel against the form that computes row by row with public calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from benchmarks.gpu_check.figures import Check, Figure, at_most, found
from benchmarks.gpu_check.transfers import best_s
from learner.packing.attention import num_compilations, packed_by_row, packed_flex
from learner.packing.packed_mask import PackedMask, RowSpan

HEADS = {"3B": (16, 2, 128), "7B": (28, 4, 128)}
TOY_HEADS = {"toy": (4, 2, 32)}
"""Query heads, key heads and head size."""
CASES = {
    "a group of the 7B config": ((7424, (511,) * 8),),
    "several rows": ((2000, (100, 30, 1)), (777, (64, 64, 63, 2))),
    "a long prompt": ((15000, (700,)),),
    "one block": ((40, (9, 20)),),
    "a prompt alone": ((300, ()),),
    "one token": ((1, ()),),
}
TOY_CASES = {
    "a group": ((200, (20,) * 4),),
    "several rows": ((130, (10, 3, 1)), (77, (6, 6, 5, 2))),
    "one block": ((40, (9, 20)),),
    "a prompt alone": ((140, ()),),
    "one token": ((1, ()),),
}
"""Of each row the prompt's tokens and those of its responses."""
SLACK = 2.0
"""How much larger the fused form's error may be than that of the other form in the same data type."""
ROUNDING = 1e-5
Attention = Callable[..., tuple[torch.Tensor, None]]


def attention(check: Check) -> Iterator[Figure]:
    """Outputs and gradients of all shapes, how often the kernel was compiled, and the time of each form."""
    dtype = torch.float32 if check.is_toy else torch.bfloat16
    cases = TOY_CASES if check.is_toy else CASES
    for model, heads in (TOY_HEADS if check.is_toy else HEADS).items():
        for case, rows in cases.items():
            yield _compared(f"{model}, {case}", _inputs(rows, heads, check.device, dtype))
    yield found("graphs compiled", float(num_compilations()))
    rows = next(iter(cases.values()))
    for model, heads in (TOY_HEADS if check.is_toy else HEADS).items():
        mask, tensors = _inputs(rows, heads, check.device, dtype)
        for name, form in (("flex", packed_flex), ("by row", packed_by_row)):
            seconds = best_s(lambda form=form, mask=mask, tensors=tensors: _run(form, mask, tensors), check.device)  # type: ignore[misc]
            passes = "forward" if check.is_toy else "forward and backward"
            yield found(f"{model}, {passes}, {name}", 1e3 * seconds, "ms a layer")


Inputs = tuple[PackedMask, tuple[torch.Tensor, ...]]


def _inputs(
    rows: tuple[tuple[int, tuple[int, ...]], ...], heads: tuple[int, int, int], device: str, dtype: torch.dtype
) -> Inputs:
    """A mask, and random queries, keys, values and gradients of the output."""
    spans, start = [], 0
    for prompt, responses in rows:
        spans.append(RowSpan(start=start, prompt=prompt, responses=responses))
        start = spans[-1].stop
    generator = torch.Generator(device).manual_seed(start)
    num_heads, num_keys, size = heads
    shapes = [(1, number, start, size) for number in (num_heads, num_keys, num_keys)] + [(1, start, num_heads, size)]
    tensors = tuple(torch.randn(s, generator=generator, device=device, dtype=torch.float32).to(dtype) for s in shapes)
    return PackedMask(rows=tuple(spans), device=device), tensors


def _run(form: Attention, mask: PackedMask, tensors: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
    """Output and gradients to queries, keys and values; on a CPU, where FlexAttention has no gradients, the output."""
    if tensors[0].device.type == "cpu":
        return [form(None, *tensors[:3], mask, tensors[0].shape[-1] ** -0.5)[0]]
    leaves = [tensor.detach().requires_grad_() for tensor in tensors[:3]]
    output, _ = form(None, *leaves, mask, tensors[0].shape[-1] ** -0.5)
    return [output.detach(), *torch.autograd.grad(output, leaves, tensors[3])]


def _compared(name: str, inputs: Inputs) -> Figure:
    """The largest relative error of output and gradients, held against that of the other form."""
    mask, tensors = inputs
    exact = _run(packed_by_row, mask, tuple(tensor.float() for tensor in tensors))
    flex, by_row = (_errors(_run(form, mask, tensors), exact) for form in (packed_flex, packed_by_row))
    worst = max(range(len(flex)), key=lambda index: flex[index] / (by_row[index] + ROUNDING))
    return at_most(f"error of {name}", flex[worst], SLACK * by_row[worst] + ROUNDING)


def _errors(computed: list[torch.Tensor], exact: list[torch.Tensor]) -> list[float]:
    return [
        float((one.float() - truth).norm() / truth.norm().clamp(min=1e-12))
        for one, truth in zip(computed, exact, strict=True)
    ]
