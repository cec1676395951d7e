"""Estimate what a run will need before anything is started: memory, compute and step times.

Everything here is arithmetic on a config, a model's sizes and the shapes of some prompts, which
`rlsys.runs.plan_inputs` reads. Each number states how it was computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from statistics import fmean

from rlsys.config.run import ConfigError, RunConfig
from rlsys.data.video.budgets import MERGED, patch_bytes
from rlsys.models.sizes import ModelSizes
from rlsys.types import DEFAULT_PATCH, PatchShape

GIB = 1 << 30
BYTES = {"float32": 4, "bfloat16": 2}
LOGIT_NUMBERS = 1 << 26
"""Largest number of logits that the learner holds at once."""
PACKED = "vLLM's CPU build keeps embedding and head once more, packed for its products"
STEP_TOKENS = 8192
"""Tokens that an engine reads in a step at most, unless the largest clip, or on CPU a prompt, has more."""
LIVE_NUMBERS = 10**9
"""DeepSpeed's stage3_max_live_parameters: number of parameters that ZeRO-3 holds gathered at a time."""
SUB_GROUP_NUMBERS = 10**9
"""DeepSpeed's sub_group_size: numbers that a rank updates at a time."""
BUCKET_NUMBERS = 5 * 10**8
"""Number of gradient values that DeepSpeed reduces at a time."""


@dataclass(frozen=True, kw_only=True)
class Assumptions:
    """Assumptions about hardware and data that no config states. Defaults: an H100 SXM's data sheet, usual utilisation.

    tflops: of a device, dense, in the model's data type.  compute_share, bandwidth_share: fraction reached in practice.
    memory_gb_per_s: of a device's memory.  link_gb_per_s: from the learner to an actor.
    memory_gib: of a device, as its driver reports it: 79.6 of a card that is sold as 80 GB.
    engine_reserve_gib: of a device, what an engine needs beside weights and key/value cache.
    rank_reserve_gib: of a device, what a learner rank needs beside the tensors of the plan: CUDA's context, NCCL's
    buffers, workspaces of kernels, fragmentation.
    response_tokens: mean length of a response; 0 assumes half of rollout.max_tokens.  text_tokens: of a prompt, if
    there are no annotations to count.  rule_s, judge_s: seconds to score a group by rules, and by a judge.
    """

    tflops: float = 989.0
    compute_share: float = 0.3
    memory_gb_per_s: float = 3350.0
    bandwidth_share: float = 0.6
    link_gb_per_s: float = 25.0
    memory_gib: float = 79.6
    engine_reserve_gib: float = 4.0
    rank_reserve_gib: float = 4.0
    response_tokens: float = 0.0
    text_tokens: float = 256.0
    rule_s: float = 0.1
    judge_s: float = 5.0

    @property
    def flops(self) -> float:
        """Operations per second that a device reaches."""
        return self.tflops * 1e12 * self.compute_share

    @property
    def bytes_per_s(self) -> float:
        """Bytes per second that a device reads from its memory."""
        return self.memory_gb_per_s * 1e9 * self.bandwidth_share


CPU = Assumptions(tflops=0.05, memory_gb_per_s=10.0, link_gb_per_s=2.0)
"""Assumptions for one core of a laptop or server, in float32."""


def assumptions(device: str, given: Sequence[str]) -> Assumptions:
    """Return the device's defaults with overrides `name=number`. Raises ConfigError for an invalid override."""
    base = CPU if device == "cpu" else Assumptions()
    values = {field.name: getattr(base, field.name) for field in fields(Assumptions)}
    for text in given:
        name, _, number = text.partition("=")
        if name not in values:
            raise ConfigError(f"--assume {text!r}: unknown assumption; the assumptions are {', '.join(values)}.")
        try:
            values[name] = float(number)
        except ValueError as error:
            raise ConfigError(f"--assume {text!r}: write it as {name}=NUMBER.") from error
    return Assumptions(**values)


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """Prompt sizes of a run, in tokens. multiply_adds: mean of a group's forward and backward pass.

    mean_*, longest_*: text and visual tokens of a prompt.  source: how they were determined.
    patch: of the model's vision tower.
    """

    mean_text: float
    mean_visual: float
    longest_text: int
    longest_visual: int
    multiply_adds: float
    source: str
    patch: PatchShape = DEFAULT_PATCH

    @property
    def mean(self) -> float:
        """Mean number of tokens of a prompt."""
        return self.mean_text + self.mean_visual

    @property
    def longest(self) -> int:
        """Largest number of tokens of a prompt."""
        return self.longest_text + self.longest_visual


