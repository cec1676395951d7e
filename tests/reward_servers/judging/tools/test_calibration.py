"""Agreement with people's labels: figures by hand, and abstentions that are in none of them."""

from __future__ import annotations

import asyncio
import json
import math
from collections import Counter
from pathlib import Path

import pytest

from reward_servers.judging.judge import EventJudge
from reward_servers.judging.tools.calibration import Calibration, LabelError, calibrate
from reward_servers.judging.verdicts import VerdictCache
from rlsys.types import Json
from tests.support.judge_oracles import Oracle, refused


def calibration(**counts: int) -> Calibration:
    """counts: label and verdict as yy, yn, y_ (the judge cannot tell), …"""
    verdicts = {"y": True, "n": False, "_": None}
    table: Counter[tuple[bool, bool | None]] = Counter()
    for name, count in counts.items():
        table[name[0] == "y", verdicts[name[1]]] = count
    return Calibration(judge="oracle", counts=table, failed=Counter(), first_failure="")


def test_kappa_and_agreement_by_hand() -> None:
    """Cohen's own kind of example: 50 cases, 20 and 15 agreed, so 0.7; by chance 0.5; kappa 0.4."""
    found = calibration(yy=20, yn=5, ny=10, nn=15, y_=7, n_=1)
    assert (found.num_decided, found.agreement, found.kappa) == (50, 0.7, pytest.approx(0.4))


def test_kappa_of_full_agreement_of_chance_and_of_one_class() -> None:
    assert calibration(yy=3, nn=4).kappa == pytest.approx(1)
    assert calibration(yy=1, yn=1, ny=1, nn=1).kappa == pytest.approx(0)
    assert calibration(yn=2, ny=2).kappa == pytest.approx(-1)
    assert math.isnan(calibration(yy=5).kappa) and calibration(yy=5).agreement == 1
    assert math.isnan(calibration(y_=5).kappa) and math.isnan(calibration().agreement)


def written(tmp_path: Path, *rows: Json) -> Path:
    path = tmp_path / "labels.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def row(prediction: str, **events: bool) -> Json:
    return {
        "prediction": prediction,
        "events": [{"event": f"{name}.", "entailed": told} for name, told in events.items()],
    }


def calibrated(oracle: Oracle, path: Path, tmp_path: Path) -> Calibration:
    judge = EventJudge(oracle, "oracle-1", VerdictCache(tmp_path / "cache.sqlite"))
    return asyncio.run(calibrate(judge, path))


def test_verdicts_are_counted_by_label_and_lost_rows_apart(tmp_path: Path) -> None:
    oracle = Oracle()
    oracle.undecided = {"E."}
    path = written(
        tmp_path,
        row("A. B.", A=True, C=True, D=False),  # told; missed; rightly not told
        row("A. F. E.", F=False, E=True),  # taken as told; undecided: the row abstains and still counts
        row("refused", A=True),
    )
    oracle.answers["split"] = []
    said = oracle._split
    oracle._split = lambda user: refuse() if "refused" in user else said(user)  # type: ignore[method-assign]

    def refuse() -> Json:
        raise refused()

    found = calibrated(oracle, path, tmp_path)
    assert found.counts == {(True, True): 1, (True, False): 1, (False, False): 1, (False, True): 1, (True, None): 1}
    assert found.failed == {"abstain": 1}
    text = "\n".join(found.lines())
    assert "agreement   0.500" in text and "kappa       0.000" in text
    assert "4 decided, 1 where the judge cannot tell" in text
    assert "rows without verdicts: 1 abstain; the first: the model refused" in text


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "no row"),
        ("{", "line 1: JSON"),
        ('\n{"prediction": "a"}', "line 2: events: Field required"),
        ('{"prediction": "a", "events": []}', "line 1: events"),
        ('{"prediction": "a", "events": [{"event": "b", "entailed": "yes"}]}', r"line 1: events\.0\.entailed"),
    ],
)
def test_a_broken_file_is_named_by_line_with_the_form(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "labels.jsonl"
    path.write_text(text)
    with pytest.raises(LabelError, match=rf"labels\.jsonl.*{problem}"):
        calibrated(Oracle(), path, tmp_path)
    with pytest.raises(LabelError, match="No such file"):
        calibrated(Oracle(), tmp_path / "missing", tmp_path)
