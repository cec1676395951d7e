"""Classification of failed ranks: lost processes, or errors of code, data or settings."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from ray.exceptions import (
    LocalRayletDiedError,
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    RayTaskError,
    WorkerCrashedError,
)

from rlsys.errors import LearnerIntact, LearnerLost

LOST = (
    RayActorError,
    WorkerCrashedError,
    NodeDiedError,
    LocalRayletDiedError,
    OutOfMemoryError,
    ObjectLostError,  # a result that was lost with its node
)
BROKEN_COLLECTIVE = re.compile(
    r"gloo|nccl|Connection (closed|reset) by peer|Broken pipe|Timed out waiting .* for (recv|send)|"
    r"TCPStore|DistStoreError|failed to recv|Socket Timeout",
    re.IGNORECASE,
)
"""Messages of a rank whose peers no longer take part in a collective; torch has no single class for such errors."""


class LearnerError(RuntimeError):
    """An error that a rank raised. All ranks have been stopped, because the others would wait for it indefinitely."""


def verdict(method: str, errors: Mapping[int, RayError], silent: Sequence[int], timeout_s: float) -> Exception:
    """Return the exception for `errors` of some ranks, by number, while the `silent` ones did not respond in time.

    Returns LearnerIntact if all ranks failed in the same way and can continue; LearnerLost if a process died or hangs,
    that is if no rank reports more than a broken collective; LearnerError otherwise.
    """
    causes = {rank: cause_of(error) for rank, error in sorted(errors.items())}
    intact = [cause for cause in causes.values() if isinstance(cause, LearnerIntact)]
    if intact and len(intact) == len(causes) and not silent:
        return intact[0]
    if not causes:
        return LearnerLost(f"learner.{method}: ranks {list(silent)} took over learner.timeout_s={timeout_s} s.")
    reported = "; ".join(f"rank {rank}: {_in_short(cause)}" for rank, cause in causes.items())
    message = f"learner.{method}: all ranks were stopped, because {reported}"
    if any(isinstance(cause, LOST) for cause in causes.values()):
        return LearnerLost(message)
    if all(BROKEN_COLLECTIVE.search(_in_short(cause)) for cause in causes.values()):
        return LearnerLost(f"{message}; ranks {list(silent)} did not respond" if silent else message)
    return LearnerError(message)


def cause_of(error: RayError) -> BaseException:
    """Return the error that the rank raised, or Ray's error if the rank died."""
    return error.cause if isinstance(error, RayTaskError) else error


def _in_short(cause: BaseException) -> str:
    return f"{type(cause).__name__}: {cause}"
