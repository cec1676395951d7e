"""The configs that come with the package: the files of `configs/`."""

from __future__ import annotations

import logging
from pathlib import Path

log = logging.getLogger(__name__)

FOLDER = Path(__file__).resolve().parents[1] / "configs"
"""In a checkout a link to the top-level folder, in an installed package a folder."""


def names() -> tuple[str, ...]:
    """File names of all bundled configs."""
    return tuple(sorted(file.name for file in FOLDER.glob("*.yaml")))


def find(path: Path) -> Path:
    """`path`, or the bundled config where nothing lies at `path` and it is `NAME`, `NAME.yaml` or `configs/NAME.yaml`.

    Any other path that does not exist is returned as it is: a mistyped folder must not start another config.
    """
    if path.exists() or path.parent not in (Path("."), Path("configs")):
        return path
    name = path.name if path.suffix else f"{path.name}.yaml"
    if name not in names():
        return path
    log.info("there is no %s here; taking the config of that name that comes with rlsys", path)
    return FOLDER / name
