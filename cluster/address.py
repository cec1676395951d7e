"""The address of the Ray cluster that a run attaches to, checked before Ray itself tries it for minutes."""

from __future__ import annotations

import socket
from dataclasses import dataclass

from rlsys import env
from rlsys.config.run import ClusterConfig, ConfigError

KNOCK_TIMEOUT_S = 10.0
EXAMPLE = "the address of the head node, for example 10.0.0.1:6379"
_ALIVE = "/ray.rpc.NodeInfoGcsService/CheckAlive"


@dataclass(frozen=True, kw_only=True)
class Address:
    """Where a cluster is. source: the config key or variable that says so.  value: HOST:PORT or "auto"."""

    source: str
    value: str

    def __str__(self) -> str:
        return f"{self.source}={self.value}"


def cluster_address(config: ClusterConfig) -> Address | None:
    """Return the address of the cluster to attach to, None if one is to be started here.

    Raises ConfigError for an address that no run can attach to, without trying it.
    """
    value = env.named_cluster(config.address)
    if value is None:
        return None
    address = Address(source="cluster.address" if config.address is not None else "RAY_ADDRESS", value=value)
    if value.startswith(("http://", "https://")):
        raise ConfigError(
            f"{address}: this is a dashboard, not a cluster; use `rlsys submit --address {value}`, or give {EXAMPLE}."
        )
    if "://" in value:
        raise ConfigError(
            f"{address}: a run is a driver of its cluster and cannot use {value.partition('://')[0]}://; start it on a "
            f"node of the cluster with {EXAMPLE}, or submit it with `rlsys submit`."
        )
    host, _, port = value.rpartition(":")
    if value != "auto" and not (host and port.isdecimal() and 0 < int(port) < 1 << 16):
        raise ConfigError(
            f"{address}: not HOST:PORT; give {EXAMPLE}, auto for a cluster on this machine, or local to start one."
        )
    return address


def require_cluster(address: Address) -> None:
    """Raise ConfigError if no Ray cluster answers at the address within seconds; Ray would try for minutes."""
    from ray._private.services import canonicalize_bootstrap_address

    try:
        place = canonicalize_bootstrap_address(address.value) or address.value
    except ConnectionError as error:
        raise ConfigError(
            f"{address}: no Ray cluster runs on this machine; start one with `ray start --head`, give {EXAMPLE}, or "
            "local to start one for the run alone."
        ) from error
    except OSError as error:
        raise ConfigError(f"no Ray cluster answers at {address.value} ({address.source}): {error}") from error
    tried = address.source if place == address.value else f"{address.source}, reached as {place}"
    host, _, port = place.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=KNOCK_TIMEOUT_S).close()
    except OSError as error:
        raise ConfigError(f"no Ray cluster answers at {address.value} ({tried}): {error}") from error
    if env.read("RAY_USE_TLS") in (None, "0"):  # with TLS, Ray itself has the keys to ask
        _require_gcs(place, f"{address.value} ({tried})")


def _require_gcs(place: str, shown: str) -> None:
    """Raise ConfigError if what listens is not the global control service of a Ray cluster."""
    import grpc

    with grpc.insecure_channel(place, options=[("grpc.enable_http_proxy", 0)]) as channel:
        ask = channel.unary_unary(_ALIVE, request_serializer=bytes, response_deserializer=bytes)
        try:
            ask(b"", timeout=KNOCK_TIMEOUT_S)
        except grpc.RpcError as error:
            # every other status is an answer of the service: it may want a token, or a request of another version
            if error.code() in (
                grpc.StatusCode.UNAVAILABLE,
                grpc.StatusCode.DEADLINE_EXCEEDED,
                grpc.StatusCode.UNIMPLEMENTED,
            ):
                raise ConfigError(
                    f"no Ray cluster answers at {shown}: something else listens there; give {EXAMPLE}, whose port is "
                    "that of `ray start --port`."
                ) from error
