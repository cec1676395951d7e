"""A user's own scorer, by example: `polite` is all that it takes."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from reward_servers.schema import ScoreRow
from reward_servers.scorers.response import Response, read_response
from reward_servers.scorers.user_scorers import TOLERANCE, UserScorerError, call_user_scorer, load_user_scorers
from rlsys.config.run import ConfigError, RewardConfig
from rlsys.tasks.answers import TimeSpans
from rlsys.tasks.table import check_weights, score_weights

HERE = "tests.reward_servers.scorers.test_user_scorers"


def polite(response: Response) -> float:
    """Half for a please in the reasoning, half for an answer that is not longer than the clip."""
    is_asked = "please" in (response.think_text or "")
    period = response.answers["answer"]
    is_short = isinstance(period, TimeSpans) and period.spans[0][1] <= (response.duration_s or 0.0)
    return (is_asked + is_short) / 2


async def hasty(response: Response) -> float:
    return 1.0


TEXT = "<think>Wait, please.</think><answer>2.0 to 6.0</answer>"
ROW = ScoreRow(
    rollout_id="r",
    task="temporal_grounding",
    text=TEXT,
    truth=[2.0, 6.0],
    question="When?",
    num_tokens=9,
    duration_s=10.0,
)


def scored(scorer: Callable[[Response], object], row: ScoreRow = ROW) -> float:
    return call_user_scorer("mine", scorer, read_response(row))  # type: ignore[arg-type]


def fault_of(scorer: Callable[[Response], object]) -> UserScorerError:
    with pytest.raises(UserScorerError) as error:
        scored(scorer)
    return error.value


def test_a_function_named_in_the_config_adds_to_the_reward() -> None:
    reward = RewardConfig(
        scorers={"polite": f"{HERE}:polite"}, weights={"temporal_grounding": {"polite": 0.5, "format": 0.0}}
    )
    check_weights(reward)
    assert score_weights("temporal_grounding", reward) == {"format": 0.0, "iou": 1.0, "polite": 0.5}
    assert scored(load_user_scorers(reward.scorers)["polite"]) == 1.0


def test_a_scorer_sees_the_whole_row() -> None:
    seen: list[Response] = []

    def look(response: Response) -> float:
        seen.append(response)
        return 1.0

    scored(look)
    (response,) = seen
    assert (response.text, response.think_text, response.asks_for_think) == (TEXT, "Wait, please.", True)
    assert (response.task, response.truth, response.question) == ("temporal_grounding", [2.0, 6.0], "When?")
    assert (response.num_tokens, response.duration_s) == (9, 10.0)
    assert response.answers == response.expected == {"answer": TimeSpans(spans=((2.0, 6.0),))}


@pytest.mark.parametrize(
    ("value", "score"),
    [
        *((0, 0.0), (1, 1.0), (True, 1.0), (False, 0.0), (np.True_, 1.0), (0.5, 0.5), (Fraction(1, 4), 0.25)),
        *((Decimal("0.5"), 0.5), (np.float32(0.25), 0.25), (np.int64(1), 1.0), (np.array(0.5), 0.5)),
        (torch.tensor(0.5), 0.5),
        *((1.0000001, 1.0), (1 + TOLERANCE, 1.0), (-1e-9, 0.0), (np.float32(1.0000001), 1.0)),
    ],
)
def test_a_value_that_holds_one_number_from_zero_to_one_is_a_score(value: object, score: float) -> None:
    found = scored(lambda _: value)
    assert type(found) is float and found == score


class Unspeakable:
    """Raises from every conversion that a message may need."""

    def __repr__(self) -> str:
        raise RuntimeError("no repr")


class Unnumbered:
    """Looks like a scalar and raises when it is looked at."""

    def __float__(self) -> float:
        return 0.5

    @property
    def ndim(self) -> int:
        raise RuntimeError("no dimensions")


class Leaving:
    """Ends the process when it is made a number."""

    def __float__(self) -> float:
        sys.exit(3)


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        *((None, "NoneType"), ("1", "str"), (b"1", "bytes"), (-0.1, "float"), (1.1, "float"), (1.00001, "float")),
        *((math.nan, "float"), (math.inf, "float"), (-math.inf, "float"), (10**400, "int"), ([1.0], "list")),
        *((1j, "complex"), (np.array([0.5, 0.5]), "ndarray"), (np.array([0.5]), "ndarray")),
        *((torch.tensor([0.5]), "Tensor"), (torch.tensor(math.nan), "Tensor"), ((0.5 for _ in "a"), "generator")),
        *(
            (Unspeakable(), "Unspeakable"),
            ({"score": 1.0}, "dict"),
            ((0.5, 0.5), "tuple"),
            (Decimal("sNaN"), "Decimal"),
        ),
        *((np.str_("0.5"), "str_"), (np.bytes_(b"0.5"), "bytes_"), (np.array("0.5"), "ndarray")),
        *(
            (np.complex128(0.5 + 0.5j), "complex128"),
            (torch.tensor(0.5 + 0j), "Tensor"),
            (np.array(0.5, object), "ndarray"),
            (np.timedelta64(0), "timedelta64"),
        ),
        *((np.ma.masked, "MaskedConstant"), (torch.empty((), device="meta"), "Tensor")),
        *((Unnumbered(), "Unnumbered"), (Leaving(), "Leaving"), (type("Number", (), {}), "type")),
    ],
)
def test_every_other_value_is_the_scorers_fault_and_never_a_score(value: object, kind: str) -> None:
    error = fault_of(lambda _: value)
    assert error.fault.kind == f"returned {kind}"
    assert str(error).startswith("scorer 'mine' ") and len(str(error)) < 600
    assert f"{__file__}:" in str(error)


def deep(response: Response) -> float:
    return deep(response) + 1


def leaves(code: object) -> Callable[[Response], float]:
    def scorer(response: Response) -> float:
        sys.exit(code)  # type: ignore[arg-type]

    return scorer


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


def mute(response: Response) -> float:
    raise Mute


def interrupted(response: Response) -> float:
    raise KeyboardInterrupt


def wordy(response: Response) -> float:
    raise ValueError("x" * 1_000_000)


@pytest.mark.parametrize(
    ("scorer", "kind"),
    [
        (leaves(0), "SystemExit"),
        (leaves("bye"), "SystemExit"),
        (deep, "RecursionError"),
        (mute, "Mute"),
        (interrupted, "KeyboardInterrupt"),
        (wordy, "ValueError"),
    ],
)
def test_whatever_a_scorer_raises_is_its_fault_and_ends_nothing(scorer: Callable[[Response], float], kind: str) -> None:
    error = fault_of(scorer)
    assert error.fault.kind == f"raised {kind}" and error.fault.scorer == "mine"
    assert __file__ in error.fault.details and len(error.fault.details) < 8000


def test_a_traceback_shows_the_users_own_line() -> None:
    def broken(response: Response) -> float:
        return response.answers["no such block"] and 1.0  # type: ignore[return-value]

    error = fault_of(broken)
    line = broken.__code__.co_firstlineno + 1
    assert str(error) == f"scorer 'mine' raised KeyError: 'no such block' ({__file__}:{line})"
    assert error.fault.details.startswith("Traceback (most recent call last):\n")
    assert f'File "{__file__}", line {line}, in broken\n    return response.answers[' in error.fault.details
    assert error.fault.details.endswith("KeyError: 'no such block'") and "call_user_scorer" not in error.fault.details


def test_the_users_line_is_named_although_a_library_raised() -> None:
    def broken(response: Response) -> float:
        return float(json.loads(response.text))

    error = fault_of(broken)
    assert f"({__file__}:{broken.__code__.co_firstlineno + 1})" in str(error) and "json" in error.fault.details


class Asynchronous:
    async def __call__(self, response: Response) -> float:
        return 1.0


class Weighted:
    """A scorer with a setting."""

    def __init__(self, weight: float) -> None:
        self.weight = weight

    def __call__(self, response: Response) -> float:
        return self.weight


def of_two(response: Response, other: Response) -> float:
    return 1.0


def of_none() -> float:
    return 1.0


def with_defaults(response: Response, weight: float = 0.5, *more: float, **named: float) -> float:
    return weight


asynchronous, half = Asynchronous(), Weighted(0.5)


@pytest.mark.parametrize("name", ["half", "with_defaults", "polite"])
def test_whatever_can_be_called_with_a_response_is_a_scorer(name: str) -> None:
    assert 0.0 < scored(load_user_scorers({"mine": f"{HERE}:{name}"})["mine"]) <= 1.0


def __getattr__(name: str) -> object:
    """Fail for one name, as modules do that make their attributes when they are asked for."""
    if name == "made_late":
        raise RuntimeError("no GPU")
    raise AttributeError(name)


def yielding(response: Response) -> Iterator[float]:
    yield 1.0


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("no_such_module:score", "module 'no_such_module' cannot be imported .*PYTHONPATH"),
        (f"{HERE}:no_such_function", "has no function 'no_such_function'"),
        (f"{HERE}:TEXT", "has no function 'TEXT'"),
        (f"{HERE}:hasty", "async function"),
        (f"{HERE}:yielding", "it is a generator; return one number"),
        (f"{HERE}:asynchronous", "async function"),
        (f"{HERE}:Weighted", "it is a class; name a function"),
        (f"{HERE}:of_two", "called with one Response, and missing a required argument: 'other'"),
        (f"{HERE}:of_none", "called with one Response, and too many positional arguments"),
        (f"{HERE}:made_late", r"cannot be had \(RuntimeError: no GPU\)"),
        ("sys:nothing", "sys has no function 'nothing'"),
        ("os.system", "package.module:function"),
        (":score", "package.module:function"),
    ],
)
def test_a_scorer_that_cannot_be_loaded_is_refused_with_a_remedy(reference: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        load_user_scorers({"mine": reference})
    assert f"reward.scorers.mine={reference!r}" in str(error.value)


def test_a_module_that_fails_while_it_is_imported_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_rewards.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match="ZeroDivisionError: division by zero"):
        load_user_scorers({"mine": "broken_rewards:score"})


def test_a_module_that_ends_python_when_it_is_imported_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a_script.py").write_text("import sys\n\ndef score(response): return 1.0\n\nsys.exit(0)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match="module 'a_script' cannot be imported \\(SystemExit: 0\\)"):
        load_user_scorers({"mine": "a_script:score"})
