"""The rollouts of each step on disk, so that a rollback, a resume or a replay need not sample them again.

Each step is one file: tokens, log-probabilities, versions, texts, scores. Frames and prompts are rebuilt from the
data and compared with digests in the file.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from rlsys.config.run import RunConfig
from rlsys.errors import UserError
from rlsys.files import require_regular, write_whole
from rlsys.loop.collect import Collected, Skipped
from rlsys.runs.records.saved_group import FOLDER, SavedGroup, SavedLater, prompt_digest
from rlsys.types import Rollout, ScoredGroup

log = logging.getLogger(__name__)

FORMAT = 2
_CHANGES_NOTHING = {
    "": ("output_dir", "tracking", "evaluation", "checkpoint", "cluster", "weights", "sft"),
    "data": ("decode_timeout_s", "decode_workers", "decode_ahead", "cache_bytes"),
    "rollout": ("num_actors", "timeout_s", "start_timeout_s"),
    "reward": ("url", "host", "port", "token_env", "timeout_s", "max_pause_s", "min_replicas", "max_replicas"),
    "learner": ("timeout_s", "max_restarts"),
}
"""Config keys, by section, that influence neither rollouts nor weights."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SavedStep:
    """What was collected for a step.

    prompt_indices: of the groups that were trained on, in order.  replaced_indices: of the replaced groups.
    settings: see `settings_digest`.
    """

    step: int
    settings: str
    prompt_indices: tuple[int, ...]
    replaced_indices: tuple[int, ...]
    groups: Mapping[int, SavedGroup]
    skipped: tuple[Skipped, ...]


_DAMAGE = (
    OSError,  # of a position outside of the file, or of the disk
    RuntimeError,  # of what zipfile takes for a password or a later version
    EOFError,
    zipfile.BadZipFile,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
)
"""What reading a damaged file raises."""


class RolloutsDamaged(UserError, ValueError):
    """A file holds no rollouts that can be read; the message names it."""


class SavedRollouts:
    """The saved rollouts of one run. `look` finds what can be reused; `take` hands each prompt's group out once.

    Failures to write or read a file are logged; the prompts concerned are then sampled again.
    """

    def __init__(self, run_folder: Path, settings: str) -> None:
        self._folder, self._settings = Path(run_folder) / FOLDER, settings
        self._files: dict[int, Path] = {}
        self._newest_read: tuple[Path, SavedStep] | None = None
        self._has_warned = False

    def look(self, after_step: int) -> int:
        """Index the saved prompts of all steps after this one for `take`, and return how many there are."""
        self._files = {}
        for step in self.steps():
            saved = self._read(step_file(self._folder, step)) if step > after_step else None
            if saved is not None and saved.settings == self._settings:
                prompt_indices = (
                    *saved.prompt_indices,
                    *saved.replaced_indices,
                    *(one.prompt_index for one in saved.skipped),
                )
                self._files |= dict.fromkeys(prompt_indices, step_file(self._folder, step))
        return len(self._files)

    def steps(self) -> list[int]:
        """Return the steps that have a file, in order."""
        return sorted(int(path.stem.removeprefix("step_")) for path in self._folder.glob("step_*.npz"))

    def take(self, prompt_index: int) -> SavedGroup | Skipped | None:
        """Return the saved outcome of a prompt, or None if it must be sampled."""
        file = self._files.pop(prompt_index, None)
        saved = self._read(file) if file else None
        if saved is None:
            return None
        return saved.groups.get(prompt_index) or next(
            (one for one in saved.skipped if one.prompt_index == prompt_index), None
        )

    def keep(self, step: int, collected: Collected) -> None:
        """Write the file of a step. A failure is logged once, not raised."""
        try:
            write_whole(step_file(self._folder, step), encode(step, collected, self._settings), synced=False)
        except OSError as error:
            if not self._has_warned:
                log.warning("the rollouts of step %d could not be saved: %s", step, error)
            self._has_warned = True
        else:
            self._has_warned = False

    def forget_through(self, step: int) -> None:
        """Remove the files of this step and of all earlier ones."""
        for old in self.steps():
            if old <= step:
                step_file(self._folder, old).unlink(missing_ok=True)

    def _read(self, file: Path) -> SavedStep | None:
        if self._newest_read and self._newest_read[0] == file:
            return self._newest_read[1]
        try:
            saved = read_step(file)
        except (OSError, RolloutsDamaged) as error:
            log.warning("%s; its rollouts will be sampled again", error)
            return None
        self._newest_read = (file, saved)
        return saved


def step_file(folder: Path, step: int) -> Path:
    """Return the path of a step's file in a run's folder of rollouts."""
    return folder / f"step_{step:06d}.npz"


def settings_digest(config: RunConfig) -> str:
    """Return a digest of all settings that influence rollouts or weights; rollouts are reused only if it matches."""
    tree = config.model_dump(mode="json")
    for section, keys in _CHANGES_NOTHING.items():
        for key in keys:
            (tree[section] if section else tree).pop(key)
    if config.train.schedule == "constant":
        del tree["train"]["num_steps"]
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()


