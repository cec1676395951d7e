"""One DeepSpeed rank: forward and backward passes, updates, and export of weights. Imports deepspeed."""

from __future__ import annotations

import datetime
import gc
import importlib
import math
import os
import shutil
import socket
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import deepspeed
import numpy as np
import torch
import torch.distributed as dist
from deepspeed.runtime import compiler
from safetensors import SafetensorError
from transformers.integrations import HfDeepSpeedConfig

from learner import checkpoints
from learner.agreement import united
from learner.deepspeed_config import MAX_BUCKET_NUMBERS, deepspeed_config
from learner.loss.metrics import REDUCTIONS, RankStats
from learner.loss.objective import total_loss
from learner.loss.schedule import BatchSchedule
from learner.model.frozen import freeze
from learner.model.lora import adapters_off, add_adapters
from learner.model.policy import PackedPolicy, load_model, read_layout
from learner.offloading import Offloading
from learner.packing.attention import num_compilations
from learner.packing.packing import PackedBatch, pack
from learner.packing.rows import Row
from learner.packing.shards import RankShard
from learner.sequence.group import SequenceGroup
from learner.spec import LearnerSpec
from learner.weights.partitions import have_sums, identified_by_parts
from learner.weights.publishing import Get, Publisher, Put
from learner.weights.weights_out import (
    ADAPTER_FOLDER,
    MAX_FILE_BYTES,
    ExportedTensor,
    assist,
    checkpoint_names,
    collect,
    exported_adapter,
    exported_model,
    stream,
    write_adapter,
    write_folder,
)
from rlsys import env
from rlsys.hub import here
from rlsys.weights.manifest import Bucket, PublishStats, TensorEntry


def open_store(world_size: int, host: str, timeout_s: float) -> dist.TCPStore:
    """Open the store at which ranks meet, on rank 0, at `host` and a port that the system picks.

    Rank 0 must keep the store alive.
    """
    listener = socket.create_server((host, 0))
    port = listener.getsockname()[1]
    return dist.TCPStore(
        host,
        port,
        world_size,
        is_master=True,
        wait_for_workers=False,
        timeout=datetime.timedelta(seconds=timeout_s),
        # otherwise the store would listen on every network interface
        master_listen_fd=listener.detach(),
    )


def find_store(world_size: int, host: str, port: int, timeout_s: float) -> dist.TCPStore:
    """Connect to the store that rank 0 opened; for the other ranks."""
    return dist.TCPStore(host, port, world_size, is_master=False, timeout=datetime.timedelta(seconds=timeout_s))


def join_ranks(rank: int, world_size: int, store: dist.Store, *, device: str, timeout_s: float) -> None:
    """Make this process one of `world_size` ranks, once per process. Collectives fail after `timeout_s`."""
    # DeepSpeed would compile its shared-memory collectives on first use, which takes 40 s and a C++ compiler
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    _import_muon()
    os.environ.update(env.LEARNER_RANK)
    backend = "nccl" if device == "cuda" else "gloo"
    timeout = datetime.timedelta(seconds=timeout_s)
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=timeout)
    deepspeed.init_distributed(dist_backend=backend, verbose=False)


def _import_muon() -> None:
    """Import Muon cheaply: DeepSpeed compares every optimiser with it, and its import runs torch.compile for 2 s."""
    compiled, compiler.compile = compiler.compile, lambda: lambda function: function
    try:
        importlib.import_module("deepspeed.runtime.zero.muon.original_muon")
    finally:
        compiler.compile = compiled


