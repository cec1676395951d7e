"""A run's folder that was moved or copied, with the MLflow store in it."""

from __future__ import annotations

import logging
import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import url2pathname

ARTIFACTS = "artifacts"
"""Folder beside an SQLite store that holds the files of its runs."""

log = logging.getLogger(__name__)


def follow_move(database: Path) -> None:
    """Point the runs of an SQLite store at the files beside it, if it was moved or copied together with them.

    MLflow keeps absolute addresses of files: a moved run would go on writing to the folder that it came from.
    database: a store that was created by `rlsys.tracking.mlflow_store`.
    """
    here = database.resolve().parent / ARTIFACTS
    if not here.is_dir():
        return
    try:
        with closing(sqlite3.connect(database)) as connection, connection:
            _point_at(connection, here)
    except sqlite3.Error as error:  # MLflow, which reads it next, says so as the store's error
        log.debug("%s: %s", database, error)


def _point_at(connection: sqlite3.Connection, here: Path) -> None:
    for (old,) in connection.execute("SELECT DISTINCT artifact_location FROM experiments").fetchall():
        address = urlparse(old or "")
        path = Path(url2pathname(address.path))
        if address.scheme not in ("file", "") or path.name != ARTIFACTS or path == here:
            continue
        new = here.as_uri() if address.scheme else str(here)
        log.info("this MLflow store was moved: its files are in %s now, no longer in %s", here, path)
        connection.execute("UPDATE experiments SET artifact_location = ? WHERE artifact_location = ?", (new, old))
        connection.execute(
            "UPDATE runs SET artifact_uri = ? || substr(artifact_uri, ?) WHERE substr(artifact_uri, 1, ?) = ?",
            (new, len(old) + 1, len(old) + 1, f"{old}/"),
        )
