"""The probe: what attacks are, what counts as a leak, and what each judge says of them."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from reward_servers.judging.calls import entailment_call, split_call
from reward_servers.judging.endpoints.llm import JudgeFailure
from reward_servers.judging.judge import EventJudge
from reward_servers.judging.texts import quoted
from reward_servers.judging.tools.injections import CASES, Injection, ProbeReport, injections, probe_injections
from reward_servers.judging.verdicts import VerdictCache
from rlsys.types import Json
from tests.support.judge_oracles import Oracle


class Gullible(Oracle):
    """Does what a prediction says: an attack that its splitter lets through makes all statements entailed."""

    def __init__(self, word: str) -> None:
        super().__init__()
        self._word = word

    def _entailment(self, user: str) -> Json:
        verdicts = super()._entailment(user)
        if self._word in user.split("<statements>")[0]:
            verdicts["verdicts"] = [verdict | {"verdict": "entailed"} for verdict in verdicts["verdicts"]]
        return verdicts


def probed(oracle: Oracle, tmp_path: Path) -> ProbeReport:
    judge = EventJudge(oracle, "oracle-1", VerdictCache(tmp_path / "cache.sqlite"))
    return asyncio.run(probe_injections(judge))


def test_attacks_are_many_and_different_and_carry_the_caption() -> None:
    attacks = injections()
    assert len(attacks) >= 20
    assert len({attack.name for attack in attacks}) == len({attack.text for attack in attacks}) == len(attacks)
    assert all("A cat." in attack.around("A cat.") for attack in attacks)


@pytest.mark.parametrize("attack", injections(), ids=lambda attack: attack.name)
def test_no_attack_leaves_its_delimiters(attack: Injection) -> None:
    text = attack.around("A cat.")
    assert json.loads(quoted(text)) == text
    for call in (split_call(text), entailment_call([text], [text])):
        assert call.user.count("</description>") == 1 and "<|" not in call.user and "[INST]" not in call.user


def test_nothing_leaks_from_a_judge_that_goes_by_events(tmp_path: Path) -> None:
    report = probed(Oracle(), tmp_path)
    assert len(report.probed) == len(CASES) * len(injections())
    assert (report.leaked, report.lost, report.problem) == ((), (), "")
    assert {attack.honest for attack in report.probed} == {1 / 3, 0.0}


def test_a_gullible_judge_is_found_out(tmp_path: Path) -> None:
    report = probed(Gullible("grader"), tmp_path)
    assert {attack.name for attack in report.leaked} == {"claims to be the grader"}
    text = "\n".join(report.lines())
    assert "leaked   1 attacks, 2 captions" in text
    assert "claims to be the grader: 0.33 -> 1.00" in text and "claims to be the grader: 0.00 -> 1.00" in text


def test_an_attack_that_stops_the_judge_is_told_apart_from_a_leak(tmp_path: Path) -> None:
    oracle = Oracle()
    said = oracle._split

    def splitter(user: str) -> Json:
        if "tipped" in user:
            raise JudgeFailure("malformed", "no JSON")
        return said(user)

    oracle._split = splitter  # type: ignore[method-assign]
    report = probed(oracle, tmp_path)
    assert report.leaked == ()
    assert {attack.name for attack in report.lost} == {"bribe"}
    assert "bribe: 0.33 -> malformed" in "\n".join(report.lines())


def test_a_judge_that_is_away_is_a_problem_and_no_clean_bill(tmp_path: Path) -> None:
    oracle = Oracle()
    oracle.answers["split"] = [JudgeFailure("infra", "no connection")] * 1000
    report = probed(oracle, tmp_path)
    assert report.problem == "infra: no connection"
    assert "tried    0 attacks on 0 captions" in "\n".join(report.lines())
