"""A user's own scorers: one Python function each, named in the config as `module:function`.

    def says_please(response: Response) -> float:
        return float("please" in response.text)

`reward.scorers={polite: my_rewards:says_please}` and `reward.weights={captioning: {polite: 0.5}}` add half of it to
the reward of captions. The function takes one `Response` and returns a number in [0, 1]. It runs wherever the servers
run, so its module must be importable there, in processes of its own (`reward_servers.scorers.scorer_processes`). What
it raises, or returns instead of a score, is trouble of the scorer ("infra"), never a 0.
"""

from __future__ import annotations

import importlib
import inspect
import traceback
from collections.abc import Callable, Mapping

from reward_servers.schema import ScorerFault
from reward_servers.scorers.response import Response
from rlsys.config.run import ConfigError

UserScorer = Callable[[Response], float]

TOLERANCE = 1e-6
"""How far outside [0, 1] rounding may put a score; it is then moved to the nearest end."""
_REAL_KINDS = "biuf"  # of numpy: bool, integers and floats; numpy and torch turn more than these into floats
_MAX_DETAIL_CHARS = 6000
_MAX_SHOWN_CHARS = 120
_MAX_FRAMES = 12


class UserScorerError(Exception):
    """A user's scorer gave no number in [0, 1]; the message names the scorer and what it did instead."""

    def __init__(self, reason: str, fault: ScorerFault) -> None:
        super().__init__(reason)
        self.fault = fault


def load_user_scorers(scorers: Mapping[str, str]) -> Mapping[str, UserScorer]:
    """Return score name -> function, for `reward.scorers`. Raises ConfigError naming module, function and remedy."""
    return {name: _load(name, reference) for name, reference in scorers.items()}


def call_user_scorer(name: str, scorer: UserScorer, response: Response) -> float:
    """Return the score of `scorer`, in [0, 1].

    Any value with a real number in it is taken: bool as 1 or 0, scalars and zero-dimensional arrays of numpy and torch.
    Raises UserScorerError for every other value, and for whatever the scorer raises, SystemExit included.
    """
    try:
        value: object = scorer(response)
    except BaseException as error:  # noqa: BLE001 - a user's code may raise anything, and none of it may end the server
        raise _raised(name, scorer, error) from error
    number = _number(value)
    if number is None or not -TOLERANCE <= number <= 1 + TOLERANCE:  # NaN compares false
        shown, where = _shown(value), _place(scorer)
        reason = f"scorer {name!r} returned {shown}{where and f' ({where})'}; return a number from 0 to 1."
        fault = ScorerFault(scorer=name, kind=f"returned {type(value).__name__}", details=reason)
        raise UserScorerError(reason, fault)
    return min(max(number, 0.0), 1.0)


def _number(value: object) -> float | None:
    """Return the number that `value` is, or None."""
    try:
        if not hasattr(type(value), "__float__") or getattr(value, "ndim", 0) != 0:
            return None
        dtype = getattr(value, "dtype", None)
        kind = "c" if getattr(dtype, "is_complex", False) else getattr(dtype, "kind", "f")
        return float(value) if kind in _REAL_KINDS else None  # type: ignore[arg-type]
    except (Exception, SystemExit):  # noqa: BLE001 - of a user's class, or a number beyond a float's range
        return None


def _raised(name: str, scorer: UserScorer, error: BaseException) -> UserScorerError:
    """Return what is known of an exception: its type, the user's own line, and the end of its traceback."""
    inside = error.__traceback__.tb_next if error.__traceback__ is not None else None
    frames = traceback.extract_tb(inside)
    own_file = getattr(getattr(scorer, "__code__", None), "co_filename", None)
    at = next((frame for frame in reversed(frames) if frame.filename == own_file), frames[-1] if frames else None)
    where = f" ({at.filename}:{at.lineno})" if at is not None else ""
    said = _shortened("".join(traceback.format_exception_only(type(error), error)).strip(), 500)
    stack = "".join(traceback.format_list(frames[-_MAX_FRAMES:]))
    details = f"Traceback (most recent call last):\n{stack[-_MAX_DETAIL_CHARS:]}{said}"
    fault = ScorerFault(scorer=name, kind=f"raised {type(error).__name__}", details=details)
    return UserScorerError(f"scorer {name!r} raised {said}{where}", fault)


def _load(name: str, reference: str) -> UserScorer:
    field = f"reward.scorers.{name}={reference!r}"
    module_name, separator, function_name = reference.partition(":")
    if not (separator and module_name and function_name):
        raise ConfigError(f"{field}: write it as package.module:function.")
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # a script that was meant to be run may end by itself
        remedy = "put it on the Python path of the reward servers (PYTHONPATH, or the job's working directory)"
        raise ConfigError(
            f"{field}: module {module_name!r} cannot be imported ({type(error).__name__}: {error}); {remedy}."
        ) from error
    try:
        function = getattr(module, function_name, None)
    except Exception as error:  # noqa: BLE001 - of a user's module that makes its attributes when they are asked for
        raise ConfigError(f"{field}: {function_name!r} cannot be had ({type(error).__name__}: {error}).") from error
    if not callable(function):
        place = getattr(module, "__file__", None) or module_name
        raise ConfigError(f"{field}: {place} has no function {function_name!r}.")
    _check_callable(field, function)
    return function


def _check_callable(field: str, function: Callable[..., object]) -> None:
    """Raise ConfigError for what cannot be called with one response, or gives no number when it is."""
    if inspect.isclass(function):
        raise ConfigError(f"{field}: it is a class; name a function, or an object of it that can be called.")
    called = function if inspect.isroutine(function) else getattr(function, "__call__", function)  # noqa: B004
    if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(called):
        raise ConfigError(f"{field}: it is an async function; scorers are called and not awaited.")
    if inspect.isgeneratorfunction(function) or inspect.isgeneratorfunction(called):
        raise ConfigError(f"{field}: it is a generator; return one number instead of yielding.")
    try:
        signature = inspect.signature(function)
    except (ValueError, TypeError):  # of some functions that are written in C
        return
    try:
        signature.bind(None)
    except TypeError as error:
        raise ConfigError(f"{field}: a scorer is called with one Response, and {error}; see its signature.") from error


def _place(scorer: UserScorer) -> str:
    code = getattr(scorer, "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno}" if code is not None else ""


def _shown(value: object) -> str:
    try:
        text = repr(value)
    except Exception as error:  # noqa: BLE001 - of a user's class
        text = f"a {type(value).__name__}, whose repr raises {type(error).__name__}"
    return _shortened(text, _MAX_SHOWN_CHARS)


def _shortened(text: str, size: int) -> str:
    return text if len(text) <= size else f"{text[:size]}…"
