"""One SQLite file opened by several runs at once: by other spellings, over leftovers, and where no store can be."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pytest
from alembic.script import ScriptDirectory
from mlflow import MlflowClient

from rlsys.tracking.mlflow_store import MlflowRun
from rlsys.tracking.sqlite_store import MIGRATIONS
from rlsys.tracking.store_address import SQLITE, TrackingError, require_driver, sqlite_file, sqlite_uri
from tests.support.pace import patience
from tests.support.paths import REPO

pytestmark = pytest.mark.stack

NOBODY = 65534
NAMES = ["a b", "50% of a%20b", "what?", "#1", "vidéo-模型", "a&b=c"]


def together(label: str, folder: Path, uris: Sequence[str]) -> list[str]:
    """What becomes of one run for each address, all at once."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.together", label, str(folder), *uris],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(REPO)},
        timeout=patience(400.0),
    )
    assert done.returncode == 0, done.stderr
    return [line.partition(" ")[2] for line in done.stdout.splitlines()]


def names_of_runs(file: Path) -> list[str]:
    with closing(sqlite3.connect(file)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        found = connection.execute("SELECT name, status FROM runs ORDER BY name").fetchall()
        points = connection.execute("SELECT count(*) FROM metrics WHERE key = 'reward/total/mean'").fetchone()[0]
    assert points == 3 * len(found) and {status for _, status in found} == {"FINISHED"}
    return [name for name, _ in found]


def spellings(file: Path) -> list[str]:
    """Eight addresses of one file, some of them relative to the folder above its own."""
    folder, above = file.parent, file.parent.parent
    (above / "folder link").symlink_to(folder.name)
    (above / "file link").symlink_to(file)
    quoted = [sqlite_uri(file).removeprefix(SQLITE), sqlite_uri(above).removeprefix(SQLITE)]
    name = quoted[0].rpartition("/")[2]
    middle = quoted[0].removesuffix(f"/{name}").rpartition("/")[2]
    paths = [quoted[0], f"{middle}/{name}", f"./{middle}/../{middle}/{name}", f"{quoted[1]}/folder link/{name}"]
    paths += ["file link", f"{quoted[1]}/file link", f"{quoted[0]}?timeout=60", f"/{quoted[0]}"]
    return [f"{SQLITE}{path}" for path in paths]


def test_every_spelling_of_an_address_names_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in NAMES:
        file = tmp_path / name / f"{name}.db"
        file.parent.mkdir()
        assert {sqlite_file(uri) for uri in spellings(file)} == {file}
        for link in ("folder link", "file link"):
            (tmp_path / link).unlink()
    assert sqlite_file("http://host/a.db") is None


@pytest.mark.parametrize("label", ["new", "killed"])
def test_eight_runs_make_one_store_by_eight_spellings(label: str, tmp_path: Path) -> None:
    file = tmp_path / "50% of a%20b?" / "#1 模型.db"
    file.parent.mkdir()
    if label == "killed":
        file.touch()  # as a program leaves it that opened the store and wrote nothing
    assert together(label, tmp_path, spellings(file)) == ["ok"] * 8
    assert names_of_runs(file) == [f"run{index}" for index in range(8)]
    assert {path.name for path in file.parent.iterdir()} <= {file.name, f".{file.name}.lock", "artifacts"}
    assert (tmp_path / "file link").is_symlink()
    run = MlflowClient(sqlite_uri(file)).search_runs(["1"])[0]
    assert Path(MlflowClient(sqlite_uri(file)).download_artifacts(run.info.run_id, "config.yaml")).exists()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole store."""
    file = tmp_path_factory.mktemp("store") / "mlflow.db"
    MlflowRun(sqlite_uri(file)).create("rlsys", "first")
    return file


def revisions() -> list[str]:
    """The schemas of MLflow, newest first."""
    return [one.revision for one in ScriptDirectory(str(MIGRATIONS)).walk_revisions()]


def downgraded(file: Path, revision: str) -> None:
    """Bring a store back to an older schema by MLflow's own migrations."""
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.set_main_option("sqlalchemy.url", sqlite_uri(file).replace("%", "%%"))
    command.downgrade(config, revision)


@pytest.mark.parametrize("back", [1, 3])
def test_an_older_store_is_left_as_it_is_with_the_command_that_upgrades_it(
    back: int, store: Path, tmp_path: Path
) -> None:
    file = tmp_path / "old%20.db"
    file.write_bytes(store.read_bytes())
    downgraded(file, revisions()[back])
    before = file.read_bytes()
    said = together("older", tmp_path, [sqlite_uri(file)] * 8)
    assert len(set(said)) == 1
    assert "made by an older MLflow than" in said[0] and f"mlflow db upgrade {sqlite_uri(file)}" in said[0]
    assert file.read_bytes() == before
    upgrade = [str(Path(sys.executable).with_name("mlflow")), "db", "upgrade", sqlite_uri(file)]
    done = subprocess.run(upgrade, capture_output=True, text=True, timeout=patience(200.0))
    assert done.returncode == 0, done.stderr
    assert together("upgraded", tmp_path, [sqlite_uri(file)]) == ["ok"]


@pytest.mark.parametrize(
    ("statement", "says"),
    [
        ("UPDATE alembic_version SET version_num = 'fedcba987654'", "made by another MLflow than"),
        ("DELETE FROM alembic_version", "schema none, not"),
        ("DROP TABLE alembic_version", "a database of another program, or a store whose making broke off"),
    ],
)
def test_a_store_of_no_known_schema_is_left_as_it_is(statement: str, says: str, store: Path, tmp_path: Path) -> None:
    file = tmp_path / "mlflow.db"
    file.write_bytes(store.read_bytes())
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute(statement)
    before = file.read_bytes()
    with pytest.raises(TrackingError) as raised:
        MlflowRun(sqlite_uri(file)).create("rlsys", "second")
    assert says in str(raised.value) and str(file) in str(raised.value) and "\n" not in str(raised.value)
    assert file.read_bytes() == before


def test_a_database_of_another_program_gets_no_tables(tmp_path: Path) -> None:
    file = tmp_path / "mine.db"
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("CREATE TABLE mine (x)")
    with pytest.raises(TrackingError, match="a database of another program"):
        MlflowRun(sqlite_uri(file)).create("rlsys", "first")
    with closing(sqlite3.connect(file)) as connection:
        assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [("mine",)]


@pytest.mark.skipif(os.getuid() != 0, reason="takes the part of another user, which only root can")
@pytest.mark.parametrize("is_folder", [False, True])
def test_a_store_that_this_user_may_not_write_is_refused_before_anything(is_folder: bool, store: Path) -> None:
    with tempfile.TemporaryDirectory() as open_to_all:  # as pytest's own folders are not
        file = Path(open_to_all) / "mlflow.db"
        file.write_bytes(store.read_bytes())
        file.chmod(0o666 if is_folder else 0o444)
        file.parent.chmod(0o555 if is_folder else 0o777)
        require_driver(sqlite_uri(file))
        says = "no file can be written to" if is_folder else "cannot be read or written by this user"
        os.seteuid(NOBODY)
        try:
            with pytest.raises(TrackingError, match=says):
                require_driver(sqlite_uri(file))
        finally:
            os.seteuid(0)
