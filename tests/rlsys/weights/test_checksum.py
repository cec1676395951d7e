"""Checksums of tensors: their definition, their pieces, the device's way, and the damage that they notice."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlsys.weights.checksum import BLOCK, BLOCK_BYTES, Sums, sums_of
from rlsys.weights.tensors import all_sums, as_named, entries_of, fetched_sums, is_finite, sums_on_device

MASK = (1 << 64) - 1
RNG = np.random.default_rng(0)
DATA = RNG.integers(0, 256, 3 * BLOCK_BYTES + 333, dtype=np.uint8)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def split_mix(number: int) -> int:
    """SplitMix64 in Python's integers, made odd."""
    mixed = number * 0x9E3779B97F4A7C15 & MASK
    mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9 & MASK
    mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB & MASK
    return mixed ^ mixed >> 31 | 1


def by_definition(data: bytes) -> Sums:
    """The sums word by word, as the module's docstring writes them."""
    first = second = 0
    for index in range(-(-len(data) // 8)):
        word = int.from_bytes(data[8 * index : 8 * index + 8].ljust(8, b"\0"), "little")
        block, place = divmod(index, BLOCK)
        in_first, in_second, of_half = (split_mix(place + number * BLOCK) for number in range(3))
        first += split_mix(block + (1 << 40)) * (in_first * word + of_half * (word >> 32))
        second += split_mix(block + (1 << 41)) * in_second * word
    return Sums(first & MASK, second & MASK)


def on_device(data: np.ndarray, start: int = 0) -> Sums:
    """The device's computation, here with the CPU as the device."""
    return fetched_sums([sums_on_device(torch.from_numpy(data), start)])[0]


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 24, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 9, DATA.size])
def test_cpu_and_device_follow_the_definition(size: int) -> None:
    data = DATA[:size]
    assert sums_of(data) == on_device(data) == by_definition(data.tobytes())


def test_the_checksum_stays_what_it_is() -> None:
    # actors, learner and checkpoints of different versions compare it
    assert sums_of(np.arange(20, dtype=np.uint8)).hex == "d838d043deac37d0f758f7d3977f30d8"


@given(cuts=st.lists(st.integers(0, DATA.size), max_size=12), order=st.randoms())
@settings(deadline=None)
def test_pieces_add_up_in_any_order(cuts: list[int], order: object) -> None:
    bounds = [0, *sorted(cuts), DATA.size]
    pieces = list(zip(bounds, bounds[1:], strict=False))
    order.shuffle(pieces)  # type: ignore[attr-defined]
    total = Sums()
    for index, (start, stop) in enumerate(pieces):
        total += (on_device if index % 2 else sums_of)(DATA[start:stop], start)
    assert total == sums_of(DATA)


def test_shards_by_rows_add_up_to_the_whole_tensor() -> None:
    whole = torch.randn(37, 129).bfloat16()  # rows that end within words
    parts = whole.split(10)
    starts = [10 * 129 * 2 * index for index in range(len(parts))]
    total = Sums()
    for part, start in zip(parts, starts, strict=True):
        total += fetched_sums([sums_on_device(part, start)])[0]
    assert [total] == all_sums([whole])


@pytest.mark.parametrize("size", [64, 8192 + 3, 20_001])
def test_every_flipped_bit_changes_both_ways_of_computing(size: int) -> None:
    data = DATA[:size].copy()
    before = sums_of(data)
    places = range(8 * size) if size < 100 else [*RNG.integers(0, 8 * size, 200), *range(8 * size - 64, 8 * size)]
    for place in places:
        byte, bit = divmod(int(place), 8)
        data[byte] ^= 1 << bit
        assert sums_of(data).second != before.second
        if place % 16 == 0:
            assert on_device(data) == sums_of(data)
        data[byte] ^= 1 << bit
    assert sums_of(data) == before


