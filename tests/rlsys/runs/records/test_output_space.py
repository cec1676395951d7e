"""A run's folder that cannot hold its checkpoints is reported before anything starts."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from rlsys.config.run import RunConfig, parse
from rlsys.files import why_not_writable
from rlsys.runs.records.output_space import RECORD_BYTES, checkpoint_bytes, output_problems
from tests.support.mounts import run_with_mounts


def config(output_dir: Path, model: Path) -> RunConfig:
    return parse({"output_dir": str(output_dir), "model": {"path": str(model), "dtype": "float32"}}, source="test")


def test_a_checkpoint_of_float32_has_weights_moments_and_the_exported_model(
    tmp_path: Path, tiny_model_dir: Path
) -> None:
    weights = sum(file.stat().st_size for file in tiny_model_dir.glob("*.safetensors"))
    estimate = checkpoint_bytes(config(tmp_path, tiny_model_dir))
    # 12 bytes of AdamW, 4 of the weight and 4 of the export, against 4 in the file
    assert weights * 3 < estimate < weights * 6


def test_a_folder_with_room_has_no_problem_and_nothing_is_left_in_it(tmp_path: Path, tiny_model_dir: Path) -> None:
    assert list(output_problems(config(tmp_path / "a" / "b", tiny_model_dir))) == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", ["file", "file/run", "/proc/run", "/sys/run"])
def test_a_folder_that_cannot_be_made_is_named_with_the_reason(
    place: str, tmp_path: Path, tiny_model_dir: Path
) -> None:
    (tmp_path / "file").touch()
    (found,) = output_problems(config(tmp_path / place, tiny_model_dir))
    assert found.startswith(f"output_dir={tmp_path / place}: no file can be written to ")
    assert found.endswith("choose a folder that can be written to and has room.")


def test_a_disk_without_room_for_a_checkpoint_is_reported_with_the_arithmetic(
    tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = config(tmp_path, tiny_model_dir)
    needed = checkpoint_bytes(given) + RECORD_BYTES
    usage = shutil.disk_usage(tmp_path)._replace(free=needed - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    (found,) = output_problems(given)
    assert f"has {needed - 1 >> 20} MiB free" in found and f"about {needed >> 20} MiB; free space" in found
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=needed))
    assert list(output_problems(given)) == []


LISTED = """
import json, sys
from pathlib import Path
from rlsys.config.run import parse
from rlsys.runs.records.output_space import output_problems
from rlsys.runs.records.run_lock import OutputDirUnusable, run_lock
folder, model = sys.argv[1:]
config = parse({"output_dir": folder, "model": {"path": model}}, source="test")
try:
    with run_lock(Path(folder)):
        locked = ""
except OutputDirUnusable as error:
    locked = str(error)
print(json.dumps([locked, list(output_problems(config))]))
"""


@pytest.mark.parametrize(
    ("options", "lock_says", "check_says"),
    [
        ("ro", "cannot be written to: .*Read-only file system", "no file can be written to .*Read-only file system"),
        ("size=16m", "", "its disk has 1[56] MiB free, but a checkpoint and the run's record take about"),
        ("size=4k,nr_inodes=20", "", "no file can be written to .*No space left on device"),
        (
            "nr_inodes=60",
            "",
            r"its disk can hold only 5\d more files \(df -i\), but a checkpoint and the run",
        ),
        (
            "size=1m,nr_inodes=1",
            "cannot be written to: .*No space left",
            "no file can be written to .*No space left.*: see df -i",
        ),
    ],
)
def test_real_disks_that_are_small_full_or_read_only(
    options: str, lock_says: str, check_says: str, tmp_path: Path, tiny_model_dir: Path
) -> None:
    import re

    command = [sys.executable, "-c", LISTED, str(tmp_path / "disk"), str(tiny_model_dir)]
    (tmp_path / "disk").mkdir()
    done = run_with_mounts({tmp_path / "disk": options}, command)
    assert done.returncode == 0, done.stderr
    locked, found = json.loads(done.stdout.splitlines()[-1])
    assert re.search(lock_says, locked) if lock_says else locked == ""
    assert len(found) == 1 and re.search(check_says, found[0])


def test_a_file_is_no_place_for_files(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert why_not_writable(tmp_path) == ""
    assert why_not_writable(tmp_path / "none") == ""
    assert why_not_writable(tmp_path / "none", must_exist=True) == "no such folder"
    assert why_not_writable(tmp_path / "file", must_exist=True) == "not a folder"
    assert "Not a directory" in why_not_writable(tmp_path / "file" / "none")
