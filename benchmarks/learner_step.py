"""One learner step in three forms, for `benchmarks.learner`: packed, padded as in other systems, and the floor.

All three go through `LearnerEngine.update`: cutting patches, forward, loss, backward, clipping and AdamW under
DeepSpeed. They differ only in the batch:
- packed: `[prompt][response 1]…[response G]`, as in the learner.
- padded: each response behind a copy of its prompt, G rows of equal length (so nothing is lost to padding), each with
  a vision pass of its own and ordinary causal attention; logits only at response tokens, as in the packed form.
- floor: the packed form's tokens as one causal sequence, whose log-probs are wrong but whose cost is a lower bound.
"""

from __future__ import annotations

import ctypes
import json
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLTextConfig, Qwen2_5_VLVisionConfig
from transformers.utils.logging import disable_progress_bar

from learner.engine import LearnerEngine, join_ranks, open_store
from learner.model.policy import PackedPolicy, WholePass
from learner.packing.packing import PackedBatch
from learner.packing.rows import Response, Row
from learner.packing.shards import RankShard
from learner.spec import LearnerSpec
from rlsys.config.run import AlgorithmConfig, LearnerConfig, LoraConfig, ModelConfig, RolloutConfig, TrainConfig
from rlsys.models.mrope import VisionTokens, mrope_positions
from rlsys.types import ClipInfo, ClipRef, Prompt
from rlsys.weights.sockets import rank_sockets

Form = Literal["packed", "padded", "floor"]
FORMS: tuple[Form, ...] = ("packed", "padded", "floor")
LOOPBACK = "127.0.0.1"
PATCH, MERGE, TEMPORAL_PATCH = 14, 2, 2
MIN_TEXT = 8  # tokens of a prompt beside the visual ones, vision start and end included
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's mallopt
MIB = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The sizes of a Qwen2.5-VL. side_px: of the square frames of its clips.

    has_tied_head: whether the output head is the embedding.
    """

    hidden: int
    mlp: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    vision_depth: int
    vision_hidden: int
    vision_mlp: int
    vision_heads: int
    full_attention_blocks: tuple[int, ...]
    mrope_section: tuple[int, int, int]
    side_px: int
    has_tied_head: bool = True

    @property
    def tokens_per_two_frames(self) -> int:
        return (self.side_px // (PATCH * MERGE)) ** 2


_3B = Shape(
    hidden=2048,
    mlp=11008,
    layers=36,
    heads=16,
    kv_heads=2,
    vocabulary=151936,
    vision_depth=32,
    vision_hidden=1280,
    vision_mlp=3420,
    vision_heads=16,
    full_attention_blocks=(7, 15, 23, 31),
    mrope_section=(16, 24, 24),
    side_px=280,
)
"""Qwen2.5-VL-3B as published; the 7B has its vision tower."""

SHAPES = {
    # a visual token costs as much in the tower as in the language model, and the head a tenth of it, as in the 3B
    "small": Shape(
        hidden=256,
        mlp=704,
        layers=4,
        heads=4,
        kv_heads=2,
        vocabulary=1216,
        vision_depth=2,
        vision_hidden=160,
        vision_mlp=432,
        vision_heads=4,
        full_attention_blocks=(1,),
        mrope_section=(8, 12, 12),
        side_px=112,
    ),
    # for tests of the code paths
    "tiny": Shape(
        hidden=64,
        mlp=128,
        layers=1,
        heads=2,
        kv_heads=2,
        vocabulary=128,
        vision_depth=1,
        vision_hidden=32,
        vision_mlp=64,
        vision_heads=2,
        full_attention_blocks=(0,),
        mrope_section=(4, 6, 6),
        side_px=56,
    ),
    "3b": _3B,
    "7b": replace(_3B, hidden=3584, mlp=18944, layers=28, heads=28, kv_heads=4, vocabulary=152064, has_tied_head=False),
}


@dataclass(frozen=True, kw_only=True)
class Setting:
    """The constants of a benchmark run.

    padded_rows: rows of the padded form in one pass; 0 takes all G.  lora_rank: of the adapters; 0 trains all weights.
    """

    shape: Shape
    device: str
    dtype: Literal["float32", "bfloat16"]
    attention: Literal["sdpa", "eager", "flex_attention"]
    threads: int
    padded_rows: int = 0
    gradient_checkpointing: bool = False
    lora_rank: int = 0

    def learner_config(self) -> LearnerConfig:
        """Return the config of a learner of one rank."""
        return LearnerConfig(gradient_checkpointing=self.gradient_checkpointing, lora=LoraConfig(rank=self.lora_rank))


def model_config(setting: Setting) -> Qwen2_5_VLConfig:
    """Return the shape as a checkpoint's config."""
    shape = setting.shape
    text = Qwen2_5_VLTextConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.mlp,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=128_000,
        bos_token_id=None,
        eos_token_id=None,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6, "mrope_section": list(shape.mrope_section)},
    )
    vision = Qwen2_5_VLVisionConfig(
        depth=shape.vision_depth,
        hidden_size=shape.vision_hidden,
        intermediate_size=shape.vision_mlp,
        num_heads=shape.vision_heads,
        out_hidden_size=shape.hidden,
        fullatt_block_indexes=list(shape.full_attention_blocks),
    )
    start, end, image, video = _special_ids(shape)
    return Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=image,
        video_token_id=video,
        vision_start_token_id=start,
        vision_end_token_id=end,
        tie_word_embeddings=shape.has_tied_head,
        dtype=setting.dtype,
    )


