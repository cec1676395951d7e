"""Section `data`: the sources of training rows, their prompts, and how their videos are decoded."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, StringConstraints, model_validator

from rlsys.config.formats import Format
from rlsys.config.part import ConfigError, Part

Columns = dict[str, str | tuple[str, ...]]
MAX_FRAMES = 1 << 20
"""Largest `max_frames` that can be asked for: twelve days of video at one frame per second."""
MAX_FPS = 1000.0
PromptStyle = Literal["full", "terse"]
Name = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=100)]


class RowSource(Part):
    """An annotation file with its videos. What it leaves unset is as in section `data`."""

    annotations: Path
    """Annotation file, or hf://datasets/OWNER/NAME[@REVISION]/PATH for one on the Hugging Face hub."""
    videos: Path | None = None
    """Folder of its videos; null uses `data.videos`."""
    format: Format | None = None
    """Format of the annotation file; null uses `data.format`."""
    columns: Columns | None = None
    """Columns of its table by what they hold; null uses `data.columns`."""
    name: Name | None = None
    """Name in prompt ids and metrics, unique in the run; null uses the annotation file's stem."""
    split: Name | None = None
    """Keep only the rows whose own field `split` is this (formats vtts and captions); null keeps all."""
    task: str | None = None
    """Use the rows as this task, which needs part of what they are annotated with: rows of grounded_qa also have all
    that multiple_choice needs. null: the task of the format, or of each row."""
    think: bool | None = None
    """Request <think>…</think> before the answer; null uses `data.think`."""
    prompt_style: PromptStyle | None = None
    """Wording of the prompt template; null uses `data.prompt_style`."""
    fps: float | None = Field(default=None, gt=0, le=MAX_FPS)
    """Frames sampled per second of video; null uses `data.fps`."""
    min_frames: int | None = Field(default=None, ge=2)
    """Smallest number of frames of a clip; null uses `data.min_frames`."""
    max_frames: int | None = Field(default=None, ge=2, le=MAX_FRAMES)
    """Largest number of frames of a clip; null uses `data.max_frames`."""
    min_pixels: int | None = Field(default=None, ge=28 * 28)
    """Smallest height x width of a frame; null uses `data.min_pixels`."""
    max_pixels: int | None = Field(default=None, ge=28 * 28)
    """Largest height x width of a frame; null uses `data.max_pixels`."""
    total_pixels: int | None = Field(default=None, ge=28 * 28)
    """Largest height x width x frames of a clip; null uses `data.total_pixels`."""

    @property
    def given_name(self) -> str:
        """The source's own name, else the stem of its file."""
        return self.name or self.annotations.stem


class DataSource(RowSource):
    """One of several sources of training rows."""

    rows_per_video: int = Field(default=0, ge=0)
    """Largest number of usable rows of each video, the first ones in the file; 0 keeps all."""
    weight: float | None = Field(default=None, gt=0)
    """Share of prompts that come from this source, relative to the weights of the others; give all sources a weight, or
    none: then each prompt is a row of the shuffled union."""
    from_step: int = Field(default=0, ge=0)
    """Number of steps before this source is used."""
    until_step: int | None = Field(default=None, ge=1)
    """Number of steps of the run after which this source is not used any more; null: to the end."""

    @model_validator(mode="after")
    def _has_steps(self) -> DataSource:
        if self.until_step is not None and self.until_step <= self.from_step:
            raise ValueError(
                f"until_step={self.until_step} is not above from_step={self.from_step}, so the source would never be "
                "used; raise the first, or remove the source."
            )
        return self


class PassRateConfig(Part):
    """Which rows are sampled again, by their pass rate so far: the mean of the task's correctness score over all
    responses to the row in the steps that were done when its prompt was admitted."""

    min: float = Field(default=0.0, ge=0, le=1)
    """Skip rows with a lower pass rate, which are too hard; 0 skips none."""
    max: float = Field(default=1.0, ge=0, le=1)
    """Skip rows with a higher pass rate, which are too easy; 1 skips none."""
    min_groups: int = Field(default=1, ge=1)
    """Number of groups of a row before its pass rate counts."""

    @model_validator(mode="after")
    def _leaves_rows(self) -> PassRateConfig:
        if self.min > self.max:
            raise ValueError(
                f"data.pass_rate.min={self.min:g} is above data.pass_rate.max={self.max:g}, so every row that was "
                "sampled would be skipped; lower the first."
            )
        return self

    @property
    def is_on(self) -> bool:
        """Whether any row can be skipped."""
        return self.min > 0 or self.max < 1


