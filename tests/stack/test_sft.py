"""Supervised fine-tuning: what is imitated, in which order, and a real run with a resume."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import mlflow
import numpy as np
import pytest
import ray

from rlsys.config.run import ConfigError, RunConfig, parse
from rlsys.data.annotations.responses import read_responses, write_responses
from rlsys.data.sampler import Sampler
from rlsys.data.video.errors import AnnotationError, ClipError
from rlsys.demo.synthetic import draw_dataset
from rlsys.loop import loop
from rlsys.loop.objective import Imitation
from rlsys.loop.parts import Step
from rlsys.loop.state import RunState
from rlsys.runs.assemble import LearnerStack, open_learner_stack
from rlsys.runs.continuation import StartOptions
from rlsys.runs.demonstrations import read_lessons, written_responses
from rlsys.runs.inputs.items import training_items
from rlsys.runs.sft import sft
from rlsys.runs.supervised import Demonstration, demonstration_group
from rlsys.tasks.canonical import canonical_response
from rlsys.tasks.table import TASKS, expected_answer, task_named
from rlsys.types import Prompt, PromptItem, ScoredGroup, TrainBatch
from rlsys.weights.version import WeightVersion
from tests.support.factories import make_item
from tests.support.task_examples import TRUTHS

ITEMS = tuple(make_item(f"file:{row}") for row in range(3))


@pytest.mark.parametrize("task", TASKS)
def test_a_true_answer_in_the_requested_format_is_read_back_as_the_truth(task: str) -> None:
    item = replace(make_item(truth=TRUTHS[task]), task=task)
    text, row = canonical_response(item), task_named(task)
    truth = row.read_truth(TRUTHS[task])
    expected = expected_answer(TRUTHS[task], item.options, truth)
    assert row.is_well_formed(text, think=False, reading="strict", expected=expected)
    assert row.parse(text, "strict", expected) == truth


def test_rounding_leaves_something_of_the_thinnest_box_and_no_exponent_in_a_number() -> None:
    thin = replace(make_item(truth={"box": [0.501, 0.2, 0.503, 0.4]}), task="spatial_grounding")
    assert canonical_response(thin) == "<answer>[0.50, 0.20, 0.51, 0.40]</answer>"
    large = replace(make_item(truth=12345678.5), task="numeric_qa")
    assert canonical_response(large) == "<answer>12345678.5</answer>"


def test_responses_are_read_in_order_and_may_share_a_prompt(tmp_path: Path) -> None:
    path = write_responses(tmp_path / "r.jsonl", [("file:1", "a"), ("file:0", "ü\u2028b"), ("file:1", "c")])
    read = read_responses(path, ITEMS)
    assert [(one.item.prompt_id, one.text) for one in read] == [
        ("file:1", "a"),
        ("file:0", "ü\u2028b"),
        ("file:1", "c"),
    ]
    assert read[2].where == f"{path}:3"


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"prompt_id": "file:9", "response": "a"}', "prompt_id 'file:9' is no usable row"),
        ('{"prompt_id": "file:1"}', "response is None"),
        ('{"prompt_id": "file:1", "response": " "}', "response is ' '"),
        ('{"response": "a"}', "prompt_id is None"),
        ("[1]", "an object is expected"),
        ("{", "not JSON"),
    ],
)
def test_a_line_that_cannot_be_used_is_named_with_file_and_line(tmp_path: Path, line: str, problem: str) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text('{"prompt_id": "file:1", "response": "a"}\n\n' + line + "\n")
    with pytest.raises(AnnotationError, match="r.jsonl:3: ") as error:
        read_responses(path, ITEMS)
    assert problem in str(error.value)


def test_an_empty_or_missing_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(AnnotationError, match="empty"):
        read_responses(tmp_path / "empty.jsonl", ITEMS)
    with pytest.raises(AnnotationError, match="sft.responses"):
        read_responses(tmp_path / "missing.jsonl", ITEMS)


def demonstration(item: PromptItem, *ids: int) -> Demonstration:
    return Demonstration(item=item, response_ids=np.array(ids, np.int32), where=item.prompt_id)


IDS = np.arange(5, dtype=np.int32)
PROMPT = Prompt(engine_ids=IDS, prompt_ids=IDS, position_ids=np.stack([IDS] * 3), next_position=5)


def test_responses_to_one_prompt_are_one_group_of_the_batch() -> None:
    lessons = [demonstration(ITEMS[row], *ids) for row, ids in ((1, (7, 8)), (0, (9,)), (1, (10, 11, 12)))]
    groups = tuple(demonstration_group(one, PROMPT, ()) for one in lessons)
    objective = Imitation()
    batch = objective.batch(groups, objective.advantages(groups))
    assert [group.item.prompt_id for group in batch.groups] == ["file:1", "file:0"]
    assert [rollout.response_ids.tolist() for rollout in batch.groups[0].rollouts] == [[7, 8], [10, 11, 12]]
    assert [weights.tolist() for weights in batch.advantages] == [[1, 1], [1]]
    assert batch.objective == "nll" and batch.num_trained_tokens == 6


class Imitating:
    """Parts of the loop whose groups are there at once; the clips of `bad` cannot be decoded."""

    def __init__(self, lessons: Sequence[Demonstration], settings: RunConfig, bad: str = "") -> None:
        self._lessons, self._bad, self._sampler = lessons, bad, Sampler(len(lessons), settings.seed)
        self.num_started, self.trained, self.num_bad = 0, [], 0
        self.num_started_at: list[int] = []

    def start(self, prompt_index: int) -> Future[ScoredGroup]:
        self.num_started += 1
        one = self._lessons[self._sampler.index_at(prompt_index)]
        future: Future[ScoredGroup] = Future()
        if one.item.prompt_id == self._bad:
            future.set_exception(ClipError("clip.mp4", "corrupt", "made so"))
        else:
            future.set_result(demonstration_group(one, PROMPT, ()))
        return future

    def update(self, batch: TrainBatch) -> dict[str, float]:
        self.num_started_at.append(self.num_started)
        return {}

    def record(self, step: Step) -> None:
        self.trained += [scored.group.item.prompt_id for scored in step.groups]
        self.num_bad += len(step.collected.skipped)

    def publish(self, version: int) -> WeightVersion:
        return WeightVersion(version=version, transport="none", num_tensors=0, num_bytes=0, digest="")

    def prefetch(self, prompt_index: int) -> None: ...

    def check(self) -> None: ...

    def keep(self, step: int, collected: object) -> None: ...

    def reference_logprobs(self, groups: object) -> list[list[np.ndarray]]:
        raise AssertionError("imitation has no reference")


def pure_config(num_steps: int, per_step: int, **data: object) -> RunConfig:
    train = {"num_steps": num_steps, "prompts_per_step": per_step}
    tree = {"output_dir": "out", "model": {"path": "m"}, "data": data, "seed": 3, "train": train}
    return parse(tree, source="test")


def imitate(parts: Imitating, settings: RunConfig, state: RunState | None = None) -> RunState:
    state = state or RunState(step=0, prompts_consumed=0, seed=3, mlflow_run_id="", weights_digest="")
    return loop.train(parts, settings, state, Imitation())


def test_the_order_continues_at_any_prompt_and_preparing_ahead_does_not_change_it() -> None:
    lessons = [demonstration(item, 1) for item in ITEMS]
    whole = Imitating(lessons, pure_config(3, 3))
    imitate(whole, pure_config(3, 3))
    assert sorted(whole.trained[:3]) == sorted(whole.trained[3:6]) == ["file:0", "file:1", "file:2"]
    assert whole.num_started_at == [6, 9, 9], "the next step is prepared while the learner is busy with this one"
    begun, resumed = (Imitating(lessons, pure_config(3, 3)) for _ in range(2))
    middle = imitate(begun, pure_config(1, 3))
    imitate(resumed, pure_config(3, 3), middle)
    assert begun.trained + resumed.trained == whole.trained


def test_an_unusable_clip_is_skipped_and_counted_or_stops_the_run() -> None:
    lessons = [demonstration(item, 1) for item in ITEMS]
    parts = Imitating(lessons, pure_config(1, 4), bad="file:1")
    end = imitate(parts, pure_config(1, 4))
    assert len(parts.trained) == 4 and "file:1" not in parts.trained
    assert end.prompts_consumed == 4 + parts.num_bad and parts.num_bad >= 1
    stops = pure_config(1, 3, on_bad_clip="stop")
    with pytest.raises(ClipError, match="made so"):
        imitate(Imitating(lessons, stops, bad="file:1"), stops)
    with pytest.raises(RuntimeError, match="rows of one step were unusable"):
        imitate(Imitating([lessons[1]], pure_config(1, 1), bad="file:1"), pure_config(1, 1))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two drawn clips with two questions each, in `clips`."""
    folder = tmp_path_factory.mktemp("sft")
    draw_dataset(folder / "clips", num_clips=2, seed=5)
    return folder


