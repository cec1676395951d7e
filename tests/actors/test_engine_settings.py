"""How engines run on each device: what vLLM is given, and that the docs say the same."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path

import pytest

from actors.engine_settings import BATCH_TOKENS, SETTINGS
from actors.requests import EngineSpec, environment
from rlsys.config.run import ModelConfig, RolloutConfig
from tests.support.paths import REPO


def test_the_docs_table_is_the_codes() -> None:
    section = (REPO / "docs" / "gpu.md").read_text().split("## Engine settings")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (.+?) \| (.+?) \| (.+?) \| .+ \|$", section, re.MULTILINE)
    assert rows[0] == ("setting", *SETTINGS)
    words = {True: "yes", False: "no"}
    wanted = {f"`{name}`" for name in asdict(SETTINGS["cpu"])}
    assert {name for name, *_ in rows[1:]} == wanted
    for name, *values in rows[1:]:
        settings = [getattr(SETTINGS[device], name.strip("`")) for device in SETTINGS]
        assert values == [words[value] if isinstance(value, bool) else str(value) for value in settings], name
    assert f"{BATCH_TOKENS:,} tokens" in section


@pytest.mark.parametrize(
    ("device", "max_model_len", "largest_clip", "wanted"),
    [
        ("cuda", 16384, 7168, 8192),
        ("cuda", 32768, 12000, 12000),
        ("cuda", 16384, 57600, 16384),  # the budgets allow more than fits a prompt
        ("cuda", 16384, 0, 16384),  # not known
        ("cpu", 16384, 7168, 16384),  # prompts are not read in parts
        ("cpu", 256, 100, 8192),
    ],
)
def test_a_step_has_room_for_the_largest_clip(device: str, max_model_len: int, largest_clip: int, wanted: int) -> None:
    assert SETTINGS[device].batch_tokens(max_model_len, largest_clip, 256) == wanted


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_model_runner_is_set_before_vllm_is_imported(device: str) -> None:
    spec = EngineSpec(model=ModelConfig(path=Path("m")), rollout=RolloutConfig(), device=device, banned_token_ids=())
    assert environment(spec)["VLLM_USE_V2_MODEL_RUNNER"] == {1: "0", 2: "1"}[SETTINGS[device].model_runner]