class DataConfig(Part):
    """The settings of annotations, prompts and video decoding."""

    annotations: Path | None = None
    """Annotation file, if there is one source; several are listed in `sources`."""
    videos: Path | None = None
    """Folder of the video files (or frame folders) that the annotations name."""
    format: Format = "charades_sta"
    """Format of the annotation file. It determines the task, except where the rows of a table or of "vtts" do."""
    columns: Columns = {}
    """Columns of a table (format "table", and the tables of other formats) by what they hold, where that is not their
    name: {question: prompt, options: [a, b, c, d], answer_index: label}. docs/data_sets.md lists what they can hold."""
    sources: tuple[DataSource, ...] = ()
    """Sources of training rows in place of `annotations`, mixed in proportion to their rows or by weight."""
    pass_rate: PassRateConfig = PassRateConfig()
    curriculum: Literal["none", "easy_first"] = "none"
    """Order of a source's rows in its second epoch and later. "none": shuffled. "easy_first": by their pass rate so
    far, counted as in `pass_rate`, the highest first and rows without one last."""
    think: bool = True
    """Request <think>…</think> before the answer; false requests the answer alone."""
    prompt_style: PromptStyle = "full"
    """Wording of the prompt template; "terse" suits tiny models with a small vocabulary."""
    fps: float = Field(default=2.0, gt=0, le=MAX_FPS)
    """Frames sampled per second of video."""
    min_frames: int = Field(default=4, ge=2)
    """Smallest number of frames of a clip; even."""
    max_frames: int = Field(default=768, ge=2, le=MAX_FRAMES)
    """Largest number of frames of a clip; even. A longer clip is sampled more sparsely, evenly over its length."""
    min_pixels: int = Field(default=128 * 28 * 28, ge=28 * 28)
    """Smallest height x width of a frame, in pixels."""
    max_pixels: int = Field(default=768 * 28 * 28, ge=28 * 28)
    """Largest height x width of a frame, in pixels."""
    total_pixels: int = Field(default=115200 * 28 * 28, ge=28 * 28)
    """Largest height x width x frames of a clip, in pixels."""
    on_bad_clip: Literal["skip", "stop"] = "skip"
    """Whether a clip that cannot be decoded skips its row, with a count in the metrics, or stops the run."""
    on_dirty_row: Literal["drop", "clip", "stop"] = "drop"
    """Whether a dirty annotation row is dropped, repaired if possible (an end past the duration is clipped), or an
    error."""
    links_outside: bool = False
    """Whether symbolic links and `..` in the names of rows may lead out of the folder of videos."""
    max_dirty_share: float = Field(default=0.5, ge=0, le=1)
    """Share of rows, missing videos included, that may be skipped as dirty; a larger share is an error before the run
    starts. 1 allows all but an empty file."""
    decode_timeout_s: float = Field(default=60.0, gt=0)
    """Time limit for decoding one clip, in seconds; a clip that exceeds it counts as bad."""
    decode_workers: int = Field(default=2, ge=1)
    """Number of clips decoded in parallel."""
    decode_ahead: int = Field(default=4, ge=0)
    """Number of prompts whose clips are decoded before their groups start; 0 decodes when a group starts."""
    cache_bytes: int = Field(default=256 << 20, ge=0)
    """Limit of decoded frames in the object store, in bytes, up to which clips are cached for reuse and decoded ahead;
    clips in use count. 0 does neither."""

    @model_validator(mode="after")
    def _budgets_agree(self) -> DataConfig:
        _check_budgets(self, "data")
        return self

    @model_validator(mode="after")
    def _sources_agree(self) -> DataConfig:
        if self.sources and self.annotations is not None:
            raise ValueError(
                f"data.annotations={self.annotations} and data.sources are both given; list the file as one of the "
                "sources, or remove data.sources."
            )
        for index, source in enumerate(self.sources):
            _check_budgets(_merged(self, source), f"data.sources.{index}")
        _check_names(self.sources)
        _check_weights(self.sources)
        _check_stages(self.sources)
        return self


@dataclass(frozen=True, kw_only=True)
class Source:
    """A source of training rows with all its settings.

    data: section `data` with the source's own settings in place of the common ones.
    split, task, rows_per_video, weight, from_step, until_step: as in `DataSource`.
    """

    name: str
    annotations: Path
    videos: Path
    data: DataConfig
    split: str | None = None
    task: str | None = None
    rows_per_video: int = 0
    weight: float | None = None
    from_step: int = 0
    until_step: int | None = None

    @property
    def metric(self) -> str:
        """The name as part of a metric's name."""
        return metric_name(self.name)


