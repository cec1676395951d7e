"""The configs that the package contains, which are the files of `configs/`."""

from __future__ import annotations

import logging
from functools import cache
from pathlib import Path

log = logging.getLogger(__name__)

FOLDER = Path(__file__).resolve().parents[1] / "configs"
"""The folder of the configs: a link to the top-level folder in a checkout, a folder in an installed package."""


def names() -> tuple[str, ...]:
    """Return the file names of all bundled configs, sorted."""
    return tuple(sorted(file.name for file in FOLDER.glob("*.yaml")))


def find(path: Path) -> Path:
    """Return `path`, or the bundled config of that name if `path` does not exist.

    A bundled config is named by `NAME`, `NAME.yaml` or `configs/NAME.yaml`. Any other path that does not exist is
    returned as it is, because a mistyped folder must not start another config.
    """
    if path.exists() or path.parent not in (Path("."), Path("configs")):
        return path
    name = path.name if path.suffix else f"{path.name}.yaml"
    if name not in names():
        return path
    _announce(path)
    return FOLDER / name


@cache  # a command may read its config more than once
def _announce(path: Path) -> None:
    log.info("there is no %s here; taking the config of that name that comes with rlsys", path)
