"""The identity of a run: what must not change on a resume, and how a change is detected."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rlsys.config.data import sources
from rlsys.config.run import ConfigError, DataConfig, PerceptionConfig, RunConfig
from rlsys.models.folder import model_digest
from rlsys.types import PromptItem, named_fields

Identity = Mapping[str, str]
"""The parts of a run's identity by name: a value, or a digest of a value that is too long to show."""


BASE_MODEL = "base model (model.path)"
ROUNDS = "what later rounds show (perception)"
PROMPTS = "prompts (data.think, data.prompt_style)"
EXPERIMENT = "MLflow experiment, out of which no run can be moved (tracking.experiment)"
_WEIGHTS_OF_ROUNDS = {"clue_coef", "improvement_coef"}
"""Keys of section `perception` that weigh rewards, as section `algorithm` does."""


def identity(config: RunConfig, items: Sequence[PromptItem]) -> Identity:
    """Return what must not change when a run is resumed; with a change its record would mix two different runs.

    items: the rows that are trained on, with their media, questions and truths.
    """
    learner = config.learner
    return {
        "seed": str(config.seed),
        "rollout.group_size": str(config.rollout.group_size),
        BASE_MODEL: model_digest(config.model.path),
        "training data (rows, truths, frame and pixel budgets)": f"{len(items)} rows, {_items_digest(items)}",
        PROMPTS: _prompts(config.data),
        **_mixture(config),
        ROUNDS: _rounds(config.perception),
        EXPERIMENT: config.tracking.experiment,
        "order of rows (data.curriculum)": config.data.curriculum,
        "what is trained (learner.frozen_parts, learner.lora)": json.dumps(
            {"frozen": sorted(learner.frozen_parts), "lora": learner.lora.model_dump(mode="json")}, sort_keys=True
        ),
    }


def evaluation_identity(config: RunConfig, held_out: Sequence[PromptItem]) -> Identity:
    """Return what the held-out figures of the same weights depend on: figures of other settings are not comparable."""
    judge = config.reward.judge
    scores = config.reward.model_dump(mode="json", include={"weights", "scorers", "settings"})
    model = judge.serve_model or (judge.model if judge.urls else "sentence embeddings")
    return {
        "seed": str(config.seed),
        "held-out rows (rows, truths, frame and pixel budgets)": f"{len(held_out)} rows, {_items_digest(held_out)}",
        PROMPTS: _prompts(config.data),
        ROUNDS: _rounds(config.perception),
        "evaluation.num_samples": str(config.evaluation.num_samples),
        "rollout.max_tokens": str(config.rollout.max_tokens),
        "answers.reading": config.answers.reading,
        "scores (reward.weights, reward.scorers, reward.settings)": json.dumps(scores, sort_keys=True),
        "judge (reward.judge)": f"{model}, similarity from {judge.embedding_threshold:g}",
    }


def changes(before: Identity, now: Identity) -> list[str]:
    """Return one line for each part that has changed."""
    return [
        f"{name}: was {before[name]}, is {now[name]}" for name in now if name in before and before[name] != now[name]
    ]


def require_same(before: Identity, now: Identity, *, allow_changes: bool) -> list[str]:
    """Return the changes of a resumed run's identity. Raises ConfigError for any, unless `allow_changes`."""
    found = changes(before, now)
    if found and not allow_changes:
        raise ConfigError(
            "the config does not match the run to be resumed:\n  " + "\n  ".join(found) + "\nUndo the changes, start a "
            "new run from the checkpoint with --from, or resume with --allow-changes, which is recorded in MLflow."
        )
    return found


def changed_settings(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield "section.key: old -> new" for every value of two dumped configs that differs."""
    for key in sorted(before.keys() | now.keys()):
        old, new = before.get(key), now.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from changed_settings(old, new, f"{prefix}{key}.")
        elif old != new:
            yield f"{prefix}{key}: {json.dumps(old)} -> {json.dumps(new)}"


def _items_digest(items: Sequence[PromptItem]) -> str:
    sha = hashlib.sha256()
    for item in items:
        tree = asdict(item)
        # nothing is trained on labels; the others are parts of the identity by themselves
        for name in ("labels", "think", "style", "source"):
            del tree[name]
        if not (item.think and item.thought):  # it is imitated only after a prompt that requests it
            del tree["thought"]
        for name in ("media_texts", "note"):
            if not tree[name]:
                del tree[name]
        tree["media"] = [named_fields(one) for one in tree["media"]]
        for one in tree["media"]:
            one["uri"] = Path(one["uri"]).name  # the videos may lie in another folder
            if files := one.pop("files", ()):
                one["files"] = [Path(file).name for file in files]
        sha.update(json.dumps(tree, sort_keys=True, default=str).encode() + b"\n")
    return sha.hexdigest()[:16]


def _prompts(data: DataConfig) -> str:
    if not data.sources:
        return f"{data.think}, {data.prompt_style}"
    return "; ".join(f"{one.name}: {one.data.think}, {one.data.prompt_style}" for one in sources(data))


def _rounds(perception: PerceptionConfig) -> str:
    if perception.rounds == 1:
        return "one round"
    return json.dumps(perception.model_dump(mode="json", exclude=_WEIGHTS_OF_ROUNDS), sort_keys=True)


def _mixture(config: RunConfig) -> Identity:
    """Return what decides the order of the prompts of several sources; {} for a single one."""
    found = sources(config.data) if config.data.sources else ()
    if len(found) < 2:
        return {}
    has_stages = any(one.from_step or one.until_step for one in found)
    shares = [f"{one.name} {one.weight or 'by rows'} [{one.from_step}, {one.until_step})" for one in found]
    per_step = [f"{config.train.prompts_per_step} prompts per step"] if has_stages else []
    return {"mixture (data.sources)": "; ".join([*shares, *per_step])}
