"""A score that tells any two answers apart, so that a model which knows nothing yet has something to learn from."""

from __future__ import annotations

import zlib

from reward_servers.scorers.response import Response

NAME, REFERENCE = "spread", "benchmarks.chaos.scorer:spread"


def spread(response: Response) -> float:
    """A number in [0, 1) that depends on the text alone."""
    return zlib.crc32(response.text.encode("utf-8", "replace")) % 1000 / 1000