def write_model(folder: Path, setting: Setting, seed: int = 0) -> None:
    """Write a randomly initialised checkpoint of the shape: config, weights and processor, without a tokenizer."""
    config = model_config(setting)
    disable_progress_bar()
    torch.manual_seed(seed)
    with torch.device(setting.device):
        model = Qwen2_5_VLForConditionalGeneration(config)
    model.to(getattr(torch, setting.dtype)).save_pretrained(folder)
    processor = {
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "patch_size": PATCH,
        "temporal_patch_size": TEMPORAL_PATCH,
        "merge_size": MERGE,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))


def _special_ids(shape: Shape) -> tuple[int, int, int, int]:
    """Return the ids of vision start, vision end, image and video placeholder, the last of the vocabulary."""
    first = shape.vocabulary - 4
    return first, first + 1, first + 2, first + 3


def make_row(shape: Shape, *, prompt_tokens: int, response_tokens: int, group_size: int, seed: int = 0) -> Row:
    """Return a row with an almost entirely visual prompt and G responses of random ids and advantages."""
    if prompt_tokens < MIN_TEXT + shape.tokens_per_two_frames:
        raise ValueError(f"prompt_tokens={prompt_tokens}: two frames alone are {shape.tokens_per_two_frames} tokens.")
    rng = np.random.default_rng(seed)
    start, end, image, video = _special_ids(shape)
    grid_time = (prompt_tokens - MIN_TEXT) // shape.tokens_per_two_frames
    num_visual = grid_time * shape.tokens_per_two_frames
    text = rng.integers(0, start, prompt_tokens - num_visual - 2)
    ids = np.concatenate([[start], np.full(num_visual, video), [end], text]).astype(np.int32)
    side = shape.side_px // PATCH
    grid = (grid_time, side, side)
    vision = VisionTokens(
        image_pad_id=image,
        video_pad_id=video,
        merge_size=MERGE,
        temporal_patch_size=TEMPORAL_PATCH,
        tokens_per_second=4,
    )
    positions, next_position = mrope_positions(ids, [grid], [1.0], vision)
    frames = rng.integers(0, 256, (grid_time * TEMPORAL_PATCH, shape.side_px, shape.side_px, 3), dtype=np.uint8)
    info = ClipInfo(
        kind="video",
        digest=f"random-{seed}",
        times_s=np.arange(len(frames)) / 2,
        grid_thw=grid,
        second_per_grid_s=1.0,
        duration_s=len(frames) / 2,
        num_bytes=frames.nbytes,
    )
    responses = tuple(
        Response(
            ids=rng.integers(0, start, response_tokens).astype(np.int32),
            sampler_logprobs=np.full(response_tokens, -np.log(shape.vocabulary), np.float32),
            advantage=float(rng.normal()),
            weight=1.0 / (group_size * response_tokens),
        )
        for _ in range(group_size)
    )
    prompt = Prompt(engine_ids=ids[:1], prompt_ids=ids, position_ids=positions, next_position=next_position)
    return Row(prompt_id="benchmark:0", prompt=prompt, clips=(ClipRef(info=info, frames=frames),), responses=responses)


