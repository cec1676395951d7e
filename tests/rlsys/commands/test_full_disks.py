"""Commands whose disk fills while they write: one sentence that names the file, and nothing half-written."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from rlsys.demo.synthetic import draw_dataset
from rlsys.models.tiny import make_tiny
from tests.support.mounts import run_with_mounts
from tests.support.pace import patience
from tests.support.paths import REPO

RLSYS = [sys.executable, "-m", "rlsys.commands.app"]
FULL = "No space left on device; free space there, or choose a place that has room, and run the command again\\."
LISTED = 'shown="$1"; shift; "$@"; code=$?; find "$shown" -type f; exit $code'


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two clips, and an annotation file of many rows."""
    folder = tmp_path_factory.mktemp("clips")
    made = draw_dataset(folder, num_clips=2, seed=0)
    rows = json.loads(made.annotations.read_text())
    many = {f"{name}_{index}": row for index in range(200) for name, row in rows.items()}
    (folder / "many.json").write_text(json.dumps(many))
    return folder


@pytest.mark.parametrize(
    ("command", "file"),
    [
        ("data convert {many} {disk}/rows.jsonl", "rows.jsonl"),
        ("data convert {many} --to charades_sta {disk}/rows.json", "rows.json"),
        ("data preview {few} {disk}/page.html", "page.html"),
        ("data timebench --videos {videos} --out {disk} --cue marks", "frames/00000/"),
    ],
)
def test_a_disk_that_fills_is_named_and_no_part_of_a_file_is_left(
    command: str, file: str, clips: Path, tmp_path: Path
) -> None:
    disk, videos = tmp_path / "disk", clips / "videos"
    disk.mkdir()
    given = {
        "disk": disk,
        "videos": videos,
        "many": f"--format charades_sta --annotations {clips}/many.json",
        "few": f"--format charades_sta --annotations {clips}/annotations.json --videos {videos}",
    }
    shell = ["sh", "-c", LISTED, "sh", str(disk), *RLSYS, *command.format(**given).split()]
    done = run_with_mounts({disk: "size=68k"}, shell)  # room for the probe of 64 KiB, which is then gone
    assert done.returncode == 2, done.stderr
    *_, said = done.stderr.splitlines()
    assert said.startswith(f"rlsys: {disk}/{file}")
    assert said.endswith(": No space left on device; free space there, or choose a place that has room, and run the "
                         "command again.")  # fmt: skip
    assert "Traceback" not in done.stderr
    assert all(left.startswith(f"{disk}/frames/") and left.endswith(".png") for left in done.stdout.splitlines())


@pytest.mark.parametrize(
    "command",
    [
        "models",
        "data schema",
        "check-config --fields",
        "--help",
        "--version",
        "",
        "eval run --help",
        "data convert --help",
    ],
)
def test_an_output_that_takes_no_more_is_named(command: str) -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [*RLSYS, *command.split()], stdout=full, stderr=subprocess.PIPE, text=True, cwd=REPO, timeout=patience(60.0)
        )
    assert done.returncode == 2
    assert done.stderr == (
        "rlsys: the output of this command: No space left on device; free space there, or choose a place that has "
        "room, and run the command again.\n"
    )


@pytest.mark.parametrize("command", ["models", "check-config --fields", "--help", "--version", "data --help"])
def test_an_output_that_nobody_reads_ends_the_command_in_silence(command: str) -> None:
    unread, output = os.pipe()
    os.close(unread)
    done = subprocess.run(
        [*RLSYS, *command.split()], stdout=output, stderr=subprocess.PIPE, text=True, cwd=REPO, timeout=patience(60.0)
    )
    os.close(output)
    assert done.returncode == 1
    assert done.stderr == ""


def test_an_output_that_is_a_folder_or_of_another_kind_is_refused_before_any_work(clips: Path, tmp_path: Path) -> None:
    for option, said in (
        (["convert", str(tmp_path)], f"OUT {tmp_path}: this is a folder"),
        (["stats", "--plot", str(tmp_path / "plot.foo")], "plot.foo: name a file that ends with .png, .pdf, .svg"),
    ):
        rows = ["--format", "charades_sta", "--annotations", str(tmp_path / "none")]
        done = subprocess.run([*RLSYS, "data", *option, *rows], capture_output=True, text=True, cwd=REPO)
        assert done.returncode == 2 and said in done.stderr


