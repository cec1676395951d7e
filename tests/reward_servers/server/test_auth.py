from __future__ import annotations

import pickle

import pytest

from reward_servers.server.auth import TokenCheck, is_loopback, refuse_open_bind, token_from_environment


def test_only_the_token_is_accepted() -> None:
    check = TokenCheck.of("s3cret")
    assert check.accepts("Bearer s3cret")
    assert check.accepts("bearer s3cret")
    for wrong in (
        None,
        "",
        "Bearer",
        "Bearer ",
        "Bearer s3cre",
        "Bearer s3cret2",
        "s3cret",
        "Basic s3cret",
        "Bearer ü\udcff",
    ):
        assert not check.accepts(wrong)


def test_the_token_is_not_in_what_replicas_are_sent() -> None:
    check = TokenCheck.of("s3cret")
    assert b"s3cret" not in pickle.dumps(check)
    assert repr(check) == "TokenCheck()"
    assert TokenCheck.of("s3cret").digest != check.digest


def test_the_token_comes_from_the_named_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REWARD_TEST_TOKEN", raising=False)
    assert token_from_environment("REWARD_TEST_TOKEN") is None
    monkeypatch.setenv("REWARD_TEST_TOKEN", "  ")
    assert token_from_environment("REWARD_TEST_TOKEN") is None
    monkeypatch.setenv("REWARD_TEST_TOKEN", " s3cret\n")
    assert token_from_environment("REWARD_TEST_TOKEN") == "s3cret"
    monkeypatch.setenv("REWARD_TEST_TOKEN", "s3 cret")
    with pytest.raises(ValueError, match="REWARD_TEST_TOKEN") as error:
        token_from_environment("REWARD_TEST_TOKEN")
    assert "cret" not in str(error.value)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.1.2.3", "reward.example", ""])
def test_an_address_that_others_reach_needs_a_token(host: str) -> None:
    with pytest.raises(ValueError, match="RLSYS_REWARD_TOKEN.*127.0.0.1"):
        refuse_open_bind(host, None, "RLSYS_REWARD_TOKEN")
    refuse_open_bind(host, "s3cret", "RLSYS_REWARD_TOKEN")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "[::1]", "localhost"])
def test_loopback_needs_none(host: str) -> None:
    assert is_loopback(host)
    refuse_open_bind(host, None, "RLSYS_REWARD_TOKEN")
