"""The `rlsys` command line: each command is a thin wrapper over a function that can be called from Python."""

from __future__ import annotations

import logging
import sys
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.logging import RichHandler

from rlsys import env
from rlsys.commands.arguments import (
    ALLOW_CHANGES_HELP,
    CONFIG_HELP,
    FORK_HELP,
    OVERRIDES_HELP,
    RESUME_HELP,
    is_empty,
    with_home,
)
from rlsys.commands.audit import replay, show_ledger
from rlsys.commands.data import data_app
from rlsys.commands.debug import debug_app
from rlsys.commands.errors import clear_errors, clear_help, require_writable
from rlsys.commands.eval import eval_app
from rlsys.commands.judge import judge_app, score
from rlsys.commands.models import models
from rlsys.commands.plan import plan
from rlsys.commands.rewards import rewards_app
from rlsys.commands.standard_streams import open_standard_streams
from rlsys.commands.tracking import tracking_app
from rlsys.config import bundled
from rlsys.models.families.table import DEFAULT, FamilyName

if TYPE_CHECKING:
    from rlsys.config.run import RunConfig
    from rlsys.runs.check import Report

app = typer.Typer(
    no_args_is_help=True, pretty_exceptions_enable=False, help="Reinforcement learning for video language models."
)
app.add_typer(data_app, name="data")
app.add_typer(rewards_app, name="rewards")
app.add_typer(judge_app, name="judge")
app.add_typer(tracking_app, name="tracking")
app.add_typer(debug_app, name="debug")
app.add_typer(eval_app, name="eval")
app.command()(score)
app.command()(plan)
app.command()(models)
app.command("ledger")(show_ledger)
app.command()(replay)

Config = Annotated[Path, typer.Argument(help=CONFIG_HELP)]
Overrides = Annotated[list[str] | None, typer.Argument(help=OVERRIDES_HELP)]
Resume = Annotated[Path | None, typer.Option("--resume", help=RESUME_HELP)]
Fork = Annotated[Path | None, typer.Option("--from", help=FORK_HELP)]
AllowChanges = Annotated[bool, typer.Option("--allow-changes", help=ALLOW_CHANGES_HELP)]


def _show_version(is_requested: bool) -> None:
    if is_requested:
        typer.echo(f"rlsys {version('rlsys')}")
        raise typer.Exit


@app.callback()
def _set_up_process(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    env.be_quiet()  # libraries read some of these when they are imported
    if sys.stderr.isatty():
        handler: logging.Handler = RichHandler(show_path=False, show_level=False, log_time_format="%H:%M:%S")
    else:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], format="%(message)s")
    for name in ("rlsys", "actors", "learner", "reward_servers", "cluster"):
        logging.getLogger(name).setLevel(logging.INFO)


@app.command()
def demo(
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seed of the clips, the model and the sampling.")] = 0,
    out: Annotated[
        Path | None,
        typer.Option(help="Output folder; default: runs/demo, or runs/demo_all_tasks with --tasks all."),
    ] = None,
    tasks: Annotated[
        Literal["grounding", "all"],
        typer.Option(help="grounding: one task with its controls; all: five tasks at once, scored by reward servers."),
    ] = "grounding",
    family: Annotated[FamilyName, typer.Option(help="Family of the tiny model, see `rlsys models`.")] = DEFAULT,
) -> None:
    """Generate clips, train a tiny video model on them, and show what GRPO improved."""
    from rlsys.demo.all_tasks import run_demo_all_tasks
    from rlsys.demo.grounding import run_demo

    with clear_errors():
        folder = out or Path("runs/demo_all_tasks" if tasks == "all" else "runs/demo")
        require_writable("--out", folder)
        if tasks == "all":
            run_demo_all_tasks(folder, seed, family)
        else:
            run_demo(folder, seed, family)


