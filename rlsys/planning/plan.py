"""What a run will need, before anything is started: memory, arithmetic, and step times.

Everything here is arithmetic on a config, a model's sizes and the shapes of some prompts;
`rlsys.runs.plan_inputs` reads those. Each number says what it was made of.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from statistics import fmean

from rlsys.config.run import ConfigError, RunConfig
from rlsys.models.sizes import ModelSizes

GIB = 1 << 30
BYTES = {"float32": 4, "bfloat16": 2}
FRAME_BYTES_PER_TOKEN = 28 * 28 * 2 * 3
"""u8 RGB of the pixels under one visual token: 28 x 28 of two frames."""
LOGIT_NUMBERS = 1 << 26
"""Most logits that the learner holds at once."""
LIVE_NUMBERS = 10**9
"""DeepSpeed's stage3_max_live_parameters: weights that ZeRO-3 holds whole at a time."""
BUCKET_NUMBERS = 5 * 10**8
"""Gradients that DeepSpeed reduces at a time."""


@dataclass(frozen=True, kw_only=True)
class Assumptions:
    """What no config says. The defaults are an H100 SXM's data sheet and usual shares of it.

    tflops: of a device, dense, in the model's format.  compute_share, bandwidth_share: reached of it.
    memory_gb_per_s: of a device's memory.  link_gb_per_s: from the learner to an actor.  memory_gib: of a device.
    engine_reserve_gib: of a device, what an engine needs beside weights and key/value cache.
    response_tokens: of a response in the mean; 0 takes half of rollout.max_tokens.  text_tokens: of a prompt, where
    there are no annotations to count.  rule_s, judge_s: scoring a group by rules, and by a judge.
    """

    tflops: float = 989.0
    compute_share: float = 0.3
    memory_gb_per_s: float = 3350.0
    bandwidth_share: float = 0.6
    link_gb_per_s: float = 25.0
    memory_gib: float = 80.0
    engine_reserve_gib: float = 4.0
    response_tokens: float = 0.0
    text_tokens: float = 256.0
    rule_s: float = 0.1
    judge_s: float = 5.0

    @property
    def flops(self) -> float:
        """A second, of a device."""
        return self.tflops * 1e12 * self.compute_share

    @property
    def bytes_per_s(self) -> float:
        """From a device's memory."""
        return self.memory_gb_per_s * 1e9 * self.bandwidth_share


CPU = Assumptions(tflops=0.05, memory_gb_per_s=10.0, link_gb_per_s=2.0)
"""A core of a laptop or server, in float32."""


def assumptions(device: str, given: Sequence[str]) -> Assumptions:
    """The device's defaults with `name=number` laid over them. Raises ConfigError for a name or number it is not."""
    base = CPU if device == "cpu" else Assumptions()
    values = {field.name: getattr(base, field.name) for field in fields(Assumptions)}
    for text in given:
        name, _, number = text.partition("=")
        if name not in values:
            raise ConfigError(f"--assume {text!r}: no assumption of that name; there are {', '.join(values)}.")
        try:
            values[name] = float(number)
        except ValueError as error:
            raise ConfigError(f"--assume {text!r}: write it as {name}=NUMBER.") from error
    return Assumptions(**values)


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """The prompts of a run, in tokens. multiply_adds: of a group's forward and backward pass, mean.

    mean_*, longest_*: text and visual tokens of a prompt.  source: where they were found.
    """

    mean_text: float
    mean_visual: float
    longest_text: int
    longest_visual: int
    multiply_adds: float
    source: str

    @property
    def mean(self) -> float:
        return self.mean_text + self.mean_visual

    @property
    def longest(self) -> int:
        return self.longest_text + self.longest_visual


@dataclass(frozen=True)
class Line:
    """A number with its unit, and what it was made of."""

    name: str
    value: str
    how: str


@dataclass(frozen=True, kw_only=True)
class Section:
    """Part of a plan. problems: what of it cannot work."""

    title: str
    lines: tuple[Line, ...]
    problems: tuple[str, ...] = ()


def token_section(config: RunConfig, prompts: Prompts, responses: float) -> Section:
    """Tokens and bytes of clips, prompts and groups."""
    size = config.rollout.group_size
    return Section(
        title="clips and prompts",
        lines=(
            Line(
                "visual tokens of a prompt",
                f"{prompts.mean_visual:.0f}, longest {prompts.longest_visual}",
                prompts.source,
            ),
            Line(
                "text tokens of a prompt",
                f"{prompts.mean_text:.0f}, longest {prompts.longest_text}",
                "chat template and question",
            ),
            Line(
                "frames of a clip",
                f"{shown(prompts.mean_visual * FRAME_BYTES_PER_TOKEN)}, "
                f"longest {shown(prompts.longest_visual * FRAME_BYTES_PER_TOKEN)}",
                f"{FRAME_BYTES_PER_TOKEN} bytes of u8 RGB a visual token",
            ),
            Line(
                "tokens of a group, packed",
                f"{prompts.mean + size * responses:.0f}",
                f"prompt once + {size} responses of {responses:.0f} tokens",
            ),
        ),
    )


