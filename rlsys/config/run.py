"""RunConfig: everything a run can be told, checked before anything is started.

One YAML file plus dotted overrides (`train.num_steps=10`). Every field is followed
by its meaning, its unit and what 0 or null does. Contradictions inside the config
fail here; those that need the data or the model are found by `rlsys.runs.assemble.check`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from rlsys.config.algorithm import AlgorithmConfig, check_against_run
from rlsys.config.answers import AnswersConfig
from rlsys.config.learner import LearnerConfig, LoraConfig
from rlsys.config.part import Part
from rlsys.config.reward import JudgeConfig, RewardConfig, ScoreSettings
from rlsys.config.sft import SftConfig
from rlsys.config.weights import WeightsConfig, check_transport
from rlsys.errors import UserError

__all__ = [
    "AlgorithmConfig",
    "AnswersConfig",
    "ConfigError",
    "JudgeConfig",
    "LearnerConfig",
    "LoraConfig",
    "Part",
    "RewardConfig",
    "RunConfig",
    "ScoreSettings",
    "SftConfig",
    "WeightsConfig",
    "load",
    "parse",
]


class ModelConfig(Part):
    path: Path
    """Checkpoint folder (config, weights, tokenizer, processor) as `save_pretrained` writes it."""
    make_tiny: bool = False
    """Build a tiny randomly initialised Qwen2.5-VL at `path` when the folder does not exist."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Number format of weights and activations, the same in engine and learner."""
    max_model_len: int = Field(default=16384, ge=64)
    """Tokens of prompt plus response that the engine makes room for."""
    attention: Literal["sdpa", "eager", "flash_attention_2", "flex_attention"] = "sdpa"
    """Attention of the learner. "flex_attention" is the one to take on GPUs: it skips the blocks of a packed pass that
    nobody sees; "flash_attention_2" is the same with that library in the vision tower; "sdpa" suits CPUs."""


class DataConfig(Part):
    annotations: Path | None = None
    """Annotation file."""
    videos: Path | None = None
    """Folder of the video files (or frame folders) that the annotations name."""
    format: Literal["charades_sta", "nextgqa", "got10k", "vidtab", "captions", "vtts"] = "charades_sta"
    """Shape of the annotation file; it decides the task, except "vtts", where each row's own annotations do."""
    think: bool = True
    """Ask for <think>…</think> before the answer; false asks for the answer alone."""
    prompt_style: Literal["full", "terse"] = "full"
    """Wording of the task's template; "terse" suits models of a few thousand words."""
    fps: float = Field(default=2.0, gt=0)
    """Frames sampled per second of video."""
    min_frames: int = Field(default=4, ge=2)
    """Fewest frames of a clip; even."""
    max_frames: int = Field(default=768, ge=2)
    """Most frames of a clip; even. A longer clip is sampled more sparsely, evenly over its length."""
    min_pixels: int = Field(default=128 * 28 * 28, ge=28 * 28)
    """Least height x width of a frame, pixels."""
    max_pixels: int = Field(default=768 * 28 * 28, ge=28 * 28)
    """Most height x width of a frame, pixels."""
    total_pixels: int = Field(default=115200 * 28 * 28, ge=28 * 28)
    """Most height x width x frames of a clip, pixels."""
    on_bad_clip: Literal["skip", "stop"] = "skip"
    """What a clip that cannot be decoded does to the run: its row is left out and counted, or the run stops."""
    on_dirty_row: Literal["drop", "clip", "stop"] = "drop"
    """What a dirty annotation row does: left out, mended where possible (end past the duration), or an error."""
    decode_timeout_s: float = Field(default=60.0, gt=0)
    """Seconds that one decode may take before it is ended and its clip counts as bad."""
    decode_workers: int = Field(default=2, ge=1)
    """Clips decoded at the same time."""
    decode_ahead: int = Field(default=4, ge=0)
    """Prompts whose clips are decoded before their groups may start; 0 decodes when a group starts."""
    cache_bytes: int = Field(default=256 << 20, ge=0)
    """Bytes of decoded frames, in the cluster's shared memory, up to which clips are kept for reuse and decoded ahead;
    those in use count. 0 does neither."""

    @model_validator(mode="after")
    def _budgets_agree(self) -> DataConfig:
        for name in ("min_frames", "max_frames"):
            if getattr(self, name) % 2:
                raise ValueError(
                    f"data.{name}={getattr(self, name)}: Qwen2.5-VL merges frames in pairs; use an even number."
                )
        if self.min_frames > self.max_frames:
            raise ValueError(
                f"data.min_frames={self.min_frames} is above data.max_frames={self.max_frames}; lower the first."
            )
        if self.min_pixels > self.max_pixels:
            raise ValueError(
                f"data.min_pixels={self.min_pixels} is above data.max_pixels={self.max_pixels}; lower the first."
            )
        if self.total_pixels < self.min_pixels * self.min_frames:
            raise ValueError(
                f"data.total_pixels={self.total_pixels} is below min_pixels x min_frames = "
                f"{self.min_pixels * self.min_frames}; no clip can satisfy both."
            )
        return self


