"""Read and check the demonstrations of supervised training."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from rlsys.config.run import ConfigError, RunConfig
from rlsys.data.annotations.responses import WrittenResponse, read_responses
from rlsys.data.video.decode import plan_clip
from rlsys.data.video.errors import ClipError
from rlsys.models.prompts import PromptBuilder
from rlsys.perception.choose import next_turn_of
from rlsys.perception.media import whole_of
from rlsys.perception.turns import Stop, item_of, shown_after
from rlsys.runs.assemble import prompt_builder
from rlsys.runs.check import Report, check_sft
from rlsys.runs.inputs.items import Table, read_rows, training_items
from rlsys.runs.supervised import Demonstration
from rlsys.tasks.canonical import canonical_response
from rlsys.types import PromptItem, VideoSpec

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Lessons:
    """The inputs of a supervised run.

    demonstrations: to imitate.  held_out: rows to evaluate before and after.  report: facts and problems of both.
    tables: what MLflow gets of dirty rows and missing videos, see `rlsys.runs.inputs.items.Rows`.
    """

    demonstrations: tuple[Demonstration, ...]
    held_out: tuple[PromptItem, ...]
    report: Report
    tables: Mapping[str, Table]


def read_lessons(config: RunConfig) -> Lessons:
    """Read and check all inputs of `rlsys sft`. Raises UserError for a file that cannot be used."""
    prompts = prompt_builder(config)
    rows = read_rows(config)
    demonstrations = load_demonstrations(config, rows.training, prompts)
    if any(one.is_later for one in demonstrations):  # each round is a demonstration of its own
        one_round = config.perception.model_copy(update={"rounds": 1})
        checked = config.model_copy(update={"perception": one_round})
    else:
        checked = config
    report = check_sft(checked, demonstrations, rows.held_out, prompts)
    return Lessons(demonstrations=demonstrations, held_out=rows.held_out, report=report, tables=rows.tables())


def num_demonstrations(config: RunConfig) -> int:
    """Return the number of demonstrations of a supervised run, without a model. Raises as `load_demonstrations`."""
    return len(written_responses(config, training_items(config)))


def load_demonstrations(
    config: RunConfig, items: Sequence[PromptItem], prompts: PromptBuilder
) -> tuple[Demonstration, ...]:
    """Return the responses in `sft.responses`, or else the rows' true answers after their reasoning, as token ids.

    Raises ConfigError if reasoning is wanted and there is none to imitate, AnnotationError for a malformed file.
    """
    return tuple(
        Demonstration(
            item=later_item(config, one) if one.earlier else one.item,
            response_ids=_with_one_end(prompts, one.text),
            where=one.where,
            is_later=bool(one.earlier),
        )
        for one in written_responses(config, items)
    )


def later_item(config: RunConfig, one: WrittenResponse) -> PromptItem:
    """Return the row as the round after `one.earlier` asks it, by the rules of section `perception`.

    Its id is one of its own, because demonstrations of one id share a prompt. The clip's headers are read.
    Raises ConfigError if no round follows those responses.
    """
    turn = next_turn_of(config.perception, config.answers.reading)
    try:
        infos = [plan_clip(spec) for spec in one.item.media if isinstance(spec, VideoSpec)]
    except ClipError as error:
        raise ConfigError(f"{one.where}: a later round needs the length of its clip: {error}") from error
    try:
        shown = shown_after(one.item, whole_of(one.item.media, infos), [(text, 1.0) for text in one.earlier], turn)
    except ValueError as error:  # they stop before the last one
        shown = Stop(reason=str(error))
    if isinstance(shown, Stop):
        raise ConfigError(
            f"{one.where}: no round follows its {len(one.earlier)} earlier responses (perception.rounds="
            f"{config.perception.rounds}): {shown.reason}; raise perception.rounds, or remove the line."
        )
    digest = hashlib.sha256("\n".join(one.earlier).encode()).hexdigest()[:8]
    return replace(item_of(one.item, shown), prompt_id=f"{one.item.prompt_id}/after_{digest}")


def written_responses(config: RunConfig, items: Sequence[PromptItem]) -> tuple[WrittenResponse, ...]:
    """Return the responses to imitate, as text. Raises as `load_demonstrations`."""
    path = config.sft.responses
    if path is not None:
        written = read_responses(path, items)
        if skipped := len({item.prompt_id for item in items} - {one.item.prompt_id for one in written}):
            log.info("%d of %d rows have no response in %s and are skipped", skipped, len(items), path)
        return written
    usable = [item for item in items if item.thought or not item.think]
    if not usable:
        thinking = sorted({item.source for item in items})
        of = f" for {', '.join(thinking)}" if config.data.sources else ""
        raise ConfigError(
            f"sft.responses is not set and data.think=true{of}: annotations hold answers but no reasoning to imitate "
            "(`think` of format vtts); set data.think=false to imitate the answers alone, or give "
            "sft.responses=FILE.jsonl with full responses."
        )
    if skipped := len(items) - len(usable):
        log.info("%d of %d rows have no reasoning (`think`) to imitate and are skipped", skipped, len(items))
    return tuple(WrittenResponse(item=item, text=canonical_response(item), where=item.prompt_id) for item in usable)


def _with_one_end(prompts: PromptBuilder, text: str) -> np.ndarray:
    ids = prompts.encode_response(text)
    # a file of sampled responses may contain the end token as text
    return ids[:-1] if ids.size > 1 and ids[-2] == prompts.end_token_id else ids
