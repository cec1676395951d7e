"""Engines for tests, each in a Ray actor of its own, because vLLM changes torch's threading for its whole process."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from actors.requests import EngineSpec, GroupRequest, WeightUpdate, environment
from actors.rollout_actor import RolloutActor
from actors.weights.receive import TransferStats
from rlsys import env
from rlsys.config.run import ModelConfig, RolloutConfig
from rlsys.models.model_config import patch_shape
from rlsys.models.prompts import PromptBuilder
from rlsys.types import (
    DEFAULT_PATCH,
    ClipInfo,
    ClipRef,
    ImageSpec,
    PatchShape,
    Prompt,
    PromptItem,
    Rollout,
    Sampling,
    VideoSpec,
)
from rlsys.weights.version import WeightVersion
from tests.support.paths import REPO

MAX_MODEL_LEN = 256
SAMPLING = Sampling(num_samples=4, temperature=1.0, top_p=1.0, max_tokens=12, seed=100)


class ProbeActor(RolloutActor):
    """A rollout actor with further methods by which tests inspect and control its engine."""

    async def assume(self, version: WeightVersion) -> None:
        """Make the engine sample with the checkpoint that it was started from, under this version."""

        def assume(engine: Any) -> None:
            engine.version = version

        await asyncio.wrap_future(self._loop.call(assume))

    async def update_between(
        self, asked: Sequence[GroupRequest], frames: Sequence[np.ndarray], steps: int, *update: Any
    ) -> list[tuple[Rollout, ...]]:
        """Run groups (one clip each) together, update the weights after `steps` steps, and return the groups."""

        def run(engine: Any) -> list[tuple[Rollout, ...]]:
            for index, (request, clip) in enumerate(zip(asked, frames, strict=True)):
                engine.add(str(index), request, (clip,))
            ended = [engine.step() for _ in range(steps)]
            if update:
                engine.load_weights(*update)
            while engine.num_running:
                ended.append(engine.step())
            groups = {name: rollouts for outcomes in ended for name, rollouts in outcomes}
            return [groups[str(index)] for index in range(len(asked))]

        return await asyncio.wrap_future(self._loop.call(run))

    async def update_behind(
        self, first: GroupRequest, second: GroupRequest, frames: np.ndarray, *update: Any
    ) -> tuple[Rollout, ...]:
        """Return the second group, which begins one step after the first; the update comes when the first ends."""

        def run(engine: Any) -> tuple[Rollout, ...]:
            engine.add("first", first, (frames,))
            ended = dict(engine.step())
            engine.add("second", second, (frames,))
            while "first" not in ended:
                ended |= engine.step()
            if update:
                engine.load_weights(*update)
            while engine.num_running:
                ended |= engine.step()
            return ended["second"]

        return await asyncio.wrap_future(self._loop.call(run))

    async def forced_logprobs(self, request: GroupRequest, frames: np.ndarray, response: np.ndarray) -> np.ndarray:
        """Return the log-probs of a given response under the engine's weights, f32 [R], in one forward pass."""

        def run(engine: Any) -> np.ndarray:
            from vllm import SamplingParams
            from vllm.renderers.inputs.preprocess import parse_model_prompt

            from actors.prompts import vllm_prompt

            prompt = vllm_prompt(request, (frames,), tells_seconds=engine.limits.tells_seconds)
            prompt["prompt_token_ids"] = prompt["prompt_token_ids"] + response.tolist()
            vllm = engine._engine
            [rendered] = vllm.renderer.render_cmpl(
                [parse_model_prompt(vllm.model_config, prompt)], vllm.renderer.default_cmpl_tok_params
            )
            params = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False)
            vllm.add_request("forced", rendered, params, lora_request=engine._adapter)
            while not (ended := [output for output in vllm.step() if output.finished]):
                pass
            read = ended[0].prompt_logprobs[-response.size :]
            return np.array([logprobs[int(token)].logprob for logprobs, token in zip(read, response, strict=True)])

        return await asyncio.wrap_future(self._loop.call(run))

    async def set_weight_update(self, weight_update: WeightUpdate) -> None:
        """Change `pipeline.weight_update` as if the actor had been started with it."""
        self._loop._weight_update = weight_update

    async def cache_sizes(self) -> dict[str, int]:
        """Return the number of entries of each cache: prefix blocks, and image features by scheduler and by model."""

        def read(engine: Any) -> dict[str, int]:
            core = engine._engine.engine_core.engine_core
            return {
                "prefix": len(core.scheduler.kv_cache_manager.block_pool.cached_block_hash_to_block),
                "encoder_scheduled": len(core.scheduler.encoder_cache_manager.cached),
                "encoder_held": len(core.model_executor.driver_worker.model_runner.encoder_cache),
            }

        return await asyncio.wrap_future(self._loop.call(read))

    async def last_update(self) -> TransferStats:
        """Return the size of the last update."""
        return await asyncio.wrap_future(self._loop.call(lambda engine: engine.last_update))

    async def in_workers(self, function: Any, *args: Any) -> list[Any]:
        """Call a function with every vLLM worker of the engine, and return what each answers."""
        return await asyncio.wrap_future(
            self._loop.call(lambda engine: engine._engine.collective_rpc(function, args=args))
        )

    async def fatal_update(self, *update: Any) -> str:
        """Load weights and return the error for which the actor would have to be replaced."""

        def run(engine: Any) -> str:
            try:
                engine.load_weights(*update)
            except RuntimeError as error:
                return str(error)
            return ""

        return await asyncio.wrap_future(self._loop.call(run))

    async def cache_bytes(self) -> int:
        """Return the memory that the cache of keys and values has at present."""

        def held(engine: Any) -> int:
            (found,) = engine._engine.collective_rpc(_cache_bytes)
            return found

        return await asyncio.wrap_future(self._loop.call(held))

    async def break_engine(self) -> None:
        """Make the engine's next step fail, as a fault inside vLLM would."""

        def break_it(engine: Any) -> None:
            def fail() -> None:
                raise RuntimeError("broken on purpose")

            engine._engine.step = fail

        await asyncio.wrap_future(self._loop.call(break_it))