def damages(tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    """The tensor after each kind of damage; its first number is not 0."""
    words = {2: torch.int16, 4: torch.int32}[tensor.element_size()]
    top_bit = torch.iinfo(words).min
    flat = tensor.reshape(-1)

    def changed(*places: int, by: int = top_bit) -> torch.Tensor:
        copy = flat.clone()
        for place in places:
            copy.view(words)[place] ^= by
        return copy.view(tensor.shape)

    swapped = flat.clone()
    swapped[[3, 5000]] = flat[[5000, 3]]
    rectangle = flat.clone()  # equal sums of rows and columns
    rectangle[[0, 5000, 1, 5001]] = flat[[1, 5001, 0, 5000]]
    cleared = flat.clone()
    cleared[4096:8192] = 0
    blocks = flat.clone()
    blocks[:4096], blocks[4096:8192] = flat[4096:8192], flat[:4096]
    return {
        "two sign bits": changed(1, 3),
        "four sign bits": changed(1, 3, 5, 4099),
        "sign bits of every second number": changed(*range(1, 4096, 2)),
        "negated": -tensor,
        "swapped words": swapped,
        "words swapped across": rectangle,
        "rolled": flat.roll(1).view(tensor.shape),
        "rolled by a block": flat.roll(BLOCK_BYTES // tensor.element_size()).view(tensor.shape),
        "blocks swapped": blocks.view(tensor.shape),
        "transposed": tensor.t().contiguous(),
        "reversed": flat.flip(0).view(tensor.shape),
        "a chunk cleared": cleared.view(tensor.shape),
        "all cleared": torch.zeros_like(tensor),
        "last number": changed(flat.numel() - 1, by=1),
        "the sign of a zero": changed(17),
    }


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_kind_of_damage_is_noticed(dtype: torch.dtype) -> None:
    tensor = torch.randn(101, 101, generator=torch.Generator().manual_seed(0)).to(dtype)
    tensor.view(-1)[17] = 0.0
    before = entries_of([tensor])[0].checksum
    found = {name: entries_of([damaged.view(tensor.shape)])[0].checksum for name, damaged in damages(tensor).items()}
    assert before not in found.values()
    assert len(set(found.values())) == len(found)
    for damaged in damages(tensor).values():
        assert fetched_sums([sums_on_device(damaged)]) == all_sums([damaged])


def test_the_payload_of_a_nan_counts() -> None:
    quiet = torch.tensor([1.0, float("nan")])
    other = quiet.clone()
    other.view(torch.int32)[1] ^= 1
    assert bool(torch.isnan(other[1]))
    assert entries_of([quiet]) != entries_of([other])


def test_equal_bytes_of_another_dtype_or_shape_are_another_entry() -> None:
    tensor = torch.randn(4, 6).bfloat16()
    entries = entries_of([tensor, tensor.view(torch.float16), tensor.view(6, 4)])
    assert len({entry.checksum for entry in entries}) == 1
    assert len(set(entries)) == 3


def test_a_part_that_is_not_contiguous_is_read_in_its_own_order() -> None:
    tensor = torch.randn(8, 6)
    assert all_sums([tensor[:, 1:4]]) == [sums_of(as_named(tensor[:, 1:4].clone()).data)]
    assert fetched_sums([sums_on_device(tensor.t())]) == all_sums([tensor.t().contiguous()])


def test_random_damage_never_passes_in_many_trials() -> None:
    data = DATA[:512].copy()
    seen = {sums_of(data)}
    for _ in range(5000):
        places = RNG.integers(0, 64, 2)
        words = data.view(np.uint64).copy()
        words[places] ^= np.uint64(1) << RNG.integers(0, 64, 2, dtype=np.uint64)
        if not np.array_equal(words.view(np.uint8), data):
            assert sums_of(words.view(np.uint8)) not in seen


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_one_number_that_is_not_finite_is_found(dtype: torch.dtype, value: float) -> None:
    tensor = torch.full((33, 77), torch.finfo(dtype).max, dtype=dtype)  # whose sum is infinite
    tensor[0, 0] = torch.finfo(dtype).min
    assert is_finite(tensor)
    assert is_finite(torch.empty(0, dtype=dtype))
    for place in (0, 1000, tensor.numel() - 1):
        damaged = tensor.clone()
        damaged.view(-1)[place] = value
        assert not is_finite(damaged)
