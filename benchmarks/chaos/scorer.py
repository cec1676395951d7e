"""A scorer that gives different answers different scores, so that an untrained model has something to learn from."""

from __future__ import annotations

import zlib

from reward_servers.scorers.response import Response

NAME, REFERENCE = "spread", "benchmarks.chaos.scorer:spread"


def spread(response: Response) -> float:
    """Return a number in [0, 1) that depends only on the text."""
    return zlib.crc32(response.text.encode("utf-8", "replace")) % 1000 / 1000
