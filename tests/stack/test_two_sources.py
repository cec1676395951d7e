"""The real stack on two sources of different tasks, rates and prompts; a resumed run ends with the same bits."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest

from rlsys.config.run import RunConfig, load
from rlsys.demo.synthetic import draw_dataset
from rlsys.runs.assemble import Stack, open_stack
from rlsys.runs.continuation import StartOptions
from rlsys.runs.records import ledger
from rlsys.runs.records.rollout_store import read_step, step_file
from rlsys.runs.records.saved_group import FOLDER
from rlsys.runs.run import Summary
from rlsys.runs.train import train
from tests.support.paths import CONFIGS
from tests.support.plain_reward_server import SCORERS, plain_reward_server

TASKS = ("temporal_grounding", "multiple_choice")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Iterator[RunConfig]:
    folder = tmp_path_factory.mktemp("two")
    clips = draw_dataset(folder / "clips", num_clips=3, seed=3)
    rows = [
        {"video": f"{name}.mp4", "question": "what?", "options": ["a square", "a disc"], "answer": "a disc"}
        for name in json.loads(clips.annotations.read_text())
    ]
    (folder / "choices.jsonl").write_text("\n".join(map(json.dumps, rows)))
    periods = {"annotations": str(clips.annotations), "name": "periods", "weight": 1}
    choices = {"annotations": str(folder / "choices.jsonl"), "format": "vtts", "fps": 1.0, "think": False, "weight": 1}
    weights = {task: {"checksum": 1.0, "asked_to_think": 0.0} for task in TASKS}
    with plain_reward_server() as url:
        yield load(
            CONFIGS / "demo.yaml",
            [
                f"output_dir={folder / 'whole'}",
                f"model.path={tiny_model_dir}",
                f"data.videos={clips.videos}",
                f"data.sources={json.dumps([periods, choices])}",
                "data.prompt_style=full",
                "data.decode_workers=1",
                "model.max_model_len=768",
                f"reward.url={url}",
                f"reward.scorers={json.dumps(SCORERS)}",
                f"reward.weights={json.dumps(weights)}",
                "rollout={num_actors: 1, group_size: 4, max_tokens: 8}",
                "learner.num_ranks=1",
                "train={num_steps: 2, prompts_per_step: 4, learning_rate: 1.0e-3, schedule: constant}",
                "checkpoint.every_steps=1",
                "tracking.log_model=false",
            ],
        )


@pytest.fixture(scope="module")
def stack(config: RunConfig) -> Iterator[Stack]:
    with open_stack(config, TASKS) as opened:
        yield opened


@pytest.fixture(scope="module")
def whole(config: RunConfig, stack: Stack) -> Summary:
    return train(config, stack=stack)


def test_each_source_has_its_share_its_task_and_its_prompt(config: RunConfig, whole: Summary) -> None:
    entries = ledger.read(config.output_dir)
    assert len({one.weights_digest for one in entries}) == 2, "every step changes the weights"
    for one in entries:
        names = [prompt_id.partition(":")[0] for prompt_id in one.trained.values()]
        assert sorted(names) == ["choices"] * 2 + ["periods"] * 2
        assert one.pass_rates.keys() == one.trained.keys()
    for group in read_step(step_file(config.output_dir / FOLDER, 2)).groups.values():
        thought = group.scores[:, group.score_names.index("asked_to_think")]
        assert set(thought.tolist()) == {float(group.prompt_id.startswith("periods:"))}
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{config.output_dir / 'mlflow.db'}")
    metrics = client.get_run(whole.mlflow_run_id).data.metrics
    for name in ("periods", "choices"):
        assert metrics[f"data/by_source/{name}/rows"] == 2
        assert metrics[f"data/by_source/{name}/drawn"] == 4
        assert metrics[f"data/by_source/{name}/epochs"] == pytest.approx(4 / (6 if name == "periods" else 3))
        assert 0 <= metrics[f"reward/by_source/{name}/mean"] <= 3


def test_a_run_that_is_resumed_after_its_first_step_ends_with_the_same_bits(
    config: RunConfig, stack: Stack, whole: Summary, tmp_path: Path
) -> None:
    stopped = config.model_copy(
        update={"output_dir": tmp_path / "stopped", "train": config.train.model_copy(update={"num_steps": 1})}
    )
    train(stopped, stack=stack)
    resumed = stopped.model_copy(update={"train": config.train})
    again = train(resumed, StartOptions(resume=resumed.output_dir), stack=stack)
    assert again.weights_digest == whole.weights_digest
    assert again.ledger == whole.ledger and not again.ledger["problems"]
    assert ledger.read(resumed.output_dir) == ledger.read(config.output_dir)
