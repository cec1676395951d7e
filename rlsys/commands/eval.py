"""`rlsys eval`: measure a model on data sets, score the answers of other systems, and compare two evaluations."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from rlsys.commands.arguments import CONFIG_HELP, OVERRIDES_HELP
from rlsys.commands.errors import clear_errors, require_output


class _Default(TyperGroup):
    """A group whose command is `run` where the first argument names no other."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: ANN401 - of a copy of click inside typer
        if args and args[0] not in self.commands and args[0] != "--help":
            args = ["run", *args]
        return super().parse_args(ctx, args)


eval_app = typer.Typer(
    cls=_Default,
    no_args_is_help=True,
    help="Measure a model on data sets by their published protocols: `rlsys eval CONFIG --model DIR`.",
)
Datasets = Annotated[
    str | None, typer.Option(help="Names of the sets of evaluation.sets, separated by commas; default: all of them.")
]
Out = Annotated[Path | None, typer.Option(help="Folder of answers and reports; default: evaluation in output_dir.")]


@eval_app.command()
def run(  # noqa: PLR0913 - a parameter for each option
    config: Annotated[Path, typer.Argument(help=CONFIG_HELP)],
    overrides: Annotated[list[str] | None, typer.Argument(help=OVERRIDES_HELP)] = None,
    model: Annotated[str | None, typer.Option(help="Model folder; default: model.path.")] = None,
    run_folder: Annotated[Path | None, typer.Option("--run", help="Evaluate a checkpoint of this run.")] = None,
    step: Annotated[int | None, typer.Option(help="Step of the run's checkpoint; default: the newest.")] = None,
    adapter: Annotated[Path | None, typer.Option(help="Folder of a LoRA adapter for the model.")] = None,
    endpoint: Annotated[
        str | None, typer.Option(help="Base URL of an OpenAI-compatible server that answers instead of a model here.")
    ] = None,
    predictions: Annotated[
        Path | None, typer.Option(help="File with the answers of another system, which are scored without a model.")
    ] = None,
    datasets: Datasets = None,
    out: Out = None,
) -> None:
    """Answer the rows of data sets, score the answers, and write report.html, report.md and results.json.

    An evaluation that was interrupted continues when it is run again.
    """
    from rlsys.config.run import load
    from rlsys.runs.evaluating.evaluate import EvalOptions, run_evaluation

    with clear_errors():
        given = [
            f"{key}={value}" for key, value in (("model.path", model), ("evaluation.endpoint.url", endpoint)) if value
        ]
        options = EvalOptions(
            datasets=tuple(name.strip() for name in (datasets or "").split(",") if name.strip()),
            out=out,
            adapter=adapter,
            run=run_folder,
            step=step,
            predictions=predictions,
        )
        run_evaluation(load(config, [*given, *(overrides or ())]), options)


@eval_app.command()
def compare(
    first: Annotated[Path, typer.Argument(help="Folder of an evaluation.")],
    second: Annotated[Path, typer.Argument(help="Folder of another evaluation of the same rows.")],
    common: Annotated[bool, typer.Option("--common", help="Compare the rows that both have, if they differ.")] = False,
    out: Annotated[Path | None, typer.Option(help="Also write the comparison as an HTML page.")] = None,
) -> None:
    """Compare two evaluations row by row: differences with their intervals, by slice, and the rows that changed."""
    from rlsys.runs.evaluating.compare_evaluations import compare_evaluations

    with clear_errors():
        if out is not None:
            require_output("--out", out)
        compare_evaluations(first, second, common=common, page=out)
