"""Files that are whole or absent, whatever operation the process dies at."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rlsys.files import UNFINISHED, aside, rename_synced, sync_tree, write_output, write_whole
from tests.support.deaths import Killed, die_at
from tests.support.pace import patience

OPERATIONS = ((os, "rename"), (os, "replace"), (os, "fsync"), (Path, "mkdir"), (Path, "open"))


@pytest.mark.parametrize("synced", [True, False])
@pytest.mark.parametrize("old", ["old", None])
def test_death_at_any_operation_leaves_the_old_file_or_the_new(old: str | None, synced: bool, tmp_path: Path) -> None:
    survived = set()
    for call in range(1, 20):
        file = tmp_path / str(call) / "file"
        if old is not None:
            write_whole(file, old)
        with pytest.MonkeyPatch.context() as monkeypatch:
            die_at(call, monkeypatch, OPERATIONS)
            try:
                write_whole(file, "new", synced=synced)
                finished = True
            except Killed:
                finished = False
        survived.add(file.read_text() if file.exists() else None)
        write_whole(file, "again")
        assert file.read_text() == "again"
        assert os.listdir(file.parent) == ["file"]
        if finished:
            break
    assert finished
    assert survived == {old, "new"}


def test_a_process_killed_in_the_middle_of_a_write_leaves_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "file"
    write_whole(file, "old")
    code = (
        "import os, signal; from pathlib import Path; import rlsys.files\n"
        "os.fsync = lambda handle: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"rlsys.files.write_whole(Path({str(file)!r}), 'new')"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, timeout=patience(60.0))
    assert done.returncode == -signal.SIGKILL
    assert file.read_text() == "old"
    write_whole(file, b"new")
    assert file.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("operation", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_and_nothing_beside_it(
    operation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    file = tmp_path / "file"
    write_whole(file, "old")
    monkeypatch.setattr(os, operation, fail)
    with pytest.raises(OSError, match="No space left") as raised:
        write_whole(file, "new")
    assert (raised.value.errno, raised.value.filename) == (28, str(file))
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_the_content_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order = []
    for name in ("fsync", "replace", "rename"):
        operation = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *args, name=name, call=operation: (order.append(name), call(*args))[1])
    write_whole(tmp_path / "file", "content")
    assert order == ["fsync", "replace", "fsync"]
    order.clear()
    folder = aside(tmp_path / "folder")
    folder.mkdir()
    (folder / "one").write_text("1")
    assert folder.name.startswith(UNFINISHED)
    sync_tree(folder)
    rename_synced(folder, tmp_path / "folder")
    assert order == ["fsync", "fsync", "rename", "fsync"]
    assert (tmp_path / "folder" / "one").read_text() == "1"


def test_output_goes_through_a_link_and_into_a_pipe(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")
    write_output(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real").read_text() == "new"
    os.mkfifo(tmp_path / "pipe")
    reader = subprocess.Popen(["cat", str(tmp_path / "pipe")], stdout=subprocess.PIPE, text=True)
    write_output(tmp_path / "pipe", "piped")
    assert reader.communicate(timeout=patience(60.0))[0] == "piped"
    assert (tmp_path / "pipe").is_fifo()
    assert sorted(os.listdir(tmp_path)) == ["link", "pipe", "real"]
    with pytest.raises(OSError, match="No space left on device: '/dev/full'"):
        write_output(Path("/dev/full"), "x")
