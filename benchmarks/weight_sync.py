"""The cost of weight sync: bytes, seconds and copies by transport, compared with the machine's memory bandwidth.

    python -m benchmarks.weight_sync [--quick] [--checksums] [--json FILE] [--plot FILE]

The learner's end (`learner.weights.publishing`), the transport and the receiver's end (`actors.weights.receive`, up to
the tensors for vLLM) are the real ones, in two Ray processes; no engine loads the weights, because a vLLM engine of
the larger sizes would take more memory and time than the transfer. A last part sends 200 updates
and records the resident memory of both processes.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import ray
import torch
import typer

from actors.weights.host_copy import HostCopy
from actors.weights.receive import TransferStats, changed_names, holding, receive
from learner.weights.publishing import Publisher
from learner.weights.weights_out import ExportedTensor, unchanged
from rlsys import env
from rlsys.weights.broadcast import BroadcastResult, BroadcastSender
from rlsys.weights.manifest import (
    Manifest,
    PublishStats,
    Uncopied,
    WeightTransfer,
    digest_of,
    manifest_of,
    with_copies,
)
from rlsys.weights.tensors import as_named, is_finite
from rlsys.weights.version import WeightVersion

log = logging.getLogger(__name__)

TRANSPORTS = (
    "object_store",
    "object_store, tower frozen",
    "object_store, delta",
    "collective",
    "collective, delta",
    "adapter",
)
COPIES = {
    "object_store": "1 (into the store)",
    "object_store, tower frozen": "1 (into the store)",
    "object_store, delta": "1 (into the store)",
    "collective": "1 into a bucket, 2 through the socket; later 1 into the store",
    "collective, delta": "1 into the store; of the changes: 1 into a bucket, 2 through the socket",
    "adapter": "1 (into the store)",
}
FROZEN_FRACTION = 0.3
ADAPTER_FRACTION = 0.01
CHANGED_EVERY = 50
"""Of this many numbers one changes in an update that is sent as a delta."""
BUCKET_BYTES = 32 << 20


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The measurement of one transport at one size, of an update after the first.

    seconds: of the whole update; other times are parts of it.  parts_s: of the learner's end, by part.
    copy_bytes_per_s: numpy's copying rate measured just before, because it varies on a shared machine.
    """

    transport: str
    model_bytes: int
    moved_bytes: int
    publish_s: float
    seconds: float
    copies: str
    copy_bytes_per_s: float
    parts_s: dict[str, float]

    @property
    def gb_per_s(self) -> float:
        return self.model_bytes / self.seconds / 1e9


