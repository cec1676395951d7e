"""Run the simulation's tables: `python -m benchmarks.simulation`."""

import typer

from benchmarks.simulation.main import main

typer.run(main)
