"""The table of model families, and that nothing but its files names a model."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest
from typer.testing import CliRunner

from rlsys.commands.app import app
from rlsys.config.run import ConfigError, parse
from rlsys.models.families.family import EVERYTHING
from rlsys.models.families.table import DEFAULT, FAMILIES, FamilyName, family_named
from tests.test_code_shape import PACKAGES, ROOT, name_of

NAMED = re.compile(
    r"qwen\d(_\d)?_vl|Qwen\d(_\d_?)?VL|qwen\d_\d|(?-i:internvl|InternVL[A-Z]|llava|Llava)", re.IGNORECASE
)
"""Names of models as in a config.json or of a class, but not as people write them."""


def test_only_the_files_of_families_name_a_model() -> None:
    files = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    found = {name_of(path) for path in files if NAMED.search(path.read_text())}
    described = {f"rlsys/models/families/{name}.py" for name in (*FAMILIES, "table")}
    assert found == described | {"learner/model/families.py"}


@pytest.mark.parametrize(
    "text",
    [
        "qwen2_5_vl",
        "Qwen2_5_VLConfig",
        "Qwen2VLProcessor",
        "qwen3_vl_moe",
        "Qwen3VLModel",
        "Qwen3_5Model",
        "internvl",
        "InternVLModel",
    ],
)
def test_a_name_of_a_model_is_found(text: str) -> None:
    assert NAMED.search(text)


def test_every_family_is_described_for_all_who_need_it() -> None:
    import transformers

    from learner.model.families import MODULES

    assert tuple(FAMILIES) == get_args(FamilyName) == tuple(MODULES)
    assert DEFAULT in FAMILIES
    for name, family in FAMILIES.items():
        assert family.model_type == name
        assert set(family.supports) <= set(EVERYTHING)
        for kind in (family.model, family.processor, family.image_processor, family.video_processor):
            assert hasattr(transformers, kind), kind


def test_an_unknown_family_is_refused_with_the_list_of_known_ones() -> None:
    with pytest.raises(
        KeyError, match=r"model_type='gemma4' .* qwen2_5_vl \(Qwen2.5-VL\), qwen2_vl \(Qwen2-VL\), qwen3_vl"
    ):
        family_named("gemma4")


def test_another_layout_of_a_family_is_refused_with_what_to_use_instead() -> None:
    with pytest.raises(KeyError, match="internvl_chat.*; use the checkpoint .* ends with .-HF"):
        family_named("internvl_chat")


@pytest.mark.parametrize(("dirs", "kind"), [("qwen3_vl_moe_dirs", "experts"), ("qwen3_5_dirs", "linear attention")])
def test_an_adapter_is_refused_where_vllm_cannot_compute_the_model_beside_one(
    dirs: str, kind: str, request: pytest.FixtureRequest, tiny_model_dir: Path, tmp_path: Path
) -> None:
    from rlsys.runs.assemble import engine_spec, prompt_builder
    from rlsys.runs.evaluating.responder import open_answering_pool

    rank = {"output_dir": str(tmp_path), "learner": {"lora": {"rank": 4, "targets": ["q_proj"]}}}
    refused = parse({**rank, "model": {"path": str(request.getfixturevalue(dirs)["tiny"])}}, source="test")
    with (
        pytest.raises(ConfigError, match=f"on CPU vLLM cannot compute the {kind} of .* merge it into the model"),
        open_answering_pool(refused, tmp_path),
    ):
        pass
    plain = parse({**rank, "model": {"path": str(tiny_model_dir)}}, source="test")
    room = [engine_spec(one, prompt_builder(one)).lora.rank for one in (plain, refused)]
    assert room == [4, 0]  # an engine without room is sent whole models, adapters merged in


def test_the_command_lists_each_family_with_what_it_supports() -> None:
    shown = CliRunner().invoke(app, ["models"]).output
    for family in FAMILIES.values():
        assert f"{family.title}: model_type {family.model_type}" in shown
        assert all(f"limit:         {limit}" in shown for limit in family.limits)
    assert shown.count("shared-prompt packing") == len(FAMILIES)
