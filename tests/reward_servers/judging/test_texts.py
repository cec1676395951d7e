"""Prompts of the judge: data cannot pose as anything else, and an edit makes another version."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reward_servers.judging import calls as judge_calls
from reward_servers.judging import texts as judge_texts
from reward_servers.judging.calls import consistency_call, entailment_call, prompt_version, split_call
from reward_servers.judging.texts import JudgePrompt, judge_prompt, numbered, quoted


@given(st.text())
def test_a_quoted_text_is_one_harmless_line_and_loses_nothing(text: str) -> None:
    line = quoted(text)
    assert json.loads(line) == text
    assert not re.search(r"[<>\[\]\n\u200b\u202e]", line)
    assert line.isprintable() or re.search(r"[^\x00-\x7f]", line)  # visible apart from foreign spaces


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('a "b" \\ c', r'"a \"b\" \\ c"'),
        ("</description>", r'"\u003c/description\u003e"'),
        ("<|im_start|>", r'"\u003c|im_start|\u003e"'),
        ("[INST]", r'"\u005bINST\u005d"'),
        ("é 狗", '"é 狗"'),
        ("a\u200bb\u202ec", r'"a\u200bb\u202ec"'),
        ("\U000e0041", r'"\udb40\udc41"'),
        ("\ud800", r'"\ud800"'),
        ("\u2028", r'"\u2028"'),
    ],
)
def test_marks_and_hidden_characters_are_shown_as_escapes(text: str, line: str) -> None:
    assert quoted(text) == line


def test_texts_are_numbered_one_a_line() -> None:
    assert numbered(["a", "b\nc"]) == '1. "a"\n2. "b\\nc"'


def test_data_cannot_bring_places_of_their_own() -> None:
    user = split_call("{{most}} {{text}}").user
    assert '"{{most}} {{text}}"' in user


@given(st.text(min_size=1), st.text(min_size=1))
def test_whatever_the_data_each_tag_opens_and_closes_once(first: str, second: str) -> None:
    calls = {
        ("description",): split_call(first),
        ("description", "statements"): entailment_call([first, second], [second]),
        ("question", "reasoning", "answer"): consistency_call(first, second, first),
    }
    for tags, call in calls.items():
        assert re.findall(r"<[^>]*>", call.user) == [f"<{slash}{tag}>" for tag in tags for slash in ("", "/")]


def test_a_version_is_a_readable_name_and_a_hash() -> None:
    assert re.fullmatch(r"split-events-1-[0-9a-f]{8}", prompt_version("split"))
    assert re.fullmatch(r"entailment-1-[0-9a-f]{8}", prompt_version("entailment"))
    assert re.fullmatch(r"consistency-1-[0-9a-f]{8}", prompt_version("consistency"))
    assert split_call("a").prompt_version == prompt_version("split")


def test_any_edit_makes_another_version(monkeypatch: pytest.MonkeyPatch) -> None:
    before = prompt_version("entailment")
    plain = judge_prompt("entailment-1")
    edits = [
        JudgePrompt(name=plain.name, system=plain.system + ".", user=plain.user, second_try=plain.second_try),
        JudgePrompt(name=plain.name, system=plain.system, user=plain.user + ".", second_try=plain.second_try),
        JudgePrompt(name=plain.name, system=plain.system, user=plain.user, second_try=plain.second_try + "."),
    ]
    found = {before}
    for edit in edits:
        monkeypatch.setattr(judge_calls, "judge_prompt", lambda _, edit=edit: edit)
        found.add(prompt_version("entailment"))
    monkeypatch.undo()
    monkeypatch.setattr(judge_texts, "_MARKS", frozenset("<>&"))  # quoting is part of what the model is told
    found.add(prompt_version("entailment"))
    monkeypatch.undo()
    monkeypatch.setattr(judge_calls, "_REASON_CHARS", 200)
    found.add(prompt_version("entailment"))
    assert len(found) == 6


def test_the_schema_asks_for_exactly_one_verdict_per_event_with_its_number() -> None:
    verdicts = entailment_call(["a", "b", "c"], ["d"]).schema["properties"]["verdicts"]
    assert (verdicts["minItems"], verdicts["maxItems"]) == (3, 3)
    assert [item["properties"]["index"]["const"] for item in verdicts["prefixItems"]] == [1, 2, 3]


def test_a_text_cannot_be_split_into_more_events_than_it_has_words_for() -> None:
    def most(text: str) -> int:
        return split_call(text).schema["properties"]["events"]["maxItems"]

    assert (most("run"), most("A dog runs away."), most("word " * 1000)) == (1, 2, 32)
    assert (most("Run. Jump! Sit."), most("狗在跑。猫睡觉。")) == (3, 2)


def test_prompts_leave_most_of_a_small_context_to_the_data() -> None:
    """Characters are an upper bound of tokens for any tokenizer that falls back to bytes."""
    for call in (split_call(""), entailment_call(["a"], ["b"]), consistency_call("", "", "")):
        assert len(call.system) + len(call.user) < 1600
