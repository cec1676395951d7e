"""A group on disk, and how it is put together again with prompts and clips made anew."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from rlsys.algorithm.trajectories import trajectories
from rlsys.config.run import RunConfig
from rlsys.errors import UserError
from rlsys.loop.preparer import Prepared, Preparer
from rlsys.perception.choose import first_item, next_turn_of
from rlsys.perception.media import whole_of
from rlsys.perception.turns import NextTurn, Stop, item_of, shown_after
from rlsys.types import ClipInfo, ClipRef, Json, LaterRound, Prompt, PromptItem, Rollout, RolloutGroup, ScoredGroup

FOLDER = "rollouts"


class RolloutsDiffer(UserError, ValueError):
    """Saved rollouts do not belong to the prompt or the clips that the data yield now."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SavedGroup:
    """A scored group without its prompt and clips, of which it holds digests."""

    prompt_index: int
    prompt_id: str
    prompt_digest: str
    clip_digests: tuple[str, ...]
    rollouts: tuple[Rollout, ...]
    score_names: tuple[str, ...]
    scores: np.ndarray
    rewards: np.ndarray
    is_valid: np.ndarray
    reasons: tuple[str, ...]
    evidence: tuple[Any, ...]
    later: tuple[SavedLater, ...] = ()

    def later_items(self, item: PromptItem, infos: Sequence[ClipInfo], next_turn: NextTurn) -> list[PromptItem]:
        """Return what each later round showed, which follows from the responses before it.

        infos: of the clips of the first round. Raises RolloutsDiffer if the saved rounds cannot follow each other.
        """
        whole = whole_of(item.media, infos)
        responses = {one.sample_index: [(one.text, one.confidence)] for one in self.rollouts}
        found = []
        for one in self.later:
            shown = shown_after(item, whole, responses[one.sample_index], next_turn)
            if isinstance(shown, Stop):
                raise RolloutsDiffer(
                    f"prompt {self.prompt_index} ({self.prompt_id}): response {one.sample_index} has a round "
                    f"{one.number}, but would stop before it now ({shown.reason}), so the data or section `perception` "
                    f"have changed. Remove the run's folder `{FOLDER}` to sample again."
                )
            (rollout,) = one.group.rollouts
            responses[one.sample_index].append((rollout.text, rollout.confidence))
            found.append(item_of(item, shown))
        return found

    def rounds_put_together(self, prepared: Sequence[Prepared]) -> ScoredGroup:
        """Return the group with its later rounds; prepared: the first round, then those of `later_items`."""
        first, *others = prepared
        return trajectories(
            self.put_together(*first),
            [
                LaterRound(
                    sample_index=one.sample_index,
                    number=one.number,
                    scored=one.group.put_together(*shown),
                    clue=one.clue,
                    reason=one.reason,
                )
                for one, shown in zip(self.later, others, strict=True)
            ],
        )

    def put_together(self, item: PromptItem, prompt: Prompt, clips: tuple[ClipRef, ...]) -> ScoredGroup:
        """Return the first round as it was, without spans. Raises RolloutsDiffer if prompt or clips do not match."""
        found = (item.prompt_id, prompt_digest(prompt), tuple(clip.info.digest for clip in clips))
        for what, saved, now in zip(
            ("row", "prompt", "clips"), (self.prompt_id, self.prompt_digest, self.clip_digests), found, strict=True
        ):
            if saved != now:
                raise RolloutsDiffer(
                    f"prompt {self.prompt_index} ({item.prompt_id}): {what} changed since the rollouts were saved "
                    f"(was {saved}, is {now}), so the data or the processor have changed. "
                    f"Remove the run's folder `{FOLDER}` to sample again."
                )
        rollouts = tuple(_with_prompt(rollout, prompt) for rollout in self.rollouts)
        return ScoredGroup(
            group=RolloutGroup(item=item, prompt=prompt, clips=clips, rollouts=rollouts),
            score_names=self.score_names,
            scores=self.scores,
            rewards=self.rewards,
            is_valid=self.is_valid,
            reasons=self.reasons,
            evidence=self.evidence,
            spans={},
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class SavedLater:
    """A later round of one response, see `LaterRound`. group: of its one response."""

    sample_index: int
    number: int
    clue: Json
    reason: str
    group: SavedGroup


def as_it_was(saved: SavedGroup, item: PromptItem, preparer: Preparer, config: RunConfig) -> Future[ScoredGroup]:
    """Put a saved group of this row together again, with prompts and clips made anew.

    The future raises RolloutsDiffer if they are not those of the rollouts.
    """
    next_turn = next_turn_of(config.perception, config.answers.reading)
    return preparer.put_rounds_together(
        first_item(item, config.perception),
        lambda infos: saved.later_items(item, infos, next_turn),
        saved.rounds_put_together,
    )


def prompt_digest(prompt: Prompt) -> str:
    """Return a digest of a prompt's tokens and positions."""
    running = hashlib.sha256(str(prompt.next_position).encode())
    for array in (prompt.engine_ids, prompt.prompt_ids, prompt.position_ids):
        running.update(f"{array.dtype}{array.shape}".encode())
        running.update(np.ascontiguousarray(array).data)
    return running.hexdigest()


def _with_prompt(rollout: Rollout, prompt: Prompt) -> Rollout:
    # the engine reported exactly the prompt's tokens; other groups are rejected by `check_contract`
    return replace(rollout, prompt_ids=prompt.prompt_ids)
