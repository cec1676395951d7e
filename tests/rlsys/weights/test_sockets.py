"""Where the processes of a group listen, by where all of them run."""

from __future__ import annotations

import socket

import psutil
import pytest

from rlsys.weights.sockets import engine_sockets, interface_of, is_loopback, rank_sockets

ELSEWHERE = "203.0.113.7"  # no machine's


@pytest.fixture(autouse=True)
def _nothing_is_chosen_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        monkeypatch.delenv(name, raising=False)


def own_address() -> str:
    """An address of this machine that others could reach; without one, the test has nothing to say."""
    for name, owns in psutil.net_if_addrs().items():
        for own in owns:
            if own.family == socket.AF_INET and name != "lo":
                return own.address
    pytest.skip("this machine has no network")


@pytest.mark.parametrize("address", ["127.0.0.1", "127.8.0.1", "::1", "localhost"])
def test_loopback_has_many_addresses(address: str) -> None:
    assert is_loopback(address)


@pytest.mark.parametrize("address", [ELSEWHERE, "10.0.0.1", "node-7"])
def test_others_are_not_loopback(address: str) -> None:
    assert not is_loopback(address)


def test_ranks_of_one_node_listen_on_loopback_alone() -> None:
    both = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
    assert rank_sockets(own_address(), ranks_share_node=True, engines_join=False) == both
    # a cluster on loopback has no other node
    assert rank_sockets("127.0.0.1", ranks_share_node=True, engines_join=True) == both


def test_a_rank_that_engines_of_other_nodes_join_announces_an_address_that_they_reach() -> None:
    address = own_address()
    found = rank_sockets(address, ranks_share_node=True, engines_join=True)
    assert found == {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": f"={interface_of(address)}"}
    assert found["NCCL_SOCKET_IFNAME"] != "=lo"
    assert engine_sockets(address) == {"NCCL_SOCKET_IFNAME": found["NCCL_SOCKET_IFNAME"]}


def test_ranks_of_several_nodes_use_the_nodes_interface() -> None:
    address = own_address()
    interface = interface_of(address)
    for engines_join in (False, True):
        found = rank_sockets(address, ranks_share_node=False, engines_join=engines_join)
        assert found == {"NCCL_SOCKET_IFNAME": f"={interface}", "GLOO_SOCKET_IFNAME": interface}


def test_an_address_of_no_interface_leaves_the_choice_to_nccl() -> None:
    assert interface_of(ELSEWHERE) is None
    assert rank_sockets(ELSEWHERE, ranks_share_node=False, engines_join=True) == {}
    assert engine_sockets(ELSEWHERE) == {}


def test_what_the_user_has_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "ib0")
    assert rank_sockets("127.0.0.1", ranks_share_node=True, engines_join=True) == {"GLOO_SOCKET_IFNAME": "lo"}
    assert engine_sockets("127.0.0.1") == {}


def test_an_engine_of_a_cluster_on_loopback_listens_there() -> None:
    assert engine_sockets("127.0.0.1") == {"NCCL_SOCKET_IFNAME": "=lo"}