@dataclass(frozen=True, kw_only=True)
class EngineRoom:
    """Bytes for keys and values of one engine, bytes of one token's, and groups of mean length that run at once."""

    room: float
    per_token: int
    groups: int


def engine_room(
    config: RunConfig, sizes: ModelSizes, prompts: Prompts, responses: float, given: Assumptions
) -> EngineRoom:
    """What one engine holds at once. A group's responses share their prompt's keys and values."""
    rollout, width = config.rollout, BYTES[config.model.dtype]
    room = float(rollout.kv_cache_mib << 20)
    if config.cluster.device == "cuda":
        devices = rollout.tensor_parallel_size
        free = given.memory_gib * rollout.gpu_memory_utilization - given.engine_reserve_gib
        room = devices * free * GIB - sizes.parameters * width
    per_token = 2 * sizes.layers * sizes.kv * width
    tokens = prompts.mean + rollout.group_size * responses
    groups = min(rollout.max_num_seqs // rollout.group_size, int(max(room, 0) / (per_token * tokens)))
    return EngineRoom(room=room, per_token=per_token, groups=groups)


def engine_section(config: RunConfig, sizes: ModelSizes, room: EngineRoom, given: Assumptions) -> Section:
    """Memory of an engine, and whether a sequence of the greatest length fits it."""
    rollout = config.rollout
    how = f"rollout.kv_cache_mib={rollout.kv_cache_mib}"
    if config.cluster.device == "cuda":
        how = (
            f"{rollout.tensor_parallel_size} x ({given.memory_gib:g} GiB x {rollout.gpu_memory_utilization:g} - "
            f"{given.engine_reserve_gib:g} GiB reserve) - weights"
        )
    weights = sizes.parameters * BYTES[config.model.dtype]
    longest = config.model.max_model_len * room.per_token
    problems = []
    if longest > room.room:
        problems.append(
            f"an engine has {shown(room.room)} for keys and values, one sequence of model.max_model_len="
            f"{config.model.max_model_len} needs {shown(longest)}: lower it, or raise "
            + (
                "rollout.tensor_parallel_size or rollout.gpu_memory_utilization."
                if config.cluster.device == "cuda"
                else "rollout.kv_cache_mib."
            )
        )
    return Section(
        title=f"each of {rollout.num_actors} engines",
        lines=(
            Line("weights", shown(weights), f"{sizes.parameters:,} parameters, {config.model.dtype}"),
            Line(
                "keys and values of a token",
                shown(room.per_token),
                f"2 x {sizes.layers} layers x {sizes.kv} x {BYTES[config.model.dtype]} bytes",
            ),
            Line("room for keys and values", shown(room.room), how),
            Line(
                "groups at once",
                f"{room.groups} ({room.groups * rollout.group_size} responses)",
                f"of mean length, prompt shared; at most rollout.max_num_seqs={rollout.max_num_seqs} responses",
            ),
        ),
        problems=tuple(problems),
    )


def payload_bytes(config: RunConfig, sizes: ModelSizes) -> int:
    """What a publication of the weights sends."""
    learner = config.learner
    return (sizes.trained(learner) if learner.lora.rank else sizes.parameters) * BYTES[config.model.dtype]


def total_flops(config: RunConfig, prompts: Prompts) -> float:
    """Of a step's learning: two a multiply-add, a third more for each further forward pass."""
    passes = 1.0 + (1 / 3 if config.learner.gradient_checkpointing else 0)
    if config.algorithm.kl_coef > 0:
        passes += 1 / 3
    return 2 * prompts.multiply_adds * passes * config.train.prompts_per_step


def mean_response(config: RunConfig, given: Assumptions) -> float:
    """Tokens."""
    return given.response_tokens or config.rollout.max_tokens / 2


def mean_batch_tokens(config: RunConfig, prompts: Prompts, responses: float) -> float:
    """Packed tokens of one rank's share of a step."""
    groups = config.train.prompts_per_step / config.learner.num_ranks
    return groups * (prompts.mean + config.rollout.group_size * responses)


def shown(num_bytes: float) -> str:
    """Bytes for people."""
    for unit, size in (("GiB", GIB), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if abs(num_bytes) >= size:
            return f"{num_bytes / size:.2f} {unit}"
    return f"{num_bytes:.0f} B"


def average(values: Sequence[float]) -> float:
    """Mean; 0 of nothing."""
    return fmean(values) if values else 0.0
