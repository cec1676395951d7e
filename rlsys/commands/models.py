"""`rlsys models`: list the supported model families."""

from __future__ import annotations

import typer


def models() -> None:
    """List the model families that can be trained, with what each supports."""
    from rlsys.models.families.table import FAMILIES

    for family in FAMILIES.values():
        typer.echo(f"{family.title}: model_type {family.model_type}, published as {', '.join(family.checkpoints)}")
        typer.echo(f"  time axis:     {family.time_axis}")
        typer.echo(f"  vision tower:  attention {family.tower_attention}")
        typer.echo(f"  supports:      {', '.join(family.supports)}")
        for limit in family.limits:
            typer.echo(f"  limit:         {limit}")
