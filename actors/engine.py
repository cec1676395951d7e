"""One vLLM engine that its caller steps; a group is added at any time and returned when its last response ends.

vLLM is imported only here and in `actors.engine_args`, when an engine is created, because at import it reads its
settings from the environment and replaces `torch.set_num_threads` in its process by a no-op.
"""

from __future__ import annotations

import itertools
import logging
import os
import tempfile
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from actors.engine_args import engine_args, keep_pixels, own_temporary_files
from actors.errors import BadOutput, EngineAsleep, NoWeights, PromptRefused, WeightsRefused
from actors.linear_attention import compute_in_float32
from actors.prompts import vllm_prompt
from actors.requests import EngineLimits, EngineSpec, GroupRequest, check_request, environment
from actors.sleeping import EngineSleep
from actors.weights.host_copy import HostCopy
from actors.weights.loading import Workers
from actors.weights.native import take_natively
from actors.weights.receive import TransferStats, changed_names, fetch, holding, receive, timed
from actors.weights.weights_in import (
    check_manifest,
    engine_module,
    expected_adapter,
    expected_weights,
    write_adapter,
)
from rlsys.clock import Clock, Turn
from rlsys.hub import here
from rlsys.lean_imports import lean_imports
from rlsys.models.chat import ChatTokenizer
from rlsys.models.folder import content_digest
from rlsys.models.model_config import ModelConfig, read_model_config
from rlsys.types import Rollout, Sampling
from rlsys.weights.manifest import Manifest, NamedTensors, WeightTransfer
from rlsys.weights.version import WeightVersion

if TYPE_CHECKING:
    from vllm import RequestOutput, SamplingParams
    from vllm.lora.request import LoRARequest
    from vllm.outputs import CompletionOutput
    from vllm.v1.engine.llm_engine import LLMEngine

log = logging.getLogger(__name__)

BAN = -100.0  # vLLM's lowest logit bias; the log-probs that it returns are computed before the bias