def make_config(folder: Path, model: Path, **more: object) -> RunConfig:
    tree = {
        "output_dir": str(folder / "run"),
        "model": {"path": str(model), "dtype": "float32", "max_model_len": 256},
        "data": {
            "annotations": str(folder / "clips" / "annotations.json"),
            "videos": str(folder / "clips" / "videos"),
            "prompt_style": "terse",
            "think": False,
            "max_frames": 8,
            "min_pixels": 784,
            "max_pixels": 3136,
            "cache_bytes": 1 << 20,
        },
        "rollout": {"max_tokens": 24},
        "train": {"num_steps": 4, "prompts_per_step": 3, "learning_rate": 1e-3, "schedule": "cosine"},
        "checkpoint": {"every_steps": 2},
    }
    return parse({**tree, **more}, source="test")


def test_true_answers_are_the_lessons_where_no_file_is_given(folder: Path, tiny_model_dir: Path) -> None:
    lessons = read_lessons(make_config(folder, tiny_model_dir))
    assert len(lessons.demonstrations) == 4 and not lessons.report.problems
    assert "4 demonstrations of 4 rows; 4 steps of 3 = 3.00 epochs" in lessons.report.facts
    config = make_config(folder, tiny_model_dir)
    thinking = config.model_copy(update={"data": config.data.model_copy(update={"think": True})})
    with pytest.raises(ConfigError, match="sft.responses is not set and data.think=true"):
        read_lessons(thinking)


