"""Arguments that several commands share: their help texts, and a home folder in any of them."""

import os
import re

CONFIG_HELP = "A YAML file, or the name of a bundled config (`rlsys check-config --help` lists them)."
OVERRIDES_HELP = "Overrides of single config keys as section.key=value; the value is parsed as YAML."
RESUME_HELP = "Continue the run of output_dir, from its newest checkpoint (give the folder) or from one of them."
FORK_HELP = "Start a new run from this checkpoint of another run, or from the newest checkpoint of its folder."
ALLOW_CHANGES_HELP = (
    "Resume although the base model, the data, the seed, the group size or the trained parts changed; "
    "MLflow records the changes."
)


def with_home(argument: str) -> str:
    """Return an argument with the home folder for the `~` in `--option=~/folder`, where no shell fills it in."""
    found = re.fullmatch(r"(--[a-z-]+=)(~(?:/.*)?)", argument, re.DOTALL)
    return found[1] + os.path.expanduser(found[2]) if found else argument


def is_empty(argument: str) -> bool:
    """Return whether an argument gives no text at all, which as a path would be the current folder."""
    return re.fullmatch(r"(?:--[a-z-]+=)?", argument) is not None
