"""What is filled into arguments of the command line."""

from __future__ import annotations

import pytest

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