def test_the_reasoning_of_a_row_is_imitated_before_its_answer_and_rows_without_any_are_skipped(
    folder: Path, tiny_model_dir: Path
) -> None:
    row = {"video": "00000.mp4", "duration": 4.0, "question": "Which colour appears, and when?", "clue": [[1.0, 2.5]]}
    choice = {"options": ["(A) red", "(B) blue"], "answer": "B"}
    lines = [
        {**row, **choice, "think": " <think>It is blue.</think> "},
        {**row, "question": "When?", "think": "At one."},
        {**row, "question": "Without?", "think": None},
        {**row, "question": "Broken?", "think": "a</think><answer>b"},
    ]
    path = folder / "thoughts.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    config = make_config(folder, tiny_model_dir)
    data = {"annotations": path, "format": "vtts", "think": True}
    thinking = config.model_copy(update={"data": config.data.model_copy(update=data)})
    texts = [one.text for one in written_responses(thinking, training_items(thinking))]
    assert texts == [
        "<think>It is blue.</think><answer>(B)</answer> <glue>[(1.00, 2.50)]</glue>",
        "<think>At one.</think><answer>1.00 to 2.50</answer>",
    ]
    plain = thinking.model_copy(update={"data": thinking.data.model_copy(update={"think": False})})
    texts = [one.text for one in written_responses(plain, training_items(plain))]
    assert texts[:2] == ["<answer>(B)</answer> <glue>[(1.00, 2.50)]</glue>", "<answer>1.00 to 2.50</answer>"]
    assert len(texts) == 4


def test_demonstrations_that_do_not_fit_are_named_with_the_arithmetic(folder: Path, tiny_model_dir: Path) -> None:
    responses = [
        ("annotations:00000/0", "word " * 300),
        ("annotations:00000/0", "short"),
        ("annotations:00001/0", "an <|video_pad|> inside"),
        ("annotations:00001/1", "ended by hand<|im_end|>"),
    ]
    path = write_responses(folder / "unfit.jsonl", responses)
    lessons = read_lessons(make_config(folder, tiny_model_dir, sft={"responses": str(path)}))
    banned, too_long = lessons.report.problems
    assert f"{path}:3: the response contains <|video_pad|>" in banned
    assert f"{path}:1: annotations:00000/0: " in too_long and "> model.max_model_len=256" in too_long
    ids = lessons.demonstrations[3].response_ids
    assert (ids == ids[-1]).sum() == 1