class SwitchedPolicy(PackedPolicy):
    """The learner's policy, which can also compute a pass as ordinary causal rows.

    num_rows: number of equally long rows in a pass; 0 for the packed form.
    """

    num_rows = 0

    def forward(self, batch: PackedBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return log-probs and entropies, see `PackedPolicy.forward`."""
        if not self.num_rows:
            return super().forward(batch)
        embeddings = self.model.get_input_embeddings()(batch.input_ids)
        joined, _ = self._with_media(embeddings[0], batch, WholePass(batch))
        tokens = joined.view(self.num_rows, -1, embeddings.shape[-1])
        text = self.model.model.language_model
        packed_attention = text.config._attn_implementation
        text.config._attn_implementation = "sdpa"  # causal where it is given no mask
        states = text(
            inputs_embeds=tokens,
            attention_mask={"full_attention": None},
            position_ids=batch.position_ids.view(3, *tokens.shape[:2]),
            use_cache=False,
        ).last_hidden_state
        text.config._attn_implementation = packed_attention
        predictors = states.flatten(0, 1).index_select(0, batch.hidden_index)
        return self.model.lm_head(predictors, batch.targets)


class Bench:
    """A learner engine in this process, with measurements of its steps."""

    def __init__(self, setting: Setting, model_path: Path) -> None:
        self.setting = setting
        torch.set_num_threads(setting.threads)
        if setting.device == "cpu":
            _keep_freed_memory(True)
        if not torch.distributed.is_initialized():
            os.environ.update(rank_sockets(LOOPBACK, ranks_share_node=True, engines_join=False))
            join_ranks(0, 1, open_store(1, LOOPBACK, 60.0), device=setting.device, timeout_s=600.0)
        spec = LearnerSpec(
            model=ModelConfig(path=model_path, dtype=setting.dtype, attention=setting.attention),
            rollout=RolloutConfig(max_tokens=1024),
            train=TrainConfig(learning_rate=1e-6, schedule="constant"),
            algorithm=AlgorithmConfig(),
            learner=setting.learner_config(),
            device=setting.device,
        )
        self._engine = LearnerEngine(spec)
        self._policy = self._engine._policy
        self._policy.__class__ = SwitchedPolicy

    def seconds(self, form: Form, row: Row) -> float:
        """Return the wall time of one update."""
        shard = self._shard(form, row)
        self._policy.num_rows = {"packed": 0, "floor": 1, "padded": len(shard.micro_batches[0])}[form]
        self._wait()
        started = time.perf_counter()
        self._engine.update(shard)
        self._wait()
        return time.perf_counter() - started

    def peak_mb(self, form: Form, row: Row) -> float:
        """Return the peak memory of one update in MiB, beyond the memory held before it (weights and optimiser).

        On a CPU it is the kernel's high-water mark of resident memory, reset before the step, with freed memory
        returned at once; on a GPU it is the allocator's peak.
        """
        if self.setting.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            self.seconds(form, row)
            return (torch.cuda.max_memory_allocated() - before) / MIB
        _keep_freed_memory(False)
        Path("/proc/self/clear_refs").write_text("5")
        before_kib = _status_kib("VmRSS")
        self.seconds(form, row)
        peak_kib = _status_kib("VmHWM")
        _keep_freed_memory(True)
        return (peak_kib - before_kib) / 1024

    def _shard(self, form: Form, row: Row) -> RankShard:
        if form != "padded":
            return RankShard(objective="grpo", micro_batches=((row,),))
        rows = [alone(row, index) for index in range(len(row.responses))]
        size = self.setting.padded_rows or len(rows)
        if len(rows) % size:
            raise ValueError(f"padded_rows={size} does not divide G={len(rows)}.")
        passes = tuple(tuple(rows[start : start + size]) for start in range(0, len(rows), size))
        return RankShard(objective="grpo", micro_batches=passes)

    def _wait(self) -> None:
        if self.setting.device == "cuda":
            torch.cuda.synchronize()

    def close(self) -> None:
        self._engine.close()


def alone(row: Row, index: int) -> Row:
    """Return a row with one response, whose clip no other row shares, because a shared clip is computed once."""
    clips = tuple(
        replace(clip, info=replace(clip.info, digest=f"{clip.info.digest}~{index}"), frames=clip.frames.copy())
        for clip in row.clips
    )
    return replace(row, clips=clips, responses=(row.responses[index],))


def _keep_freed_memory(keeps: bool) -> None:
    """Make glibc keep freed memory (its default, faster) or return it at once, so that resident means used."""
    libc = ctypes.CDLL(None)
    size = 32 * MIB if keeps else 256 << 10
    libc.mallopt(M_MMAP_THRESHOLD, size)
    libc.mallopt(M_TRIM_THRESHOLD, 2 * size)
    if not keeps:
        libc.malloc_trim(0)


def _status_kib(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(f"{key}:")))