class LearnerEngine:
    """A rank's share of the model, its optimiser and its schedule; call `join_ranks` first.

    All ranks must call the same methods in the same order, because each method synchronises the ranks.
    """

    def __init__(self, spec: LearnerSpec) -> None:
        torch.manual_seed(spec.seed)
        spec = replace(spec, model=spec.model.model_copy(update={"path": here(spec.model.path)}))
        self.spec = spec
        self._dtype = getattr(torch, spec.model.dtype)
        with _partitioned_from_the_start(spec):
            model = load_model(spec.model.path, dtype=spec.model.dtype, attention=spec.model.attention)
        if spec.learner.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        self._layout = read_layout(model, spec.model.path)
        self._names = checkpoint_names(model)
        if spec.learner.lora.rank:
            torch.manual_seed(spec.seed)  # the same adapters regardless of how the model was loaded
            add_adapters(model, spec.learner.lora)
        freeze(model, spec.learner.frozen_parts)
        size = spec.learner.sequence_parallel
        self._sequence = SequenceGroup(size, spec.learner.timeout_s) if size > 1 else None
        self._reference = self._load_reference() if spec.algorithm.kl_coef > 0 else None
        self._policy = PackedPolicy(model, self._sequence)
        self._engine = _initialize(self._policy, spec)
        others = [] if self._reference is None else [self._reference]
        self._offloading = Offloading(self._engine, spec.learner.zero_stage, others)
        self._publisher: Publisher | None = None

    def _load_reference(self) -> PackedPolicy | None:
        """Return the policy that the run starts from; None if that is the model with its adapters disabled."""
        if self.spec.learner.lora.rank:
            return None
        model = load_model(self.spec.model.path, dtype=self.spec.model.dtype, attention=self.spec.model.attention)
        return PackedPolicy(model.to(self.spec.device), self._sequence).eval().requires_grad_(False)

    def update(self, shard: RankShard) -> RankStats:
        """Run one optimiser update on this rank's shard and return its share of the metrics.

        The ranks of a sequence group must be given the same shard; the first one's share has its tokens.
        The gradient is that of the weighted sum over all ranks' tokens, however they are split over ranks and passes.
        Raises FloatingPointError if the loss or the gradient is not finite; the weights must then be discarded.
        """
        stats = RankStats()
        self._set_training(True)
        last = len(shard.micro_batches) - 1
        for index, rows in enumerate(shard.micro_batches):
            self._engine.set_gradient_accumulation_boundary(index == last)
            self._backward(shard, rows, stats)
        learning_rate = self._engine.get_lr()[0]
        self._engine.lr_scheduler.ends_batch = shard.ends_batch
        grad_norm = self._step()
        if shard.ends_batch:
            self._policy.forget_features()
        if not math.isfinite(grad_norm):
            raise FloatingPointError(
                f"gradient norm {grad_norm}: the update has corrupted the weights; resume from the last checkpoint."
            )
        stats.add("perf/learner_passes", len(shard.micro_batches))
        stats.add("optim/grad_norm", grad_norm)
        stats.add("optim/lr", learning_rate)
        if self.spec.model.attention == "flex_attention":
            stats.add("perf/learner_compilations", num_compilations())
        return stats

    def _backward(self, shard: RankShard, rows: Sequence[Row], stats: RankStats) -> None:
        batch = self._pack(rows)
        wants_kl = shard.objective == "grpo" and self.spec.algorithm.kl_in == "loss"
        ref_logprobs = self._reference_logprobs(batch) if wants_kl else None
        logprobs, entropy = self._engine(batch)
        if batch.is_dummy:
            self._engine.backward(0.0 * logprobs.sum())
            return
        loss, parts = total_loss(shard.objective, batch, logprobs, ref_logprobs, self.spec.algorithm)
        if not torch.isfinite(loss):
            names = ", ".join(row.prompt_id for row in rows)
            raise FloatingPointError(
                f"loss {loss.item()} on {names}: the weights, a clip or the sampler's log-probs are not finite."
            )
        # DeepSpeed averages gradients over ranks, but the loss is a sum over ranks; those of a sequence group have the
        # same loss, and each the gradient that passes through its own tokens
        self._engine.backward(loss * dist.get_world_size())
        if self._sequence is None or self._sequence.index == 0:
            _add_tokens(stats, {**parts, "policy/entropy": entropy})
            stats.add("perf/learner_tokens", sum(row.num_tokens for row in rows))

    def _step(self) -> float:
        """Apply the update and return the gradient's global norm before clipping."""
        grad_norm = None
        if self.spec.learner.zero_stage == 0 and self.spec.model.dtype == "float32":
            # without ZeRO, DeepSpeed clips plain parameters and keeps no norm; their gradients are already reduced
            grad_norm = torch.nn.utils.get_total_norm([p.grad for p in self._engine.parameters() if p.grad is not None])
        self._engine.step()
        return float(self._engine.get_global_grad_norm() if grad_norm is None else grad_norm)

    def _set_training(self, training: bool) -> None:
        if (
            self._engine.module.training != training
        ):  # visits all modules, which takes a millisecond even for the smallest model
            self._engine.train(training)

    def _pack(self, rows: Sequence[Row]) -> PackedBatch:
        part = None if self._sequence is None else self._sequence.part_of
        return pack(rows, self._layout, dtype=self._dtype, device=self._engine.device, part=part)

    @torch.no_grad()
    def _reference_logprobs(self, batch: PackedBatch) -> torch.Tensor | None:
        if self.spec.algorithm.kl_coef == 0:
            return None
        if self._reference is not None:
            return self._reference(batch)[0]
        with adapters_off(self._policy.model):
            return self._engine(batch)[0]

    @torch.no_grad()
    def logprobs(
        self, micro_batches: Sequence[Sequence[Row]], *, reference: bool = False
    ) -> list[list[list[np.ndarray]]]:
        """Return the log-probs of every response, f32 [R], as `[pass][row][response]`.

        reference: under the reference policy; `algorithm.kl_coef` must be above 0.
        """
        self._set_training(False)
        found = []
        for rows in micro_batches:
            batch = self._pack(rows)
            logprobs = self._reference_logprobs(batch) if reference else self._engine(batch)[0]
            found.append(_by_response(rows, logprobs))
        return found

    def publish(
        self, put: Put, get: Get | None = None, *, copies_later: bool = False
    ) -> tuple[tuple[Bucket, ...], dict[str, TensorEntry]]:
        """Publish the weights, see `Publisher`; return their buckets and manifest on rank 0, nothing on the others."""
        if self._publisher is None:
            exported = self._adapter() if self.spec.sync == "adapter" else self._whole()
            max_bytes = self.spec.weights.bucket_mib << 20
            shares = self.spec.weights.transport == "ipc"
            identify = identified_by_parts if self.spec.is_partitioned else None
            stores = dist.get_rank() == 0
            self._publisher = Publisher(
                exported, self._gathered, max_bytes, stores=stores, shares=shares, identify=identify
            )
        return self._publisher.publish(put, get, copies_later=copies_later and have_sums(self.spec.learner.deepspeed))

    @property
    def publisher(self) -> Publisher:
        """What published the weights. Raises RuntimeError if this model has not published any."""
        if self._publisher is None:
            raise RuntimeError("these weights were published by another model; call publish again.")
        return self._publisher

    @property
    def published(self) -> PublishStats | None:
        """Seconds and sizes of the version published last; None before the first."""
        return self._publisher.stats if self._publisher else None

    def _whole(self) -> dict[str, ExportedTensor]:
        return exported_model(self._engine.module.model, self._names)

    def _adapter(self) -> dict[str, ExportedTensor]:
        return exported_adapter(self._engine.module.model)

    @contextmanager
    def _gathered(self, parameters: Sequence[torch.nn.Parameter]) -> Iterator[None]:
        if not self.spec.is_partitioned:
            yield
            return
        with deepspeed.zero.GatheredParameters(list(parameters)):
            yield

    def export(self, folder: Path, max_file_bytes: int = MAX_FILE_BYTES) -> str | None:
        """Write the weights as a Hugging Face folder on rank 0 and return their digest; None on the other ranks.

        Adapters are merged in, and are also written to its folder `adapter`, as peft and vLLM read them. Tensors are
        gathered and written one by one, so that no rank holds the model. Raises NotWritten, on all ranks, if the disk
        cannot be written to.
        """
        whole, adapter, source = self._whole(), self._adapter(), self.spec.model.path
        problems: list[str] = []
        found = None
        if dist.get_rank():
            assist(whole, self._gathered)
            assist(adapter, self._gathered)
        else:
            tensors = stream(whole, self._gathered)
            try:
                found = write_folder(whole, tensors, source, folder, max_file_bytes)
            except (OSError, shutil.Error) as error:
                problems.append(str(error))
                deque(tensors, maxlen=0)  # the other ranks take part in the same gathers
            tensors_of_adapter = collect(adapter, self._gathered)
            if adapter and not problems:
                try:
                    write_adapter(tensors_of_adapter, self.spec.learner.lora, source, folder / ADAPTER_FOLDER)
                except (OSError, SafetensorError) as error:
                    problems.append(str(error))
        checkpoints.raise_not_written(problems, self._engine.device)
        return found

    def any_rank(self, found: tuple[str, ...]) -> tuple[str, ...]:
        """Return what any rank found, see `learner.agreement.united`."""
        return united(found, self._engine.device)

    def save(self, folder: Path) -> None:
        """Save a checkpoint, see `learner.checkpoints.save`."""
        checkpoints.save(self._engine, self.spec, folder)

    def restore(self, folder: Path, scratch: Path | None = None) -> None:
        """Restore a checkpoint, see `learner.checkpoints.restore`."""
        self._publisher = None  # its stored frozen parts may be another checkpoint's
        checkpoints.restore(self._engine, self.spec, folder, scratch)

    def offload(self, *, keeps_parameters: bool) -> None:
        """Move the state to host memory, see `Offloading`; nothing else can be called until `reload`."""
        self._policy.forget_features()
        self._offloading.offload(keeps_parameters=keeps_parameters)

    def reload(self) -> None:
        """Move the state back to the device."""
        self._offloading.reload()

    def close(self) -> None:
        """Free model and optimiser, so that another engine can be built in this process."""
        self._engine.destroy()
        if self._sequence is not None:
            self._sequence.leave()
        del self._engine, self._policy, self._reference, self._publisher, self._offloading
        gc.collect()
        if self.spec.device == "cuda":
            torch.cuda.empty_cache()


