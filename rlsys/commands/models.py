"""`rlsys models`: list the supported model families."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import typer

from rlsys.commands.errors import clear_errors

if TYPE_CHECKING:
    from rlsys.models.families.family import Family


def models() -> None:
    """List the model families that can be trained, with what each supports."""
    from rlsys.models.families.table import FAMILIES

    with clear_errors():
        _list(FAMILIES.values())


def _list(families: Iterable[Family]) -> None:
    for family in families:
        typer.echo(f"{family.title}: model_type {family.model_type}, published as {', '.join(family.checkpoints)}")
        typer.echo(f"  time axis:     {family.time_axis}")
        typer.echo(f"  vision tower:  attention {family.tower_attention}")
        typer.echo(f"  supports:      {', '.join(family.supports)}")
        for limit in family.limits:
            typer.echo(f"  limit:         {limit}")
