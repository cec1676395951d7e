"""How many numbers of the published weights change in an update, by learning rate, and what a delta of them takes.

    python -m benchmarks.weight_changes [--steps N] [--numbers N]

Masters are float32, steps are torch's AdamW, and what is published is the masters rounded to the format. Two sources of
gradients: the demo's tiny model on random tokens (real gradients, its own weights), and random tensors with the spread
of a trained 7B model's weights (standard deviation 0.02), whose gradients keep a common part from step to step, so that
moments are neither pure noise nor constant.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import torch
import typer

from rlsys.weights.delta import encode, num_bytes, num_numbers
from rlsys.weights.manifest import NamedTensor
from rlsys.weights.tensors import as_named

RATES = (1e-6, 2e-6, 1e-5)
FORMATS = (torch.bfloat16, torch.float32)
WARM_UP = 20
"""Steps before the counting, after which AdamW's moments have settled."""
SPREAD = 0.02
COMMON = 0.3
"""Part of a random gradient's standard deviation that stays the same in all steps."""
BATCH, LENGTH = 4, 64

Backward = Callable[[], None]
"""A function that adds gradients to the masters."""


def tiny_model() -> tuple[list[torch.nn.Parameter], Backward]:
    """Return the tiny model's parameters, and the gradients of its loss on random tokens."""
    from transformers import Qwen2_5_VLForConditionalGeneration

    from rlsys.models.tiny import make_tiny

    with tempfile.TemporaryDirectory() as folder:
        make_tiny(Path(folder), seed=0)
        model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    trained = [one for name, one in model.named_parameters() if "visual" not in name]

    def backward() -> None:
        ids = torch.randint(0, 256, (BATCH, LENGTH))
        model(input_ids=ids, labels=ids).loss.backward()

    return trained, backward


def random_tensors(numbers: int) -> tuple[list[torch.nn.Parameter], Backward]:
    """Return one matrix with the spread of a trained model's weights, and random gradients for it."""
    master = torch.nn.Parameter(SPREAD * torch.randn(numbers // 1024, 1024))
    common = COMMON * torch.randn_like(master)

    def backward() -> None:
        master.grad = (common + torch.randn_like(master)) * 1e-3

    return [master], backward


def published(masters: list[torch.nn.Parameter], dtype: torch.dtype) -> dict[str, NamedTensor]:
    """Return the masters as they are sent, in memory of their own."""
    return {str(index): as_named(master.detach().to(dtype, copy=True)) for index, master in enumerate(masters)}


def measured(masters: list[torch.nn.Parameter], backward: Backward, rate: float, steps: int) -> dict[str, list[float]]:
    """Return for each format the mean fraction of changed numbers, and mean size of the delta over the weights'."""
    optimizer = torch.optim.AdamW(masters, lr=rate, weight_decay=0.0)
    totals = {str(dtype): [0.0, 0.0] for dtype in FORMATS}
    for step in range(WARM_UP + steps):
        before = {dtype: published(masters, dtype) for dtype in FORMATS} if step >= WARM_UP else {}
        optimizer.zero_grad()
        backward()
        torch.nn.utils.clip_grad_norm_(masters, 1.0)
        optimizer.step()
        for dtype, old in before.items():
            new = published(masters, dtype)
            pieces, num_changed = encode(new, old)
            totals[str(dtype)][0] += num_changed / num_numbers(new) / steps
            totals[str(dtype)][1] += num_bytes(pieces) / num_bytes(new) / steps
    return totals


def rows(steps: int, numbers: int) -> Iterator[str]:
    yield "| weights | learning rate | bf16 changed | bf16 delta, of the weights | fp32 changed | fp32 delta |"
    yield "|---|---|---|---|---|---|"
    sources: dict[str, Callable[[], tuple[list[torch.nn.Parameter], Backward]]] = {
        "tiny model": tiny_model,
        f"{numbers / 1e6:.0f} M random": lambda: random_tensors(numbers),
    }
    for name, make in sources.items():
        for rate in RATES:
            torch.manual_seed(0)
            found = measured(*make(), rate, steps)
            cells = " | ".join(f"{share:.1%}" for dtype in FORMATS for share in found[str(dtype)])
            yield f"| {name} | {rate:g} | {cells} |"


def main(
    steps: Annotated[int, typer.Option(help="Steps over which is averaged.")] = 10,
    numbers: Annotated[int, typer.Option(help="Numbers of the random matrix.")] = 4 << 20,
) -> None:
    """Print the table of docs/weights.md."""
    torch.set_num_threads(1)
    for line in rows(steps, numbers):
        typer.echo(line)


if __name__ == "__main__":
    typer.run(main)