@dataclass(frozen=True)
class Line:
    """One line of a plan: a number with its unit, and how it was computed."""

    name: str
    value: str
    how: str


@dataclass(frozen=True, kw_only=True)
class Section:
    """A section of a plan. problems: why the run would fail, () if it would not."""

    title: str
    lines: tuple[Line, ...]
    problems: tuple[str, ...] = ()


def token_section(config: RunConfig, prompts: Prompts, responses: float) -> Section:
    """Return the section on tokens and bytes of clips, prompts and groups."""
    size, token_bytes = config.rollout.group_size, MERGED**2 * patch_bytes(prompts.patch)
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
                f"{shown(prompts.mean_visual * token_bytes)}, longest {shown(prompts.longest_visual * token_bytes)}",
                f"{token_bytes} bytes of u8 RGB a visual token",
            ),
            Line(
                "tokens of a group, packed",
                f"{prompts.mean + size * responses:.0f}",
                f"prompt once + {size} responses of {responses:.0f} tokens",
            ),
            *_later_lines(config, prompts, responses),
        ),
    )


def _later_lines(config: RunConfig, prompts: Prompts, responses: float) -> tuple[Line, ...]:
    count = later_prompts(config)
    if not count:
        return ()
    value = f"{count * (prompts.mean + responses):.0f}"
    how = f"{count} prompts as long as the first, a response each (perception.rounds={config.perception.rounds})"
    return (Line("tokens of its later rounds", value, how),)


@dataclass(frozen=True, kw_only=True)
class EngineRoom:
    """The cache of one engine: its bytes, what a token and a response take of it, and groups of mean length at once.

    per_token: bytes of keys and values.  per_response: bytes of the state that linear attention keeps, of any length.
    working: bytes that its largest step needs beside weights and cache, see `step_bytes`.
    """

    room: float
    per_token: int
    groups: int
    per_response: int = 0
    working: float = 0.0


def engine_room(
    config: RunConfig, sizes: ModelSizes, prompts: Prompts, responses: float, given: Assumptions
) -> EngineRoom:
    """Return the capacity of one engine. A group's responses share their prompt's keys and values.

    On a GPU vLLM tries its largest step at the start, and what that needs above the reserve is no room for a cache.
    """
    rollout, width = config.rollout, BYTES[config.model.dtype]
    room, working = float(rollout.kv_cache_mib << 20), step_bytes(config, sizes, prompts)
    if config.cluster.device == "cuda":
        devices = rollout.tensor_parallel_size
        beside = max(given.engine_reserve_gib * GIB, working)
        room = devices * (given.memory_gib * rollout.gpu_memory_utilization * GIB - beside) - sizes.parameters * width
    per_token = 2 * sizes.attention_layers * sizes.kv * width
    per_response = sizes.linear.state_bytes(width) if sizes.linear else 0
    # where states are kept, responses do not share a prompt
    num_prompts = rollout.group_size if sizes.linear else 1
    tokens = num_prompts * prompts.mean + rollout.group_size * responses
    of_group = per_token * tokens + rollout.group_size * per_response
    groups = min(rollout.max_num_seqs // rollout.group_size, int(max(room, 0) / of_group))
    return EngineRoom(room=room, per_token=per_token, groups=groups, per_response=per_response, working=working)


def step_bytes(config: RunConfig, sizes: ModelSizes, prompts: Prompts) -> float:
    """Return the bytes of an engine's largest step: the tower on the longest prompt's clips, or the language model.

    An MLP holds gate, up and their product of all tokens at a time, beside its input, its output and the residual
    stream; the rotation of the tower's queries and keys holds eleven times its width. Pixels are there in float32, as
    the processor makes them, and in the model's format, and the inputs of a step have a buffer. On CPU a prompt is read
    in one step, on a GPU in several, which are at least as long as a clip.
    """
    width, patches = BYTES[config.model.dtype], prompts.longest_visual * sizes.merge**2
    hidden, mlp = sizes.tower_hidden, sizes.tower_mlp
    block = max(11 * hidden, (3 if sizes.is_tower_gated else 2) * mlp + 3 * hidden)
    pixels = patches * sizes.patch_dim * (4 + width)
    tokens = prompts.longest
    if config.cluster.device == "cuda":
        tokens = max(STEP_TOKENS, prompts.longest_visual)
    layer = sizes.kept_by_mlp * 3 / 4 + 3 * sizes.hidden
    return pixels + width * (max(STEP_TOKENS, tokens) * sizes.hidden + max(patches * block, tokens * layer))


def engine_section(config: RunConfig, sizes: ModelSizes, room: EngineRoom, given: Assumptions) -> Section:
    """Return the section on an engine's memory, with a problem if a sequence of the greatest length does not fit."""
    rollout = config.rollout
    how = f"rollout.kv_cache_mib={rollout.kv_cache_mib}"
    if config.cluster.device == "cuda":
        how = (
            f"{rollout.tensor_parallel_size} x ({given.memory_gib:g} GiB x {rollout.gpu_memory_utilization:g} - "
            f"{max(given.engine_reserve_gib, room.working / GIB):.3g} GiB beside) - weights"
        )
    width = BYTES[config.model.dtype]
    weights, packed = sizes.parameters * width, 2 * sizes.vocabulary * sizes.hidden * width
    longest = config.model.max_model_len * room.per_token + room.per_response
    shared = "each response with its prompt" if room.per_response else "prompt shared"
    kept = "keys, values and states" if room.per_response else "keys and values"
    problems = []
    if longest > room.room:
        problems.append(
            f"an engine has {shown(room.room)} for {kept}, one sequence of model.max_model_len="
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
            Line("weights", shown(weights), f"{sizes.parameters:,} parameters{_active(sizes)}, {config.model.dtype}"),
            *([Line("packed weights", shown(packed), PACKED)] if config.cluster.device == "cpu" else []),
            Line(
                "keys and values of a token",
                shown(room.per_token),
                f"2 x {sizes.attention_layers} layers x {sizes.kv} x {BYTES[config.model.dtype]} bytes",
            ),
            *_state_lines(sizes, room),
            Line(f"room for {kept}", shown(room.room), how),
            Line("largest step", shown(room.working), _of_a_step(config)),
            Line(
                "groups at once",
                f"{room.groups} ({room.groups * rollout.group_size} responses)",
                f"of mean length, {shared}; at most rollout.max_num_seqs={rollout.max_num_seqs} responses",
            ),
        ),
        problems=tuple(problems),
    )


