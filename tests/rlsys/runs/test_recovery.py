"""Where runs start from, and the way back when the learner is lost: decisions alone, on a stack that does nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from learner.checkpoint_layout import LAYOUT_FILE, layout_of
from rlsys.clock import Clock
from rlsys.config.run import ConfigError, LearnerConfig, RunConfig, parse
from rlsys.errors import CheckpointError, LearnerLost, NotWritten, UserError
from rlsys.loop.collect import Collected
from rlsys.loop.parts import Step
from rlsys.loop.state import RunState
from rlsys.runs import recovery as recovery_module
from rlsys.runs.assemble import LearnerStack, Stack
from rlsys.runs.continuation import ResumePoint, StartOptions, describe_start
from rlsys.runs.inputs.identity import identity
from rlsys.runs.records.checkpoint import Checkpoints, load_state
from rlsys.runs.records.run_file import RunFile, read_run_file, write_run_file
from rlsys.runs.recovery import NotSavedError, Recovery, find_resume_point, has_ended, why_not_saved
from rlsys.runs.run import Run, Setting, Summary, read_summary, write_summary
from rlsys.runs.sft import sft
from rlsys.runs.train import train
from rlsys.tracking.tracker import Tracker
from rlsys.types import TrainBatch
from rlsys.weights.version import WeightVersion
from tests.support.factories import make_item

START = RunState(step=0, prompts_consumed=0, seed=0, mlflow_run_id="abc", weights_digest="")


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recovery_module, "PAUSE_S", 0.0)


def config(tmp_path: Path, **sections: object) -> RunConfig:
    return parse({"output_dir": tmp_path / "run", "model": {"path": "model"}, **sections}, source="test")


def at(step: int) -> RunState:
    return replace(START, step=step, prompts_consumed=4 * step, weights_digest=f"d{step}")


class StubStack:
    """A learner that is lost in the calls of the given numbers. It says what it was told."""

    def __init__(self, lost_in: Sequence[int] = (), write_fails: Exception | None = None) -> None:
        self.said: list[str] = []
        self.lost_in, self.write_fails = set(lost_in), write_fails
        self.learner = self

    def _say(self, what: str) -> None:
        self.said.append(what)
        if len(self.said) in self.lost_in:
            raise LearnerLost(f"lost in call {len(self.said)}")

    def begin_learning(self) -> None:
        """The learner has its GPUs to itself."""

    def load_learner(self, config: RunConfig) -> None:
        self._say("load")

    def relaunch_learner(self, config: RunConfig) -> None:
        self._say("relaunch")

    def restore(self, folder: Path, scratch: Path) -> None:
        self._say(f"restore {folder.parent.name}")

    def save(self, folder: Path) -> None:
        self._say("save")
        folder.mkdir()
        if self.write_fails:
            raise self.write_fails

    def export(self, folder: Path) -> str:
        return "exported"


def lost(back: Recovery, error: str = "dead") -> RunState:
    """The state after a loss, however often the learner is lost on its way back."""
    try:
        back.learner_lost(LearnerLost(error))
        return back.load_learner()
    except LearnerLost as again:
        if "restarts in a row" in str(again):
            raise
        return lost(back, str(again))


def recovery(stack: StubStack, tmp_path: Path, origin: ResumePoint | None = None, **sections: Any) -> Recovery:
    return Recovery(
        cast(LearnerStack, stack), config(tmp_path, **sections), origin or ResumePoint(state=START, checkpoint=None)
    )


@pytest.fixture(autouse=True)
def _without_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    class Sizes:
        parameters = 0

        def trained(self, learner: object) -> int:
            return 0

    monkeypatch.setattr("rlsys.runs.records.output_space.read_model_sizes", lambda path: Sizes())


def test_without_a_checkpoint_the_learner_starts_from_the_model_again(tmp_path: Path) -> None:
    stack = StubStack()
    assert lost(recovery(stack, tmp_path)) == START
    assert stack.said == ["relaunch"]


def test_the_newest_checkpoint_of_this_process_is_gone_back_to(tmp_path: Path) -> None:
    stack = StubStack()
    back = recovery(stack, tmp_path)
    back.save(at(2))
    back.save(at(4))
    assert lost(back) == at(4)
    assert stack.said[-2:] == ["relaunch", "restore step_000004"]
    assert back.metrics()["cluster/learner_restarts"] == 1


def test_a_run_resumed_from_an_older_checkpoint_does_not_jump_to_the_one_it_left_behind(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints", keep=3)
    older = checkpoints.save(at(2), lambda folder: None)
    checkpoints.save(at(4), lambda folder: None)
    stack = StubStack()
    back = recovery(stack, tmp_path, find_resume_point(config(tmp_path), StartOptions(resume=older)))
    assert lost(back) == at(2)
    assert stack.said == ["relaunch", "restore step_000002"]


def test_restarts_in_vain_are_bounded_and_a_further_step_starts_the_count_again(tmp_path: Path) -> None:
    stack = StubStack()
    back = recovery(stack, tmp_path, learner={"max_restarts": 2})
    for _ in range(2):
        lost(back)
    assert back.step_done(1)
    lost(back)
    assert not back.step_done(1)  # done again is not further
    lost(back)
    with pytest.raises(
        LearnerLost, match=r"2 restarts in a row completed no new step \(learner.max_restarts=2\): dead"
    ):
        lost(back)


def test_ranks_that_die_while_they_start_again_count_too(tmp_path: Path) -> None:
    stack = StubStack(lost_in=(1, 2))
    assert lost(recovery(stack, tmp_path)) == START
    assert stack.said == ["relaunch", "relaunch", "relaunch"]
    with pytest.raises(LearnerLost, match="0 restarts"):
        lost(recovery(stack, tmp_path, learner={"max_restarts": 0}))


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), NotWritten("rank 1: [Errno 28] No space left on device")]
)
def test_a_checkpoint_that_does_not_fit_leaves_the_earlier_one_and_the_next_may_fit(
    error: Exception, tmp_path: Path
) -> None:
    stack = StubStack()
    back = recovery(stack, tmp_path)
    back.save(at(2))
    stack.write_fails = error
    assert back.save_if_possible(at(4)) is None
    folder = tmp_path / "run" / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == ["latest", "step_000002"]
    assert back.metrics()["cluster/checkpoint_failures"] == 1
    assert lost(back) == at(2)
    told = str(why_not_saved(config(tmp_path), back.newest_state.step, error))
    assert "No space left" in told and "\nFree space there and run" in told
    assert f"--resume {tmp_path / 'run'}: it continues from step 2" in told
    stack.write_fails = None
    assert back.save_if_possible(at(6)) == folder / "step_000006"


def test_only_a_full_disk_asks_for_room(tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / "latest").mkdir(parents=True)
    with pytest.raises(OSError) as error:
        Checkpoints(tmp_path / "checkpoints", keep=1).save(at(1), lambda folder: None)
    told = str(why_not_saved(config(tmp_path), 0, error.value))
    assert "latest" in told and "\nCorrect that and run the same command" in told


def test_a_lack_of_room_is_found_before_anything_is_written(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1)
    with pytest.raises(OSError, match=r"a checkpoint needs about \d+ MiB and only \d+ MiB are free"):
        checkpoints.save(at(1), lambda folder: pytest.fail("written"), num_bytes=1 << 60)
    checkpoints.save(at(1), lambda folder: None, num_bytes=1 << 10)
    checkpoints.save(at(2), lambda folder: None, num_bytes=1 << 60)  # the earlier one says how large they are
    assert checkpoints.steps() == [2]


def test_a_run_s_own_folder_can_be_resumed_before_there_is_a_checkpoint(tmp_path: Path) -> None:
    settings = config(tmp_path)
    assert find_resume_point(settings, StartOptions(resume=settings.output_dir)).state == replace(
        START, mlflow_run_id=""
    )
    write_run_file(RunFile(mlflow_run_id="abc", config=settings))
    assert find_resume_point(settings, StartOptions(resume=settings.output_dir)) == ResumePoint(
        state=START, checkpoint=None
    )
    assert read_run_file(settings.output_dir).config == settings
    with pytest.raises(CheckpointError, match="no such folder"):
        find_resume_point(settings, StartOptions(resume=tmp_path / "elsewhere"))


def test_a_folder_that_holds_checkpoints_is_resumed_or_refused(tmp_path: Path) -> None:
    settings = config(tmp_path)
    saved = Checkpoints(settings.output_dir / "checkpoints", keep=1).save(at(2), lambda folder: None)
    origin = find_resume_point(settings, StartOptions(resume=settings.output_dir))
    assert (origin.checkpoint, origin.state) == (saved, load_state(saved))
    with pytest.raises(ConfigError, match="--resume"):
        find_resume_point(settings, StartOptions())
    with pytest.raises(ConfigError, match="seed=0, but the config has seed=1"):
        find_resume_point(config(tmp_path, seed=1), StartOptions(resume=saved))
    with pytest.raises(ConfigError, match="raise train.num_steps"):
        find_resume_point(config(tmp_path, train={"num_steps": 1}), StartOptions(resume=saved))


def test_a_run_that_died_behind_its_last_checkpoint_can_still_end_and_has_ended_then(tmp_path: Path) -> None:
    settings = config(tmp_path, train={"num_steps": 2})
    Checkpoints(settings.output_dir / "checkpoints", keep=1).save(at(2), lambda folder: None)
    origin = find_resume_point(settings, StartOptions(resume=settings.output_dir))
    assert origin.state.step == 2 and not has_ended(settings, origin)
    summary = Summary(weights_digest="d2", num_steps=1, mlflow_run_id="abc", seconds={}, held_out={}, model="m")
    write_summary(settings.output_dir / "summary.json", asdict(summary))  # of the run before it was made longer
    assert not has_ended(settings, origin)
    summary = replace(summary, num_steps=2)
    write_summary(settings.output_dir / "summary.json", {**asdict(summary), "more": "of a demo"})
    assert has_ended(settings, origin)
    again = StartOptions(resume=settings.output_dir)
    assert train(settings, again) == sft(settings, again) == summary
    longer = config(tmp_path, train={"num_steps": 3})
    assert not has_ended(longer, find_resume_point(longer, StartOptions(resume=settings.output_dir)))


def test_a_checkpoint_of_another_run_is_forked_and_never_resumed(tmp_path: Path) -> None:
    parent = config(tmp_path, train={"num_steps": 2})
    saved = Checkpoints(parent.output_dir / "checkpoints", keep=1).save(at(2), lambda folder: None)
    child = parent.model_copy(update={"output_dir": tmp_path / "child", "seed": 5})
    for path in (saved, parent.output_dir):
        with pytest.raises(ConfigError, match="belongs to another run.*--from"):
            find_resume_point(child, StartOptions(resume=path))
        with pytest.raises(ConfigError, match="--from .*2 steps already.*raise train.num_steps"):
            find_resume_point(child, StartOptions(fork=path))
    longer = child.model_copy(update={"train": child.train.model_copy(update={"num_steps": 3})})
    point = find_resume_point(longer, StartOptions(fork=parent.output_dir))
    assert (point.checkpoint, point.is_new, point.parent_run_id) == (saved, True, load_state(saved).mlflow_run_id)
    assert point.state == replace(load_state(saved), seed=5, mlflow_run_id="")
    with pytest.raises(ConfigError, match="give one of them"):
        find_resume_point(longer, StartOptions(fork=saved, resume=saved))
    Checkpoints(longer.output_dir / "checkpoints", keep=1).save(at(3), lambda folder: None)
    with pytest.raises(ConfigError, match="holds the checkpoints of another run"):
        find_resume_point(longer, StartOptions(fork=saved))


def test_a_checkpoint_that_was_copied_from_another_run_is_not_resumed(tmp_path: Path) -> None:
    settings = config(tmp_path)
    checkpoints = Checkpoints(settings.output_dir / "checkpoints", keep=2)
    own = checkpoints.save(at(1), lambda folder: None)
    write_run_file(RunFile(mlflow_run_id="abc", config=settings, command="train"))
    alien = checkpoints.save(replace(at(2), mlflow_run_id="xyz"), lambda folder: None)
    with pytest.raises(CheckpointError, match=f"{alien}: it is of MLflow run xyz, and .* of run abc.*--from {alien}"):
        find_resume_point(settings, StartOptions(resume=settings.output_dir))
    assert find_resume_point(settings, StartOptions(resume=own)).state.step == 1
    replaced = settings.output_dir / "tracking" / "xyz.moved"  # the store lost the run, which was made anew as abc
    replaced.parent.mkdir()
    replaced.write_text("abc\n")
    assert find_resume_point(settings, StartOptions(resume=settings.output_dir)).state.step == 2


def test_a_fork_that_has_no_checkpoint_yet_starts_again_from_its_parents(tmp_path: Path, tiny_model_dir: Path) -> None:
    sections = {"model": {"path": str(tiny_model_dir)}, "train": {"num_steps": 5}}
    parent = config(tmp_path / "parent", **sections)
    saved = Checkpoints(parent.output_dir / "checkpoints", keep=1).save(
        replace(at(2), mlflow_run_id="old"), lambda folder: None
    )
    child = config(tmp_path / "child", **sections)
    items = [make_item("rows:0")]
    for options in (StartOptions(fork=parent.output_dir), *[StartOptions(resume=child.output_dir)] * 2):
        point = find_resume_point(child, options)
        assert point.checkpoint == saved and point.state.step == 2
        assert point.state.mlflow_run_id == ("" if options.fork else "new")
        start = describe_start(child, point, items, command="train", allow_changes=False)
        write_run_file(start.run_file(child, "new"))
    shutil.rmtree(parent.output_dir)
    with pytest.raises(CheckpointError, match="the one that it started from cannot be used: .*no such folder"):
        find_resume_point(child, StartOptions(resume=child.output_dir))


def test_a_run_of_another_command_is_not_continued(tmp_path: Path) -> None:
    settings = config(tmp_path)
    Checkpoints(settings.output_dir / "checkpoints", keep=1).save(at(2), lambda folder: None)
    write_run_file(RunFile(mlflow_run_id="abc", config=settings, command="sft"))
    again = StartOptions(resume=settings.output_dir)
    with pytest.raises(ConfigError, match="that of an `rlsys sft` run.*model.path="):
        find_resume_point(settings, again, "train")
    assert find_resume_point(settings, again, "sft").state.step == 2


def test_a_moved_run_folder_is_its_own_run(tmp_path: Path) -> None:
    settings = config(tmp_path)
    Checkpoints(settings.output_dir / "checkpoints", keep=1).save(at(2), lambda folder: None)
    settings.output_dir.rename(tmp_path / "moved")
    moved = settings.model_copy(update={"output_dir": tmp_path / "moved"})
    assert find_resume_point(moved, StartOptions(resume=tmp_path / "moved")).state.step == 2


@pytest.mark.parametrize("linked", ["", "checkpoints", "checkpoints/step_000002"])
def test_a_run_whose_checkpoints_lie_on_another_disk_is_its_own_run(linked: str, tmp_path: Path) -> None:
    settings, elsewhere = config(tmp_path), tmp_path / "large disk"
    checkpoints = Checkpoints(settings.output_dir / "checkpoints", keep=1)
    checkpoints.save(at(2), lambda folder: None)
    (settings.output_dir / linked).rename(elsewhere)
    (settings.output_dir / linked).symlink_to(elsewhere)
    whole = elsewhere / Path("checkpoints/step_000002").relative_to(linked or ".")
    inside = settings.output_dir / "checkpoints/step_000002"
    for named in (settings.output_dir, inside, *([] if linked.endswith("2") else [whole])):
        assert find_resume_point(settings, StartOptions(resume=named)).state.step == 2
    checkpoints.save(at(3), lambda folder: None)
    assert find_resume_point(settings, StartOptions(resume=settings.output_dir)).state.step == 3
    assert checkpoints.steps() == [3] and not inside.is_symlink()
    assert whole.exists() == linked.endswith("2")  # what a link names is not the run's to remove


def test_what_a_continued_run_changed_is_refused_or_recorded(tmp_path: Path, tiny_model_dir: Path) -> None:
    sections = {"model": {"path": str(tiny_model_dir)}}
    first, items = config(tmp_path, **sections), [make_item("rows:0")]
    fresh = describe_start(
        first, ResumePoint(state=START, checkpoint=None, is_new=True), items, command="train", allow_changes=False
    )
    assert not fresh.tags
    write_run_file(fresh.run_file(first, "abc"))
    point = ResumePoint(state=START, checkpoint=None)
    faster = config(tmp_path, **sections, train={"learning_rate": 2e-6})
    told = describe_start(faster, point, items, command="train", allow_changes=False).tags
    assert list(told) == ["rlsys.changed_settings"] and told["rlsys.changed_settings"].endswith("-> 2e-06")
    others = [make_item("rows:1")]
    with pytest.raises(ConfigError, match="training data"):
        describe_start(first, point, others, command="train", allow_changes=False)
    (tag,) = describe_start(first, point, others, command="train", allow_changes=True).tags
    assert tag == "rlsys.allowed_changes"


def start_of(settings: RunConfig, point: ResumePoint, *, allow_changes: bool = False) -> dict[str, str]:
    items = [make_item("rows:0")]
    return dict(describe_start(settings, point, items, command="train", allow_changes=allow_changes).tags)


def test_a_new_name_renames_the_run_in_mlflow(tmp_path: Path, tiny_model_dir: Path) -> None:
    sections = {"model": {"path": str(tiny_model_dir)}}
    write_run_file(RunFile(mlflow_run_id="abc", config=config(tmp_path, **sections)))
    point = ResumePoint(state=START, checkpoint=None)
    assert "mlflow.runName" not in start_of(config(tmp_path, **sections), point)
    named = config(tmp_path, **sections, tracking={"run_name": "second try"})
    assert start_of(named, point)["mlflow.runName"] == "second try"
    write_run_file(RunFile(mlflow_run_id="abc", config=named))
    assert start_of(config(tmp_path, **sections), point)["mlflow.runName"] == "run"


def test_adapters_are_forked_onto_their_own_base_model_only(tmp_path: Path, tiny_model_dir: Path) -> None:
    lora = {"learner": {"lora": {"rank": 4}}}
    parent = config(tmp_path, model={"path": str(tiny_model_dir)}, **lora)
    saved = Checkpoints(parent.output_dir / "checkpoints", keep=1).save(at(2), lambda folder: None)
    write_run_file(RunFile(mlflow_run_id="abc", config=parent, identity=identity(parent, [])))
    child = parent.model_copy(update={"output_dir": tmp_path / "child"})
    point = find_resume_point(child, StartOptions(fork=saved))
    assert "rlsys.allowed_changes" not in start_of(child, point)
    other_model = tmp_path / "other"
    shutil.copytree(tiny_model_dir, other_model)
    (other_model / "tokenizer_config.json").write_text("{}")
    other = child.model_copy(update={"model": child.model.model_copy(update={"path": other_model})})
    with pytest.raises(ConfigError, match=r"--from .*holds only the weights that were trained.*set model\.path"):
        start_of(other, point)
    assert "base model" in start_of(other, point, allow_changes=True)["rlsys.allowed_changes"]
    whole = other.model_copy(update={"learner": LearnerConfig()})  # every weight comes from the checkpoint
    assert "rlsys.allowed_changes" not in start_of(whole, point)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"learner": {"zero_stage": 0}}, "learner.zero_stage=2, the config says 0"),
        ({"dtype": "float32"}, "saved with 'bfloat16', the config says 'float32'.*set model.dtype"),
    ],
)
def test_a_checkpoint_that_the_learner_cannot_load_is_refused_before_anything_starts(
    changed: dict[str, Any], said: str, tmp_path: Path, tiny_model_dir: Path
) -> None:
    def settings(dtype: str = "bfloat16", **sections: object) -> RunConfig:
        return config(tmp_path, model={"path": str(tiny_model_dir), "dtype": dtype}, **sections)

    first = settings()

    def write(folder: Path) -> None:
        (folder / "deepspeed").mkdir()
        layout = asdict(layout_of(first.model, first.learner, 1))
        (folder / "deepspeed" / LAYOUT_FILE).write_text(json.dumps(layout))

    Checkpoints(first.output_dir / "checkpoints", keep=1).save(at(2), write)
    point = find_resume_point(first, StartOptions(resume=first.output_dir))
    start_of(settings(learner={"num_ranks": 2, "zero_stage": 3}), point)
    with pytest.raises(CheckpointError, match=said):
        start_of(settings(**changed), point, allow_changes=True)


@pytest.mark.parametrize("text", ["", "[]", "null", "3", "{}", "[" * 100_000])
def test_a_damaged_summary_is_that_of_no_run_that_has_ended(text: str, tmp_path: Path) -> None:
    settings = config(tmp_path, train={"num_steps": 2})
    Checkpoints(settings.output_dir / "checkpoints", keep=1).save(at(2), lambda folder: None)
    (settings.output_dir / "summary.json").write_text(text)
    assert not has_ended(settings, find_resume_point(settings, StartOptions(resume=settings.output_dir)))
    (settings.output_dir / "summary.json").write_text('{"num_steps": 2}')
    with pytest.raises(CheckpointError, match=r"summary\.json: has no 'weights_digest'.*remove it"):
        read_summary(settings)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"mlflow_run_id": "a", "config": []}', '{"mlflow_run_id": 3, "config": {}}']
)
def test_a_damaged_description_of_a_run_is_named(text: str, tmp_path: Path) -> None:
    settings = config(tmp_path)
    Checkpoints(settings.output_dir / "checkpoints", keep=1).save(at(2), lambda folder: None)
    (settings.output_dir / "run.json").write_text(text)
    with pytest.raises(UserError, match=r"run\.json: "):
        find_resume_point(settings, StartOptions(resume=settings.output_dir))


def test_a_checkpoint_at_an_impossible_path_is_refused(tmp_path: Path) -> None:
    (tmp_path / "circle").symlink_to("circle")
    for path in (Path("x" * 300), tmp_path / "circle"):
        for options in (StartOptions(resume=path), StartOptions(fork=path)):
            with pytest.raises(CheckpointError, match="no such folder"):
                find_resume_point(config(tmp_path), options)


class Evaluating(Run[Stack]):
    """A run of which the evaluations before the first step are what matters. Its stack says what it is told."""

    publishes = True
    _record = write_extras = _write_curve = start = prefetch = check = keep = publish = None  # type: ignore[assignment]

    def __init__(self, settings: RunConfig) -> None:
        self._config, self._held_out, self._results, self.clock = settings, (make_item(),), {}, Clock()
        self._stack = object.__new__(PublishingStack)
        self.tags: dict[str, str] = {}
        self._tracker = cast(Tracker, SimpleNamespace(log_tags=self.tags.update))


class Stopping(Run[Stack]):
    """A run whose steps are given to it, up to the error that ends it."""

    _record = start = prefetch = check = keep = publish = _write_curve = _went_back = write_extras = (  # type: ignore[assignment]
        lambda *_: None
    )

    def sync(self) -> None:
        """The tracker's."""

    def __init__(self, stack: StubStack, settings: RunConfig, point: ResumePoint) -> None:
        tracker, given = cast(Tracker, self), cast(Stack, stack)
        super().__init__(Setting(config=settings, stack=given, tracker=tracker, point=point, held_out=()))


