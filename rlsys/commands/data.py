"""`rlsys data …`: check, count, convert and show annotation files."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import typer

from rlsys.commands.errors import clear_errors, require_output, require_writable
from rlsys.config.part import ConfigError

if TYPE_CHECKING:
    from rlsys.config.run import DataConfig
    from rlsys.data.video.errors import ClipError

data_app = typer.Typer(no_args_is_help=True, help="Check, count, convert and show annotation files.")

FormatOption = Annotated[str, typer.Option(help="Format of the file, a value of data.format (docs/data_sets.md).")]
AnnotationsOption = Annotated[Path, typer.Option(help="The annotation file, or its folder; hf://datasets/… too.")]
VideosOption = Annotated[
    Path | None, typer.Option(help="Folder of its videos; without it, missing files are not reported.")
]
ColumnOption = Annotated[
    list[str] | None,
    typer.Option("--column", help="A column of a table as ROLE=NAME or ROLE=NAME,NAME; repeat for several."),
]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", help="Rates and budgets of the clips as data.fps=VALUE; repeatable.")
]
WorkersOption = Annotated[int, typer.Option(min=1, help="Number of files that are opened at once.")]


@data_app.command("check")
def check(
    format: FormatOption,
    annotations: AnnotationsOption,
    videos: VideosOption = None,
    decode: Annotated[
        bool, typer.Option("--decode", help="Decode every clip of --videos too, as a run would, to find damaged files.")
    ] = False,
    column: ColumnOption = None,
    overrides: SetOption = None,
    workers: WorkersOption = 4,
) -> None:
    """Count the videos and queries of an annotation file, and list every dirty row with its defect.

    With --videos every file is opened and compared with the durations, periods and boxes of its rows. A file that
    opens may still fail in the middle: --decode finds those.
    """
    from rlsys.data.annotations.annotations import load_annotations
    from rlsys.data.inspection.decoding import undecodable
    from rlsys.data.inspection.report import inspect, report_lines

    with clear_errors():
        if decode and videos is None:
            raise ConfigError("--decode: give the folder of the videos too, with --videos.")
        data = _section(format, column, overrides)
        annotations, videos = _local(annotations, "--annotations"), _local(videos, "--videos")
        inspected = inspect(annotations, videos, data, workers=workers, track=_tracked("opening videos"))
        failed: Iterable[ClipError] = ()
        if decode and videos is not None:
            items = load_annotations(annotations, videos=videos, data=data, keep="published").items
            track = _tracked("decoding clips")
            failed = undecodable(items, workers=workers, timeout_s=data.decode_timeout_s, track=track)
        for line in report_lines(annotations, data, inspected, failed):
            typer.echo(line)


@data_app.command("stats")
def stats(
    format: FormatOption,
    annotations: AnnotationsOption,
    videos: Annotated[
        Path | None, typer.Option(help="Folder of its videos; with it, visual tokens of the clips are counted.")
    ] = None,
    column: ColumnOption = None,
    plot: Annotated[Path | None, typer.Option(help="PNG, PDF or SVG file to draw the distributions to.")] = None,
    overrides: SetOption = None,
    workers: WorkersOption = 4,
) -> None:
    """Print the distributions of durations, spans, answers and labels of a file's clean rows, and draw them."""
    from rlsys.data.annotations.annotations import load_annotations
    from rlsys.data.inspection.report import inspect
    from rlsys.data.inspection.statistics import PLOT_SUFFIXES, clip_tokens, draw, statistics_lines, statistics_of

    with clear_errors():
        if plot is not None:
            require_output("--plot", plot, PLOT_SUFFIXES)
        data = _section(format, column, overrides)
        annotations, videos = _local(annotations, "--annotations"), _local(videos, "--videos")
        inspected = inspect(annotations, videos, data, workers=workers, track=_tracked("opening videos"))
        tokens: list[int] = []
        if videos is not None:
            items = load_annotations(annotations, videos=videos, data=data, keep="published").items
            tokens = clip_tokens(items, workers=workers, track=_tracked("counting tokens"))
        found = statistics_of(inspected.rows, tokens)
        for line in statistics_lines(found):
            typer.echo(line)
        if plot is not None:
            typer.echo(f"drawn to {draw(found, plot)}")


@data_app.command("convert")
def convert(
    format: FormatOption,
    annotations: AnnotationsOption,
    out: Annotated[Path, typer.Argument(help="File to write.")],
    to: Annotated[
        str, typer.Option(help="Format to write: vtts (our JSON lines), charades_sta (.json or .txt), nextgqa, got10k.")
    ] = "vtts",
    column: ColumnOption = None,
) -> None:
    """Write the rows of an annotation file in another format."""
    from rlsys.data.annotations.reading import read_rows
    from rlsys.data.inspection.convert import write_rows

    with clear_errors():
        require_output("OUT", out)
        rows, _ = read_rows(_local(annotations, "--annotations"), format, _columns(column))
        written = write_rows(rows, to, out)
        skipped = (
            f"; {len(rows) - written} dirty rows are skipped, see `rlsys data check`" if written < len(rows) else ""
        )
        typer.echo(f"{out}: {written} rows{skipped}")


