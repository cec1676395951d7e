"""Linear attention over packed rows against the rule token by token, and the layout that forks states."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText

from actors.linear_attention import delta_rule
from learner.model.families import modules_of
from learner.model.policy import PackedPolicy
from learner.packing.forks import Forks
from learner.packing.packed_mask import PackedMask, RowSpan

ROWS = (
    RowSpan(start=0, prompt=2, responses=(3, 0, 1)),
    RowSpan(start=6, prompt=70, responses=()),
    RowSpan(start=76, prompt=1, responses=(130, 5)),
)
LENGTH = 212


def test_a_convolution_reads_the_prompts_last_tokens_before_a_response_and_zeros_before_a_prompt() -> None:
    forks = Forks(ROWS, 4, "cpu")
    zero = LENGTH
    before = [
        forks.extended[int(forks.places[token]) - 3 : int(forks.places[token]) + 1].tolist() for token in range(6)
    ]
    assert before == [
        [zero, zero, zero, 0],
        [zero, zero, 0, 1],
        [zero, 0, 1, 2],  # the first response behind a prompt of two tokens
        [0, 1, 2, 3],
        [1, 2, 3, 4],
        [zero, 0, 1, 5],  # the last response
    ]
    assert forks.extended[forks.places].tolist() == list(range(LENGTH))


def test_every_token_is_computed_once_and_responses_of_similar_lengths_together() -> None:
    forks = Forks(ROWS, 4, "cpu")
    assert [(one.count, one.width, one.rows.tolist()) for one in forks.prompts] == [(1, 70, [1]), (2, 2, [0, 2])]
    assert [(one.count, one.width, one.rows.tolist()) for one in forks.responses] == [
        (1, 130, [2]),
        (3, 5, [0, 0, 2]),
    ]
    assert forks.prompt_of.tolist() == [1, 0, 2]
    flat = torch.cat([one.index for one in (*forks.prompts, *forks.responses)])
    assert flat[forks.order].tolist() == list(range(LENGTH))
    assert (flat == LENGTH).sum() == len(flat) - LENGTH


def test_a_prompt_shorter_than_the_convolution_is_read_whole_before_its_responses() -> None:
    forks = Forks((RowSpan(start=0, prompt=1, responses=(1,)),), 4, "cpu")
    assert forks.extended.tolist() == [2, 2, 2, 0, 2, 2, 0, 1]


@pytest.mark.parametrize("kernel", [1, 2])
def test_short_kernels_read_fewer_tokens(kernel: int) -> None:
    forks = Forks((RowSpan(start=0, prompt=2, responses=(1, 1)),), kernel, "cpu")
    assert forks.extended.tolist() == [[0, 1, 2, 3], [4, 0, 1, 1, 2, 1, 3]][kernel - 1]


def test_each_response_continues_from_the_state_at_its_prompts_end(qwen3_5_dirs: Mapping[str, Path]) -> None:
    """The rule token by token, which an engine in float32 computes too, over each response behind its prompt."""
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_pretrained(qwen3_5_dirs["bench"], dtype=torch.float32)
    layer = modules_of(model).recurrence.layer
    plain = next(one for one in model.modules() if type(one) is layer)
    states = torch.randn(1, LENGTH, plain.hidden_size)
    expected = torch.zeros(LENGTH, plain.hidden_size)
    with torch.no_grad():
        for row in ROWS:
            prompt = slice(row.start, row.prompt_stop)
            expected[prompt] = by_token(plain, states[:, prompt])
            for start, stop in row.segments()[1:]:
                alone = torch.cat([states[:, prompt], states[:, start:stop]], dim=1)
                expected[start:stop] = by_token(plain, alone)[row.prompt :]
        PackedPolicy(model)
        found = plain(states, packed_mask=PackedMask(rows=ROWS, device="cpu"))
    torch.testing.assert_close(found[0], expected, rtol=1e-5, atol=5e-6)


def by_token(layer: torch.nn.Module, states: torch.Tensor) -> torch.Tensor:
    """Return the output of a layer of transformers for states [1, W, hidden], [W, hidden], without its chunks."""
    keys = layer.num_k_heads * layer.head_k_dim
    mixed = torch.nn.functional.silu(layer.conv1d(layer.in_proj_qkv(states).transpose(1, 2))[:, :, : states.shape[1]])
    query, key, value = mixed.transpose(1, 2).split([keys, keys, layer.num_v_heads * layer.head_v_dim], dim=-1)
    repeats = layer.num_v_heads // layer.num_k_heads
    query, key = (one.unflatten(-1, (layer.num_k_heads, -1)).repeat_interleave(repeats, 2) for one in (query, key))
    query, key = (one * (one.square().sum(-1, keepdim=True) + 1e-6).rsqrt() for one in (query, key))
    decays = -layer.A_log.exp() * torch.nn.functional.softplus(layer.in_proj_a(states) + layer.dt_bias)
    zero = torch.zeros(1, layer.num_v_heads, layer.head_k_dim, layer.head_v_dim)
    read, _ = delta_rule(
        query * layer.head_k_dim**-0.5,
        key,
        value.unflatten(-1, (layer.num_v_heads, -1)),
        decays,
        layer.in_proj_b(states).sigmoid(),
        zero,
    )
    gate = layer.in_proj_z(states).reshape(-1, layer.head_v_dim)
    return layer.out_proj(layer.norm(read.reshape(-1, layer.head_v_dim), gate).view(states.shape[1], -1))
