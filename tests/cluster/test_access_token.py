"""The token of a cluster that is started here."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from cluster.access_token import require_token
from rlsys.config.run import ConfigError


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home without a token."""
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def permissions(path: Path) -> int:
    return path.stat().st_mode & 0o777


@pytest.mark.parametrize("mode", ["disabled", "DISABLED", "none"])
def test_a_cluster_without_a_token_is_refused(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", mode)
    with pytest.raises(ConfigError, match=f"RAY_AUTH_MODE={mode}: .*unset RAY_AUTH_MODE"):
        require_token()


@pytest.mark.parametrize("mode", [None, "token", "TOKEN"])
def test_a_token_is_made_that_only_the_user_can_read(
    mode: str | None, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if mode is not None:
        monkeypatch.setenv("RAY_AUTH_MODE", mode)
    require_token()
    file = home / ".ray" / "auth_token"
    assert permissions(file) == 0o600 and permissions(file.parent) == 0o700
    token = file.read_text()
    assert len(token) == 64
    require_token()
    assert file.read_text() == token


@pytest.mark.parametrize("open_to", [0o644, 0o640, 0o666])
def test_a_token_that_others_can_read_is_closed_and_kept(open_to: int, home: Path) -> None:
    file = home / ".ray" / "auth_token"
    file.parent.mkdir()
    file.write_text("0123456789abcdef")
    file.chmod(open_to)
    require_token()
    assert permissions(file) == 0o600 and file.read_text() == "0123456789abcdef"


def test_a_token_in_the_environment_needs_no_file(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0123456789abcdef")
    require_token()
    assert not (home / ".ray").exists()


def test_a_named_file_is_left_as_it_is_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "mounted"
    file.write_text("0123456789abcdef")
    file.chmod(0o644)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(file))
    with caplog.at_level(logging.WARNING):
        require_token()
    assert permissions(file) == 0o644 and f"RAY_AUTH_TOKEN_PATH={file}" in caplog.text
