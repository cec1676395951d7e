"""The network interface on which processes of a group listen, chosen by where all of them run.

NCCL reads it once in a process, at its first group, and announces its address to every later one. A learner rank
whose group lies within one node may therefore use loopback only if no engine of another node will ever join one of its
groups.
"""

from __future__ import annotations

import ipaddress
import os

LOOPBACK = "lo"


def is_loopback(address: str) -> bool:
    """Return whether the address is one that only processes of the same machine reach. False for a host name."""
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"


def interface_of(address: str) -> str | None:
    """Return the name of this machine's interface that has the address; None if there is none."""
    import psutil

    found = (name for name, owns in psutil.net_if_addrs().items() if any(own.address == address for own in owns))
    return next(found, None)


def rank_sockets(node_address: str, *, ranks_share_node: bool, engines_join: bool) -> dict[str, str]:
    """Return the environment of a learner rank: the interfaces of gloo and NCCL.

    node_address: by which the cluster knows the rank's node.  engines_join: whether rank 0 opens NCCL groups with
    engines too. Engines may be replaced on any node of the cluster, so they share the ranks' node for certain only if
    the cluster is on loopback. What the environment already says is left as it is.
    """
    chosen, interface = {}, interface_of(node_address)
    if ranks_share_node:
        chosen["GLOO_SOCKET_IFNAME"] = LOOPBACK  # else they listen on the network
    elif interface:
        # by itself gloo announces what the host's name stands for, which is loopback on many a host
        chosen["GLOO_SOCKET_IFNAME"] = interface
    if ranks_share_node and (not engines_join or is_loopback(node_address)):
        chosen["NCCL_SOCKET_IFNAME"] = LOOPBACK
    elif interface:
        chosen["NCCL_SOCKET_IFNAME"] = f"={interface}"
    return {name: value for name, value in chosen.items() if name not in os.environ}


def engine_sockets(node_address: str) -> dict[str, str]:
    """Return the environment of an engine that joins NCCL groups of the learner: the interface of its node."""
    interface = LOOPBACK if is_loopback(node_address) else interface_of(node_address)
    if interface is None or "NCCL_SOCKET_IFNAME" in os.environ:
        return {}
    return {"NCCL_SOCKET_IFNAME": f"={interface}"}
