"""`rlsys ledger` and `rlsys replay`: looking at what a run did."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from rlsys.commands.errors import clear_errors


def show_ledger(folder: Annotated[Path, typer.Argument(help="A run's folder, or one of its checkpoints.")]) -> None:
    """Check that every draw of the sampler was used once: trained on, replaced or left out. Exit code 1 if not."""
    from rlsys.runs import ledger

    with clear_errors():
        counts, problems = ledger.report(folder)
    typer.echo("\n".join([counts, *problems]))
    if problems:
        raise typer.Exit(1)


def replay(
    run_folder: Annotated[Path, typer.Argument(help="The run's output_dir.")],
    step: Annotated[int, typer.Argument(help="The step to do again.")],
    scores: Annotated[bool, typer.Option("--scores", help="Score the saved texts again instead.")] = False,
    output: Annotated[Path | None, typer.Option(help="Write the result there too, as JSON.")] = None,
) -> None:
    """Do a recorded step again from its saved rollouts, without actors, and compare with the record."""
    from rlsys.runs.replay import replay as replay_step
    from rlsys.runs.replay import rescore

    with clear_errors():
        if scores:
            count, changed = rescore(run_folder, step)
            tree: object = {"step": step, "responses": count, "changed": [asdict(one) for one in changed]}
            lines = [
                f"draw {one.draw} {one.prompt_id} response {one.sample_index}: {dict(one.before)} -> {dict(one.after)}"
                for one in changed
            ]
            lines.append(f"{count} responses of step {step} were scored again, {len(changed)} have other scores")
        else:
            result = replay_step(run_folder, step)
            tree, lines = result.tree(), result.lines()
        if output:
            output.write_text(json.dumps(tree, indent=2) + "\n")
    typer.echo("\n".join(lines))
