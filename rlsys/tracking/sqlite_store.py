"""The SQLite file of an MLflow store: made whole by one process, refused where another program or MLflow made it."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

from alembic.script import ScriptDirectory

from rlsys import env
from rlsys.files import aside
from rlsys.locks import hold
from rlsys.tracking.store_address import TrackingError, sqlite_uri

env.be_quiet()  # mlflow reads its telemetry switch when it is imported

import mlflow  # noqa: E402
from mlflow import MlflowClient  # noqa: E402

MIGRATIONS = Path(mlflow.__file__).parent / "store" / "db_migrations"
_JOURNALS = ("-journal", "-wal", "-shm")
"""Ends of the names of files that SQLite keeps beside a database."""


def make_database(path: Path) -> None:
    """Create a store's SQLite file atomically, in one process even if several open it at the same time.

    MLflow's migrations fail if two processes run them on one file, and leave it incomplete; so a file that is there is
    never migrated. path: links resolved. Raises TrackingError for a file that holds no store of this MLflow.
    """
    if not _is_there(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = hold(path.with_name(f".{path.name}.lock"), waits=True)
        try:
            if not _is_there(path):
                _make(path)
        finally:
            lock.release()
    _require_schema(path)


def _is_there(path: Path) -> bool:
    return path.exists() and path.stat().st_size > 0


def _make(path: Path) -> None:
    new = aside(path)
    for end in ("", *_JOURNALS):  # of a process that was killed
        new.with_name(f"{new.name}{end}").unlink(missing_ok=True)
    MlflowClient(sqlite_uri(new)).search_experiments(max_results=1)  # the first call creates the tables
    os.replace(new, path)


def _require_schema(path: Path) -> None:
    try:
        with closing(sqlite3.connect(path)) as connection:
            found = [version for (version,) in connection.execute("SELECT version_num FROM alembic_version")]
    except sqlite3.Error as error:
        if "no such table" in str(error):
            raise TrackingError(
                f"MLflow store {path}: a database of another program, or a store whose making broke off; nothing was "
                "changed: give the path of a store, or of a file that does not exist, in tracking.uri."
            ) from error
        return  # MLflow, which reads it next, says so as the store's error
    scripts = ScriptDirectory(str(MIGRATIONS))
    if found == [scripts.get_current_head()]:
        return
    is_older = all(version in {one.revision for one in scripts.walk_revisions()} for version in found)
    remedy = (
        f"copy the file, then run `mlflow db upgrade {sqlite_uri(path)}` while nothing uses it"
        if is_older
        else "install the MLflow that made it, or give another file in tracking.uri"
    )
    raise TrackingError(
        f"MLflow store {path}: made by {'an older' if is_older else 'another'} MLflow than {mlflow.__version__} "
        f"(schema {', '.join(found) or 'none'}, not {scripts.get_current_head()}); nothing was changed: {remedy}."
    )