def encode(step: int, collected: Collected, settings: str) -> bytes:
    """Encode a step as a zip of arrays: `head` is JSON; each other array concatenates the values of all rollouts."""
    pairs = [
        *zip(collected.prompt_indices, collected.groups, strict=True),
        *zip(collected.replaced_indices, collected.replaced, strict=True),
    ]
    parts = [part for _, scored in pairs for part in _parts(scored)]
    rollouts = [rollout for part in parts for rollout in part.group.rollouts]
    head = {
        "format": FORMAT,
        "step": step,
        "settings": settings,
        "prompt_indices": collected.prompt_indices,
        "replaced_indices": collected.replaced_indices,
        "skipped": [
            {"prompt_index": one.prompt_index, "reason": one.reason, "detail": one.detail} for one in collected.skipped
        ],
        "groups": [_head_of_group(prompt_index, scored) for prompt_index, scored in pairs],
    }
    buffer = io.BytesIO()
    np.savez(
        buffer,
        head=np.frombuffer(json.dumps(head).encode(), np.uint8),
        response_ids=_joined([rollout.response_ids for rollout in rollouts], np.int32),
        response_logprobs=_joined([rollout.response_logprobs for rollout in rollouts], np.float32),
        token_versions=_joined([rollout.token_versions for rollout in rollouts], np.int32),
        scores=_joined([part.scores.ravel() for part in parts], np.float32),
        rewards=_joined([part.rewards for part in parts], np.float32),
        is_valid=_joined([part.is_valid for part in parts], bool),
    )
    return buffer.getvalue()


def _parts(scored: ScoredGroup) -> list[ScoredGroup]:
    """Return the first round with its own scores, and each later one."""
    return [scored.first or scored, *(one.scored for one in scored.later)]


def _joined(arrays: Sequence[np.ndarray], dtype: type) -> np.ndarray:
    return np.concatenate([np.zeros(0, dtype), *arrays]).astype(dtype, copy=False)


def _head_of_group(prompt_index: int, scored: ScoredGroup) -> dict[str, Any]:
    first, *later = (_head_of_part(prompt_index, part) for part in _parts(scored))
    rounds = [
        {
            "sample_index": one.sample_index,
            "number": one.number,
            "clue": one.clue,
            "reason": one.reason,
            "group": head,
        }
        for one, head in zip(scored.later, later, strict=True)
    ]
    return {**first, "later": rounds}


def _head_of_part(prompt_index: int, scored: ScoredGroup) -> dict[str, Any]:
    group = scored.group
    return {
        "prompt_index": prompt_index,
        "prompt_id": group.item.prompt_id,
        "prompt_digest": prompt_digest(group.prompt),
        "clip_digests": [clip.info.digest for clip in group.clips],
        "score_names": scored.score_names,
        "reasons": scored.reasons,
        "evidence": scored.evidence,
        "rollouts": [
            {
                "rollout_id": rollout.rollout_id,
                "num_tokens": rollout.response_ids.size,
                "text": rollout.text,
                "finish_reason": rollout.finish_reason,
                "generate_s": rollout.generate_s,
            }
            for rollout in group.rollouts
        ],
    }


def read_step(file: Path) -> SavedStep:
    """Read a file that `encode` made. Raises OSError if there is none, RolloutsDamaged for any other content."""
    require_regular(file)
    with file.open("rb") as opened:
        try:
            return _decoded(opened)
        except _DAMAGE as error:
            raise RolloutsDamaged(f"{file}: cannot be read as saved rollouts: {error!r}") from error


def _decoded(file: IO[bytes]) -> SavedStep:
    with np.load(file) as arrays:
        found = {name: arrays[name] for name in arrays.files}
    head = json.loads(found.pop("head").tobytes())
    if head["format"] != FORMAT:
        raise ValueError(f"the file has format {head['format']}; this version of rlsys reads format {FORMAT}")
    parts = _ArrayReader(found)
    groups = {tree["prompt_index"]: _group(tree, parts) for tree in head["groups"]}
    return SavedStep(
        step=head["step"],
        settings=head["settings"],
        prompt_indices=tuple(head["prompt_indices"]),
        replaced_indices=tuple(head["replaced_indices"]),
        groups=groups,
        skipped=tuple(Skipped(**one) for one in head["skipped"]),
    )


class _ArrayReader:
    """Splits concatenated arrays again, in the order in which they were joined."""

    def __init__(self, arrays: Mapping[str, np.ndarray]) -> None:
        self._arrays, self._at = arrays, dict.fromkeys(arrays, 0)

    def next(self, name: str, size: int) -> np.ndarray:
        start = self._at[name]
        self._at[name] = start + size
        part = self._arrays[name][start : start + size]
        if part.size != size:
            raise ValueError(f"{name} ends after {start + part.size} values; {start + size} are needed")
        return part


def _group(tree: Mapping[str, Any], parts: _ArrayReader) -> SavedGroup:
    rollouts = tuple(
        Rollout(
            rollout_id=one["rollout_id"],
            prompt_id=tree["prompt_id"],
            sample_index=index,
            prompt_ids=np.zeros(0, np.int32),
            response_ids=parts.next("response_ids", one["num_tokens"]),
            response_logprobs=parts.next("response_logprobs", one["num_tokens"]),
            text=one["text"],
            finish_reason=one["finish_reason"],
            token_versions=parts.next("token_versions", one["num_tokens"]),
            generate_s=one["generate_s"],
        )
        for index, one in enumerate(tree["rollouts"])
    )
    size, names = len(rollouts), tuple(tree["score_names"])
    return SavedGroup(
        prompt_index=tree["prompt_index"],
        prompt_id=tree["prompt_id"],
        prompt_digest=tree["prompt_digest"],
        clip_digests=tuple(tree["clip_digests"]),
        rollouts=rollouts,
        score_names=names,
        scores=parts.next("scores", size * len(names)).reshape(size, len(names)),
        rewards=parts.next("rewards", size),
        is_valid=parts.next("is_valid", size),
        reasons=tuple(tree["reasons"]),
        evidence=tuple(tree["evidence"]),
        later=tuple(
            SavedLater(
                sample_index=one["sample_index"],
                number=one["number"],
                clue=one["clue"],
                reason=one["reason"],
                group=_group(one["group"], parts),
            )
            for one in tree.get("later", ())
        ),
    )