def finished(step: int) -> Step:
    return Step(
        state=at(step),
        collected=cast(Collected, None),
        batch=cast(TrainBatch, None),
        shaping_metrics={},
        learner_metrics={},
        seconds={},
    )


def test_an_error_between_two_steps_leaves_a_checkpoint_of_the_finished_ones(tmp_path: Path) -> None:
    stack, settings = StubStack(), config(tmp_path, checkpoint={"every_steps": 0})
    stopping = Stopping(stack, settings, ResumePoint(state=START, checkpoint=None))
    stopping.load_learner()
    stopping.save_finished_steps()
    assert "save" not in stack.said, "no step is finished yet"
    stopping.record(finished(3))
    stopping.save_finished_steps()
    point = find_resume_point(settings, StartOptions(resume=settings.output_dir))
    assert point.state.step == 3
    stopping.save_finished_steps()
    assert stack.said.count("save") == 1, "there is one already"


def test_an_error_amid_an_update_leaves_no_checkpoint_of_weights_between_two_steps(tmp_path: Path) -> None:
    stack = StubStack()
    stopping = Stopping(stack, config(tmp_path), ResumePoint(state=START, checkpoint=None))
    stopping.load_learner()
    stopping.record(finished(3))
    with pytest.raises(AttributeError):  # the stub cannot prepare frames
        stopping.update(cast(TrainBatch, SimpleNamespace(groups=())))
    stopping.save_finished_steps()
    assert "save" not in stack.said


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), LearnerLost("dead")])
def test_a_checkpoint_that_fails_then_does_not_hide_what_ended_the_run(
    error: Exception, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stack = StubStack(write_fails=error)
    stopping = Stopping(stack, config(tmp_path), ResumePoint(state=START, checkpoint=None))
    stopping.load_learner()
    stopping.record(finished(3))
    stopping.save_finished_steps()
    assert "could not save the checkpoint of step 3" in caplog.text and str(error) in caplog.text


def _full(*_: object) -> None:
    raise OSError(28, "No space left on device", "/a/file")


def test_steps_whose_record_the_disk_does_not_take_get_no_checkpoint_and_the_run_continues(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stack, settings = StubStack(), config(tmp_path, checkpoint={"every_steps": 1}, train={"num_steps": 9})
    stopping = Stopping(stack, settings, ResumePoint(state=START, checkpoint=None))
    stopping.load_learner()
    stopping.record(finished(3))
    stopping.sync = _full  # type: ignore[method-assign]
    stopping.record(finished(4))
    assert "could not save the checkpoint of step 4; the run continues" in caplog.text
    assert stopping.recovery.checkpoints.steps() == [3]
    del stopping.sync
    stopping.record(finished(5))
    assert stopping.recovery.checkpoints.steps()[-1] == 5


def test_a_full_disk_at_the_end_is_the_checkpoint_s_error_or_that_of_the_outputs(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name, stack, said in (
        ("outputs", StubStack(), "the last checkpoint is saved, but the outputs of the run could not be recorded"),
        ("checkpoint", StubStack(write_fails=OSError(28, "No space")), "the final checkpoint could not be written"),
    ):
        settings = config(tmp_path / name, train={"num_steps": 3})
        stopping = Stopping(stack, settings, ResumePoint(state=START, checkpoint=None))
        stopping.run_id = "abc"  # type: ignore[attr-defined] - the tracker's
        stopping._write_curve = _full  # type: ignore[assignment]
        stopping.load_learner()
        with pytest.raises(NotSavedError, match=said) as raised:
            stopping.finish(at(3))
        assert f"--resume {settings.output_dir}" in str(raised.value)
        assert not (settings.output_dir / "summary.json").exists()
    assert "the outputs of the run could not all be recorded: [Errno 28]" in caplog.text


class PublishingStack(Stack):
    def publish(self, version: int) -> WeightVersion:
        return WeightVersion(version=version, transport="none", num_tensors=0, num_bytes=0, digest="")


def test_what_a_run_began_with_is_evaluated_once_in_its_life(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked: list[int] = []

    def evaluated(*_: object) -> dict[str, dict[str, float]]:
        asked.append(1)
        return {"greedy": {"miou": len(asked) / 8}}

    def before(settings: RunConfig, state: RunState, process: Evaluating | None = None) -> float:
        process = process or Evaluating(settings)
        process.begin(state)
        return process._results["before"]["greedy"]["miou"]

    monkeypatch.setattr("rlsys.runs.run.evaluate_held_out", evaluated)
    settings = config(tmp_path)
    process = Evaluating(settings)
    assert before(settings, START, process) == 1 / 8
    assert before(settings, at(2)) == 1 / 8
    settings = config(tmp_path, evaluation={"num_samples": 3})
    resumed = Evaluating(settings)
    assert before(settings, at(2), resumed) == 2 / 8
    assert "measured again, of the weights of step 2, because" in caplog.text
    changed = "evaluation.num_samples: was 1, is 3"
    assert resumed.tags["rlsys.held_out_before"].startswith("step 2, because") and changed in str(resumed.tags)
    assert before(settings, at(2)) == 2 / 8
    another = replace(START, mlflow_run_id="of another run in this folder")
    assert before(settings, another) == 3 / 8
    assert before(settings, at(2), process) == 1 / 8, "also where the file is another's meanwhile"
    assert len(asked) == 3
    (tmp_path / "file").touch()
    unwritable = config(tmp_path, output_dir=tmp_path / "file" / "run")
    process = Evaluating(unwritable)
    assert before(unwritable, START, process) == before(unwritable, at(2), process) == 4 / 8
    assert "could not be saved" in caplog.text
