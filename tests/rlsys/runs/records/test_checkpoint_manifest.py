"""A checkpoint is used only when each of its files is what was written."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest

from rlsys.errors import CheckpointError
from rlsys.loop.state import RunState
from rlsys.runs.records.checkpoint import Checkpoints, find_whole, load_state
from rlsys.runs.records.checkpoint_manifest import CheckpointDamaged, verify, verify_model

STATE = RunState(step=2, prompts_consumed=8, seed=0, mlflow_run_id="abc", weights_digest="d2")
WEIGHTS = "deepspeed/learner/zero_pp_rank_0_mp_rank_00_optim_states.pt"


def save(folder: Path, step: int, keep: int = 3) -> Path:
    def write(aside: Path) -> None:
        for name, text in (
            (WEIGHTS, f"optimiser {step}"),
            ("model/model.safetensors", f"weights {step}"),
            ("empty", ""),
        ):
            (aside / name).parent.mkdir(parents=True, exist_ok=True)
            (aside / name).write_text(text)

    return Checkpoints(folder, keep=keep).save(RunState(**(asdict(STATE) | {"step": step})), write)


def flip_a_bit(checkpoint: Path) -> None:
    data = bytearray((checkpoint / WEIGHTS).read_bytes())
    data[3] ^= 4
    (checkpoint / WEIGHTS).write_bytes(data)


def edit_manifest(checkpoint: Path, change: Callable[[dict], object]) -> None:
    tree = json.loads((checkpoint / "manifest.json").read_text())
    change(tree)
    (checkpoint / "manifest.json").write_text(json.dumps(tree))


def link(file: Path, target: str) -> None:
    file.unlink()
    file.symlink_to(target)


def fifo(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def swap(one: Path, other: Path) -> None:
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "one flipped bit": (flip_a_bit, WEIGHTS),
    "a file of another step": (lambda at: shutil.copy(at.parent / "step_000001" / WEIGHTS, at / WEIGHTS), WEIGHTS),
    "the whole folder of another step": (
        lambda at: shutil.copytree(at.parent / "step_000001" / "deepspeed", at / "deepspeed", dirs_exist_ok=True),
        WEIGHTS,
    ),
    "a truncated file": (lambda at: os.truncate(at / WEIGHTS, 4), WEIGHTS),
    "an emptied file": (lambda at: os.truncate(at / "model" / "model.safetensors", 0), "model/model.safetensors"),
    "a file that grew": (lambda at: (at / "empty").write_text("x"), "empty"),
    "a missing file": (lambda at: (at / WEIGHTS).unlink(), WEIGHTS),
    "a file that nobody saved": (
        lambda at: (at / "model" / "adapter_config.json").write_text("{}"),
        "adapter_config.json",
    ),
    "another run's state": (lambda at: shutil.copy(at.parent / "step_000001" / "state.json", at), "manifest.json"),
    "another manifest": (lambda at: shutil.copy(at.parent / "step_000001" / "manifest.json", at), "manifest.json"),
    "no manifest": (lambda at: (at / "manifest.json").unlink(), "manifest.json"),
    "half a manifest": (lambda at: os.truncate(at / "manifest.json", 40), "manifest.json"),
    "a manifest of other types": (lambda at: edit_manifest(at, lambda tree: tree.update(files=[1])), "manifest.json"),
    "a manifest nested without end": (lambda at: (at / "manifest.json").write_text("[" * 100_000), "manifest.json"),
    "a link to nothing": (lambda at: link(at / WEIGHTS, "/nowhere"), WEIGHTS),
    "a link to itself": (lambda at: link(at / WEIGHTS, Path(WEIGHTS).name), WEIGHTS),
    "a FIFO": (lambda at: fifo(at / WEIGHTS), WEIGHTS),
    "a FIFO for a manifest": (lambda at: fifo(at / "manifest.json"), "manifest.json"),
    "a FIFO for a state": (lambda at: fifo(at / "state.json"), "manifest.json"),
    "two files that changed places": (lambda at: swap(at / WEIGHTS, at / "model" / "model.safetensors"), WEIGHTS),
    "files of a resharding beside the model": (
        lambda at: (at / "model" / "latest_universal").write_text("x"),
        "latest_universal",
    ),
    "a manifest without sizes": (
        lambda at: edit_manifest(at, lambda tree: tree["files"]["empty"].clear()),
        "manifest.json",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_noticed_named_and_survived(damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    older, newer = (save(tmp_path / "checkpoints", step) for step in (1, 2))
    verify(older)
    verify(newer)
    assert find_whole(tmp_path) == newer
    make, named = DAMAGES[damage]
    make(newer)
    with pytest.raises(CheckpointDamaged, match=named.replace(".", r"\.")):
        find_whole(newer)
    assert find_whole(tmp_path) == older
    assert named in caplog.text
    assert f"using {older} instead" in caplog.text


def test_what_file_systems_and_desktops_leave_is_no_damage(tmp_path: Path) -> None:
    checkpoint = save(tmp_path, 1)
    (checkpoint / "model" / ".nfs00000000021e4f6300000001").write_text("removed while it was open")
    (checkpoint / ".DS_Store").write_text("x")
    (checkpoint / ".snapshot").mkdir()
    (checkpoint / ".snapshot" / "state.json").write_text("{}")
    verify(checkpoint)


def test_where_no_checkpoint_is_whole_nothing_starts_from_the_beginning(tmp_path: Path) -> None:
    flip_a_bit(save(tmp_path / "checkpoints", 1))
    with pytest.raises(CheckpointDamaged, match="holds no intact checkpoint"):
        find_whole(tmp_path)


def test_a_model_of_a_checkpoint_is_verified_alone(tmp_path: Path) -> None:
    checkpoint = save(tmp_path, 1)
    flip_a_bit(checkpoint)  # in the optimiser, which nobody asked for
    verify_model(checkpoint / "model")
    (checkpoint / "model" / "model.safetensors").write_text("weights 7")
    with pytest.raises(CheckpointDamaged, match=r"model\.safetensors: its SHA-256"):
        verify_model(checkpoint / "model")
    verify_model(tmp_path)  # a folder from elsewhere has no manifest


def test_what_an_interrupted_resharding_left_is_no_damage(tmp_path: Path) -> None:
    checkpoint = save(tmp_path, 1)
    (checkpoint / "deepspeed" / ".resharded" / "zero").mkdir(parents=True)
    (checkpoint / "deepspeed" / ".resharded" / "zero" / "step.pt").write_text("…")
    (checkpoint / "deepspeed" / "latest_universal").write_text(".resharded")
    verify(checkpoint)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("step", "2"),
        ("step", True),
        ("step", -1),
        ("step", None),
        ("prompts_consumed", 1.5),
        ("mlflow_run_id", 3),
        ("seed", [0]),
    ],
)
def test_a_state_of_other_types_is_refused(key: str, value: object, tmp_path: Path) -> None:
    checkpoint = save(tmp_path, 1)
    tree = json.loads((checkpoint / "state.json").read_text())
    (checkpoint / "state.json").write_text(json.dumps(tree | {key: value}))
    with pytest.raises(CheckpointError, match=f"{key}="):
        load_state(checkpoint)


@pytest.mark.parametrize("text", ["[]", "3", "null", '"state"'])
def test_a_state_that_is_no_object_is_refused(text: str, tmp_path: Path) -> None:
    checkpoint = save(tmp_path, 1)
    (checkpoint / "state.json").write_text(text)
    with pytest.raises(CheckpointError, match="not the state of a checkpoint"):
        load_state(checkpoint)


@pytest.mark.parametrize("content", [b"\xff\xfe", b"step_999999", b"../../../etc", b"a\0b", b"x" * 5000, None])
def test_a_pointer_that_names_nothing_leaves_the_newest_checkpoint(content: bytes | None, tmp_path: Path) -> None:
    newer = [save(tmp_path / "checkpoints", step) for step in (1, 2)][-1]
    (tmp_path / "checkpoints" / "latest").unlink()
    if content is None:
        (tmp_path / "checkpoints" / "latest").mkdir()
    else:
        (tmp_path / "checkpoints" / "latest").write_bytes(content)
    assert find_whole(tmp_path) == newer


def test_a_checkpoint_without_its_state_is_not_passed_over_in_silence(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    older, newer = (save(tmp_path / "checkpoints", step) for step in (1, 2))
    (newer / "state.json").unlink()
    assert find_whole(tmp_path) == older
    assert f"skipped {newer}: it has no state.json" in caplog.text


def test_a_renamed_checkpoint_is_used_only_by_its_path(tmp_path: Path) -> None:
    older, newer = (save(tmp_path / "checkpoints", step) for step in (1, 2))
    kept = newer.rename(newer.with_name("step_best"))
    assert find_whole(tmp_path) == older
    assert find_whole(kept) == kept
    assert Checkpoints(tmp_path / "checkpoints", keep=3).steps() == [1]
