"""The errors of engines and actors, between a prompt and its rollouts."""

from __future__ import annotations

from ray.exceptions import ObjectLostError, RayTaskError

from rlsys.errors import RowUnusable


class PromptRefused(ValueError):
    """A prompt that the engine cannot accept; the message names prompt, value and rule. The engine is unchanged."""


class PromptQuarantined(RowUnusable):
    """A prompt under which several actors died, the last of them with nothing else to do.

    The message names the prompt and the cause of each death. A run skips and counts the row, and continues.
    """


class BadOutput(RuntimeError):
    """Output of vLLM that a sound model cannot produce, caused by the weights or the clip."""


class WeightsRefused(ValueError):
    """Weights that do not match their manifest or this model. The engine keeps the weights that it had."""


class NoWeights(RuntimeError):
    """A request to generate before any version of the weights was acknowledged."""


class GroupAborted(RuntimeError):
    """A group that was aborted for new weights (`pipeline.weight_update` "abort") and must be sampled again."""


class EngineAsleep(GroupAborted):
    """A request to an engine that sleeps while the learner uses its GPU; to be made again when it is awake."""


class WeightsGone(WeightsRefused):
    """Weights that were lost with the process that had put them into the object store."""


class EngineDied(RuntimeError):
    """An engine that failed or was shut down, so that its actor must be replaced; has the engine's own error."""


class PoolFailed(RuntimeError):
    """A pool in which no actor is left to generate; the message has the actors' own errors."""


class ActorLost(Exception):
    """An actor of a pool that died or no longer responds; the message says why. Its groups are sampled again."""


def are_weights_lost(error: Exception) -> bool:
    """Return whether weights could not be fetched because the process that published them died."""
    cause = error.cause if isinstance(error, RayTaskError) else error
    return isinstance(cause, (ObjectLostError, WeightsGone))


def reason_of(error: Exception) -> str:
    """Return the message of an actor's error, without the traceback that Ray wraps around it."""
    return f"{type(error.cause).__name__}: {error.cause}" if isinstance(error, RayTaskError) else str(error)