@pytest.mark.parametrize("disk", ["size=1m", "nr_inodes=60"])
def test_a_demo_whose_disk_fills_names_the_clip_and_leaves_no_part_of_one(disk: str, tmp_path: Path) -> None:
    folder = tmp_path / "disk"
    folder.mkdir()
    shell = ["sh", "-c", 'shown="$1"; shift; "$@"; code=$?; cp -r "$shown" "$0"; exit $code', str(tmp_path / "kept")]
    done = run_with_mounts({folder: disk}, [*shell, str(folder), *RLSYS, "demo", "--out", str(folder)])
    assert done.returncode == 2, done.stderr
    *_, said = done.stderr.splitlines()
    assert re.fullmatch(rf"rlsys: {folder}/data/cold_start/videos/\d+\.mp4: {FULL}", said)
    clips = sorted((tmp_path / "kept").rglob("*.mp4"))
    assert len(clips) > 10
    whole = draw_dataset(tmp_path / "whole", num_clips=len(clips), seed=0).videos
    assert [clip.read_bytes() for clip in clips] == [(whole / clip.name).read_bytes() for clip in clips]


def test_a_submit_without_room_for_its_package_names_what_it_could_not_write(tmp_path: Path) -> None:
    settings = [f"output_dir={tmp_path}/run", "model.path=m", "data.annotations=a", "data.videos=v"]
    command = [*RLSYS, "submit", str(REPO / "configs" / "demo.yaml"), *settings, "--address", "http://127.0.0.1:9"]
    done = run_with_mounts({tmp_path: "size=200k"}, command, TMPDIR=str(tmp_path))
    assert done.returncode == 2, done.stderr
    *_, said = done.stderr.splitlines()
    assert re.fullmatch(rf"rlsys: {tmp_path}/rlsys-submit-\S+: {FULL}", said)


def test_an_evaluation_into_a_folder_without_room_ends_before_a_model_is_loaded(clips: Path, tmp_path: Path) -> None:
    config = tmp_path / "eval.yaml"
    sets = [{"name": "held", "annotations": f"{clips}/annotations.json", "videos": f"{clips}/videos"}]
    make_tiny(tmp_path / "tiny", seed=0)
    model = {"path": str(tmp_path / "tiny"), "max_model_len": 512}
    data = {"format": "charades_sta", "max_pixels": 7056, "min_pixels": 784, "max_frames": 8}
    sections = {"model": model, "data": data, "rollout": {"max_tokens": 24}, "evaluation": {"sets": sets}}
    config.write_text(json.dumps({"output_dir": "out", **sections}))
    out = tmp_path / "out"
    out.mkdir()
    done = run_with_mounts({out: "size=12k"}, [*RLSYS, "eval", str(config), "--out", str(out)])
    assert done.returncode == 2, done.stderr
    *_, said = done.stderr.splitlines()
    assert said == (
        f"rlsys: {out}: no file can be written to {out} (No space left on device); free space there, or evaluate into "
        "another folder (--out)."
    )


AS_NOBODY = """
import os, sys
import mlflow, rlsys.tracking.unsent
from rlsys.commands.app import main
os.setuid(65534)
main()
"""


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_a_file_that_this_user_may_not_write_is_named(tmp_path: Path) -> None:
    with TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        kept = Path(folder) / "tracking" / "id"
        kept.mkdir(parents=True)
        kept.chmod(0o555)
        address = {"uri": f"sqlite:///{tmp_path}/mlflow.db", "experiment": "e", "run_name": "r"}
        (kept / "address.json").write_text(json.dumps(address))
        command = [sys.executable, "-c", AS_NOBODY, "tracking", "send", folder]
        done = subprocess.run(command, capture_output=True, text=True, cwd=REPO)
    assert done.returncode == 2, done.stderr
    *_, said = done.stderr.splitlines()
    assert said == (
        f"rlsys: {kept}/lock: Permission denied; let this user read and write it, or choose another place, and run the "
        "command again."
    )


@pytest.mark.parametrize("command", ["check-config demo.yaml", "plan demo.yaml", "rewards serve", "submit demo.yaml"])
def test_a_machine_without_a_folder_for_temporary_files_is_told_so(command: str) -> None:
    full = {Path(folder): "ro" for folder in ("/tmp", "/var/tmp")}
    shell = ["sh", "-c", 'cd /var/tmp && "$@"', "sh", *RLSYS, *command.split()]
    done = run_with_mounts(full, shell, TMPDIR="", PYTHONPATH=str(REPO))
    assert done.returncode == 2, done.stderr
    *_, said = done.stderr.splitlines()
    assert re.fullmatch(r"rlsys: there is no folder for temporary files \(.*\); set TMPDIR to .*\.", said)
