"""Commands started with closed streams, another encoding or no environment at all."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

RUN = f"{sys.executable} -m rlsys.commands.app"
CHECK = f"{RUN} data check --format charades_sta --annotations rows.json --videos ."


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    (tmp_path / "rows.json").write_text('{"中": {"duration": 9, "timestamps": [[0, 1]], "sentences": ["ü"]}}')
    return tmp_path


def shell(command: str, folder: Path, **more: str) -> subprocess.CompletedProcess[bytes]:
    environment = {**os.environ, **more}
    return subprocess.run(["bash", "-c", command], cwd=folder, env=environment, capture_output=True, check=False)


@pytest.mark.parametrize("closed", ["2>&-", "<&- 2>&-", "1>&- 2>&-"])
def test_a_command_works_although_streams_are_closed(rows: Path, closed: str) -> None:
    done = shell(f"{CHECK} {closed}", rows)
    assert done.returncode == 0
    assert ("1 missing videos" in done.stdout.decode()) == ("1>&-" not in closed)


def test_a_file_does_not_take_the_place_of_a_closed_stream() -> None:
    script = (
        "import os; from rlsys.commands.standard_streams import open_standard_streams; open_standard_streams(); "
        "print(open('/dev/zero').fileno() > 2, [os.path.realpath(f'/proc/self/fd/{n}') for n in (0, 2)])"
    )
    done = shell(f'{sys.executable} -c "{script}" <&- 2>&-', Path.cwd())
    assert done.stdout.decode().strip() == "True ['/dev/null', '/dev/null']"


def test_what_an_encoding_lacks_is_escaped(rows: Path) -> None:
    done = shell(CHECK, rows, PYTHONIOENCODING="latin-1")
    assert done.returncode == 0, done.stderr.decode("latin-1")
    assert r"\u4e2d: 1 rows (\u4e2d/0)" in done.stdout.decode("latin-1")


def test_a_command_works_without_an_environment(rows: Path) -> None:
    done = shell(f"env -i {RUN} plan demo.yaml", rows)
    assert done.returncode == 0, done.stderr.decode()
    assert b"clips and prompts" in done.stdout
