"""Stored verdicts under other tiers, and other verdicts on stored events."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path

import pytest

from reward_servers.judging.judge import EventJudge, Judge
from reward_servers.judging.tools.commands import rescore_lines
from reward_servers.judging.tools.rescoring import EvidenceError, Rescored, read_stored, rescore
from reward_servers.judging.verdicts import VerdictCache
from rlsys.config.run import ScoreSettings
from rlsys.errors import UserError
from rlsys.types import Json
from tests.support.judge_oracles import Oracle, refused

TIERS = ScoreSettings(recall_tiers=((0.3, 0.25), (0.9, 1.0)))


def stored(told: str, entailed: list[bool | None], status: str = "ok", **others: Json) -> Json:
    """A row as `rlsys score` writes it: events A, B, …, and the verdicts on them."""
    verdicts = [{"event": f"{'ABCDEFGH'[i]}.", "entailed": value, "reason": "r"} for i, value in enumerate(entailed)]
    recall = sum(value is True for value in entailed) / len(entailed)
    evidence = {"judge": "llm", "reference": "A. B. C.", "prediction": told, "recall": verdicts, "precision": None}
    scores = {"format": 1.0, "recall": recall} if status == "ok" else {}
    return {"task": "captioning", "status": status, "scores": scores, "evidence": evidence, **others}


def written(tmp_path: Path, *rows: Json) -> Path:
    path = tmp_path / "scored.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def rescored(path: Path, judge: Judge | None, settings: ScoreSettings) -> list[Rescored]:
    async def everything() -> list[Rescored]:
        return [row async for row in rescore(read_stored(path), judge, settings)]

    return asyncio.run(everything())


def test_other_tiers_need_no_judge_and_touch_the_recall_alone(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        stored("A.", [True, False, False]),
        {"task": "temporal_grounding", "status": "ok", "scores": {"iou": 0.5}},
        stored("A. B.", [True, None], status="abstain", reason="cannot tell", id=7),
        stored("A.", [True, True]),
    )
    third, undecided, full = rescored(path, None, TIERS)
    assert (third.line, third.before, third.after) == (1, pytest.approx(1 / 3), 0.25)
    assert third.row["scores"] == {"format": 1.0, "recall": 0.25}
    assert (undecided.line, undecided.before, undecided.after) == (3, "abstain", "abstain")
    assert undecided.row["scores"] == {} and undecided.row["id"] == 7
    assert (full.after, full.is_changed) == (1.0, False)


def test_an_abstention_is_decided_where_tiers_make_the_open_event_irrelevant(tmp_path: Path) -> None:
    (row,) = rescored(written(tmp_path, stored("A.", [True, False, None], status="abstain")), None, TIERS)
    assert (row.before, row.after, row.row["status"]) == ("abstain", 0.25, "ok")


def test_precision_and_f1_come_along_where_they_were_judged(tmp_path: Path) -> None:
    row = stored("A. X.", [True, False])
    row["evidence"]["precision"] = [{"event": "A.", "entailed": True, "reason": ""}]
    (found,) = rescored(written(tmp_path, row), None, ScoreSettings())
    assert found.row["scores"] == {"format": 1.0, "recall": 0.5, "precision": 1.0, "f1": pytest.approx(2 / 3)}


def test_another_judge_looks_at_the_same_reference_events(tmp_path: Path) -> None:
    oracle = Oracle()
    judge = EventJudge(oracle, "oracle-2", VerdictCache(tmp_path / "cache.sqlite"))
    path = written(tmp_path, stored("A. C.", [True, True, False]), stored("refused", [True]))
    oracle.answers["split"] = []
    said = oracle._split

    def splitter(user: str) -> Json:
        if "refused" in user:
            raise refused()
        return said(user)

    oracle._split = splitter  # type: ignore[method-assign]
    first, second = rescored(path, judge, ScoreSettings())
    assert (first.num_flipped, first.num_events, first.is_changed) == (2, 3, True)
    assert first.after == pytest.approx(2 / 3) == first.before  # other verdicts, same recall
    assert first.row["evidence"]["model"] == "oracle-2"
    assert (second.after, second.row["scores"], second.num_flipped) == ("abstain", {}, 0)
    assert second.row["evidence"]["recall"] == stored("", [True])["evidence"]["recall"]  # the old verdicts stay


def test_the_summary_says_what_changed_and_the_rows_can_be_kept(tmp_path: Path) -> None:
    path = written(tmp_path, stored("A.", [True, False]), stored("A.", [True]), {"other": 1})
    out = tmp_path / "out.jsonl"
    lines = list(rescore_lines(path, TIERS, None, out, timeout_s=10))
    assert lines[0] == "line 1: 0.5000 -> 0.2500"
    assert "2 with event verdicts, 1 changed" in lines[1]
    assert "mean 0.7500 before, 0.6250 now (2 rows)" in lines[-1]
    assert [json.loads(line)["scores"]["recall"] for line in out.read_text().splitlines()] == [0.25, 1.0]
    with pytest.raises(UserError, match="write to another one"):
        list(rescore_lines(path, TIERS, None, path, timeout_s=10))


def test_rows_that_were_scored_before_an_interruption_are_kept(tmp_path: Path) -> None:
    path, out = written(tmp_path, *[stored("A.", [True, False])] * 3), tmp_path / "out.jsonl"
    lines = rescore_lines(path, TIERS, None, out, timeout_s=10)
    assert next(lines) == "line 1: 0.5000 -> 0.2500"
    with pytest.raises(KeyboardInterrupt):
        lines.throw(KeyboardInterrupt)  # type: ignore[attr-defined]
    assert [json.loads(line)["scores"]["recall"] for line in out.read_text().splitlines()] == [0.25]


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        ("{", "not JSON"),
        ('{"task": "captioning",}', "not JSON"),
        ("// a comment", "a comment, which JSON does not have"),
        ("[1]", "not an object but list"),
        ('{"evidence": {"recall": []}}', "broken evidence: recall"),
        ('{"evidence": {"recall": [{"event": "a"}]}}', "broken evidence: verdict"),
        ('{"evidence": {"recall": 3}}', "broken evidence"),
        (json.dumps(stored("A.", [True])).replace('"reference"', '"text"'), "broken evidence: reference: write a text"),
        (json.dumps(stored("A.", [True]) | {"scores": [1]}), "broken evidence: scores"),
    ],
)
def test_a_bad_line_is_left_out_and_reported_and_the_others_are_scored(tmp_path: Path, bad: str, problem: str) -> None:
    path, good = tmp_path / "scored.jsonl", json.dumps(stored("A.", [True, False]))
    path.write_bytes(f"\ufeff{good}\r\n{bad}\r\n{good}\r\n".encode())
    *changed, _, _, _, _, said = rescore_lines(path, TIERS, None, None, timeout_s=10)
    assert changed == ["line 1: 0.5000 -> 0.2500", "line 3: 0.5000 -> 0.2500"]
    assert re.match(f"left out   1 lines: line 2: {problem}", said)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"", "is empty"),
        (b"{", "is JSON over several lines"),
        (json.dumps([stored("A.", [True])], indent=1).encode(), "is one JSON list"),
        (b"PAR1....", "is a Parquet file"),
        (b"\x1f\x8b\x08", "is compressed by gzip"),
        (b"task,evidence\n", "begins with b'task,evidence"),
    ],
)
def test_a_file_of_another_kind_is_named_before_anything_is_written(tmp_path: Path, content: bytes, kind: str) -> None:
    path, out = tmp_path / "scored.jsonl", tmp_path / "out.jsonl"
    path.write_bytes(content)
    with pytest.raises(EvidenceError, match=rf"scored\.jsonl: no scored row.*, and the file {kind}.*rlsys score"):
        list(rescore_lines(path, TIERS, None, out, timeout_s=10))
    assert not out.exists()
    path.write_text('{"task": "temporal_grounding", "scores": {"iou": 0.5}}\n')
    assert not read_stored(path).rows, "a file of other tasks is none of another kind"
