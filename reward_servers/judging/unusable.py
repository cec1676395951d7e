"""The judge cannot be used until a person changes something, which no retry replaces."""

from __future__ import annotations

from rlsys.errors import UserError

NEEDS_CHANGE = "the judge cannot be used: "
"""How the reason of such a score begins, so that the client of reward servers can tell it from what passes."""


class JudgeUnusable(UserError):
    """No endpoint of the judge will answer until its key, quota, model, address or limits are changed."""


def is_final(reason: str) -> bool:
    """Return whether the score with this reason is missing because the judge cannot be used."""
    return reason.startswith(NEEDS_CHANGE)