def sources(data: DataConfig) -> tuple[Source, ...]:
    """Return the sources of training rows: those of `data.sources`, the one of `data.annotations`, or ().

    Raises ConfigError for a source without a folder of videos.
    """
    if not data.sources:
        only = () if data.annotations is None else (DataSource(annotations=data.annotations),)
        return tuple(resolved(data, one, "data.videos is") for one in only)
    return tuple(
        replace(
            resolved(data, one, f"data.sources.{index}.videos and data.videos are"),
            rows_per_video=one.rows_per_video,
            weight=one.weight,
            from_step=one.from_step,
            until_step=one.until_step,
        )
        for index, one in enumerate(data.sources)
    )


def resolved(data: DataConfig, given: RowSource, missing: str) -> Source:
    """Return a source with the settings of section `data` where it has none of its own.

    Raises ConfigError for a source without a folder of videos. missing: what is not set then, for the message.
    """
    merged = _merged(data, given)
    if merged.videos is None:
        raise ConfigError(f"{missing} not set, so the videos of {given.annotations} are not found; set it.")
    return Source(
        name=given.given_name,
        annotations=given.annotations,
        videos=merged.videos,
        data=merged,
        split=given.split,
        task=given.task,
    )


def metric_name(source: str) -> str:
    """Return the name of a source as part of a metric's name."""
    return re.sub(r"[^a-z0-9_.]", "_", source.lower())


def _merged(data: DataConfig, source: RowSource) -> DataConfig:
    """Return the section with the source's settings in place of its own, and this one source."""
    shared = RowSource.model_fields.keys() & DataConfig.model_fields.keys()
    own = {name: value for name in shared if (value := getattr(source, name)) is not None}
    return data.model_copy(update={**own, "sources": ()})


def _check_budgets(data: DataConfig, where: str) -> None:
    """Raise ValueError for frame and pixel budgets that contradict each other. where: of the settings, for messages."""
    for name in ("min_frames", "max_frames"):
        if getattr(data, name) % 2:
            raise ValueError(f"{where}.{name}={getattr(data, name)}: models merge frames in pairs; use an even number.")
    if data.min_frames > data.max_frames:
        raise ValueError(
            f"{where}.min_frames={data.min_frames} is above {where}.max_frames={data.max_frames}; lower the first."
        )
    if data.min_pixels > data.max_pixels:
        raise ValueError(
            f"{where}.min_pixels={data.min_pixels} is above {where}.max_pixels={data.max_pixels}; lower the first."
        )
    if data.total_pixels < data.min_pixels * data.min_frames:
        raise ValueError(
            f"{where}.total_pixels={data.total_pixels} is below min_pixels x min_frames = "
            f"{data.min_pixels * data.min_frames}; no clip can satisfy both."
        )


def _check_names(given: Sequence[DataSource]) -> None:
    """Raise ValueError for two sources that prompt ids or metrics could not tell apart."""
    for metric, count in Counter(metric_name(one.given_name) for one in given).items():
        if count > 1:
            indices = [index for index, one in enumerate(given) if metric_name(one.given_name) == metric]
            both = " and ".join(f"data.sources.{index} ({given[index].annotations})" for index in indices)
            raise ValueError(
                f"{both} are both named {given[indices[0]].given_name!r}; give one of them another `name`."
            )


def _check_weights(given: Sequence[DataSource]) -> None:
    without = [index for index, one in enumerate(given) if one.weight is None]
    if without and len(without) < len(given):
        raise ValueError(
            f"data.sources.{without[0]} ({given[without[0]].given_name}) has no weight, others have one; give every "
            "source a weight, or none to mix them in proportion to their rows."
        )


def _check_stages(given: Sequence[DataSource]) -> None:
    """Raise ValueError for a step at which no source is used."""
    for step in sorted({0, *(one.until_step for one in given if one.until_step is not None)}):
        if given and not any(is_used(one, step) for one in given):
            raise ValueError(
                f"data.sources: after {step} steps no source is used; lower a from_step or raise an until_step."
            )


def is_used(source: DataSource | Source, step: int) -> bool:
    """Return whether a source is used after this number of steps."""
    return source.from_step <= step and (source.until_step is None or step < source.until_step)
