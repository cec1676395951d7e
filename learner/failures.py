"""Whether ranks that failed were lost, or ran into an error of the code, the data or the settings."""

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
    ObjectLostError,  # of a result, with the node it was on
)
BROKEN_COLLECTIVE = re.compile(
    r"gloo|nccl|Connection (closed|reset) by peer|Broken pipe|Timed out waiting .* for (recv|send)|"
    r"TCPStore|failed to recv|Socket Timeout",
    re.IGNORECASE,
)
"""What a rank says when the others do not take part any more. torch has no one class for it."""


class LearnerError(RuntimeError):
    """A rank raised an error. All ranks have been stopped, because the others would wait for it indefinitely."""


def verdict(method: str, errors: Mapping[int, RayError], silent: Sequence[int], timeout_s: float) -> Exception:
    """Return the exception for `errors` of some ranks, by number, while the `silent` ones did not respond in time.

    LearnerIntact if all ranks failed alike and can continue.
    LearnerLost where a process died or hangs: an error of the code has a rank that tells of it, and what the others
    say of their broken collectives is only a consequence.
    LearnerError otherwise.
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
    """What the rank itself raised, or Ray's error where it could not raise any more."""
    return error.cause if isinstance(error, RayTaskError) else error


def _in_short(cause: BaseException) -> str:
    return f"{type(cause).__name__}: {cause}"
