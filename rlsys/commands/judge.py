"""`rlsys judge …` and `rlsys score`: score and judge files offline, without a cluster."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from rlsys.commands.errors import clear_errors, require_output
from rlsys.config.answers import Reading
from rlsys.config.part import LONGEST_S
from rlsys.config.run import ConfigError, JudgeConfig, ScoreSettings

judge_app = typer.Typer(no_args_is_help=True, help="Evaluate a caption judge, and rescore its verdicts.")

Urls = Annotated[
    list[str] | None,
    typer.Option("--judge-url", help="Base URL of an OpenAI-compatible endpoint; may be given several times."),
]
Model = Annotated[str | None, typer.Option("--judge-model", help="Name under which the endpoints serve the model.")]
AtOnce = Annotated[
    int, typer.Option("--judge-concurrency", min=1, max=10_000, help="Maximum concurrent calls to one endpoint.")
]
CacheFile = Annotated[
    Path | None,
    typer.Option("--judge-cache", help="SQLite file that caches verdicts; default: in the user's cache folder."),
]
Threshold = Annotated[
    float | None,
    typer.Option(
        "--threshold",
        min=0.01,
        max=1.0,
        help="Least similarity at which the embedding judge counts an event as mentioned.",
    ),
]
Timeout = Annotated[
    float, typer.Option("--timeout", min=0.1, max=LONGEST_S, help="Time limit for scoring one row, in seconds.")
]
Tiers = Annotated[
    str | None,
    typer.Option(
        help="Reward tiers as RECALL:REWARD pairs, for example 0.3:0.25,0.9:1, where RECALL is the least recall that "
        "earns REWARD. Default: the reward is the recall itself."
    ),
]


def score(  # noqa: PLR0913 - a parameter for each option
    jsonl: Annotated[Path, typer.Option(help="One object per line: task, text, truth.", exists=True, dir_okay=False)],
    config: Annotated[
        Path | None,
        typer.Option(help="A YAML file whose `reward` section is used: weights, custom scorers, settings, judge."),
    ] = None,
    judge_url: Urls = None,
    judge_model: Model = None,
    judge_concurrency: AtOnce = 32,
    judge_cache: CacheFile = None,
    threshold: Threshold = None,
    tiers: Tiers = None,
    timeout: Timeout = 300.0,
    reading: Annotated[
        Reading | None,
        typer.Option(help="How answers are parsed: paper, lenient or strict. Default: answers.reading of --config."),
    ] = None,
) -> None:
    """Score rows offline with the scorers of the reward servers; captions are scored by a judge.

    Without --judge-url, captions are judged by sentence embeddings if these are installed.
    """
    from reward_servers.offline import score_lines
    from reward_servers.scorers.scorer_processes import try_scorers
    from rlsys.config.run import load_services
    from rlsys.tasks.table import check_weights, score_weights

    with clear_errors():
        judge = _judge(judge_url, judge_model, judge_concurrency, judge_cache, threshold)
        chosen = judge if judge_url or threshold is not None else None
        run = load_services(config)
        reward = run.reward
        check_weights(reward)
        try_scorers(reward.scorers)  # which says what is wrong with them before the first row
        with jsonl.open(encoding="utf-8-sig", errors="replace") as lines:
            for row in score_lines(
                lines,
                chosen or (reward.judge if reward.judge != JudgeConfig() else None),
                reward.settings if tiers is None else _settings(tiers),
                reward.scorers,
                timeout_s=timeout,
                reading=reading or run.answers.reading,
                names_of=lambda task: list(score_weights(task, reward)),
            ):
                typer.echo(json.dumps(row))


@judge_app.command()
def calibrate(
    file: Annotated[
        Path, typer.Argument(help="JSONL with reference, prediction, and events that people labelled `entailed`.")
    ],
    judge_url: Urls = None,
    judge_model: Model = None,
    judge_concurrency: AtOnce = 32,
    judge_cache: CacheFile = None,
    threshold: Threshold = None,
    timeout: Timeout = 300.0,
) -> None:
    """Compare the judge's verdicts with human labels: agreement, kappa and confusion table."""
    from reward_servers.judging.tools.commands import calibration_lines

    with clear_errors():
        judge = _judge(judge_url, judge_model, judge_concurrency, judge_cache, threshold)
        for line in calibration_lines(file, judge, timeout):
            typer.echo(line)


@judge_app.command()
def rescore(
    file: Annotated[Path, typer.Argument(help="JSONL of scored rows with `evidence`, as `rlsys score` writes them.")],
    rejudge: Annotated[
        bool, typer.Option("--rejudge", help="Call a judge again instead of using the stored verdicts.")
    ] = False,
    tiers: Tiers = None,
    out: Annotated[Path | None, typer.Option(help="Write the rescored rows to this file.")] = None,
    judge_url: Urls = None,
    judge_model: Model = None,
    judge_concurrency: AtOnce = 32,
    judge_cache: CacheFile = None,
) -> None:
    """Rescore stored verdicts with other tiers or another judge, and report what changed."""
    from reward_servers.judging.tools.commands import rescore_lines

    with clear_errors():
        if judge_url and not rejudge:
            raise ConfigError("--judge-url is used only with --rejudge; add --rejudge to call the judge again.")
        if out is not None:
            require_output("--out", out)
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
    """Test whether predictions that instruct the judge gain from it (prompt injection).

    Exits with code 1 if one of them scores higher than it should.
    """
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
        raise ConfigError(f"--judge-model {model} needs an endpoint that serves it; add --judge-url.")
    if threshold is not None and urls:
        raise ConfigError(f"--threshold {threshold:g} applies to the embedding judge; omit it with --judge-url.")
    if cache is not None:
        require_output("--judge-cache", cache)
    judge = JudgeConfig(urls=tuple(urls or ()), max_concurrency=at_once, cache_path=cache)
    given = {name: value for name, value in (("model", model), ("embedding_threshold", threshold)) if value is not None}
    return judge.model_copy(update=given)


def _settings(tiers: str | None) -> ScoreSettings:
    if tiers is None:
        return ScoreSettings()
    try:
        pairs = tuple((float(recall), float(reward)) for recall, reward in (t.split(":") for t in tiers.split(",")))
    except ValueError as error:
        raise ConfigError(f"--tiers {tiers!r}: write RECALL:REWARD pairs, for example 0.3:0.25,0.9:1.") from error
    if not all(0 <= value <= 1 for pair in pairs for value in pair):
        raise ConfigError(f"--tiers {tiers!r}: recalls and rewards must lie between 0 and 1.")
    return ScoreSettings(recall_tiers=pairs)