class RolloutConfig(Part):
    num_actors: int = Field(default=1, ge=1)
    """Rollout actors, each with an engine of its own."""
    group_size: int = Field(default=8, ge=1)
    """G, responses per prompt."""
    shuffled_group_size: int = Field(default=0, ge=0)
    """Responses per prompt to the same frames in another order, for the score `order_contrast`; half of group_size."""
    temperature: float = Field(default=1.0, ge=0)
    """Sampling temperature."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus sampling; 1 leaves it off."""
    max_tokens: int = Field(default=1024, ge=1)
    """Most tokens of a response."""
    max_num_seqs: int = Field(default=256, ge=1)
    """Responses that one engine generates at once."""
    tensor_parallel_size: int = Field(default=1, ge=1)
    """GPUs that share one engine's weights."""
    gpu_memory_utilization: float = Field(default=0.9, gt=0, le=1)
    """Share of the GPU's memory that the engine takes; ignored on CPU."""
    kv_cache_mib: int = Field(default=64, ge=1)
    """Key/value cache of an engine on CPU, MiB; ignored on GPU."""
    threads: int = Field(default=1, ge=1)
    """Threads of an engine on CPU."""
    timeout_s: float = Field(default=600.0, gt=0)
    """Seconds one group may take before its actor counts as dead."""
    start_timeout_s: float = Field(default=900.0, gt=0)
    """Seconds an actor may take to load its model."""

    @model_validator(mode="after")
    def _a_group_fits_its_engine(self) -> RolloutConfig:
        if self.group_size < 2:
            raise ValueError(
                f"rollout.group_size={self.group_size}: advantages need at least 2 rollouts per prompt; "
                "set it to 2 or more (8 is usual)."
            )
        if self.group_size > self.max_num_seqs:
            raise ValueError(
                f"rollout.group_size={self.group_size} is above rollout.max_num_seqs={self.max_num_seqs}; "
                "raise max_num_seqs."
            )
        if self.temperature == 0:
            raise ValueError("rollout.temperature=0: a group of equal responses has no advantages; use 1.0.")
        return self


class TrainConfig(Part):
    num_steps: int = Field(default=100, ge=1)
    """Steps: batches learned from, each with one optimiser update unless `algorithm` says more."""
    prompts_per_step: int = Field(default=16, ge=1)
    """Groups per step."""
    learning_rate: float = Field(default=1e-6, gt=0)
    """Peak learning rate of AdamW."""
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    """After the warm-up: stay, fall to 0 linearly, or fall to a tenth along a cosine."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps over which the learning rate rises linearly."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's decay of first and second moments."""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW's weight decay."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are scaled down to this global norm."""


class PipelineConfig(Part):
    max_lag: int = Field(default=0, ge=0)
    """Most steps between a rollout's weights and the step that trains on it; 0 is synchronous."""
    weight_update: Literal["pause", "keep", "abort"] = "pause"
    """What new weights do to groups that are being generated: "pause" lets them end first; "keep" loads between two
    tokens and goes on, so that a response has tokens of several versions, each with its own; "abort" starts them
    again. With max_lag 0 nothing is being generated then."""


