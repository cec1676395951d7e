"""`rlsys judge …`, and `rlsys score`: a judge at work on files, without a cluster."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from rlsys.commands.errors import clear_errors
from rlsys.config.answers import Reading
from rlsys.config.run import ConfigError, JudgeConfig, ScoreSettings

judge_app = typer.Typer(no_args_is_help=True, help="Check a judge of captions, and score its verdicts again.")

Urls = Annotated[
    list[str] | None,
    typer.Option("--judge-url", help="Base URL of an OpenAI-compatible endpoint; more of them may be given."),
]
Model = Annotated[str | None, typer.Option("--judge-model", help="Model name that the endpoints serve.")]
AtOnce = Annotated[int, typer.Option("--judge-concurrency", min=1, help="Calls in flight at one endpoint.")]
CacheFile = Annotated[
    Path | None, typer.Option("--judge-cache", help="SQLite file of verdicts; default: in your cache folder.")
]
Threshold = Annotated[
    float | None,
    typer.Option("--threshold", min=0.01, max=1.0, help="Similarity that the embedding judge takes as told."),
]
Timeout = Annotated[float, typer.Option("--timeout", min=0.1, help="Seconds one row may take.")]
Tiers = Annotated[
    str | None,
    typer.Option(help="Recall of at least : reward, as 0.3:0.25,0.9:1; without it the recall is the reward."),
]


def score(  # noqa: PLR0913 - a parameter for each option
    jsonl: Annotated[Path, typer.Option(help="One object per line: task, text, truth.", exists=True, dir_okay=False)],
    judge_url: Urls = None,
    judge_model: Model = None,
    judge_concurrency: AtOnce = 32,
    judge_cache: CacheFile = None,
    threshold: Threshold = None,
    tiers: Tiers = None,
    timeout: Timeout = 300.0,
    reading: Annotated[
        Reading, typer.Option(help="How answers are read, as answers.reading of a config: paper, lenient or strict.")
    ] = "paper",
) -> None:
    """Score rows offline with the functions that the reward servers use; captions by the judge.

    Without --judge-url captions are judged by sentence embeddings, where these are installed.
    """
    from reward_servers.offline import score_lines

    with clear_errors():
        judge = _judge(judge_url, judge_model, judge_concurrency, judge_cache, threshold)
        asked = judge if judge_url or threshold is not None else None
        with jsonl.open(encoding="utf-8", errors="replace") as lines:
            for row in score_lines(lines, asked, _settings(tiers), timeout_s=timeout, reading=reading):
                typer.echo(json.dumps(row))


@judge_app.command()
def calibrate(
    file: Annotated[Path, typer.Argument(help="JSONL: reference, prediction, events with `entailed` by people.")],
    judge_url: Urls = None,
    judge_model: Model = None,
    judge_concurrency: AtOnce = 32,
    judge_cache: CacheFile = None,
    threshold: Threshold = None,
    timeout: Timeout = 300.0,
) -> None:
    """Compare the judge's verdicts with people's labels: agreement, kappa, confusion table."""
    from reward_servers.judging.tools.commands import calibration_lines

    with clear_errors():
        judge = _judge(judge_url, judge_model, judge_concurrency, judge_cache, threshold)
        for line in calibration_lines(file, judge, timeout):
            typer.echo(line)


@judge_app.command()
def rescore(
    file: Annotated[Path, typer.Argument(help="JSONL of scored rows with `evidence`, as `rlsys score` writes them.")],
    rejudge: Annotated[
        bool, typer.Option("--rejudge", help="Ask a judge again; else the stored verdicts count.")
    ] = False,
    tiers: Tiers = None,
    out: Annotated[Path | None, typer.Option(help="Write the rows as they are scored now.")] = None,
    judge_url: Urls = None,
    judge_model: Model = None,
    judge_concurrency: AtOnce = 32,
    judge_cache: CacheFile = None,
) -> None:
    """Score stored verdicts again under other tiers, or have another judge look at them, and say what changed."""
    from reward_servers.judging.tools.commands import rescore_lines

    with clear_errors():
        if judge_url and not rejudge:
            raise ConfigError("--judge-url asks a judge again, which is not free; add --rejudge if that is meant.")
        judge = _judge(judge_url, judge_model, judge_concurrency, judge_cache, None) if rejudge else None
        for line in rescore_lines(file, _settings(tiers), judge, out, timeout_s=300.0):
            typer.echo(line)


@judge_app.command()
def probe(
    judge_url: Urls = None,
    judge_model: Model = None,
    judge_concurrency: AtOnce = 32,
    judge_cache: CacheFile = None,
    threshold: Threshold = None,
    timeout: Timeout = 300.0,
) -> None:
    """Try predictions that tell the judge what to answer; exit code 1 when one of them gains by it."""
    from reward_servers.judging.tools.commands import probe_report

    with clear_errors():
        report = probe_report(_judge(judge_url, judge_model, judge_concurrency, judge_cache, threshold), timeout)
        for line in report.lines():
            typer.echo(line)
        if report.leaked or report.problem:
            raise typer.Exit(1)


def _judge(
    urls: list[str] | None, model: str | None, at_once: int, cache: Path | None, threshold: float | None
) -> JudgeConfig:
    if model is not None and not urls:
        raise ConfigError(f"--judge-model {model}: say where it is served, with --judge-url.")
    if threshold is not None and urls:
        raise ConfigError(f"--threshold {threshold:g} is for the embedding judge; leave it out with --judge-url.")
    judge = JudgeConfig(urls=tuple(urls or ()), max_concurrency=at_once, cache_path=cache)
    given = {name: value for name, value in (("model", model), ("embedding_threshold", threshold)) if value is not None}
    return judge.model_copy(update=given)


def _settings(tiers: str | None) -> ScoreSettings:
    if tiers is None:
        return ScoreSettings()
    try:
        pairs = tuple((float(recall), float(reward)) for recall, reward in (t.split(":") for t in tiers.split(",")))
    except ValueError as error:
        raise ConfigError(f"--tiers {tiers!r}: write recall:reward, recall:reward, …, as 0.3:0.25,0.9:1.") from error
    if not all(0 <= value <= 1 for pair in pairs for value in pair):
        raise ConfigError(f"--tiers {tiers!r}: recalls and rewards lie between 0 and 1.")
    return ScoreSettings(recall_tiers=pairs)
