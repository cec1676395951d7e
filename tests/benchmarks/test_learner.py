"""The learner's benchmark compares like with like: its padded form computes what the packed form computes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.learner import AIM, SHAPES, Measured, ratio_cases
from benchmarks.learner_plots import slope, unique_tokens
from benchmarks.learner_step import Setting, SwitchedPolicy, alone, make_row, write_model
from learner.model.policy import load_model, read_layout
from learner.packing.packing import pack
from tests.support.rounding import LOGPROB

SHAPE = SHAPES["tiny"]


def test_the_padded_form_has_the_packed_forms_log_probs(tmp_path: Path) -> None:
    setting = Setting(shape=SHAPE, device="cpu", dtype="float32", attention="sdpa", threads=1)
    write_model(tmp_path, setting)
    model = load_model(tmp_path, dtype="float32", attention="sdpa")
    policy, layout = SwitchedPolicy(model), read_layout(model, tmp_path)
    row = make_row(SHAPE, prompt_tokens=40, response_tokens=9, group_size=3)
    rows = [alone(row, index) for index in range(3)]
    with torch.no_grad():
        packed, _ = policy(pack([row], layout, dtype=torch.float32))
        policy.num_rows = 3
        padded, _ = policy(pack(rows, layout, dtype=torch.float32))
        policy.num_rows = 1
        floor, _ = policy(pack([row], layout, dtype=torch.float32))
    assert (packed - padded).abs().max() < LOGPROB
    # the floor lets later responses see earlier ones; only the first is as it should be
    assert (packed - floor)[:9].abs().max() < LOGPROB < (packed - floor).abs().max()


def test_every_padded_row_brings_a_clip_of_its_own() -> None:
    row = make_row(SHAPE, prompt_tokens=40, response_tokens=9, group_size=3)
    assert len({alone(row, index).clips[0].info.digest for index in range(3)}) == 3
    assert row.num_tokens == unique_tokens({"prompt_tokens": 40, "response_tokens": 9, "group_size": 3})


@pytest.mark.parametrize("quick", [True, False])
def test_the_aims_row_is_always_measured(quick: bool) -> None:
    cases = ratio_cases(64, quick)
    assert any((case.prompt_tokens, case.group_size) == (64 * AIM[0], AIM[1]) for case in cases)
    assert {case.group_size for case in cases} == {4, 8, 16}


def test_the_exponent_is_that_of_the_last_points() -> None:
    rows = [{"group_size": size, "packed_s": max(8.0, size) ** 2} for size in (2, 4, 8, 16, 32)]
    assert slope("groups", rows, "packed") == pytest.approx(2.0)


def test_an_interrupted_benchmark_measures_only_what_is_missing(tmp_path: Path) -> None:
    file, settings, calls = tmp_path / "learner.json", {"threads": "2"}, []

    def measure(prompt_tokens: int) -> dict[str, float]:
        calls.append(prompt_tokens)
        return {"packed_s": prompt_tokens / 100}

    first = Measured(file, settings)
    assert first.get({"prompt_tokens": 64}, lambda: measure(64)) == {"packed_s": 0.64}
    with (tmp_path / "learner.json.partial").open("a") as partial:
        partial.write('{"key": {"prompt_tok')  # killed while writing
    second = Measured(file, settings)
    assert second.get({"prompt_tokens": 64}, lambda: measure(64)) == {"packed_s": 0.64}
    assert second.get({"prompt_tokens": 128}, lambda: measure(128)) == {"packed_s": 1.28}
    assert calls == [64, 128]
    other = Measured(file, {"threads": "1"})
    other.get({"prompt_tokens": 64}, lambda: measure(64))
    assert calls == [64, 128, 64], "figures of other settings are not taken"
    assert (tmp_path / "learner.json.partial.other").exists()
    other.remove()
    assert not (tmp_path / "learner.json.partial").exists()