@pytest.fixture(scope="module")
def stack(folder: Path, tiny_model_dir: Path) -> Iterator[LearnerStack]:
    ray.init(
        address="local",
        _node_ip_address="127.0.0.1",
        include_dashboard=False,
        num_cpus=2,
        _temp_dir="/tmp/rlsys_sft",
        object_store_memory=200 << 20,
    )
    with open_learner_stack(make_config(folder, tiny_model_dir)) as opened:
        yield opened
    ray.shutdown(wait_for_processes=True)


def test_a_run_learns_and_one_that_was_interrupted_ends_with_the_same_weights(
    folder: Path, tiny_model_dir: Path, stack: LearnerStack
) -> None:
    path = write_responses(
        folder / "responses.jsonl",
        [
            (f"annotations:0000{clip}/{row}", f"<answer>{clip}.5 to 3.0</answer>")
            for clip in (0, 1)
            for row in (0, 0, 1)
        ],
    )
    config = make_config(folder, tiny_model_dir, sft={"responses": str(path)})
    whole = sft(config, stack=stack)
    run = config.output_dir
    assert whole.model == str(run / "checkpoints" / "step_000004" / "model")
    assert json.loads((run / "checkpoints" / "step_000004" / "state.json").read_text())["prompts_consumed"] == 12
    resumed = sft(config, StartOptions(resume=run / "checkpoints" / "step_000002"), stack=stack)
    assert resumed.weights_digest == whole.weights_digest and resumed.num_steps == 4
    in_the_curve = json.loads((run / "checkpoints" / "step_000004" / "losses.json").read_text())
    assert list(in_the_curve) == ["1", "2", "3", "4"], "those of the interrupted run too"
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{run / 'mlflow.db'}")
    losses = client.get_metric_history(whole.mlflow_run_id, "loss/nll")
    assert [metric.step for metric in losses] == [1, 2, 3, 4]  # steps that were run again are there once
    assert losses[3].value < losses[0].value
    (source,) = client.get_run(whole.mlflow_run_id).inputs.dataset_inputs
    assert (source.dataset.name, source.tags[0].value) == ("annotations", "training")
    assert json.loads(source.dataset.profile) == {"num_rows": 6}
    assert {"loss_curve.png", "model"} <= {file.path for file in client.list_artifacts(whole.mlflow_run_id)}
    assert json.loads((run / "summary.json").read_text())["weights_digest"] == whole.weights_digest


def test_a_run_that_dies_behind_its_last_step_has_no_summary_and_ends_when_it_is_resumed(
    folder: Path, tiny_model_dir: Path, stack: LearnerStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(*_: object) -> Path:
        raise KeyboardInterrupt

    config = make_config(folder, tiny_model_dir, output_dir=str(folder / "dies"))
    whole = sft(config, stack=stack)
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{config.output_dir / 'mlflow.db'}")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("rlsys.runs.sft.write_loss_curve", dies)
        sft(config, StartOptions(resume=config.output_dir / "checkpoints" / "step_000002"), stack=stack)
    assert not (config.output_dir / "summary.json").exists(), "that of the first life is not of this one"
    assert client.get_run(whole.mlflow_run_id).info.status == "KILLED"
    ended = sft(config, StartOptions(resume=config.output_dir), stack=stack)
    assert (ended.weights_digest, ended.mlflow_run_id) == (whole.weights_digest, whole.mlflow_run_id)
    assert client.get_run(whole.mlflow_run_id).info.status == "FINISHED"
    assert sft(config, StartOptions(resume=config.output_dir), stack=stack) == ended


def test_supervised_training_reserves_no_room_for_actors_or_rewards(folder: Path, tiny_model_dir: Path) -> None:
    from cluster.placement import demand

    wanted = demand(make_config(folder, tiny_model_dir), parts=("learner", "decoding"))
    assert not wanted.actors and len(wanted.learner) == 1 and wanted.other_cpus == 0.5
