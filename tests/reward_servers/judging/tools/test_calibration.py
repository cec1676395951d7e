"""Agreement with people's labels: figures by hand, and abstentions that are in none of them."""

from __future__ import annotations

import asyncio
import gzip
import json
import math
import os
import re
from collections import Counter
from pathlib import Path

import pytest

from reward_servers.judging.judge import EventJudge
from reward_servers.judging.tools.calibration import Calibration, LabelError, calibrate, read_labels
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
    return asyncio.run(calibrate(judge, read_labels(path)))


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


GOOD = '{"prediction": "A.", "events": [{"event": "A.", "entailed": true}]}'


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        ("{", "not JSON"),
        (GOOD.replace("true}]}", "true}],}"), "not JSON .*a comma behind the last value"),
        (GOOD + ",", "not JSON .*a comma behind the last value"),
        ("// of the pilot", "a comment, which JSON does not have"),
        ("# of the pilot", "a comment, which JSON does not have"),
        ("[]", "not an object but list"),
        ('{"prediction": "a"}', "events: Field required"),
        ('{"prediction": "a", "events": []}', "events"),
        ('{"prediction": "a", "events": [{"event": "b", "entailed": "yes"}]}', r"events\.0\.entailed"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_a_bad_line_is_left_out_and_reported_and_the_others_count(tmp_path: Path, bad: str, problem: str) -> None:
    path = tmp_path / "labels.jsonl"
    path.write_text(f"{GOOD}\n{bad}\n\n{GOOD}\n")
    found = calibrated(Oracle(), path, tmp_path)
    assert found.counts == {(True, True): 2}
    (said,) = found.problems
    assert re.match(f"line 2: {problem}", said)
    assert f"1 lines were left out: {said}" in list(found.lines())


def test_line_ends_and_marks_of_other_systems_change_nothing(tmp_path: Path) -> None:
    path, mark = tmp_path / "labels.jsonl", b"\xef\xbb\xbf"
    separator = GOOD.replace("A.", "A\u2028\x85.", 1).encode()  # line ends of Unicode, which JSON allows in a text
    path.write_bytes(mark + GOOD.encode() + b"\r\n" + mark + separator + b"\r\n" + mark + b"\r\n\r\n")
    labels = read_labels(path)
    assert [row.prediction for row in labels.rows] == ["A.", "A\u2028\x85."] and not labels.problems
    path.write_bytes(GOOD.encode() + b"\n" + GOOD.replace("A.", "\xe9").encode("latin-1"))
    assert read_labels(path).problems == ("line 2: not UTF-8 text (invalid continuation byte at byte 16)",)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"", "is empty"),
        (b"\r\n \n", "is empty"),
        (gzip.compress(GOOD.encode(), mtime=0), "is compressed by gzip"),
        (GOOD.encode("utf-16"), "is UTF-16 text; save it as UTF-8"),
        (json.dumps([json.loads(GOOD)], indent=1).encode(), "is one JSON list"),
        (json.dumps(json.loads(GOOD), indent=1).encode(), "is JSON over several lines"),
        (b"<!DOCTYPE html>", "is HTML or XML"),
        (b"prediction,events\nA.,A.\n", "begins with b'prediction,events"),
        (b"PK\x03\x04 of a spreadsheet", "is a zip file or a spreadsheet"),
    ],
)
def test_a_file_of_another_kind_is_named_in_one_sentence(tmp_path: Path, content: bytes, kind: str) -> None:
    path = tmp_path / "labels.jsonl"
    path.write_bytes(content)
    with pytest.raises(
        LabelError, match=rf"labels\.jsonl: no row of labels.*, and the file {kind}.*write one"
    ) as error:
        read_labels(path)
    assert "\n" not in str(error.value)
    with pytest.raises(LabelError, match="No such file"):
        read_labels(tmp_path / "missing")
    with pytest.raises(LabelError, match="Is a directory"):
        read_labels(tmp_path)
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(LabelError, match="not a regular file"):
        read_labels(tmp_path / "fifo")