def _cache_bytes(worker: Any) -> int:
    return sum(cache.untyped_storage().nbytes() for cache in worker.model_runner.kv_caches)


def engine_spec(model_path: Path, **changes: Any) -> EngineSpec:
    """Return the spec of a small engine on one thread for a tiny model."""
    spec = EngineSpec(
        model=ModelConfig(path=model_path, dtype="float32", max_model_len=MAX_MODEL_LEN),
        rollout=RolloutConfig(max_num_seqs=64, kv_cache_mib=16),
        banned_token_ids=prompt_builder(model_path).banned_token_ids,
    )
    return replace(spec, **changes)


def start_probe(spec: EngineSpec) -> Any:
    """Start a ProbeActor and return its handle at once; its first answer waits until the engine is loaded."""
    options = {"num_cpus": 0, "max_restarts": 0, "runtime_env": {"env_vars": environment(spec)}}
    return ray.remote(ProbeActor).options(**options).remote(spec)


def prompt_builder(model_path: Path) -> PromptBuilder:
    return PromptBuilder(model_path, max_model_len=MAX_MODEL_LEN, max_tokens=12, dtype="float32")


class Asker:
    """A maker of prompts about random clips, which requests their rollouts."""

    def __init__(self, model_path: Path) -> None:
        self._builder, self._patch = prompt_builder(model_path), patch_shape(model_path)
        self.banned_token_ids = self._builder.banned_token_ids
        self.end_token_id = self._builder.end_token_id
        self.decode = self._builder.decode

    def prompt(self, index: int, *, kind: str = "video", frames: int = 4) -> tuple[PromptItem, Prompt, ClipRef]:
        """Return prompt number `index`, whose clip is a function of the number."""
        video = VideoSpec(
            uri="", fps=2.0, min_frames=2, max_frames=8, min_pixels=784, max_pixels=3136, total_pixels=31360
        )
        media = video if kind == "video" else ImageSpec(uri="", min_pixels=784, max_pixels=3136)
        item = PromptItem(
            prompt_id=f"clips:{index}",
            task="temporal_grounding",
            question=f"the red square appears {index} times",
            options=(),
            media=(media,),
            truth=[0.0, 1.0],
            style="terse",
        )
        clip = random_clip(index, kind, frames, patch=self._patch)
        return item, self._builder.build(item, [clip.info]), clip

    def ask(self, actor: Any, index: int, sampling: Sampling = SAMPLING, *, kind: str = "video") -> ray.ObjectRef:
        """Request the rollouts of prompt `index` from an actor, and return a reference to them."""
        return actor.generate.remote(*self.request(index, sampling, kind=kind))

    def request(
        self, index: int, sampling: Sampling = SAMPLING, *, kind: str = "video", frames: int = 4
    ) -> tuple[GroupRequest, Any]:
        """Return the request for prompt `index`, and the frames of its clip."""
        item, prompt, clip = self.prompt(index, kind=kind, frames=frames)
        request = GroupRequest(
            prompt_id=item.prompt_id,
            engine_ids=prompt.engine_ids,
            num_tokens=prompt.prompt_ids.size,
            clips=(clip.info,),
            sampling=sampling,
        )
        return request, clip.frames


def random_clip(seed: int, kind: str = "video", frames: int = 4, patch: PatchShape = DEFAULT_PATCH) -> ClipRef:
    """Return a clip of noise with 4 x 4 patches a frame, at 2 frames per second."""
    num_frames, side = frames if kind == "video" else 1, 4 * patch.px
    array = np.random.default_rng(seed).integers(0, 256, (num_frames, side, side, 3), dtype=np.uint8)
    info = ClipInfo(
        kind=kind,
        digest=f"{kind}{seed}",
        times_s=np.arange(num_frames) / 2,
        grid_thw=(num_frames // patch.frames if kind == "video" else 1, 4, 4),
        second_per_grid_s=patch.frames / 2 if kind == "video" else 0.0,
        duration_s=num_frames / 2,
        num_bytes=array.nbytes,
    )
    return ClipRef(info=info, frames=array)


def ids_and_logprobs(rollouts: tuple[Rollout, ...]) -> list[tuple[list[int], list[float]]]:
    """Return the ids and log-probs of rollouts, which are equal if two samplings agree to the last bit."""
    return [(rollout.response_ids.tolist(), rollout.response_logprobs.tolist()) for rollout in rollouts]


@pytest.fixture(scope="module")
def actor_cluster() -> Iterator[None]:
    """Run a Ray cluster for one test module, whose workers can also import the tests."""
    env.be_quiet()
    import_path = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(REPO), *([import_path] if import_path else [])])
    folder = Path(tempfile.mkdtemp(prefix="ra-", dir="/tmp"))  # short: Ray's sockets go below it
    ray.init(
        address="local",
        _node_ip_address="127.0.0.1",
        include_dashboard=False,
        num_cpus=8,
        _temp_dir=str(folder),
        object_store_memory=200 << 20,
        log_to_driver=False,
    )
    if import_path is None:
        del os.environ["PYTHONPATH"]
    else:
        os.environ["PYTHONPATH"] = import_path
    yield
    ray.shutdown(wait_for_processes=True)
    shutil.rmtree(folder, ignore_errors=True)
