"""A user's own scorers: one Python function each, named in the config as `module:function`.

    def says_please(response: Response) -> float:
        return float("please" in response.text)

`reward.scorers={polite: my_rewards:says_please}` and `reward.weights={captioning: {polite: 0.5}}` add half of it to
the reward of captions. The function takes one `Response` and returns a number in [0, 1]. It runs wherever
the servers run, so its module must be importable there. It must be fast (a millisecond), without side effects and
safe to call from several threads. What it raises, or returns instead, is trouble of the scorer ("infra"), never a 0.
"""

from __future__ import annotations

import importlib
import inspect
import logging
import numbers
from collections.abc import Callable, Mapping

from reward_servers.scorers.response import Response
from rlsys.config.run import ConfigError

UserScorer = Callable[[Response], float]

_log = logging.getLogger(__name__)


class UserScorerError(Exception):
    """A user's scorer gave no number in [0, 1]; the message names the scorer and what it did instead."""


def load_user_scorers(scorers: Mapping[str, str]) -> Mapping[str, UserScorer]:
    """Score name -> function, for `reward.scorers`. Raises ConfigError naming module, function and remedy."""
    return {name: _load(name, reference) for name, reference in scorers.items()}


def call_user_scorer(name: str, scorer: UserScorer, response: Response) -> float:
    """Return the score of `scorer`, in [0, 1]. Raises UserScorerError for anything else, its exceptions included."""
    try:
        value: object = scorer(response)
    except Exception as error:
        _log.exception("scorer %s raised", name)
        raise UserScorerError(f"scorer {name!r} raised {type(error).__name__}: {error}") from error
    # numbers.Real: numpy's scalars and bool count too; NaN compares false
    if not isinstance(value, numbers.Real) or not 0.0 <= float(value) <= 1.0:
        raise UserScorerError(f"scorer {name!r} returned {_shown(value)}; return a number from 0 to 1.")
    return float(value)


def _load(name: str, reference: str) -> UserScorer:
    field = f"reward.scorers.{name}={reference!r}"
    module_name, separator, function_name = reference.partition(":")
    if not (separator and module_name and function_name):
        raise ConfigError(f"{field}: write it as package.module:function.")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        remedy = "put it on the Python path of the reward servers (PYTHONPATH, or the job's working directory)"
        raise ConfigError(
            f"{field}: module {module_name!r} cannot be imported ({type(error).__name__}: {error}); {remedy}."
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise ConfigError(f"{field}: {module.__file__ or module_name} has no function {function_name!r}.")
    if inspect.iscoroutinefunction(function):
        raise ConfigError(f"{field}: it is an async function; scorers are called and not awaited.")
    return function


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:120]}…"
