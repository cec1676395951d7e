"""What supervised training imitates: read, checked, and brought batch by batch with clips decoded ahead."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np

from rlsys.config.run import ConfigError, RunConfig
from rlsys.data.annotations.responses import WrittenResponse, read_responses
from rlsys.data.sampler import Sampler
from rlsys.data.video.errors import ClipError
from rlsys.loop.experience import Preparer
from rlsys.models.prompts import PromptBuilder
from rlsys.runs.assemble import prompt_builder
from rlsys.runs.check import Report, check_sft
from rlsys.runs.items import held_out_items, training_items
from rlsys.runs.supervised import Demonstration, PreparedDemonstration
from rlsys.tasks.canonical import canonical_response
from rlsys.types import ClipRef, Prompt, PromptItem

log = logging.getLogger(__name__)

MAX_BAD_DRAWS = 100
"""Draws per demonstration of a batch whose clips may be unusable before the run gives up."""


@dataclass(frozen=True, kw_only=True)
class Lessons:
    """demonstrations: to imitate.  held_out: rows to answer before and after.  report: what is to be known of both."""

    demonstrations: tuple[Demonstration, ...]
    held_out: tuple[PromptItem, ...]
    report: Report


def read_lessons(config: RunConfig) -> Lessons:
    """All that the config's files give `rlsys sft`, checked. Raises UserError for a file that cannot be used."""
    prompts = prompt_builder(config)
    demonstrations = load_demonstrations(config, training_items(config), prompts)
    held_out = held_out_items(config)
    report = check_sft(config, demonstrations, held_out, prompts)
    return Lessons(demonstrations=demonstrations, held_out=held_out, report=report)


def load_demonstrations(
    config: RunConfig, items: Sequence[PromptItem], prompts: PromptBuilder
) -> tuple[Demonstration, ...]:
    """What `sft.responses` says to imitate, or the rows' true answers, as token ids.

    Raises ConfigError where reasoning would have to be made up, AnnotationError for a file that is not as it should be.
    """
    path = config.sft.responses
    if path is not None:
        written = read_responses(path, items)
        if left_out := len({item.prompt_id for item in items} - {one.item.prompt_id for one in written}):
            log.info("%d of %d rows have no response in %s and are left out", left_out, len(items), path)
    elif config.data.think:
        raise ConfigError(
            "sft.responses is not set and data.think=true: annotations hold answers and no reasoning to imitate; "
            "set data.think=false to imitate the answers alone, or give sft.responses=FILE.jsonl with whole responses."
        )
    else:
        written = tuple(
            WrittenResponse(item=item, text=canonical_response(item), where=item.prompt_id) for item in items
        )
    return tuple(
        Demonstration(item=one.item, response_ids=_with_one_end(prompts, one.text), where=one.where) for one in written
    )


def _with_one_end(prompts: PromptBuilder, text: str) -> np.ndarray:
    ids = prompts.encode_response(text)
    # a file made of sampled responses may have the end token written out
    return ids[:-1] if ids.size > 1 and ids[-2] == prompts.end_token_id else ids


class Feed:
    """Demonstrations in the seeded order of draws, their clips decoded while the learner is busy with earlier ones."""

    def __init__(
        self, preparer: Preparer, demonstrations: Sequence[Demonstration], config: RunConfig, drawn: int
    ) -> None:
        self._preparer, self._demonstrations = preparer, demonstrations
        self._stops_at_bad_clip = config.data.on_bad_clip == "stop"
        self._sampler = Sampler(len(demonstrations), config.seed)
        self._ahead: deque[tuple[Demonstration, Future[tuple[Prompt, tuple[ClipRef, ...]]]]] = deque()
        self.drawn = drawn

    def take(self, count: int, *, num_ahead: int) -> tuple[list[PreparedDemonstration], int]:
        """The next `count` usable demonstrations, and how many draws between them had an unusable clip.

        num_ahead: of those after them, to be prepared meanwhile.
        """
        taken: list[PreparedDemonstration] = []
        bad_draws = 0
        while len(taken) < count:
            self._look_ahead(count - len(taken))
            demonstration, future = self._ahead.popleft()
            self.drawn += 1
            try:
                prompt, clips = future.result()
            except ClipError as error:
                if self._stops_at_bad_clip:
                    raise
                bad_draws += 1
                log.warning("left out %s: %s", demonstration.where, error)
                if bad_draws > MAX_BAD_DRAWS * count:
                    raise RuntimeError(f"{bad_draws} draws had no usable clip; last: {error}") from error
                continue
            taken.append(PreparedDemonstration(demonstration=demonstration, prompt=prompt, clips=clips))
        self._look_ahead(num_ahead)
        return taken, bad_draws

    def _look_ahead(self, count: int) -> None:
        while len(self._ahead) < count:
            one = self._demonstrations[self._sampler.index_at(self.drawn + len(self._ahead))]
            self._ahead.append((one, self._preparer.prepare(one.item, one.response_ids.size)))
