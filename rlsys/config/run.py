"""All settings of a run (RunConfig), checked before anything is started.

A config is one YAML file plus dotted overrides (`train.num_steps=10`). Every field is followed by its meaning, its unit
and the meaning of 0 or null. Contradictions within the config fail here; those with the data or the model are found by
`rlsys.runs.check`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from rlsys.config import bundled
from rlsys.config.algorithm import AlgorithmConfig, check_against_run
from rlsys.config.answers import AnswersConfig
from rlsys.config.colocation import check_colocation
from rlsys.config.data import DataConfig
from rlsys.config.evaluation import OF_ROUNDS, EvaluationConfig
from rlsys.config.learner import LearnerConfig, LoraConfig
from rlsys.config.part import ConfigError, Part
from rlsys.config.perception import PerceptionConfig
from rlsys.config.reading import apply_override, read_tree
from rlsys.config.reward import JudgeConfig, RewardConfig, ScoreSettings
from rlsys.config.rollout import RolloutConfig
from rlsys.config.sft import SftConfig
from rlsys.config.tracking import TrackingConfig
from rlsys.config.train import TrainConfig
from rlsys.config.weights import WeightsConfig, check_delta, check_transport
from rlsys.urls import masked_url

__all__ = [
    "AlgorithmConfig",
    "AnswersConfig",
    "ConfigError",
    "DataConfig",
    "EvaluationConfig",
    "JudgeConfig",
    "LearnerConfig",
    "LoraConfig",
    "Part",
    "PerceptionConfig",
    "RewardConfig",
    "RolloutConfig",
    "RunConfig",
    "ScoreSettings",
    "SftConfig",
    "TrackingConfig",
    "TrainConfig",
    "WeightsConfig",
    "load",
    "parse",
]


class ModelConfig(Part):
    """The settings of the model."""

    path: Path
    """Model folder (config, weights, tokenizer, processor) as `save_pretrained` writes it, or a model of the Hugging
    Face hub as OWNER/NAME or OWNER/NAME@REVISION."""
    make_tiny: bool = False
    """Create a tiny randomly initialised Qwen2.5-VL at `path` if the folder does not exist."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Data type of weights and activations, the same in engine and learner."""
    max_model_len: int = Field(default=16384, ge=64)
    """Largest number of tokens of prompt plus response."""
    attention: Literal["sdpa", "eager", "flex_attention"] = "sdpa"
    """Attention implementation of the learner. "flex_attention" is recommended on GPUs, because it skips the fully
    masked blocks of a packed pass; "sdpa" suits CPUs."""

    @field_validator("attention", mode="before")
    @classmethod
    def _has_its_library(cls, value: object) -> object:
        if str(value).startswith("flash_attention"):
            raise ValueError(
                f"{value} needs a flash-attn package, which no lock has because it has no build for the locked torch; "
                "use flex_attention on GPUs, or sdpa"
            )
        return value


class PipelineConfig(Part):
    """The settings of staleness and weight updates."""

    max_lag: int = Field(default=0, ge=0)
    """Largest staleness: steps between the weights that sampled a rollout and the step that trains on it; 0 is
    synchronous."""
    weight_update: Literal["pause", "keep", "abort"] = "pause"
    """How new weights affect groups in generation: "pause" lets them finish first; "keep" loads between two tokens and
    continues, so that a response has tokens of several versions, each recorded; "abort" restarts them. With max_lag 0
    no group is in generation then."""


class CheckpointConfig(Part):
    """The settings of checkpoints."""

    every_steps: int = Field(default=50, ge=0)
    """Number of steps between checkpoints; 0 saves only the final one."""
    keep: int = Field(default=2, ge=1)
    """Number of checkpoints to keep, the newest ones."""
    save_rollouts: bool = True
    """Save the rollouts of every step since the oldest checkpoint (tokens, log-probs and scores, no frames), so that a
    resumed run need not sample them again and `rlsys replay` can use them."""


class ClusterConfig(Part):
    """The settings of the Ray cluster and its resources."""

    address: str | None = None
    """Address of the Ray cluster to attach to; null attaches to the cluster that the process runs in, or else starts
    one on loopback."""
    cpus_per_actor: float = Field(default=1.0, gt=0)
    """Number of Ray CPUs that an actor reserves (with device cuda, also tensor_parallel_size GPUs)."""
    cpus_per_rank: float = Field(default=1.0, gt=0)
    """Number of Ray CPUs that a learner rank reserves (with device cuda, also one GPU)."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Device of the engines and the learner."""
    colocate: bool = False
    """Let each learner rank share its GPU with one rollout actor: they take turns, and each moves its memory out of the
    other's way. Needs pipeline.max_lag 0 and as many actors as ranks."""
    object_store_mib: int = Field(default=512, ge=80)
    """Size of the object store of a cluster started here, in MiB; ignored when attaching."""


