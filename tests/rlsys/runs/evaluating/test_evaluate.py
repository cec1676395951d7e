"""`rlsys eval` without a model: answers of other systems, comparisons, and options that contradict each other."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from rlsys.config.run import ConfigError, RunConfig, parse
from rlsys.errors import UserError
from rlsys.evaluation.evaluated import results_of
from rlsys.loop.state import RunState
from rlsys.runs.evaluating.answering import chosen_sets, predicted_sets
from rlsys.runs.evaluating.compare_evaluations import compare_evaluations
from rlsys.runs.evaluating.evaluate import EvalOptions, run_evaluation
from rlsys.runs.records.checkpoint import Checkpoints
from rlsys.runs.records.checkpoint_manifest import CheckpointDamaged

SPANS = [[0.0, 2.0], [2.0, 4.0], [1.0, 3.0], [4.0, 6.0]]


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    rows = {
        f"clip{index}": {"duration": 8.0, "timestamps": [span], "sentences": ["it happens."]}
        for index, span in enumerate(SPANS)
    }
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    sets = [
        {"name": name, "annotations": str(tmp_path / "rows.json"), "protocols": ["charades_sta/paper"]}
        for name in ("rows", "others")
    ]
    tree = {"output_dir": str(tmp_path / "out"), "model": {"path": "none"}, "evaluation": {"sets": sets}}
    return parse(tree, source="test")


def predicted(config: RunConfig, name: str, answers: Sequence[str]) -> Path:
    """Score answers of another system and return the folder of the reports."""
    folder = config.output_dir.parent
    lines = [json.dumps({"prompt_id": f"rows:clip{index}/0", "text": text}) for index, text in enumerate(answers)]
    (folder / f"{name}.jsonl").write_text("\n".join(lines))
    options = EvalOptions(datasets=("rows",), predictions=folder / f"{name}.jsonl", out=folder / name)
    return run_evaluation(config, options)


def results(folder: Path) -> dict[str, Any]:
    (one,) = json.loads((folder / "results.json").read_text())["sets"]
    return one


@pytest.mark.stack
def test_answers_of_another_system_are_scored_compared_and_recorded_without_a_model(config: RunConfig) -> None:
    first = predicted(config, "first", ["<answer>0 to 2</answer>", "<answer>0 to 4</answer>", "no idea"])
    one = results(first)
    figures = one["tasks"]["temporal_grounding"][0]["metrics"]
    assert figures["miou"]["value"] == pytest.approx((1.0 + 0.5 + 0.0 + 0.0) / 4)
    assert figures["r_at_0.5"]["value"] == 0.5 and figures["read_frac"]["value"] == 0.5
    assert (one["num_rows"], one["num_unanswered"]) == (4, 1)
    assert [row["row"] for row in one["unanswered"]] == ["rows:clip3/0"]
    client = MlflowClient(f"sqlite:///{first / 'mlflow.db'}")
    run = client.get_run((first / "mlflow_run_id").read_text().strip())
    assert run.data.metrics["eval/rows/miou"] == figures["miou"]["value"]
    (data_set,) = run.inputs.dataset_inputs
    assert json.loads(data_set.dataset.source)["uri"].endswith("rows.json")
    assert predicted(config, "first", ["<answer>0 to 2</answer>", "<answer>0 to 4</answer>", "no idea"]) == first
    assert (first / "mlflow_run_id").read_text().strip() == run.info.run_id, "the same results are recorded once"
    predicted(config, "first", ["<answer>0 to 2</answer>"])
    other = client.get_run((first / "mlflow_run_id").read_text().strip())
    assert other.info.run_id != run.info.run_id and other.data.metrics["eval/rows/miou"] == 0.25
    predicted(config, "first", ["<answer>0 to 2</answer>", "<answer>0 to 4</answer>", "no idea"])
    second = predicted(
        config, "second", ["<answer>0 to 2</answer>", *(f"<answer>{a} to {b}</answer>" for a, b in SPANS[1:])]
    )
    (found,) = compare_evaluations(first, second, common=False, page=first / "differences.html")
    assert (found.overall.a, found.overall.b) == pytest.approx((0.375, 1.0))
    assert {one.row_id for one in found.gained} == {f"rows:clip{index}/0" for index in (1, 2, 3)} and not found.lost
    assert "clip3" in (first / "differences.html").read_text()


def test_several_texts_of_another_system_are_samples_and_the_first_rows_of_a_set_alone_count(config: RunConfig) -> None:
    texts = [["<answer>0 to 2</answer>", "no"], ["no", "<answer>2 to 4</answer>"], ["no", "no"]]
    (config.output_dir.parent / "p.json").write_text(json.dumps({f"clip{at}": two for at, two in enumerate(texts)}))
    some = [one.model_copy(update={"num_prompts": 2}) for one in config.evaluation.sets]
    evaluation = config.evaluation.model_copy(update={"sets": tuple(some)})
    few = config.model_copy(update={"evaluation": evaluation})
    for asked, first, two in ((config, 0.25, 0.5), (few, 0.5, 1.0)):
        (one,) = predicted_sets(chosen_sets(asked, ["rows"], needs_videos=False), config.output_dir.parent / "p.json")
        (found,) = results_of(one, 0)["tasks"]["temporal_grounding"]
        assert found["metrics"]["miou"]["value"] == found["sampled"]["first"]["miou"] == first
        assert found["sampled"]["num_samples"] == 2 and found["sampled"]["pass_at_k"]["2"] == two


def test_options_that_do_not_go_together_are_refused_before_anything_starts(config: RunConfig, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--step 3 needs --run"):
        run_evaluation(config, EvalOptions(step=3))
    with pytest.raises(ConfigError, match="--datasets: nothing is not among evaluation.sets: rows, others"):
        run_evaluation(config, EvalOptions(datasets=("nothing",), predictions=tmp_path / "p.jsonl"))
    with pytest.raises(ConfigError, match="one data set; choose it with --datasets: rows, others"):
        run_evaluation(config, EvalOptions(predictions=tmp_path / "p.jsonl"))
    with pytest.raises(UserError, match="p.jsonl"):
        run_evaluation(config, EvalOptions(datasets=("rows",), predictions=tmp_path / "p.jsonl"))
    with pytest.raises(UserError, match="results.json: not the results of an evaluation"):
        compare_evaluations(tmp_path, tmp_path, common=False)
    unknown = config.evaluation.sets[0].model_copy(update={"protocols": ("charades_sta/papper",)})
    sets = config.model_copy(update={"evaluation": config.evaluation.model_copy(update={"sets": (unknown,)})})
    with pytest.raises(ConfigError, match="rows: no protocol is named charades_sta/papper; .*charades_sta/paper"):
        run_evaluation(sets, EvalOptions(predictions=tmp_path / "p.jsonl"))
    with pytest.raises(UserError, match="no such folder"):
        run_evaluation(config, EvalOptions(run=tmp_path / "run", step=3))


@pytest.mark.parametrize("used_as", ["model", "adapter"])
def test_a_damaged_model_of_a_checkpoint_is_not_evaluated(used_as: str, config: RunConfig, tmp_path: Path) -> None:
    def write(folder: Path) -> None:
        (folder / "model").mkdir()
        (folder / "model" / "weights").write_bytes(bytes(100))

    state = RunState(step=1, prompts_consumed=1, seed=0, mlflow_run_id="", weights_digest="")
    model = Checkpoints(tmp_path / "checkpoints", keep=1).save(state, write) / "model"
    (model / "weights").write_bytes(bytes(99) + b"\1")
    options = EvalOptions(adapter=model if used_as == "adapter" else None)
    whole = tmp_path / "base"
    whole.mkdir()
    for index in range(len(SPANS)):
        (whole / f"clip{index}.mp4").touch()
    config = config.model_copy(
        update={
            "model": config.model.model_copy(update={"path": model if used_as == "model" else whole}),
            "data": config.data.model_copy(update={"videos": whole}),
        }
    )
    with pytest.raises(CheckpointDamaged, match=f"{model / 'weights'}: its SHA-256 is"):
        run_evaluation(config, options)


def test_rounds_of_an_endpoint_are_refused_because_their_times_would_be_wrong(config: RunConfig) -> None:
    asked = parse(
        {
            **config.model_dump(mode="json"),
            "perception": {"rounds": 2},
            "evaluation": {**config.evaluation.model_dump(mode="json"), "endpoint": {"url": "http://127.0.0.1:1/v1"}},
        },
        source="test",
    )
    with pytest.raises(ConfigError, match="perception.rounds=2 with evaluation.endpoint.url=http://127.0.0.1:1/v1"):
        run_evaluation(asked, EvalOptions())
