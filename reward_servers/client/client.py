"""Scoring groups at reward servers: one POST per group.

A score that the servers cannot compute is missing data (`is_valid` False), never a reward of 0. What waiting
cannot fix (a wrong token, a wrong address, another version) is a RewardServerError instead. When too much
is missing the client holds its groups back and retries until the servers recover, which pauses the run.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from reward_servers.client.failures import FailureWindow, ScorerTrial
from reward_servers.client.transport import RewardServerError, Transport, Unanswered
from reward_servers.judging.unusable import is_final
from reward_servers.schema import MAX_ID_CHARS, ScoreReply
from rlsys.config.answers import Reading
from rlsys.config.run import RewardConfig
from rlsys.tasks.table import GROUP_SCORES, check_weights, score_weights
from rlsys.types import RolloutGroup, ScoredGroup

_log = logging.getLogger(__name__)
_FIRST_WAIT_S, _LONGEST_WAIT_S = 1.0, 15.0  # between two tries of a paused run
_SAY_EVERY_S = 60.0


class RewardClient:
    """Scores groups at the servers of one URL. Use it from one event loop.

    reward: weights, settings and deadline.  url: base URL, as `reward_servers.server.app.launch` returns it.
    token: bearer token or None.  reading: of the answers.
    was_healthy: whether the servers have answered to `wait_until_healthy`; a 404 may pass then, their proxy restarts.
    Raises ConfigError when `reward.weights` names a task or score that does not exist.
    """

    def __init__(
        self,
        reward: RewardConfig,
        url: str,
        token: str | None = None,
        *,
        reading: Reading = "paper",
        was_healthy: bool = False,
    ) -> None:
        check_weights(reward)
        self._reward = reward
        self._reading: Reading = reading
        self._transport = Transport(reward, url, token, was_healthy=was_healthy)
        self._windows: dict[str, FailureWindow] = {}  # by task: a task whose judge fails must not hide in the others
        self._trial = ScorerTrial()
        self._num_unanswered = 0
        self.num_waiting = 0
        """Groups that are at the servers now, or on their way."""
        self._paused = 0  # groups that wait
        self._paused_s = self._paused_since_s = self._say_at_s = 0.0

    async def score(self, group: RolloutGroup, spans: Mapping[str, tuple[float, float]]) -> ScoredGroup:
        """Return `group` with its scores; `spans` comes back with "score" added (time.monotonic seconds).

        After `reward.timeout_s` without an answer every rollout is invalid, with the last failure as reason.
        Raises RewardServerError for what no retry can fix, such as a custom scorer that fails for every response, and
        when a pause outlasts `reward.max_pause_s`.
        """
        started_s = time.monotonic()
        weights = _asked(score_weights(group.item.task, self._reward))
        request = self._request(group, tuple(weights))
        self.num_waiting += 1
        try:
            replies = await self._replies(request, tuple(weights))
            window = self._windows.setdefault(
                group.item.task, FailureWindow(self._reward.failure_window, self._reward.max_failure_frac)
            )
            window.add(is_lost(reply) for reply in replies)
            if window.is_over and self._lost_too_much(replies):
                replies = await self._paused_until_scored(request, tuple(weights), replies, window)
        finally:
            self.num_waiting -= 1
        return scored_group(group, weights, replies, {**spans, "score": (started_s, time.monotonic())})

    def counters(self) -> dict[str, float]:
        """Return the counts since the start: requests, retries, unanswered groups, seconds of pause."""
        return {
            "reward/requests": float(self._transport.num_requests),
            "reward/retries": float(self._transport.num_retries),
            "reward/unanswered_groups": float(self._num_unanswered),
            "reward/paused_s": self._paused_s,
        }

    async def close(self) -> None:
        """Close the connections."""
        await self._transport.close()

    def _lost_too_much(self, replies: Sequence[ScoreReply]) -> list[int]:
        """Return the rows that are lost, or none where they are few enough to continue without."""
        lost = [index for index, reply in enumerate(replies) if is_lost(reply)]
        return lost if len(lost) > self._reward.max_failure_frac * len(replies) else []

    def _request(self, group: RolloutGroup, names: tuple[str, ...]) -> dict[str, Any]:
        durations = [clip.info.duration_s for clip in group.clips if clip.info.kind == "video"]
        rows = [
            {
                "rollout_id": short_id(rollout.rollout_id),
                "task": group.item.task,
                # a lone surrogate cannot be written as UTF-8, and no answer needs one
                "text": rollout.text.encode("utf-8", "replace").decode(),
                "truth": group.item.truth,
                "think": group.item.think,
                "scores": names,
                "question": group.item.question,
                "num_tokens": int(rollout.response_ids.size),
                "duration_s": durations[0] if durations else None,
                # only the lenient reading compares an answer with the options' words
                **({"options": group.item.options} if self._reading == "lenient" else {}),
            }
            for rollout in group.rollouts
        ]
        return {"rows": rows, "settings": {**self._reward.settings.model_dump(), "reading": self._reading}}

    async def _replies(self, request: Mapping[str, Any], names: tuple[str, ...]) -> list[ScoreReply]:
        """Return a reply per row, in order; "infra" with the last failure where none came."""
        started_s = time.monotonic()
        ids = [row["rollout_id"] for row in request["rows"]]
        try:
            by_id = await self._transport.ask(request)
        except Unanswered as error:
            url, waited_s = self._transport.url, time.monotonic() - started_s
            reason = f"no usable answer from {url}/v1/score in {waited_s:.1f} s; last failure: {error}"
            self._num_unanswered += 1
            _log.warning("%s: %s", ids[0], reason)
            return [ScoreReply(rollout_id=name, status="infra", scores={}, reason=reason) for name in ids]
        for reply in by_id.values():
            if reply.status == "ok" and set(reply.scores) != set(names):
                raise RewardServerError(
                    f"{self._transport.url}: scores {sorted(reply.scores)} came back where {sorted(names)} were due; "
                    "run the same version of rlsys in the job and in its reward servers."
                )
        replies = [by_id[name] for name in ids]
        if (unusable := next((reply.reason for reply in replies if is_final(reply.reason)), None)) is not None:
            raise RewardServerError(f"{unusable} Nothing was lost: change it and resume with --resume.")
        if (broken := self._trial.add(replies)) is not None:
            raise RewardServerError(broken)
        return replies

    async def _paused_until_scored(
        self, request: Mapping[str, Any], names: tuple[str, ...], replies: list[ScoreReply], window: FailureWindow
    ) -> list[ScoreReply]:
        """Retry the lost rows until they are scored, because the update that needs their group has to wait for it."""
        since_s = time.monotonic()
        if not self._paused:
            self._paused_since_s = self._say_at_s = since_s
        wait_s = _FIRST_WAIT_S
        self._paused += 1
        try:
            while lost := self._lost_too_much(replies):
                now_s = time.monotonic()
                last = f"{replies[lost[0]].status}: {replies[lost[0]].reason}"
                task = request["rows"][0]["task"]
                if self._reward.max_pause_s and now_s - since_s > self._reward.max_pause_s:
                    raise RewardServerError(
                        f"the run was paused for {now_s - since_s:.0f} s (reward.max_pause_s), as its reward servers "
                        f"{self._transport.url} could not score {task}; last error: {last}. "
                        "Nothing was lost: fix them and resume with --resume."
                    )
                if now_s >= self._say_at_s:
                    self._say_at_s = now_s + _SAY_EVERY_S
                    _log.warning("%s", window.message(task, self._transport.url, last))
                await asyncio.sleep(wait_s)
                wait_s = min(2 * wait_s, _LONGEST_WAIT_S)
                again = await self._replies({**request, "rows": [request["rows"][index] for index in lost]}, names)
                for index, reply in zip(lost, again, strict=True):
                    replies[index] = reply
        finally:
            self._paused -= 1
            paused_s = time.monotonic() - self._paused_since_s
            self._paused_s += 0.0 if self._paused else paused_s
        if window.is_over:
            window.clear()
            _log.warning("%s scores again after %.0f s; the run continues", self._transport.url, paused_s)
        return replies


def short_id(rollout_id: str) -> str:
    """Return `rollout_id` as the servers take it: long ones, which they refuse, by a hash of their beginning.

    A lone surrogate cannot be written as UTF-8, so an id with one is hashed too.
    """
    try:
        rollout_id.encode()
    except UnicodeEncodeError:
        pass
    else:
        if 0 < len(rollout_id) <= MAX_ID_CHARS:
            return rollout_id
    return f"sha256:{hashlib.sha256(rollout_id.encode('utf-8', 'surrogatepass')).hexdigest()}"


def is_lost(reply: ScoreReply) -> bool:
    """Return whether the score is missing: the servers failed, the judge's answer was no answer, or it would not judge.

    All three are missing data, and training without a task's scores would go unnoticed otherwise.
    """
    return reply.status != "ok"


def scored_group(
    group: RolloutGroup,
    weights: Mapping[str, float],
    replies: Sequence[ScoreReply],
    spans: Mapping[str, tuple[float, float]],
) -> ScoredGroup:
    """Return `group` with the scores of its replies, one per rollout, in order.

    Scores and reward of one that is not "ok" are NaN.
    """
    is_valid = np.array([reply.status == "ok" for reply in replies], dtype=bool)
    scores = np.full((len(replies), len(weights)), np.nan, dtype=np.float32)
    for row, reply in enumerate(replies):
        if reply.status == "ok":
            scores[row] = [reply.scores[name] for name in weights]
    return ScoredGroup(
        group=group,
        score_names=tuple(weights),
        scores=scores,
        rewards=scores @ np.array(list(weights.values()), dtype=np.float32),
        is_valid=is_valid,
        reasons=tuple("" if reply.status == "ok" else f"{reply.status}: {reply.reason}" for reply in replies),
        evidence=tuple(reply.evidence for reply in replies),
        spans=spans,
    )


def _asked(weights: Mapping[str, float]) -> dict[str, float]:
    """Return the weights without the scores that need a second group, see `rlsys.algorithm.order_contrast`."""
    return {name: weight for name, weight in weights.items() if name not in GROUP_SCORES}