class CheckpointConfig(Part):
    every_steps: int = Field(default=50, ge=0)
    """Updates between checkpoints; 0 keeps only the one at the end."""
    keep: int = Field(default=2, ge=1)
    """Newest checkpoints kept."""
    save_rollouts: bool = True
    """Save the rollouts of every step since the oldest checkpoint kept (tokens, log-probs and scores, no frames), so
    that a run that goes on from a checkpoint need not sample them again, and `rlsys replay` can use them."""


class EvaluationConfig(Part):
    annotations: Path | None = None
    """Held-out annotation file in `data.format`; null skips evaluation."""
    videos: Path | None = None
    """Folder of its videos; null means `data.videos`."""
    num_prompts: int = Field(default=0, ge=0)
    """Rows used, from the first; 0 uses all."""
    num_samples: int = Field(default=1, ge=1)
    """Responses per prompt when sampling at temperature 1."""


class TrackingConfig(Part):
    uri: str | None = None
    """MLflow tracking URI; null takes `MLFLOW_TRACKING_URI`, or an SQLite file in `output_dir` where it is unset."""
    experiment: str = "rlsys"
    """MLflow experiment."""
    run_name: str | None = None
    """Name of the MLflow run; null takes the output folder's name."""
    samples_per_step: int = Field(default=8, ge=0)
    """Responses per step that are stored with their texts and scores; 0 stores none."""
    log_model: bool = True
    """Store the final model folder as an artifact."""
    wait_s: float = Field(default=60.0, ge=0)
    """Seconds that start and end of a run wait for a tracking server that takes nothing; a step never waits."""


class ClusterConfig(Part):
    address: str | None = None
    """Ray address to attach to; null attaches to the cluster the process is in, else starts one on loopback."""
    cpus_per_actor: float = Field(default=1.0, gt=0)
    """Ray CPUs an actor reserves (on GPU machines it also reserves tensor_parallel_size GPUs)."""
    cpus_per_rank: float = Field(default=1.0, gt=0)
    """Ray CPUs a learner rank reserves (on GPU machines it also reserves 1 GPU)."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where engines and learner compute."""
    object_store_mib: int = Field(default=512, ge=80)
    """Shared memory of a cluster started here, MiB; ignored when attaching."""


class RunConfig(Part):
    """A whole run. See `configs/` for examples."""

    seed: int = Field(default=0, ge=0)
    """Seed of sampling order, generation and initialisation."""
    output_dir: Path
    """Folder for checkpoints, summary, plots and the local MLflow store; relative to the working directory."""
    model: ModelConfig
    data: DataConfig = DataConfig()
    rollout: RolloutConfig = RolloutConfig()
    answers: AnswersConfig = AnswersConfig()
    reward: RewardConfig = RewardConfig()
    train: TrainConfig = TrainConfig()
    sft: SftConfig = SftConfig()
    algorithm: AlgorithmConfig = AlgorithmConfig()
    learner: LearnerConfig = LearnerConfig()
    pipeline: PipelineConfig = PipelineConfig()
    weights: WeightsConfig = WeightsConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    tracking: TrackingConfig = TrackingConfig()
    cluster: ClusterConfig = ClusterConfig()

    @model_validator(mode="after")
    def _parts_agree(self) -> RunConfig:
        if self.train.prompts_per_step % self.learner.num_ranks:
            raise ValueError(
                f"train.prompts_per_step={self.train.prompts_per_step} is not a multiple of "
                f"learner.num_ranks={self.learner.num_ranks}; every rank takes the same number of groups. "
                f"Use {_next_multiple(self.train.prompts_per_step, self.learner.num_ranks)} prompts or fewer ranks."
            )
        check_against_run(
            self.algorithm, prompts_per_step=self.train.prompts_per_step, max_tokens=self.rollout.max_tokens
        )
        if self.rollout.max_tokens >= self.model.max_model_len:
            raise ValueError(
                f"rollout.max_tokens={self.rollout.max_tokens} leaves no room for a prompt in "
                f"model.max_model_len={self.model.max_model_len}; lower the first or raise the second."
            )
        if self.reward.min_valid > self.rollout.group_size:
            raise ValueError(
                f"reward.min_valid={self.reward.min_valid} is above rollout.group_size={self.rollout.group_size}: "
                "no group could ever be trained on; lower min_valid."
            )
        contrasted = [task for task, weights in self.reward.weights.items() if "order_contrast" in weights]
        if bool(contrasted) != bool(self.rollout.shuffled_group_size):
            raise ValueError(
                f"rollout.shuffled_group_size={self.rollout.shuffled_group_size} and order_contrast in reward.weights "
                f"for {contrasted or 'no task'}: the score compares with responses to shuffled frames; set both "
                "(half of group_size is usual) or neither."
            )
        if self.cluster.device == "cpu" and self.rollout.tensor_parallel_size > 1:
            raise ValueError("rollout.tensor_parallel_size is for GPUs; with cluster.device=cpu set it to 1.")
        if self.cluster.device == "cpu" and self.model.attention in ("flash_attention_2", "flex_attention"):
            raise ValueError(f"model.attention={self.model.attention} is for GPUs; with cluster.device=cpu use sdpa.")
        check_transport(
            self.weights.transport,
            device=self.cluster.device,
            tensor_parallel_size=self.rollout.tensor_parallel_size,
            zero_stage=self.learner.zero_stage,
        )
        return self