class RunConfig(Part):
    """All settings of a run. See `configs/` for examples."""

    seed: int = Field(default=0, ge=0, lt=2**32)
    """Seed of the prompt order, of generation and of initialisation."""
    output_dir: Path
    """Folder for checkpoints, summary, plots and the local MLflow store; relative to the working directory."""
    model: ModelConfig
    data: DataConfig = DataConfig()
    rollout: RolloutConfig = RolloutConfig()
    answers: AnswersConfig = AnswersConfig()
    perception: PerceptionConfig = PerceptionConfig()
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
        if self.train.prompts_per_step % (num_shares := self.learner.data_parallel):
            divisor = f"learner.num_ranks={self.learner.num_ranks}"
            if self.learner.sequence_parallel > 1:
                divisor += f" / learner.sequence_parallel={self.learner.sequence_parallel}"
            raise ValueError(
                f"train.prompts_per_step={self.train.prompts_per_step} is not a multiple of {divisor}, but every rank "
                "gets the same number of groups. "
                f"Use {_next_multiple(self.train.prompts_per_step, num_shares)} prompts or fewer ranks."
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
        if self.cluster.device == "cpu" and self.model.attention == "flex_attention":
            raise ValueError(f"model.attention={self.model.attention} is for GPUs; with cluster.device=cpu use sdpa.")
        check_transport(
            self.weights.transport,
            device=self.cluster.device,
            tensor_parallel_size=self.rollout.tensor_parallel_size,
            zero_stage=self.learner.zero_stage,
        )
        if self.perception.rounds == 1 and (later := set(OF_ROUNDS).intersection(self.evaluation.controls or ())):
            raise ValueError(
                f"evaluation.controls has {', '.join(sorted(later))}, which are of several rounds, with "
                "perception.rounds=1; set perception.rounds to 2 or more, or remove them."
            )
        check_delta(self.weights, device=self.cluster.device)
        if self.cluster.colocate:
            check_colocation(
                max_lag=self.pipeline.max_lag,
                rollout=self.rollout,
                learner=self.learner,
                transport=self.weights.transport,
            )
        return self


def _next_multiple(value: int, of: int) -> int:
    return -(-value // of) * of


MAX_SHOWN = 200
"""Number of characters of an invalid value that an error message repeats."""
Override = Annotated[str, "section.key=value, the value in YAML"]


def load_services(path: Path | None, overrides: Sequence[Override] = ()) -> RunConfig:
    """Load a config for services, which use only `reward` and `cluster`; model, output folder and file are optional."""
    tree = {"output_dir": ".", "model": {"path": "."}, **(_read(path) if path else {})}
    return _with(tree, overrides, source=str(path or "overrides"))


def load(path: Path, overrides: Sequence[Override] = ()) -> RunConfig:
    """Load the config in `path`, or the bundled one of that name, and apply `overrides`.

    Raises ConfigError naming the file and each offending field.
    """
    return _with(_read(path), overrides, source=str(path))


def is_for_services(path: Path) -> bool:
    """Return whether the file has only the sections that reward servers read, as `configs/judge_72b.yaml` has."""
    return set(_read(path)) <= {"reward", "cluster"}


def _with(tree: dict[str, Any], overrides: Sequence[Override], source: str) -> RunConfig:
    for override in overrides:
        apply_override(tree, override)
    return parse(tree, source)


def _read(path: Path) -> dict[str, Any]:
    found = bundled.find(Path(path))
    if not found.exists():
        raise ConfigError(f"{path}: no such config file. Bundled configs: {', '.join(bundled.names())}.")
    return read_tree(found)


def parse(tree: dict[str, Any], source: str) -> RunConfig:
    """Build the config that a plain mapping describes; `source` is named in errors."""
    return _validated(RunConfig, tree, source, ())


def parse_section(name: str, tree: dict[str, Any], source: str) -> Any:
    """Build one section of a config, such as "data", from a plain mapping; `source` is named in errors."""
    return _validated(RunConfig.model_fields[name].annotation, tree, source, (name,))


def _validated(kind: Any, tree: dict[str, Any], source: str, place: tuple[str, ...]) -> Any:
    try:
        return kind.model_validate(_without_empty_sections(tree, kind))
    except ValidationError as error:
        found = [(".".join(map(str, (*place, *one["loc"]))), _plain(one)) for one in error.errors()]
        lines = [f"  {where or '(whole config)'}: {what}" for where, what in found]
        raise ConfigError(f"{source}: {len(lines)} problem(s)\n" + "\n".join(lines)) from error


def _without_empty_sections(tree: dict[str, Any], part: type[BaseModel]) -> dict[str, Any]:
    """Return the tree with {} for every section without keys, which YAML reads as null."""
    filled = dict(tree)
    for name, field in part.model_fields.items():
        kind, value = field.annotation, tree.get(name, ())
        if isinstance(kind, type) and issubclass(kind, Part) and (value is None or isinstance(value, dict)):
            filled[name] = _without_empty_sections(value or {}, kind)
    return filled


def _plain(error: Any) -> str:
    given = _shown(error["input"])
    if error["type"] == "missing":
        return "is required; set it."
    if error["type"] == "extra_forbidden":
        return f"unknown key (value {given}); check the spelling, `rlsys check-config --fields` lists all keys."
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "string_type" and isinstance(error["input"], int | float):
        message += '; put it in quotes: "…"'
    return message if error["type"] == "value_error" else f"{message} (value {given})"


def _shown(value: object) -> str:
    """Return the value on one line, shortened and without secrets."""
    text = masked_url(repr(value))
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}…"


def field_lines() -> list[str]:
    """Return every key with its default and meaning, one per line, for `rlsys check-config --fields`."""
    return list(_walk(RunConfig, ""))


def _walk(part: type[BaseModel], prefix: str) -> list[str]:
    lines: list[str] = []
    for name, field in part.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Part):
            lines += _walk(kind, f"{prefix}{name}.")
            continue
        default = "required" if field.is_required() else repr(field.default)
        lines.append(f"{prefix}{name} = {default}  # {field.description}")
        for entry in get_args(kind):
            if isinstance(entry, type) and issubclass(entry, Part):
                lines += _walk(entry, f"{prefix}{name}.N.")
    return lines
