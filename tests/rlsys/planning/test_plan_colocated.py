"""The plan of a GPU that a rank and an engine use in turn."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from rlsys.config.run import RunConfig, parse
from rlsys.models.sizes import ModelSizes, read_model_sizes
from rlsys.planning.plan import GIB, Assumptions, Prompts
from rlsys.planning.plan_colocated import shared_section
from rlsys.planning.plan_learner import rank_memory

GIVEN = Assumptions(memory_gib=10.0, rank_reserve_gib=0.5, engine_reserve_gib=1.0)
PROMPTS = Prompts(
    mean_text=100, mean_visual=300, longest_text=100, longest_visual=300, multiply_adds=1.0, source="here"
)


def config(path: Any, **sections: Any) -> RunConfig:
    tree = {"device": "cuda", "colocate": True}
    return parse({"output_dir": "o", "model": {"path": str(path)}, "cluster": tree, **sections}, source="here")


@pytest.fixture(scope="module")
def sizes(tiny_model_dir: Any) -> ModelSizes:
    return read_model_sizes(tiny_model_dir)


def gib(section: Any, name: str) -> float:
    (line,) = (one for one in section.lines if one.name == name)
    number, unit = line.value.split()
    return float(number) * {"GiB": 1.0, "MiB": 1 / 1024, "KiB": 1 / 1024**2}[unit]


def test_the_peak_is_that_of_the_larger_phase_and_not_of_their_sum(tiny_model_dir: Any, sizes: ModelSizes) -> None:
    run = config(tiny_model_dir, rollout={"gpu_memory_utilization": 0.8}, train={"prompts_per_step": 8})
    found = shared_section(run, sizes, PROMPTS, 50.0, GIVEN)
    tokens = min(run.learner.micro_batch_tokens, 8 * (400 + 8 * 50))
    rank = rank_memory(run, sizes, tokens, 300 / 800).device / GIB
    assert gib(found, "while learning") == pytest.approx(rank + 1.5, abs=0.006)
    assert gib(found, "while sampling") == pytest.approx(10 * 0.8 + 0.5, abs=0.006)
    assert gib(found, "peak") == max(gib(found, "while learning"), gib(found, "while sampling"))
    assert gib(found, "stays through both") == 1.5
    assert found.problems == ()


def test_a_phase_that_does_not_fit_is_named_with_the_remedy(tiny_model_dir: Any, sizes: ModelSizes) -> None:
    run = config(tiny_model_dir, rollout={"gpu_memory_utilization": 0.96})
    (problem,) = shared_section(run, sizes, PROMPTS, 50.0, GIVEN).problems
    assert "while sampling" in problem and "gpu_memory_utilization=0.96 to 0.95" in problem
    small = Assumptions(memory_gib=1.0, rank_reserve_gib=0.5, engine_reserve_gib=1.0)
    problems = shared_section(run, sizes, PROMPTS, 50.0, small).problems
    assert any("while learning" in one and "learner.micro_batch_tokens" in one for one in problems)


def test_two_copies_of_the_weights_that_do_not_fit_are_a_problem(tiny_model_dir: Any, sizes: ModelSizes) -> None:
    """With ipc both copies are there for a moment: of a model that fills most of a GPU that is more than the phases."""
    large = replace(sizes, language=2 << 30)  # 4 GiB in bfloat16
    settings = {
        "rollout": {"gpu_memory_utilization": 0.8},
        "learner": {"lora": {"rank": 4}},
        "train": {"prompts_per_step": 8},
    }
    run = config(tiny_model_dir, **settings, weights={"transport": "ipc"})
    given = Assumptions(memory_gib=9.0, rank_reserve_gib=0.5, engine_reserve_gib=1.0)
    found = shared_section(run, large, PROMPTS, 50.0, given)
    weights = large.parameters * 2 / GIB
    assert gib(found, "while weights change hands") == pytest.approx(2 * weights + 1.5, abs=0.006)
    (problem,) = found.problems
    assert "while weights change hands" in problem and "weights.transport=object_store" in problem
    run = config(tiny_model_dir, **settings, weights={"transport": "object_store"})
    assert shared_section(run, large, PROMPTS, 50.0, given).problems == ()
    alone = Assumptions(memory_gib=5.0, rank_reserve_gib=0.5, engine_reserve_gib=1.0)
    assert "the engine's weights alone" in shared_section(run, large, PROMPTS, 50.0, alone).problems[-1]
