"""An endpoint that refuses everything, one that dies, and what is sent to one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from rlsys.config.evaluation import EndpointConfig
from rlsys.errors import UserError
from rlsys.evaluation.answering import endpoint as endpoint_module
from rlsys.evaluation.answering.answers import AnswersFile
from rlsys.evaluation.answering.endpoint import REFUSALS_IN_A_ROW, EndpointResponder
from rlsys.evaluation.answering.modes import modes_of
from rlsys.evaluation.answering.responders import collect_answers
from rlsys.types import ClipInfo, ClipRef, MediaSpec, PromptItem, Sampling
from tests.support.judge_fault_server import Fault, FaultServer, Seen, error

IDENTITY = {"endpoint": "test"}
FINE = Fault(content="<answer>(A)</answer>")


class NoClips:
    """A store that is never asked: the rows are without media."""

    async def get(self, spec: MediaSpec) -> ClipRef:
        raise AssertionError(spec)

    async def shuffled(self, clip: ClipRef, seed: int) -> ClipRef:
        raise AssertionError(clip)

    def has_room(self) -> bool:
        return True

    def forget(self, references: object) -> None: ...

    def close(self) -> None: ...


def rows(count: int) -> tuple[tuple[PromptItem, Sampling], ...]:
    items = [
        PromptItem(
            prompt_id=f"set:{index}", task="multiple_choice", question=f"{index}?", options=(), media=(), truth="(A)"
        )
        for index in range(count)
    ]
    (mode,) = modes_of(items, seed=0, max_tokens=8, num_samples=1, controls=(), control_prompts=0)
    return mode.rows


@contextmanager
def responder(server: FaultServer) -> Iterator[EndpointResponder]:
    settings = EndpointConfig(url=server.url, model="m", concurrency=2, timeout_s=60.0)
    opened = EndpointResponder(NoClips(), lambda item: item.question, settings, None)
    yield opened
    opened.close()


def collect(server: FaultServer, path: Path, count: int) -> dict[str, str]:
    with AnswersFile(path, IDENTITY) as file, responder(server) as opened:
        collect_answers(opened, rows(count), file, at_once=2, ahead=0)
        return {name: answer.problem or answer.texts[0] for name, answer in file.answers.items()}


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer() as opened:
        opened.rule = lambda _: FINE
        yield opened


@pytest.fixture(autouse=True)
def few_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint_module, "MAX_RETRIES", 1)


def test_an_endpoint_that_refuses_everything_ends_the_evaluation_early_with_the_reason(
    server: FaultServer, tmp_path: Path
) -> None:
    server.rule = lambda _: error(400, "this model takes\n no such request")
    with pytest.raises(UserError, match="takes no such request") as raised:
        collect(server, tmp_path / "answers.jsonl", 40)
    assert f"The first {REFUSALS_IN_A_ROW} requests were all refused" in str(raised.value)
    assert "check evaluation.endpoint" in str(raised.value) and server.url in str(raised.value)
    asked = {json.dumps(seen.body, sort_keys=True) for seen in server.seen}  # a retry is no further row
    assert len(asked) < REFUSALS_IN_A_ROW + 3
    assert len((tmp_path / "answers.jsonl").read_text().splitlines()) == 1, "only the identity"


def test_so_few_rows_that_are_all_refused_are_an_error_too(server: FaultServer, tmp_path: Path) -> None:
    server.rule = lambda _: error(400, "no")
    with pytest.raises(
        UserError, match="all 3 rows were refused, the last one with: .* refuses the request: Error code: 400 - no"
    ):
        collect(server, tmp_path / "answers.jsonl", 3)


def test_a_refused_row_is_listed_and_asked_again_the_next_time(server: FaultServer, tmp_path: Path) -> None:
    def refuses_one(seen: Seen) -> Fault:
        return error(400, "too long") if "4?" in json.dumps(seen.body) else FINE

    server.rule = refuses_one
    found = collect(server, tmp_path / "answers.jsonl", 10)
    assert "refuses the request: Error code: 400 - too long" in found.pop("set:4")
    assert set(found.values()) == {FINE.content} and len(found) == 9
    num_seen, server.rule = len(server.seen), lambda _: FINE
    assert collect(server, tmp_path / "answers.jsonl", 10)["set:4"] == FINE.content
    assert len(server.seen) == num_seen + 1


def test_answers_of_an_endpoint_that_dies_are_kept_and_the_message_says_how_to_continue(
    server: FaultServer, tmp_path: Path
) -> None:
    path = tmp_path / "answers.jsonl"
    server.rule = lambda seen: FINE if seen.number < 5 else error(503, "gone")
    with pytest.raises(UserError, match=r"gone.*run the same command again to continue") as raised:
        collect(server, path, 10)
    assert server.url in str(raised.value) and "\n" not in str(raised.value)
    kept = [json.loads(line)["row_id"] for line in path.read_text().splitlines()[1:]]
    assert 4 <= len(kept) <= 5
    server.stop()
    with pytest.raises(UserError, match="APIConnectionError.*run the same command again"):
        collect(server, path, 10)
    server.start()
    num_seen, server.rule = len(server.seen), lambda _: FINE
    assert len(collect(server, path, 10)) == 10
    assert len(server.seen) == num_seen + 10 - len(kept), "no answered row is asked twice"


def test_a_server_that_knows_the_newer_name_of_the_length_limit_alone_is_asked_by_it(
    server: FaultServer, tmp_path: Path
) -> None:
    def wants_the_newer_name(seen: Seen) -> Fault:
        return error(400, "use max_completion_tokens") if "max_tokens" in seen.body else FINE

    server.rule = wants_the_newer_name
    collect(server, tmp_path / "answers.jsonl", 2)
    bodies = [seen.body for seen in server.seen if "max_tokens" not in seen.body]
    assert {body["messages"][-1]["content"][0]["text"] for body in bodies} == {"0?", "1?"}
    assert {(body["max_completion_tokens"], body["temperature"], body["model"]) for body in bodies} == {(8, 0.0, "m")}
    assert all(0 <= body["seed"] < 2**31 for body in bodies)


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("http://h:8000/v1", "http://h:8000/v1"),
        (" http://h:8000/v1/ ", "http://h:8000/v1"),
        ("http://h:8000", "http://h:8000/v1"),
        ("http://h:8000/", "http://h:8000/v1"),
        ("https://h/v1/chat/completions", "https://h/v1"),
        ("https://h/v1/models/", "https://h/v1"),
        ("https://[::1]:1/openai/v1beta", "https://[::1]:1/openai/v1beta"),
    ],
)
def test_an_address_means_the_base_of_the_api(given: str, url: str) -> None:
    assert EndpointConfig(url=given).url == url


@pytest.mark.parametrize(
    "given", ["h:8000/v1", "ftp://h/v1", "http://", "http://h h/v1", "http://h:0/v1", "http://u:p@h"]
)
def test_what_is_no_address_is_refused(given: str) -> None:
    with pytest.raises(ValueError, match="evaluation.endpoint.api_key_env|such as http://host:8000/v1; this "):
        EndpointConfig(url=given)


def clip_at(*times_s: float) -> ClipInfo:
    return ClipInfo(
        kind="video",
        digest="d",
        num_bytes=0,
        times_s=np.array(times_s),
        start_s=times_s[0],
        grid_thw=(len(times_s) // 2, 2, 2),
        second_per_grid_s=2 * 2.5,
        duration_s=10.0,
    )


def test_a_model_that_tells_times_is_sent_those_of_the_frames_and_others_the_rate() -> None:
    clip = clip_at(1.0, 3.567, 6.167, 8.733)
    told = endpoint_module._sequence_settings(clip, True)
    assert [number / told["fps"] for number in told["frames_indices"]] == [0.0, 2.567, 5.167, 7.733]
    rate = endpoint_module._sequence_settings(clip, False)
    assert (rate["fps"], rate["frames_indices"], rate["duration"]) == (0.4, [0, 1, 2, 3], 10.0)
