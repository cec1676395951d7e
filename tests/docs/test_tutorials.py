"""The tutorials of `docs/tutorials` work as they are written.

A page is run from top to bottom: a fenced block with a title is a file, a ```bash block is a command that must succeed,
and each line of a ```text block occurs in the output of the command before it. Numbers may differ, and `…` stands for
anything. ```console blocks set up what a test has: an environment, and a folder to work in.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.pace import patience
from tests.support.paths import REPO

TUTORIALS = REPO / "docs" / "tutorials"
COMMAND_LIMIT_S = 300.0
_BLOCK = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_TITLE = re.compile(r'title="([^"]+)"')
_NUMBER = re.compile(r"\d+(?:[.:]\d+)*")


@dataclass(frozen=True, kw_only=True)
class Block:
    """language: bash, text, or that of a file.  title: the file's name, "" for other blocks."""

    language: str
    title: str
    content: str


def blocks_of(page: str) -> Iterator[Block]:
    for language, rest, content in _BLOCK.findall(page):
        title = _TITLE.search(rest)
        yield Block(language=language, title=title.group(1) if title else "", content=content)


def missing_lines(expected: str, output: str) -> list[str]:
    """Lines of `expected` that `output` does not have."""

    def pattern(line: str) -> re.Pattern[str]:
        parts = (r"\d+(?:[.:]\d+)*".join(map(re.escape, _NUMBER.split(part))) for part in line.split("…"))
        return re.compile(r"\s*" + ".*".join(parts) + r"\s*")

    lines = output.splitlines()
    wanted = filter(str.strip, expected.splitlines())
    return [line for line in wanted if not any(pattern(line.strip()).fullmatch(found) for found in lines)]


def run_page(page: str, folder: Path, variables: dict[str, str]) -> None:
    """Write the page's files into `folder` and run its commands there."""
    output = ""
    for block in blocks_of(page):
        if block.title:
            file = folder / block.title
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(block.content, encoding="utf-8")
        elif block.language == "bash":
            output = output_of(block.content, folder, variables)
        elif block.language == "text":
            missing = missing_lines(block.content, output)
            assert not missing, f"not in the output: {missing}\n{output}"


def output_of(command: str, folder: Path, variables: dict[str, str]) -> str:
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],
        cwd=folder,
        env=variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=patience(COMMAND_LIMIT_S),
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}"
    return done.stdout


@pytest.fixture
def variables() -> dict[str, str]:
    """The environment of a person who has the virtual environment on the path."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    of_the_tests = ("PYTHONPATH", "MLFLOW_TRACKING_URI", "PYTEST_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(of_the_tests)}
    return {**kept, "PATH": path}


@pytest.mark.stack
@pytest.mark.parametrize(
    "name",
    # of the second, tests of readers, `data check` and `check-config` hold what its commands print
    ["add_a_reward", pytest.param("bring_your_own_data", marks=pytest.mark.long)],
)
def test_a_tutorial_works_in_an_empty_folder(name: str, tmp_path: Path, variables: dict[str, str]) -> None:
    run_page((TUTORIALS / f"{name}.md").read_text(encoding="utf-8"), tmp_path, variables)


@pytest.mark.stack
def test_a_task_is_added_to_a_copy_of_the_source_tree(tmp_path: Path, variables: dict[str, str]) -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=REPO, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        if (REPO / name).exists() or (REPO / name).is_symlink():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPO / name, tmp_path / name, follow_symlinks=False)
    page = (TUTORIALS / "add_a_task.md").read_text(encoding="utf-8")
    # the environment's packages are those of the checkout
    run_page(page, tmp_path, {**variables, "PYTHONPATH": str(tmp_path)})


def test_numbers_and_dots_of_an_expected_line_stand_for_others() -> None:
    output = "06:46:24 step 1/2  ETA 0:08  reward 0.500  rollouts/s 3.32\nsummary: ok"
    assert missing_lines("… step 2/2 … reward 1.25 …\n\nsummary: ok\n", output) == []
    assert missing_lines("… step 1/2 … loss 0.5 …\nsummary\n", output) == ["… step 1/2 … loss 0.5 …", "summary"]


def test_a_page_whose_output_differs_fails(tmp_path: Path, variables: dict[str, str]) -> None:
    page = '```text title="a.txt"\nred\n```\n\n```bash\ncat a.txt\n```\n\n```text\n{}\n```\n'
    run_page(page.format("red"), tmp_path, variables)
    with pytest.raises(AssertionError, match="not in the output"):
        run_page(page.format("blue"), tmp_path, variables)
    with pytest.raises(AssertionError, match="No such file"):
        run_page("```bash\ncat b.txt\n```\n", tmp_path, variables)