def _state_lines(sizes: ModelSizes, room: EngineRoom) -> tuple[Line, ...]:
    linear = sizes.linear
    if linear is None:
        return ()
    how = f"{linear.layers} layers x ({linear.state} numbers in float32, and {linear.tail} of the convolution)"
    return (Line("state of a response", shown(room.per_response), how),)


def _of_a_step(config: RunConfig) -> str:
    of = "the longest prompt's clips or tokens at once"
    return of if config.cluster.device == "cpu" else f"{of}; engine_reserve_gib has it unless it is larger"


def _active(sizes: ModelSizes) -> str:
    return f", of which a token uses {sizes.active:,}" if sizes.experts else ""


def payload_bytes(config: RunConfig, sizes: ModelSizes) -> int:
    """Return the bytes that one publication of the weights sends."""
    learner = config.learner
    return (sizes.trained(learner) if learner.lora.rank else sizes.parameters) * BYTES[config.model.dtype]


def total_flops(config: RunConfig, prompts: Prompts) -> float:
    """Return the FLOP of a step's update: two per multiply-add, and a third more for each further forward pass."""
    passes = 1.0 + (1 / 3 if config.learner.gradient_checkpointing else 0)
    if config.algorithm.kl_coef > 0:
        passes += 1 / 3
    return 2 * prompts.multiply_adds * passes * config.train.prompts_per_step


def mean_response(config: RunConfig, given: Assumptions) -> float:
    """Return the mean number of tokens of a response."""
    return given.response_tokens or config.rollout.max_tokens / 2


def mean_batch_tokens(config: RunConfig, prompts: Prompts, responses: float) -> float:
    """Return the packed tokens of one rank's share of a step, or of the share of ranks that compute it together."""
    groups = config.train.prompts_per_step / config.learner.data_parallel
    first = prompts.mean + config.rollout.group_size * responses
    return groups * (first + later_prompts(config) * (prompts.mean + responses))


def later_prompts(config: RunConfig) -> int:
    """Return how many prompts of later rounds follow one of the first, at most; each has one response."""
    return (config.perception.rounds - 1) * config.rollout.group_size


def shown(num_bytes: float) -> str:
    """Format bytes with a binary unit."""
    for unit, size in (("GiB", GIB), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if abs(num_bytes) >= size:
            return f"{num_bytes / size:.2f} {unit}"
    return f"{num_bytes:.0f} B"


def average(values: Sequence[float]) -> float:
    """Return the mean; 0 if there are no values."""
    return fmean(values) if values else 0.0