@app.command()
def train(
    config: Config,
    overrides: Overrides = None,
    resume: Resume = None,
    fork: Fork = None,
    allow_changes: AllowChanges = False,
) -> None:
    """Train with GRPO as configured in CONFIG."""
    from rlsys.config.run import load
    from rlsys.runs.continuation import StartOptions
    from rlsys.runs.train import train as run_train

    with clear_errors():
        options = StartOptions(resume=resume, fork=fork, allow_changes=allow_changes)
        run_train(load(config, overrides or ()), options)


@app.command()
def sft(
    config: Config,
    overrides: Overrides = None,
    resume: Resume = None,
    fork: Fork = None,
    allow_changes: AllowChanges = False,
) -> None:
    """Fine-tune on demonstrations: the responses in sft.responses, or the answers in the annotations."""
    from rlsys.config.run import load
    from rlsys.runs.continuation import StartOptions
    from rlsys.runs.sft import sft as run_sft

    with clear_errors():
        options = StartOptions(resume=resume, fork=fork, allow_changes=allow_changes)
        run_sft(load(config, overrides or ()), options)


@app.command("check-config", epilog=f"Bundled configs: {', '.join(bundled.names())}.")
def check_config(
    config: Annotated[Path | None, typer.Argument(help=CONFIG_HELP)] = None,
    overrides: Overrides = None,
    fields: Annotated[
        bool, typer.Option("--fields", help="List every config key with its default and meaning.")
    ] = False,
    for_sft: Annotated[
        bool, typer.Option("--sft", help="Check CONFIG for `rlsys sft` instead of `rlsys train`.")
    ] = False,
) -> None:
    """Check a config, its data and its model without starting or writing anything.

    Reports what the run will use and every problem found. A file that has only the sections `reward` and `cluster` is
    checked as a config of `rlsys rewards serve`.
    """
    from rlsys.config.run import ConfigError, field_lines, is_for_services, load, load_services

    with clear_errors():
        if fields:
            typer.echo("\n".join(field_lines()))
            return
        if config is None:
            raise ConfigError("give a config file, or --fields.")
        if is_for_services(config):
            from rlsys.runs.check import check_services

            report = check_services(load_services(config, overrides or ()))
        else:
            report = _checked(load(config, overrides or ()), for_sft)
        typer.echo("\n".join(report.facts))
        report.raise_problems()
        typer.echo(f"{config}: ok")


def _checked(config: RunConfig, for_sft: bool) -> Report:
    from rlsys.runs.assemble import with_model
    from rlsys.runs.check import check
    from rlsys.runs.demonstrations import num_demonstrations, read_lessons
    from rlsys.runs.inputs.hub_paths import with_local_files
    from rlsys.runs.inputs.items import training_items, with_num_steps

    config = with_local_files(config, only_cached=True)
    config = with_num_steps(config, num_demonstrations if for_sft else lambda whole: len(training_items(whole)))
    with with_model(config) as complete:
        return read_lessons(complete).report if for_sft else check(complete)


@app.command()
def submit(
    config: Config,
    overrides: Overrides = None,
    address: Annotated[str, typer.Option(help="URL of the Ray dashboard.")] = "http://127.0.0.1:8265",
    follow: Annotated[bool, typer.Option("--follow", help="Print the job's log until it ends.")] = False,
    is_sft: Annotated[bool, typer.Option("--sft", help="Run `rlsys sft` instead of `rlsys train`.")] = False,
) -> None:
    """Submit `rlsys train CONFIG` to a Ray cluster as a job."""
    from cluster.submit import submit as submit_job

    with clear_errors():
        command: Literal["train", "sft"] = "sft" if is_sft else "train"
        raise typer.Exit(submit_job(config, overrides or [], address=address, follow=follow, command=command))


def main() -> None:
    """Run the command line."""
    open_standard_streams()
    if any(map(is_empty, sys.argv[1:])):
        typer.echo(
            "rlsys: an argument is empty, perhaps a variable of the shell that is not set; give it a value.", err=True
        )
        sys.exit(2)
    sys.argv[1:] = map(with_home, sys.argv[1:])
    with clear_help():
        app()


if __name__ == "__main__":
    main()