@contextmanager
def _partitioned_from_the_start(spec: LearnerSpec) -> Iterator[None]:
    """Partition a model over the ranks layer by layer while it is loaded, at ZeRO-3, so that none holds all of it."""
    if spec.learner.zero_stage < 3:
        yield
        return
    setting = HfDeepSpeedConfig(
        deepspeed_config(spec, MAX_BUCKET_NUMBERS)
    )  # transformers uses it as long as it is alive
    yield
    del setting


def _initialize(policy: PackedPolicy, spec: LearnerSpec) -> deepspeed.DeepSpeedEngine:
    """Return a DeepSpeed engine for the policy, whose optimiser has only the trained parameters."""
    trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    num_numbers = sum(math.prod(getattr(parameter, "ds_shape", parameter.shape)) for parameter in trained)
    train = spec.train
    engine, *_ = deepspeed.initialize(
        model=policy,
        model_parameters=trained,
        optimizer=lambda parameters: torch.optim.AdamW(
            parameters, lr=train.learning_rate, betas=train.betas, weight_decay=train.weight_decay
        ),
        lr_scheduler=lambda optimizer: BatchSchedule(optimizer, train),
        config=deepspeed_config(spec, num_numbers),
        dist_init_required=False,
    )
    return engine


def _add_tokens(stats: RankStats, by_token: Mapping[str, torch.Tensor]) -> None:
    """Add metrics of some tokens, each f32 [T], with one transfer from the device."""
    reduced = [values.amax() if REDUCTIONS[name] == "max" else values.sum() for name, values in by_token.items()]
    for name, value in zip(by_token, torch.stack(reduced).tolist(), strict=True):
        stats.add(name, value)
    stats.num_tokens += len(next(iter(by_token.values())))


def _by_response(rows: Sequence[Row], logprobs: torch.Tensor) -> list[list[np.ndarray]]:
    flat = logprobs.cpu().numpy()
    found: list[list[np.ndarray]] = []
    start = 0
    for row in rows:
        found.append([])
        for response in row.responses:
            found[-1].append(flat[start : start + len(response.ids)].copy())
            start += len(response.ids)
    return found
