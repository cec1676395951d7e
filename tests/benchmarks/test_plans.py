"""The table of plans: the published sizes, and a verdict that says how or why not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.plans import MODELS, Found, first_that_fits
from rlsys.models.sizes import read_model_sizes

PUBLISHED = {
    "Qwen2.5-VL-3B": 3_754_622_976,
    "Qwen2.5-VL-7B": 8_292_166_656,
    "Qwen2.5-VL-32B": 33_452_718_336,
    "Qwen2.5-VL-72B": 73_410_777_344,
    "Qwen3-VL-30B-A3B": 31_070_754_032,
}


@pytest.mark.parametrize("name", MODELS)
def test_sizes_are_those_of_the_published_models(name: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(MODELS[name]))
    assert read_model_sizes(tmp_path).parameters == PUBLISHED[name]


def test_a_verdict_is_a_way_to_train_or_the_problem(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(MODELS["Qwen2.5-VL-7B"]))
    found = first_that_fits(tmp_path, 8, "8k")
    assert isinstance(found, Found) and found.way == "all weights" and " GiB | " in found.row()
    (tmp_path / "config.json").write_text(json.dumps(MODELS["Qwen2.5-VL-72B"]))
    assert "for keys and values" in str(first_that_fits(tmp_path, 1, "8k"))