@data_app.command("schema")
def schema() -> None:
    """Print the JSON Schema of one line of our own JSON lines (format vtts)."""
    import json

    from rlsys.data.inspection.convert import row_schema

    with clear_errors():
        typer.echo(json.dumps(row_schema(), indent=2, ensure_ascii=False))


@data_app.command("preview")
def preview(
    format: FormatOption,
    annotations: AnnotationsOption,
    videos: Annotated[Path, typer.Option(help="Folder of its videos.")],
    out: Annotated[Path, typer.Argument(help="HTML file to write.")] = Path("preview.html"),
    num: Annotated[int, typer.Option(min=1, help="Number of rows to show, evenly spaced over the file.")] = 50,
    column: ColumnOption = None,
    overrides: SetOption = None,
    workers: WorkersOption = 2,
) -> None:
    """Write one HTML page, which needs no network, with frames, periods, boxes, options and answers of rows."""
    from rlsys.data.annotations.annotations import load_annotations
    from rlsys.evaluation.pages.preview import write_preview

    with clear_errors():
        require_output("OUT", out)
        data = _section(format, column, overrides)
        annotations, videos = _local(annotations, "--annotations"), _local(videos, "--videos")
        found = load_annotations(annotations, videos=videos, data=data, keep="published")
        _, num_shown = write_preview(
            out, annotations.name, found, num=num, workers=workers, timeout_s=data.decode_timeout_s
        )
        typer.echo(f"{out}: {num_shown} of {found.num_queries} rows")


@data_app.command("timebench")
def timebench(
    videos: Annotated[Path, typer.Option(help="Folder of videos; every video file in it gets a question.")],
    out: Annotated[Path, typer.Option(help="Folder for timebench.jsonl and, with --cue marks, the marked frames.")],
    cue: Annotated[
        Literal["none", "prompts", "marks"],
        typer.Option(help="What shows the time: nothing, the frames' times in the prompt, or times drawn on them."),
    ] = "none",
    seed: Annotated[int, typer.Option(help="Seed of the order of options.")] = 0,
    overrides: SetOption = None,
) -> None:
    """Write TimeBench for any videos: how many seconds have passed, with options at 0.25, 0.5, 1, 2 and 4 times."""
    from rlsys.data.annotations.media import VIDEO_SUFFIXES
    from rlsys.data.annotations.sets.timebench import write_timebench

    with clear_errors():
        require_writable("--out", out)
        if not videos.is_dir():
            raise ConfigError(f"--videos {videos}: no such folder.")
        files = sorted(file for file in videos.rglob("*") if file.suffix.lower() in VIDEO_SUFFIXES and file.is_file())
        names = [file.relative_to(videos).as_posix() for file in files]
        data = _section("timebench", None, overrides)
        path, problems = write_timebench(
            names, videos, out, cue=cue, data=data, seed=seed, track=_tracked("reading videos")
        )
        for problem in problems:
            typer.echo(f"skipped: {problem}", err=True)
        typer.echo(f"{path}: {len(names) - len(problems)} rows; data.videos={out if cue == 'marks' else videos}")


MaybePath = TypeVar("MaybePath", Path, Path | None)


def _local(path: MaybePath, option: str) -> MaybePath:
    """Return a path, or where it names something of the hub that in the local cache, downloaded if need be."""
    from rlsys import hub

    what = None if path is None else hub.reference(path)
    return path if what is None else hub.fetch(what, {}, field=option)


def _columns(given: Sequence[str] | None) -> dict[str, str | tuple[str, ...]]:
    """Return `data.columns` of the options --column. Raises ConfigError for one that is not ROLE=NAME."""
    from rlsys.data.annotations.sets.tables import ROLES

    found: dict[str, str | tuple[str, ...]] = {}
    for one in given or ():
        role, separator, names = one.partition("=")
        if not separator or not names or role not in ROLES:
            raise ConfigError(f"--column {one!r}: write it as ROLE=NAME; the roles are {', '.join(ROLES)}.")
        found[role] = tuple(names.split(",")) if "," in names else names
    return found


def _section(format: str, column: Sequence[str] | None, overrides: Sequence[str] | None) -> DataConfig:
    """Return section `data` with these columns and overrides. Raises ConfigError for what it does not take."""
    from rlsys.config.reading import apply_override
    from rlsys.config.run import parse_section

    tree: dict[str, Any] = {"data": {"format": format, "columns": _columns(column)}}
    for override in overrides or ():
        if not override.startswith("data."):
            raise ConfigError(f"--set {override!r}: write it as data.KEY=VALUE.")
        apply_override(tree, override)
    data: DataConfig = parse_section("data", tree["data"], "--format or --set")
    return data


def _tracked(text: str) -> Callable[[Sequence[Any]], Iterable[Any]]:
    """Return a function that passes a list through and shows the progress on a terminal, and nothing elsewhere."""
    from rich.console import Console
    from rich.progress import track

    return lambda items: track(
        items, text, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()
    )