def _next_multiple(value: int, of: int) -> int:
    return -(-value // of) * of


class ConfigError(UserError, ValueError):
    """A config that cannot run; the message says which field of which file, and the remedy."""


Override = Annotated[str, "a.b=value, the value in YAML"]


def load_services(path: Path | None, overrides: Sequence[Override] = ()) -> RunConfig:
    """A config of which only `reward` and `cluster` count: model and output folder may be missing, the file too."""
    tree = {"output_dir": ".", "model": {"path": "."}, **(_read(path) if path else {})}
    for override in overrides:
        _lay_over(tree, override)
    return parse(tree, source=str(path or "overrides"))


def load(path: Path, overrides: Sequence[Override] = ()) -> RunConfig:
    """The config in `path` with `overrides` laid over it.

    Raises ConfigError naming the file and each offending field.
    """
    tree = _read(path)
    for override in overrides:
        _lay_over(tree, override)
    return parse(tree, source=str(path))


def _read(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(Path(path).read_text())
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such config file; `configs/` has examples.") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not YAML: {error}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: a config is a mapping of sections, this is {type(tree).__name__}.")
    return tree


def parse(tree: dict[str, Any], source: str) -> RunConfig:
    """The config that a plain mapping describes; `source` is named in errors."""
    try:
        return RunConfig.model_validate(tree)
    except ValidationError as error:
        lines = [f"  {'.'.join(map(str, e['loc'])) or '(whole config)'}: {_plain(e)}" for e in error.errors()]
        raise ConfigError(f"{source}: {len(lines)} problem(s)\n" + "\n".join(lines)) from error


def _plain(error: Any) -> str:
    if error["type"] == "extra_forbidden":
        return (
            f"unknown key (value {error['input']!r}); check the spelling, `rlsys check-config --fields` lists all keys."
        )
    message = error["msg"].removeprefix("Value error, ")
    return message if error["type"] == "value_error" else f"{message} (value {error['input']!r})"


def _lay_over(tree: dict[str, Any], override: str) -> None:
    name, separator, text = override.partition("=")
    if not separator or not name:
        raise ConfigError(f"override {override!r}: write it as section.key=value.")
    *sections, key = name.split(".")
    for section in sections:
        child = tree.setdefault(section, {})
        if not isinstance(child, dict):
            raise ConfigError(f"override {override!r}: {section} is a value, not a section.")
        tree = child
    try:
        tree[key] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"override {override!r}: the value is not YAML: {error}") from error


def field_lines() -> list[str]:
    """Every key with default and meaning, one per line, for `rlsys check-config --fields`."""
    return list(_walk(RunConfig, ""))


def _walk(part: type[BaseModel], prefix: str) -> list[str]:
    lines: list[str] = []
    for name, field in part.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Part):
            lines += _walk(kind, f"{prefix}{name}.")
        else:
            default = "required" if field.is_required() else repr(field.default)
            lines.append(f"{prefix}{name} = {default}  # {field.description}")
    return lines
