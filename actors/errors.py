"""What can go wrong between a prompt and its rollouts, by whose fault it is."""

from __future__ import annotations

from ray.exceptions import ObjectLostError, RayTaskError

from rlsys.errors import RowUnusable


class PromptRefused(ValueError):
    """The prompt's: it cannot be generated from. The engine is untouched. Names prompt, value and rule."""


class PromptQuarantined(RowUnusable):
    """The prompt's, it seems: actors died while they generated it, the last time nothing else.

    Names the prompt and what each of them died of. A run skips and counts the row, and continues.
    """


class BadOutput(RuntimeError):
    """The weights' or the clip's: vLLM returned what no sound model can."""


class WeightsRefused(ValueError):
    """The learner's: a payload that is not what it claims, or not for this model. The engine keeps what it had."""


class NoWeights(RuntimeError):
    """The caller's: generation before a version of the weights was acknowledged."""


class GroupAborted(RuntimeError):
    """Nobody's: new weights came and `pipeline.weight_update` is "abort". The group is to be sampled again."""


class WeightsGone(WeightsRefused):
    """The learner's: the weights went with the process that had put them into the object store."""


class EngineDied(RuntimeError):
    """The engine's: it failed or was shut down, and its actor must be replaced. Holds the engine's own error."""


class PoolFailed(RuntimeError):
    """Everyone's: no actor is left that could generate. Holds the actors' own errors."""


class ActorLost(Exception):
    """An actor's, inside the pool: it died or answers no more. Says how; its groups are sampled again."""


def are_weights_lost(error: Exception) -> bool:
    """Whether weights could not be fetched because the process that sent them is gone: no fault of the actor."""
    cause = error.cause if isinstance(error, RayTaskError) else error
    return isinstance(cause, (ObjectLostError, WeightsGone))


def reason_of(error: Exception) -> str:
    """What an actor's error says, without the traceback that Ray wraps around it."""
    return f"{type(error.cause).__name__}: {error.cause}" if isinstance(error, RayTaskError) else str(error)
