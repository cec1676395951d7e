"""The forms of attention over a packed sequence, against a softmax over all tokens with an explicit mask."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._dynamo.exc import FailOnRecompileLimitHit
from torch.nn.attention.flex_attention import create_block_mask
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from learner.packing.attention import compiled_flex, num_compilations, packed_by_row, packed_flex, packed_sdpa
from learner.packing.packed_mask import BLOCK, PackedMask, RowSpan

HEADS, KEY_HEADS, HEAD_DIM = 6, 2, 16
SCALING = HEAD_DIM**-0.5

Shape = tuple[int, list[int]]
SHAPES = st.lists(
    st.tuples(st.integers(1, 200), st.lists(st.sampled_from([0, 1, 2, 9, 30, 31, 90]), max_size=5)),
    min_size=1,
    max_size=4,
)


def make_mask(shapes: Sequence[Shape]) -> PackedMask:
    """Return one row for each (prompt tokens, tokens of each response)."""
    rows: list[RowSpan] = []
    for prompt, responses in shapes:
        rows.append(RowSpan(start=rows[-1].stop if rows else 0, prompt=prompt, responses=tuple(responses)))
    return PackedMask(rows=tuple(rows), device="cpu")


def written_out(shapes: Sequence[Shape]) -> torch.Tensor:
    """Return the explicit mask, bool [L, L]."""
    tokens = torch.tensor(
        [
            (row, part)
            for row, (prompt, responses) in enumerate(shapes)
            for part, size in enumerate([prompt, *responses])
            for _ in range(size)
        ]
    )
    row, part = tokens[:, 0], tokens[:, 1]
    return ((row[:, None] == row) & ((part == 0) | (part[:, None] == part))).tril()


def by_softmax(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    key, value = (one.repeat_interleave(HEADS // KEY_HEADS, dim=1) for one in (key, value))
    scores = (query @ key.transpose(2, 3) * SCALING).masked_fill(~seen, -torch.inf)
    return (scores.softmax(-1) @ value).transpose(1, 2)


def make_inputs(length: int) -> list[torch.Tensor]:
    """Return random query, key and value in the layout that a layer passes."""
    torch.manual_seed(0)
    return [torch.randn(1, length, n, HEAD_DIM).requires_grad_() for n in (HEADS, KEY_HEADS, KEY_HEADS)]


def with_gradients(leaves: Sequence[torch.Tensor], attend: Callable[..., torch.Tensor]) -> list[torch.Tensor]:
    torch.manual_seed(1)
    mixed = attend(*(leaf.transpose(1, 2) for leaf in leaves))
    return [mixed, *torch.autograd.grad((mixed * torch.randn(mixed.shape)).sum(), leaves)]


@settings(max_examples=15, deadline=None)
@given(SHAPES)
@pytest.mark.parametrize("form", [packed_sdpa, packed_by_row])
def test_values_and_gradients_are_those_of_the_mask_written_out(form: Callable, shapes: list[Shape]) -> None:
    mask, seen = make_mask(shapes), written_out(shapes)
    leaves = make_inputs(mask.length)
    found = with_gradients(leaves, lambda *inputs: form(None, *inputs, mask, SCALING)[0])
    expected = with_gradients(leaves, lambda *inputs: by_softmax(*inputs, seen))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@settings(max_examples=10, deadline=None)
@given(SHAPES)
def test_flex_attention_blocks_are_those_of_the_mask_written_out(shapes: list[Shape]) -> None:
    mask = make_mask(shapes)
    expected = create_block_mask(mask.blocks.mask_mod, 1, 1, mask.length, mask.length, device="cpu")
    assert torch.equal(mask.blocks.to_dense(), expected.to_dense())
    assert torch.equal(mask.blocks.full_kv_num_blocks, expected.full_kv_num_blocks)


def test_blocks_by_hand() -> None:
    # a prompt of two blocks and one response of one, then a row of one block: seen whole, in part or not at all
    blocks = make_mask([(2 * BLOCK, [BLOCK]), (BLOCK, [])]).blocks
    assert blocks.kv_num_blocks.flatten().tolist() == [1, 1, 1, 1]
    assert blocks.full_kv_num_blocks.flatten().tolist() == [0, 1, 2, 0]
    assert blocks.kv_indices[0, 0, :, 0].tolist() == [0, 1, 2, 3]
    assert blocks.full_kv_indices[0, 0, 2, :2].tolist() == [0, 1]


class LargestArray(TorchDispatchMode):
    """A record of the size of the largest tensor created since it was entered."""

    largest = 0

    def __torch_dispatch__(self, func: Callable, types: object, args: tuple = (), kwargs: dict | None = None) -> object:
        made = func(*args, **(kwargs or {}))
        sizes = [one.untyped_storage().nbytes() // one.itemsize for one in tree_leaves(made) if torch.is_tensor(one)]
        self.largest = max(self.largest, *sizes, 0)
        return made


def test_no_tensor_of_all_tokens_by_all_tokens_is_created() -> None:
    mask = make_mask([(400, [50] * 8), (300, [20] * 8)])
    leaves = make_inputs(mask.length)
    with LargestArray() as meter:
        with_gradients(leaves, lambda *inputs: packed_sdpa(None, *inputs, mask, SCALING)[0])
    assert meter.largest == mask.length * HEADS * HEAD_DIM


def test_bfloat16_is_rounding_away_from_float32() -> None:
    mask = make_mask([(100, [20, 7, 33]), (41, [15] * 8)])
    leaves = make_inputs(mask.length)
    expected = with_gradients(leaves, lambda *inputs: packed_sdpa(None, *inputs, mask, SCALING)[0])
    halves = [leaf.detach().bfloat16().requires_grad_() for leaf in leaves]
    found = with_gradients(halves, lambda *inputs: packed_sdpa(None, *inputs, mask, SCALING)[0])
    assert found[0].dtype == torch.bfloat16
    assert (found[0].float() - expected[0]).abs().max() < 0.03


@pytest.mark.slow
def test_flex_attention_is_not_compiled_again_for_every_length() -> None:
    """Traced with no code generated: PyTorch has no backward pass of it on CPUs, but recompiles for equal reasons."""
    attend = compiled_flex("eager")

    def compilations(shapes: list[Shape]) -> int:
        mask = make_mask(shapes)
        tensors = [tensor.detach().transpose(1, 2) for tensor in make_inputs(mask.length)]
        wanted = by_softmax(*tensors, written_out(shapes))
        for wants_grad in (True, False):
            with torch.set_grad_enabled(wants_grad):
                found = attend(*tensors, block_mask=mask.blocks, scale=SCALING, enable_gqa=True)
            torch.testing.assert_close(found.transpose(1, 2), wanted, rtol=1e-5, atol=1e-5)
        return num_compilations()

    first = [compilations(shapes) for shapes in ([(200, [9, 30])], [(1000, [90] * 4)], [(130, [])], [(700, [5, 31])])]
    assert first[-1] < torch._dynamo.config.recompile_limit
    others = [compilations([(prompt, [7]), (90, [prompt % 89])]) for prompt in range(140, 1200, 131)]
    assert set(others) == {first[-1]}


@pytest.mark.slow
def test_the_limit_of_recompilations_is_an_error_in_every_thread() -> None:
    """Autograd computes checkpointed attention again in its own threads, which have other settings of PyTorch."""
    mask = make_mask([(200, [9, 30])])
    tensors = [tensor.detach().transpose(1, 2) for tensor in make_inputs(mask.length)]
    counts: list[int] = []

    def attend_until_it_fails() -> type[Exception] | None:
        compiled_flex.cache_clear()
        attend = compiled_flex("eager")
        for number in range(2 * torch._dynamo.config.recompile_limit):
            option = {f"option {number}": True}  # of the kernel: a new one is compiled for
            try:
                attend(*tensors, block_mask=mask.blocks, scale=SCALING, enable_gqa=True, kernel_options=option)
            except FailOnRecompileLimitHit as error:
                return type(error)
            counts.append(num_compilations())
        return None

    for run in (attend_until_it_fails, lambda: ThreadPoolExecutor(1).submit(attend_until_it_fails).result()):
        torch._dynamo.reset()
        counts.clear()
        assert run() is FailOnRecompileLimitHit
        assert len(counts) == torch._dynamo.config.recompile_limit
        assert counts == list(range(counts[0], counts[0] + len(counts))), "every compilation is counted"


def test_a_pass_of_one_block_needs_no_flex_attention() -> None:
    mask = make_mask([(1, [])])
    tensors = [tensor.transpose(1, 2) for tensor in make_inputs(mask.length)]
    (found, _), (wanted, _) = (form(None, *tensors, mask, SCALING) for form in (packed_flex, packed_by_row))
    assert torch.equal(found, wanted)
    assert "blocks" not in vars(mask)