class RolloutEngine:
    """A loaded engine. It is not thread-safe: one thread must create it and make every call.

    It has the checkpoint's weights from the start but generates only after `load_weights`, because a rollout without a
    version cannot be trained on.
    """

    def __init__(self, spec: EngineSpec) -> None:
        for name, value in environment(spec).items():
            os.environ.setdefault(name, value)
        os.environ.pop("VLLM_CPU_KVCACHE_SPACE", None)  # it would override kv_cache_mib
        self._remove_temporary_files = own_temporary_files()
        start = time.perf_counter()
        with lean_imports():
            from vllm.v1.engine.llm_engine import LLMEngine

        spec = replace(spec, model=spec.model.model_copy(update={"path": here(spec.model.path)}))
        self._spec = spec
        keep_pixels()
        self._engine: LLMEngine = LLMEngine.from_engine_args(engine_args(spec))
        if spec.device == "cpu" and spec.model.dtype == "float32":
            self._engine.collective_rpc(compute_in_float32)
        self._sleep = EngineSleep(self._engine, device=spec.device, keeps_weights=bool(spec.lora.rank))
        self._workers = Workers(self._engine.collective_rpc, spec.rollout.tensor_parallel_size)
        self._chat = ChatTokenizer(spec.model.path)
        config = read_model_config(spec.model.path)
        self._expected = expected_weights(spec.model.path, spec.model.dtype, config.family.unused)
        self._expected_adapter = expected_adapter(self._expected, spec.lora)
        self._adapter: LoRARequest | None = None
        self._holds_its_own = True  # the weights of `spec.model.path`
        self._held: Manifest = {}  # of the last full model loaded
        self._host_copy = HostCopy()
        self.last_update = TransferStats()
        """Size of the last update."""
        self._running: dict[str, tuple[GroupRequest, float]] = {}
        self._version: WeightVersion | None = None
        self.limits = _limits(spec, self._engine, config)
        log.info("engine for %s ready after %.1f s", spec.model.path, time.perf_counter() - start)

    @property
    def num_running(self) -> int:
        """Number of groups that were added and not yet returned."""
        return len(self._running)

    @property
    def has_room(self) -> bool:
        """Whether a group added now would begin at once with at least one response."""
        return len(self._engine.output_processor.request_states) < self.limits.max_num_seqs

    @property
    def version(self) -> WeightVersion | None:
        """The acknowledged weights, with which every token is labelled; None before the first `load_weights`."""
        return self._version

    @version.setter
    def version(self, version: WeightVersion | None) -> None:
        self._version = version
        if version is not None:
            self._engine.set_weight_version(str(version.version))

    def add(self, request_id: str, request: GroupRequest, frames: Sequence[np.ndarray]) -> None:
        """Queue one group. frames: u8 [T, H, W, 3] per clip, in order.

        Raises NoWeights before the first `load_weights`, EngineAsleep while the engine sleeps, and PromptRefused if it
        cannot accept this prompt; none affects the engine or its running groups.
        """
        if self._sleep.is_asleep:
            raise EngineAsleep(f"{request.prompt_id}: the engine is asleep while the learner works; call wake first.")
        if self.version is None:
            raise NoWeights(f"{request.prompt_id}: the engine has no acknowledged weights; call load_weights first.")
        check_request(request, frames, self.limits)
        from vllm.exceptions import VLLMValidationError
        from vllm.renderers.inputs.preprocess import parse_model_prompt

        renderer = self._engine.renderer
        prompt = parse_model_prompt(
            self._engine.model_config, vllm_prompt(request, frames, tells_seconds=self.limits.tells_seconds)
        )
        try:
            (rendered,) = renderer.render_cmpl([prompt], renderer.default_cmpl_tok_params)
            params = self._sampling_params(request.sampling)
            self._engine.add_request(request_id, rendered, params, lora_request=self._adapter)
        except (VLLMValidationError, ValueError, TypeError, AssertionError) as error:
            raise PromptRefused(f"{request.prompt_id}: vLLM refused it: {type(error).__name__}: {error}") from error
        self._running[request_id] = (request, time.perf_counter())

    def step(self) -> list[tuple[str, tuple[Rollout, ...] | BadOutput]]:
        """Run the model once and return the groups whose last response ended in it, with their request ids."""
        return [(output.request_id, self._collect(output)) for output in self._engine.step() if output.finished]

    def abort(self, request_id: str) -> None:
        """Discard a group that was added and not yet returned."""
        self._engine.abort_request([request_id])
        del self._running[request_id]

    def can_keep(self, version: WeightVersion) -> bool:
        """Return whether running groups may continue under `version`: it must not be older, and of the same kind.

        An older version comes from a run that rolled back, which makes the tokens so far invalid.
        """
        held = self.version
        return not self._running or (held is not None and held.kind == version.kind and held.version <= version.version)

    def load_weights(self, transfer: WeightTransfer, version: WeightVersion) -> WeightVersion:
        """Load the weights that `version` names, discard the caches of the old ones, and return the version loaded.

        Running groups continue from their current token. The next step recomputes their prompts, clips and tokens so
        far, so that no result of the old weights is used: the log-prob of a later token is that of the new weights
        given all tokens before it, as the learner would compute it. Earlier tokens keep the log-probs with which they
        were sampled, and random number generators continue.

        Raises WeightsRefused, after which the engine is unchanged; only after a broadcast that failed midway and could
        not be repaired does it sample nothing until it has loaded a complete version. Raises RuntimeError, after which
        the engine must be replaced, if running groups cannot continue or vLLM does not hold the weights that it was
        given.
        """
        if not self.can_keep(version):
            raise RuntimeError(
                f"{self.num_running} groups are running on version {self.version} and cannot continue with "
                f"{version}; abort them first."
            )
        self._sleep.wake_weights()
        if version.kind == "own":
            self._keep_own(version)
            self.last_update = TransferStats()
        elif version.kind == "adapter":
            self._load_adapter(transfer, version)
        else:
            self._load_model(transfer, version)
        self.version = version
        self._sleep.wake_cache_if_due()
        return replace(version, parts_s=self.last_update.parts_s)

    def sleep(self) -> Turn | None:
        """Free the memory for the learner, see `EngineSleep`; no group may be running.

        Weights that are dropped must be loaded again before the engine samples.
        """
        turn = self._sleep.fall_asleep()
        if self._sleep.drops_weights:
            self._give_up()
        return turn

    def wake(self) -> None:
        """Sample again, as soon as `load_weights` has brought weights for those that were dropped."""
        if self._sleep.is_asleep and not self._sleep.drops_weights:
            self._sleep.wake_weights()
        self._sleep.let_sample()

    def _keep_own(self, version: WeightVersion) -> None:
        """Raise WeightsRefused unless the engine still has the model that it was started with, and `version` is it."""
        folder, was_sent = self._spec.model.path, not self._holds_its_own or self._adapter is not None
        if was_sent or (found := content_digest(folder)) != version.digest:
            reason = "it has been sent others" if was_sent else f"{folder} has the digest {found} here"
            raise WeightsRefused(f"this engine does not hold the weights {version.digest} of {folder}: {reason}.")

    def _load_model(self, transfer: WeightTransfer, version: WeightVersion) -> None:
        check_manifest(version, self._expected, transfer)
        if not transfer.sends_deltas:
            self._host_copy.clear()
        names = changed_names(version.manifest, self._held, engine_module)
        stats = TransferStats(num_loaded=len(names), num_tensors=len(version.manifest))
        buckets = holding(transfer.buckets, names)
        rpc = self._engine.collective_rpc
        parts: Iterator[NamedTensors] = iter(())
        clock = Clock()
        with clock("transfer"):
            native = take_natively(rpc, self._spec, transfer, buckets, version.manifest, self._give_up)
        if native:
            stats = native
        else:
            base = self._host_copy if transfer.sends_deltas else None
            parts = timed(receive(transfer, buckets, version, stats, base), clock)
        first = next(parts, None)  # weights that are refused before the engine changes raise here
        if first is not None:
            self._give_up()
            before_s = clock.seconds["transfer"]
            with clock("engine_load"):
                error = self._workers.load(itertools.chain((first,), parts), names, version.manifest)
            clock.seconds["engine_load"] -= clock.seconds["transfer"] - before_s  # what came meanwhile
            if error:
                if self._running:  # running groups would continue with parts of two versions
                    raise RuntimeError(f"version {version.version} failed midway: {error}") from error
                raise error
        self._reset_caches()
        with clock("verify"):
            stats.num_verified = self._check_held(transfer, version)
        stats.parts_s = clock.seconds
        self._held, self.last_update = version.manifest, stats

    def _give_up(self) -> None:
        """Mark the engine's weights as undefined until another version is acknowledged."""
        self.version, self._held, self._holds_its_own = None, {}, False
        self._remove_adapter()

    def _check_held(self, transfer: WeightTransfer, version: WeightVersion) -> int:
        """Read back what vLLM holds and return how many tensors; RuntimeError where that is not what it was given."""

        def stored(names: Collection[str]) -> Iterator[NamedTensors]:
            for bucket in holding(transfer.buckets, names):
                yield fetch(bucket, transfer.timeout_s)

        num_read, stale = self._workers.check(version.manifest, stored)
        if stale or not num_read:
            raise RuntimeError(f"version {version.version}: vLLM holds other values in {stale or 'all tensors'}.")
        return num_read

    def compare_weights(self, transfer: WeightTransfer) -> tuple[Manifest, dict[str, float | None]]:
        """Return the acknowledged manifest, and by name the engine's largest absolute difference from the transfer.

        The difference is None for a tensor that cannot be read back from vLLM.
        """
        found: dict[str, float | None] = {}
        for bucket in transfer.buckets:
            found |= self._workers.differences(fetch(bucket, transfer.timeout_s), self._expected.specs)
        return (self.version.manifest if self.version else {}), found

    def _load_adapter(self, transfer: WeightTransfer, version: WeightVersion) -> None:
        """Load an adapter. The model and the cached features of clips stay; the language model's cache is discarded."""
        if not self._spec.lora.rank or not self._holds_its_own:
            reason = "has been sent another model since" if self._spec.lora.rank else "has no room for adapters"
            raise WeightsRefused(
                f"weights version {version.version} is an adapter for {self._spec.model.path}, with which this engine "
                f"was started, but it {reason}; send whole models."
            )
        check_manifest(version, self._expected_adapter, transfer)
        stats = TransferStats(num_loaded=len(version.manifest), num_tensors=len(version.manifest))
        # vLLM reads an adapter from a folder, so it must be complete before it is loaded
        parts = list(receive(transfer, transfer.buckets, version, stats))
        tensors = {name: tensor for part in parts for name, tensor in part.items()}
        from vllm.lora.request import LoRARequest

        self.version = None
        self._remove_adapter()
        # the same id every time, because running groups refer to it; `_remove_adapter` discarded the old values
        with tempfile.TemporaryDirectory(prefix="rlsys-adapter-") as folder:
            write_adapter(tensors, self._spec.lora, Path(folder))
            self._adapter = LoRARequest("adapter", 1, folder)
            self._engine.add_lora(self._adapter)
        self._reset_prefix_cache()
        stats.num_verified, stale = self._workers.check_adapter(tensors, self._spec.lora.alpha / self._spec.lora.rank)
        if stale or not stats.num_verified:
            raise RuntimeError(f"version {version.version}: vLLM holds other values in {stale or 'all of it'}.")
        self.last_update = stats

    def _remove_adapter(self) -> None:
        if self._adapter is not None:
            self._engine.remove_lora(self._adapter.lora_int_id)
            self._adapter = None

    def _reset_caches(self) -> None:
        # the encoder cache holds image features of the old vision tower, and resetting the prefix
        # cache alone keeps them (https://github.com/vllm-project/vllm/issues/44910)
        self._reset_prefix_cache()
        self._engine.reset_mm_cache()
        self._engine.reset_encoder_cache()

    def _reset_prefix_cache(self) -> None:
        # running groups release their blocks, and the next step recomputes them
        if not self._engine.reset_prefix_cache(reset_running_requests=True):
            raise RuntimeError("vLLM could not reset its prefix cache: blocks are still in use.")

    def shutdown(self) -> None:
        """Free vLLM's workers and shared memory; the engine cannot be used afterwards."""
        self._engine.engine_core.shutdown()
        self._engine.renderer.shutdown()
        self._remove_temporary_files()

    def _sampling_params(self, sampling: Sampling) -> SamplingParams:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        return SamplingParams(
            n=sampling.num_samples,  # child i samples with seed + i
            seed=sampling.seed,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            max_tokens=sampling.max_tokens,
            logit_bias=dict.fromkeys(self._spec.banned_token_ids, BAN) or None,
            logprobs=0,  # only the sampled token's
            flat_logprobs=True,  # lists of numbers, because with one object per token a step took 1.5 times as long
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )

    def _collect(self, output: RequestOutput) -> tuple[Rollout, ...] | BadOutput:
        request, started = self._running.pop(output.request_id)
        prompt_ids = np.asarray(output.prompt_token_ids, np.int32)
        seconds = time.perf_counter() - started
        rollouts = []
        for child in output.outputs:
            ids = np.asarray(child.token_ids, np.int32)
            logprobs = np.asarray(child.logprobs.logprobs, np.float32)
            versions = _token_versions(child)
            if problem := self._problem(ids, logprobs, versions, child.finish_reason):
                return BadOutput(f"{request.prompt_id}, response {child.index}: {problem}")
            spoken = ids[:-1] if child.finish_reason == "stop" else ids
            rollouts.append(
                Rollout(
                    rollout_id=f"{request.prompt_id}/{request.sampling.seed + child.index}",
                    prompt_id=request.prompt_id,
                    sample_index=child.index,
                    prompt_ids=prompt_ids,
                    response_ids=ids,
                    response_logprobs=logprobs,
                    text=self._chat.decode(spoken),
                    finish_reason=child.finish_reason,
                    token_versions=versions,
                    generate_s=seconds,
                )
            )
        return tuple(rollouts)

    def _problem(self, ids: np.ndarray, logprobs: np.ndarray, versions: np.ndarray, finish_reason: str | None) -> str:
        if finish_reason not in ("stop", "length"):
            return f"ended with {finish_reason!r} instead of stop or length."
        if ids.shape != logprobs.shape or not np.isfinite(logprobs).all():
            return f"{ids.size} tokens have {logprobs.size} log-probs, {logprobs[:4]}…; each needs one finite number."
        if ids.shape != versions.shape:
            return f"{ids.size} tokens have the versions {versions[:4]}…; each needs one."
        banned = np.intersect1d(ids, self._spec.banned_token_ids)
        return f"contains the banned tokens {banned.tolist()}." if banned.size else ""


def _token_versions(child: CompletionOutput) -> np.ndarray:
    spans = child.weight_versions or []
    lengths = [span.end - span.start for span in spans]
    return np.repeat(np.array([int(span.version) for span in spans], np.int32), lengths)


def _limits(spec: EngineSpec, engine: LLMEngine, config: ModelConfig) -> EngineLimits:
    return EngineLimits(
        vocab_size=config.vocabulary,
        max_model_len=spec.model.max_model_len,
        max_num_seqs=spec.rollout.max_num_seqs,
        max_clip_tokens=engine.input_processor.mm_encoder_cache_size,
        image_pad_id=config.image_token_id,
        video_pad_id=config.video_token_id,
        merge_size=config.vision.merge_size,
        patch=config.vision.patch,
        tells_seconds=config.family.tells_seconds,
    )
