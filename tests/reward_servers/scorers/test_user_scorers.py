"""A user's own scorer, by example: `polite` is all that it takes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from reward_servers.schema import ScoreRow
from reward_servers.scorers.response import Response
from reward_servers.scorers.scorers import load_user_scorers, rule_scores
from rlsys.config.run import ConfigError, RewardConfig, ScoreSettings
from rlsys.tasks.answers import TimeSpans
from rlsys.tasks.table import check_weights, score_weights
from rlsys.types import Score

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


def test_a_function_named_in_the_config_adds_to_the_reward() -> None:
    reward = RewardConfig(
        scorers={"polite": f"{HERE}:polite"}, weights={"temporal_grounding": {"polite": 0.5, "format": 0.0}}
    )
    check_weights(reward)
    weights = score_weights("temporal_grounding", reward)
    found = rule_scores(ROW, list(weights), reward.settings, load_user_scorers(reward.scorers))
    assert weights == {"format": 0.0, "iou": 1.0, "polite": 0.5}
    assert (found.status, dict(found.scores)) == ("ok", {"format": 1.0, "iou": 1.0, "polite": 1.0})


def test_a_scorer_sees_the_whole_row() -> None:
    seen: list[Response] = []

    def look(response: Response) -> float:
        seen.append(response)
        return 1.0

    rule_scores(ROW, ["look"], ScoreSettings(), {"look": look})
    (response,) = seen
    assert (response.text, response.think_text, response.asks_for_think) == (TEXT, "Wait, please.", True)
    assert (response.task, response.truth, response.question) == ("temporal_grounding", [2.0, 6.0], "When?")
    assert (response.num_tokens, response.duration_s) == (9, 10.0)
    assert response.answers == response.expected == {"answer": TimeSpans(spans=((2.0, 6.0),))}


def with_scorer(scorer: Callable[[Response], object]) -> Score:
    return rule_scores(ROW, ["iou", "mine"], ScoreSettings(), {"mine": scorer})  # type: ignore[dict-item]


@pytest.mark.parametrize("value", [0, 1, True, 0.5, np.float32(0.25), np.int64(1)])
def test_any_real_number_from_zero_to_one_is_a_score(value: float) -> None:
    assert dict(with_scorer(lambda _: value).scores) == {"iou": 1.0, "mine": float(value)}


@pytest.mark.parametrize("value", [None, "1", -0.1, 1.1, float("nan"), float("inf"), [1.0], 1j, np.array([0.5, 0.5])])
def test_what_is_no_such_number_is_the_scorers_trouble(value: object) -> None:
    found = with_scorer(lambda _: value)
    assert (found.status, dict(found.scores)) == ("infra", {})
    assert "scorer 'mine' returned" in found.reason


def test_an_exception_is_the_scorers_trouble_and_is_named() -> None:
    def broken(response: Response) -> float:
        return response.answers["no such block"] and 1.0  # type: ignore[return-value]

    found = with_scorer(broken)
    assert (found.status, dict(found.scores)) == ("infra", {})
    assert found.reason == "scorer 'mine' raised KeyError: 'no such block'"
    with_value_error = with_scorer(lambda _: int("x"))
    assert with_value_error.status == "infra"


def test_a_score_that_the_servers_do_not_have_is_named_with_those_they_have() -> None:
    found = rule_scores(ROW, ["theirs"], ScoreSettings(), {"mine": lambda _: 1.0})
    assert found.status == "malformed"
    assert "'theirs'" in found.reason and "mine" in found.reason


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("no_such_module:score", "module 'no_such_module' cannot be imported .*PYTHONPATH"),
        (f"{HERE}:no_such_function", "has no function 'no_such_function'"),
        (f"{HERE}:TEXT", "has no function 'TEXT'"),
        (f"{HERE}:hasty", "async function"),
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
