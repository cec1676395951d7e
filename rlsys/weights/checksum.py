"""Checksums of tensors: 128 bits that the CPU and a GPU compute alike, additive over the pieces of a tensor.

A tensor's bytes in C order, padded with zeros, are read as little-endian words of 64 bits. With `x[i]` for word `i`,
`h[i]` for its upper half (signed) and fixed odd weights, two sums modulo 2^64 are formed, with `k = i // 1024` for a
word's block and `c = i % 1024` for its place in it:

    first  = sum of u[k] * (a[c] * x[i] + d[c] * h[i])
    second = sum of v[k] * b[c] * x[i]

Sums of pieces at their places in the tensor add up to those of the tensor, whatever the pieces and their order.

What they notice: every damage within one word, because an odd weight times a difference is never 0 modulo 2^64. Other
damage that does not depend on the weights (words swapped, moved, cleared or negated, foreign bytes) passes with a
chance of about 2^-64 or less, rising to 2^-34 if it is confined to the topmost bits of words: the signs of every second
float32, or of every fourth number of 16 bits. The second term of the first sum is for those: modulo 2^64, two changed
top bits would cancel each other.
The sums are linear, so whoever wants to can construct damage that passes: they find accidents, not forgeries. Files are
protected by SHA-256 instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

WORD_BYTES = 8
BLOCK = 1024
"""Words that share a weight of their block."""
BLOCK_BYTES = BLOCK * WORD_BYTES
_ROWS = 32  # blocks at a time: what a thread needs beside the data stays in the processor's cache
_MODULUS = 1 << 64
_HALF = np.uint64(32)


@dataclass(frozen=True)
class Sums:
    """The two sums of some bytes at their place in a tensor, modulo 2^64."""

    first: int = 0
    second: int = 0

    def __add__(self, other: Sums) -> Sums:
        """Return the sums of the bytes of both; no byte may be in both."""
        return Sums((self.first + other.first) % _MODULUS, (self.second + other.second) % _MODULUS)

    @property
    def hex(self) -> str:
        """The checksum as it is written: 32 hexadecimal digits."""
        return f"{self.first:016x}{self.second:016x}"


def sums_of(data: np.ndarray, start: int = 0) -> Sums:
    """Return the sums of bytes u8 [N]. start: of the first one, in bytes from the beginning of the tensor.

    Needs 512 KiB beside the data.
    """
    lead, first = start % WORD_BYTES, start // WORD_BYTES
    total = Sums()
    if lead:
        num_head = min(WORD_BYTES - lead, data.size)
        total += _of_words(_padded(data[:num_head], lead), first)
        data, first = data[num_head:], first + 1
    num_whole = data.size // WORD_BYTES
    total += _of_words(data[: num_whole * WORD_BYTES].view(np.uint64), first)
    if tail := data[num_whole * WORD_BYTES :].size:
        total += _of_words(_padded(data[-tail:], 0), first + num_whole)
    return total


def _padded(data: np.ndarray, lead: int) -> np.ndarray:
    """Return one word, u64 [1], with the bytes from byte `lead` on and zeros around them."""
    word = np.zeros(WORD_BYTES, np.uint8)
    word[lead : lead + data.size] = data
    return word.view(np.uint64)


def _of_words(words: np.ndarray, first: int) -> Sums:
    """Return the sums of whole words, u64 [N]. first: index of the first one in the tensor."""
    column, block = first % BLOCK, first // BLOCK
    num_before = min(-column % BLOCK, words.size)  # up to the next block
    num_blocks, num_after = divmod(words.size - num_before, BLOCK)
    end = num_before + num_blocks * BLOCK
    total = _of_blocks(words[None, :num_before], block, column)
    block += column > 0
    total += _of_blocks(words[num_before:end].reshape(num_blocks, BLOCK), block, 0)
    return total + _of_blocks(words[None, words.size - num_after :], block + num_blocks, 0)


def _of_blocks(words: np.ndarray, block: int, column: int) -> Sums:
    """Return the sums of consecutive blocks, u64 [blocks, words], each from its word `column` on."""
    num_blocks, width = words.shape
    if not words.size:
        return Sums()
    weights = word_weights()[:, column : column + width]
    halves = np.empty((min(_ROWS, num_blocks), width), np.uint64)
    found = np.empty((2, num_blocks), np.uint64)
    for start in range(0, num_blocks, _ROWS):
        rows = words[start : start + _ROWS]
        upper = np.right_shift(rows, _HALF, out=halves[: len(rows)])
        # einsum multiplies and adds in one pass, without a product in memory
        into = np.einsum("ij,kj->ki", rows, weights[:2], out=found[:, start : start + _ROWS])
        into[0] += np.einsum("ij,j->i", upper, weights[2])
    sums = np.einsum("ij,ij->i", found, block_weights(block, num_blocks))
    return Sums(*(int(total) % _MODULUS for total in sums))


@cache
def word_weights() -> np.ndarray:
    """Return the weights of a word by its place in its block: u64 [3, BLOCK], odd, in the order a, b, d."""
    return _mixed(np.arange(3 * BLOCK, dtype=np.uint64)).reshape(3, BLOCK)


def block_weights(first: int, count: int) -> np.ndarray:
    """Return the weights of consecutive blocks for both sums: u64 [2, count], odd."""
    numbers = np.arange(first, first + count, dtype=np.uint64)
    return np.stack([_mixed(numbers + np.uint64(1 << 40)), _mixed(numbers + np.uint64(1 << 41))])


def _mixed(numbers: np.ndarray) -> np.ndarray:
    """Return SplitMix64's outputs for these states (Steele et al. 2014, doi:10.1145/2714064.2660195), made odd."""
    mixed = numbers * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (mixed ^ (mixed >> np.uint64(31))) | np.uint64(1)
