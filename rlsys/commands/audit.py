"""`rlsys ledger` and `rlsys replay`: audit what a run has done."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from rlsys.commands.errors import clear_errors, require_output
from rlsys.files import write_output


def show_ledger(folder: Annotated[Path, typer.Argument(help="A run's folder, or one of its checkpoints.")]) -> None:
    """Check that each sampled prompt was consumed exactly once: trained on, replaced or skipped.

    Exits with code 1 if one was lost or used twice.
    """
    from rlsys.runs.records import ledger

    with clear_errors():
        counts, problems = ledger.report(folder)
        typer.echo("\n".join([counts, *problems]))
    if problems:
        raise typer.Exit(1)


def replay(
    run_folder: Annotated[Path, typer.Argument(help="The run's output_dir.")],
    step: Annotated[int, typer.Argument(help="The step to replay.")],
    scores: Annotated[
        bool, typer.Option("--scores", help="Score the saved responses again instead of repeating the update.")
    ] = False,
    output: Annotated[Path | None, typer.Option(help="Also write the result to this file, as JSON.")] = None,
) -> None:
    """Repeat a recorded step from its saved rollouts, without actors, and compare the result with the record."""
    from rlsys.runs.replay import replay as replay_step
    from rlsys.runs.replay import rescore

    with clear_errors():
        if output:
            require_output("--output", output)
        if scores:
            count, changed = rescore(run_folder, step)
            tree: object = {"step": step, "responses": count, "changed": [asdict(one) for one in changed]}
            lines = [
                f"prompt {one.prompt_index} ({one.prompt_id}), response {one.sample_index}: "
                f"{dict(one.before)} -> {dict(one.after)}"
                for one in changed
            ]
            lines.append(f"{count} responses of step {step} were rescored; {len(changed)} changed")
        else:
            result = replay_step(run_folder, step)
            tree, lines = result.tree(), result.lines()
        if output:
            write_output(output, json.dumps(tree, indent=2) + "\n")
        typer.echo("\n".join(lines))
