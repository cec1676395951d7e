"""Failures of ranks that are losses, and those that are errors of the code."""

from __future__ import annotations

import pytest
from ray.exceptions import ActorDiedError, RayError, RayTaskError

from learner.failures import LearnerError, verdict
from rlsys.errors import FramesLost, LearnerLost, NotWritten

DIED = ActorDiedError()


def raised(cause: Exception) -> RayTaskError:
    return RayTaskError("update", "traceback", cause)


BROKEN = raised(RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc:544] Connection closed by peer [::1]:5"))
CODE = raised(FloatingPointError("loss nan on file:1"))


@pytest.mark.parametrize(
    ("errors", "silent", "expected"),
    [
        ({0: DIED}, (), LearnerLost),
        ({0: BROKEN, 1: DIED}, (), LearnerLost),
        ({0: BROKEN}, (1,), LearnerLost),  # it may be that nobody has noticed yet that rank 1 is gone
        ({0: BROKEN, 1: BROKEN}, (), LearnerLost),
        ({}, (0, 1), LearnerLost),
        ({1: CODE}, (0,), LearnerError),
        ({0: BROKEN, 1: CODE}, (), LearnerError),
        ({0: raised(RuntimeError("CUDA error: device-side assert triggered"))}, (), LearnerError),
        ({0: raised(NotWritten("full")), 1: raised(NotWritten("full"))}, (), NotWritten),
        ({0: raised(FramesLost(("ab",)))}, (), FramesLost),
        ({0: raised(NotWritten("full"))}, (1,), LearnerError),
        ({0: raised(NotWritten("full")), 1: DIED}, (), LearnerLost),
    ],
)
def test_a_dead_or_hung_process_is_a_loss_and_an_error_of_the_code_is_not(
    errors: dict[int, RayError], silent: tuple[int, ...], expected: type[Exception]
) -> None:
    assert type(verdict("update", errors, silent, 5.0)) is expected


def test_every_rank_is_reported() -> None:
    problem = verdict("update", {1: DIED, 0: BROKEN}, (2,), 5.0)
    assert "learner.update: all ranks were stopped, because rank 0: RuntimeError: " in str(problem)
    assert "rank 1: ActorDiedError: " in str(problem)