class FakeLearner:
    """A stand-in for the learner, which owns tensors of a model's size and publishes them as rank 0 does."""

    def own(self, num_bytes: int, transport: str) -> None:
        torch.manual_seed(0)
        torch.set_num_threads(1)
        size = min(2 << 20, num_bytes // 32)
        count = max(1, num_bytes // (4 * size))
        sent = count if transport != "adapter" else max(1, int(count * ADAPTER_FRACTION))
        frozen = int(count * FROZEN_FRACTION) if "frozen" in transport else 0
        self._parameters = [
            torch.nn.Parameter(torch.randn(size), requires_grad=index >= frozen) for index in range(sent)
        ]
        exported: dict[str, ExportedTensor] = {f"w{i:05}": unchanged(p) for i, p in enumerate(self._parameters)}
        self._publisher = Publisher(exported, lambda parameters: nullcontext(), BUCKET_BYTES, stores=True)
        self._is_collective, self._is_delta = "collective" in transport, "delta" in transport

    def publish(self, version: int) -> tuple[WeightTransfer, WeightVersion]:
        with torch.no_grad():
            for parameter in self._parameters:
                if parameter.requires_grad:
                    (parameter[::CHANGED_EVERY] if self._is_delta else parameter).add_(1.0)
        get, later = ray.get if self._is_delta else None, self._is_collective and not self._is_delta
        buckets, self._manifest = self._publisher.publish(ray.put, get, copies_later=later)
        self._sender = BroadcastSender("127.0.0.1", 1, 60.0) if self._is_collective else None
        rendezvous = self._sender.rendezvous if self._sender else None
        transfer = WeightTransfer(buckets=buckets, timeout_s=60.0, rendezvous=rendezvous)
        self._transfer = replace(transfer, sends_deltas=self._is_delta)
        return self._transfer, replace(version_of(self._manifest, version), published=self._publisher.stats)

    def send(self) -> BroadcastResult | None:
        if self._sender is None:
            return None
        tensors = partial(self._publisher.tensors, get=ray.get)
        return self._sender.send(self._transfer.buckets, self._manifest, tensors)

    def copy(self, stored: Uncopied) -> ray.ObjectRef:
        return ray.put(self._publisher.copy(stored))

    def rss_mib(self) -> tuple[float, float]:
        return resident_mib()


class FakeActor:
    """A stand-in for an actor, which receives, checks and copies each tensor as an engine does."""

    def forget(self) -> None:
        self._held: Manifest = {}
        self._tensors: dict[str, torch.Tensor] = {}
        self._host_copy = HostCopy()

    def load_weights(self, transfer: WeightTransfer, version: WeightVersion) -> TransferStats:
        stats = TransferStats()
        names = changed_names(version.manifest, self._held, str)
        base = self._host_copy if transfer.sends_deltas else None
        for tensors in receive(transfer, holding(transfer.buckets, names), version, stats, base):
            for name, tensor in tensors.items():
                kept = self._tensors.setdefault(name, torch.empty(tensor.data.nbytes, dtype=torch.uint8))
                kept.numpy()[:] = tensor.data
        self._held = version.manifest
        return stats

    def rss_mib(self) -> tuple[float, float]:
        return resident_mib()


def version_of(manifest: Manifest, version: int) -> WeightVersion:
    size = sum(entry.spec.num_bytes for entry in manifest.values())
    return WeightVersion(
        version=version,
        transport="",
        num_tensors=len(manifest),
        num_bytes=size,
        digest=digest_of(manifest),
        manifest=manifest,
    )


def resident_mib() -> tuple[float, float]:
    """Return this process's own resident memory and its mapped part of the object store, in MiB."""
    found = dict.fromkeys(("RssAnon", "RssShmem"), 0.0)
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name in found:
            found[name] = int(value.split()[0]) / 1024
    return found["RssAnon"], found["RssShmem"]


def bandwidth(num_bytes: int = 128 << 20, repeats: int = 3) -> float:
    """Return the bytes per second that numpy copies, the best of `repeats` measurements."""
    source = np.ones(num_bytes, np.uint8)
    target = np.zeros_like(source)
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        target[:] = source
        best = min(best, time.perf_counter() - start)
    return num_bytes / best


def checksum_rows(num_bytes: int = 256 << 20, repeats: int = 3) -> Iterator[str]:
    """Yield a table of rates on the same bytes, by dtype and number of threads, and what they cost in copies."""
    yield "| dtype | threads | torch copy GB/s | checksum GB/s | copies | isfinite GB/s | SHA-256 GB/s | copies |"
    yield "|---|---|---|---|---|---|---|---|"
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        tensor = torch.randn(num_bytes // dtype.itemsize).to(dtype)
        for threads in (1, 2):
            torch.set_num_threads(threads)
            copy, checksum, finite, sha = (
                computed_s(action, repeats) / threads for action in readings(tensor, threads)
            )
            rates = [num_bytes / seconds / 1e9 for seconds in (copy, checksum, finite, sha)]
            yield (
                f"| {str(dtype).removeprefix('torch.')} | {threads} | {rates[0]:.1f} | {rates[1]:.1f} | "
                f"{checksum / copy:.1f} | {rates[2]:.1f} | {rates[3]:.2f} | {sha / copy:.1f} |"
            )


def readings(tensor: torch.Tensor, threads: int) -> tuple[Callable[[], object], ...]:
    """Return what is compared: a copy, the checksum, the search for infinities, and SHA-256 on as many threads."""
    other, named = torch.empty_like(tensor), as_named(tensor)
    parts = np.array_split(named.data, 16)

    def hashed() -> None:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(lambda part: hashlib.sha256(part.data), parts))

    return (
        lambda: other.copy_(tensor),
        lambda: manifest_of({"w": named}, threads),
        lambda: is_finite(tensor),
        hashed,
    )


def computed_s(action: Callable[[], object], repeats: int) -> float:
    """Return the fewest seconds that all threads of this process computed in one call, after one that warms up.

    Unlike seconds that passed they do not count what other processes on the machine do.
    """
    action()
    taken = []
    for _ in range(repeats):
        start = time.process_time()
        action()
        taken.append(time.process_time() - start)
    return min(taken)


def update(learner: Any, actor: Any, version: int) -> tuple[TransferStats, PublishStats, float, float]:
    """Run one update; return both ends' stats, and the seconds until it was published and until it was loaded."""
    start = time.perf_counter()
    transfer, announced = ray.get(learner.publish.remote(version))
    published = time.perf_counter()
    broadcast = learner.send.remote() if transfer.rendezvous else None
    transfer, _ = with_copies(transfer, {}, learner.copy.remote)
    stats = ray.get(actor.load_weights.remote(transfer, announced))
    if broadcast is not None:
        ray.get(broadcast)
    return stats, announced.published, published - start, time.perf_counter() - start


def measure(pair: tuple[Any, Any], transport: str, model_bytes: int, repeats: int) -> Measured:
    """Return the fastest of `repeats` updates after the first, which sends everything."""
    set_up(pair, model_bytes, transport)
    update(*pair, 0)
    copied = bandwidth()
    runs = [update(*pair, version) for version in range(1, repeats + 1)]
    stats, published, publish_s, seconds = min(runs, key=lambda run: run[-1])
    parts_s = {part: getattr(published, f"{part}_s") for part in ("gather", "checksum", "encode", "store")}
    return Measured(
        transport=transport,
        model_bytes=model_bytes,
        moved_bytes=stats.stored_bytes + stats.broadcast_bytes,
        publish_s=publish_s,
        seconds=seconds,
        copies=COPIES[transport],
        copy_bytes_per_s=copied,
        parts_s=parts_s,
    )


def started() -> tuple[Any, Any]:
    """Start a learner and an actor, one process each."""
    options = {"num_cpus": 0, "runtime_env": {"env_vars": {"OMP_NUM_THREADS": "1"}}}
    return ray.remote(FakeLearner).options(**options).remote(), ray.remote(FakeActor).options(**options).remote()


def set_up(pair: tuple[Any, Any], model_bytes: int, transport: str) -> None:
    """Reset both processes to a model of this size."""
    learner, actor = pair
    ray.get([learner.own.remote(model_bytes, transport), actor.forget.remote()])


def resident_over(pair: tuple[Any, Any], updates: int, model_bytes: int, transport: str) -> dict[str, list[float]]:
    """Return the own and mapped memory of both processes after each update, in MiB."""
    set_up(pair, model_bytes, transport)
    series: dict[str, list[float]] = {}
    for version in range(updates):
        update(*pair, version)
        for name, process in zip(("learner", "actor"), pair, strict=True):
            own, mapped = ray.get(process.rss_mib.remote())
            series.setdefault(f"{name}, own", []).append(own)
            series.setdefault(f"{name}, mapped", []).append(mapped)
    return series


def slope(series: list[float]) -> float:
    """Return the growth in MiB per update over the second half, as the first half fills allocators and mappings."""
    half = series[len(series) // 2 :]
    return float(np.polyfit(np.arange(len(half)), half, 1)[0])


def rows(found: list[Measured]) -> Iterator[str]:
    yield (
        "| transport | model MB | moved MB | checksum s | encode s | store s | publish s | all s | model GB/s | "
        "of a copy | copies before the engine's |"
    )
    yield "|---|---|---|---|---|---|---|---|---|---|---|"
    for one in found:
        share = one.gb_per_s * 1e9 / one.copy_bytes_per_s
        yield (
            f"| {one.transport} | {one.model_bytes / 1e6:.0f} | {one.moved_bytes / 1e6:.1f} | "
            f"{one.parts_s['checksum']:.3f} | {one.parts_s['encode']:.3f} | {one.parts_s['store']:.3f} | "
            f"{one.publish_s:.3f} | "
            f"{one.seconds:.3f} | {one.gb_per_s:.2f} | {share:.0%} | {one.copies} |"
        )


def plot(series: dict[str, dict[str, list[float]]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(series), figsize=(5 * len(series), 3.5), squeeze=False)
    for axis, (transport, lines) in zip(axes[0], series.items(), strict=True):
        for name, values in lines.items():
            axis.plot(values, label=name)
        axis.set(title=transport, xlabel="update", ylabel="resident memory, MiB", ylim=(0, None))
        axis.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main(
    quick: Annotated[
        bool, typer.Option("--quick", help="Two small sizes and fewer updates, under three minutes.")
    ] = False,
    checksums_only: Annotated[bool, typer.Option("--checksums", help="Only the rates of checksums.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="JSON file for the results.")] = None,
    plot_file: Annotated[Path | None, typer.Option("--plot", help="File for the plot of resident memory.")] = None,
    updates: Annotated[int, typer.Option(help="Number of updates over which resident memory is recorded.")] = 200,
) -> None:
    """Measure every transport at several sizes, and resident memory over many updates."""
    env.be_quiet()
    for line in checksum_rows((64 if quick else 256) << 20):
        typer.echo(line)
    if checksums_only:
        return
    sizes = (6, 96) if quick else (6, 96, 384)
    ray.init(
        address="local",
        _node_ip_address="127.0.0.1",
        include_dashboard=False,
        num_cpus=2,
        object_store_memory=(400 if quick else 1600) << 20,
        _temp_dir="/tmp/rlsys_sync",
        log_to_driver=False,
    )
    copied = bandwidth()
    typer.echo(f"numpy copies {copied / 1e9:.2f} GB/s; load {os.getloadavg()[0]:.1f} on {os.cpu_count()} CPUs")
    pair = started()
    watched = partial(resident_over, pair, 30 if quick else updates, 24 << 20)
    resident = {name: watched(name) for name in ("object_store", "collective")}
    found = []
    for size in sizes:
        for name in TRANSPORTS:
            found.append(measure(pair, name, size << 20, 2 if quick else 3))
            log.warning("%s", found[-1])
    for line in rows(found):
        typer.echo(line)
    for name, lines in resident.items():
        text = ", ".join(f"{line} {slope(values):+.3f}" for line, values in lines.items())
        typer.echo(f"{name}: MiB an update over the second half: {text}")
    ray.shutdown()
    if json_file:
        report = {
            "copy_bytes_per_s": copied,
            "load": os.getloadavg(),
            "transports": [asdict(one) for one in found],
            "resident_mib": resident,
        }
        json_file.write_text(json.dumps(report, indent=1) + "\n")
    if plot_file:
        plot(resident, plot_file)


if __name__ == "__main__":
    typer.run(main)
