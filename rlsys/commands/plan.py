"""`rlsys plan`: estimate the resources of a run and print them as tables."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rlsys.commands.arguments import CONFIG_HELP, OVERRIDES_HELP
from rlsys.commands.errors import clear_errors
from rlsys.config.part import LONGEST_S

if TYPE_CHECKING:
    from rich.table import Table

    from rlsys.planning.plan import Section


def _seconds(what: str) -> Any:  # noqa: ANN401 - typer's own type
    return typer.Option(help=what, min=1e-6, max=LONGEST_S)


def plan(
    config: Annotated[Path, typer.Argument(help=CONFIG_HELP)],
    overrides: Annotated[list[str] | None, typer.Argument(help=OVERRIDES_HELP)] = None,
    generate_s: Annotated[float | None, _seconds("Measured seconds to generate one group in a full engine.")] = None,
    score_s: Annotated[float | None, _seconds("Measured seconds to score one group.")] = None,
    update_s: Annotated[float | None, _seconds("Measured seconds of one step's update.")] = None,
    sync_s: Annotated[float | None, _seconds("Measured seconds to send the weights to the actors.")] = None,
    assume: Annotated[
        list[str] | None, typer.Option(help="Override an assumption with NAME=NUMBER, for example memory_gib=141.")
    ] = None,
) -> None:
    """Estimate what CONFIG will need, without starting anything.

    Covers tokens, the memory of engines, learner ranks and object store, and the time of a step.
    """
    from rich.console import Console

    from rlsys.config.run import ConfigError, load
    from rlsys.planning.plan import assumptions
    from rlsys.planning.plan_times import Measured
    from rlsys.runs.plan_inputs import plan as make_plan

    with clear_errors():
        loaded = load(config, overrides or ())
        given = assumptions(loaded.cluster.device, assume or ())
        measured = Measured(generate=generate_s, score=score_s, update=update_s, sync=sync_s)
        sections = make_plan(loaded, given, measured)
        console = Console()
        for section in sections:
            console.print(_table(section))
        if problems := [problem for section in sections for problem in section.problems]:
            raise ConfigError(f"{len(problems)} problem(s)\n  " + "\n  ".join(problems))


def _table(section: Section) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(title=section.title, title_justify="left", box=box.SIMPLE, show_header=False, expand=False)
    for style in ("bold", "", "dim"):
        table.add_column(style=style, overflow="fold")
    for line in section.lines:
        table.add_row(line.name, line.value, line.how)
    return table
