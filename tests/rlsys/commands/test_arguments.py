"""What is filled into arguments of the command line."""

from __future__ import annotations

import subprocess
import sys

import pytest
from typer.testing import CliRunner

from rlsys.commands.app import app
from rlsys.commands.arguments import with_home


@pytest.mark.parametrize(
    ("argument", "filled"),
    [
        ("--out=~/a b", "--out=/home/me/a b"),
        ("--out=~", "--out=/home/me"),
        ("--judge-cache=~/v~1", "--judge-cache=/home/me/v~1"),
        ("--out=~other/a", "--out=~other/a"),
        ("--out=a/~/b", "--out=a/~/b"),
        ("~/a", "~/a"),  # a shell has filled this in, unless it was quoted
        ("output_dir=~/a", "output_dir=~/a"),  # read by the config
        ("--follow", "--follow"),
    ],
)
def test_a_home_that_no_shell_fills_in_is_filled_in(
    argument: str, filled: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert with_home(argument) == filled


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("demo --seed -1", "--seed"),
        ("demo --seed 99999999999999999999", "--seed"),
        ("plan demo.yaml --generate-s -1", "--generate-s"),
        ("plan demo.yaml --score-s nan", "--score-s"),
        ("plan demo.yaml --update-s 0", "--update-s"),
        ("plan demo.yaml --sync-s inf", "--sync-s"),
        (f"score --jsonl {__file__} --judge-concurrency 99999999999999999", "--judge-concurrency"),
        (f"score --jsonl {__file__} --timeout inf", "--timeout"),
    ],
)
def test_a_number_that_nothing_can_be_done_with_is_refused_by_its_option(arguments: str, says: str) -> None:
    done = CliRunner().invoke(app, arguments.split())
    assert done.exit_code == 2
    assert f"Invalid value for '{says}'" in done.output


@pytest.mark.parametrize("argument", ["", "--out="])
def test_an_argument_that_is_empty_is_not_the_current_folder(argument: str) -> None:
    command = [sys.executable, "-m", "rlsys.commands.app", "demo", *([argument] if argument else ["--out", ""])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("rlsys: an argument is empty")
