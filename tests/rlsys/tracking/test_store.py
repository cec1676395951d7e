"""The store of a run: its address, its secrets, its making by several runs at once, and its loss."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from requests.utils import should_bypass_proxies
from typer.testing import CliRunner

from rlsys.commands.app import app
from rlsys.config.run import RunConfig, parse
from rlsys.tracking.store_address import TrackingError, bypass_proxy, require_driver, store_uri
from rlsys.tracking.tracker import Tracker
from rlsys.tracking.unsent import current_id
from rlsys.tracking.uploader import Patience
from tests.support.artifacts import artifact_text
from tests.support.factories import make_group, make_scored
from tests.support.pace import patience
from tests.support.paths import REPO
from tests.support.tracking_server import TrackingServer

pytestmark = pytest.mark.stack

QUICK = Patience(close_s=0.5, max_pause_s=0.2, together_s=0.1)
SECRET = "hunter2"


def make_config(folder: Path, **tracking: object) -> RunConfig:
    tree = {"output_dir": str(folder), "model": {"path": "model"}, "tracking": tracking}
    return parse(tree, source="test")


def log_steps(tracker: Tracker, steps: range) -> None:
    for step in steps:
        tracker.log_step(step, {"reward/total/mean": step / 7, "time/step_s": 1.0})
        tracker.log_samples(step, [make_scored(make_group(f"clips:{step}"), [0.0, 0.5, 1.0, 0.2])])


def steps_in(uri: str, run_id: str) -> list[int]:
    return [point.step for point in MlflowClient(uri).get_metric_history(run_id, "reward/total/mean")]


def rlsys(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own: MLflow keeps connections to a database that was deleted."""
    return subprocess.run(
        [sys.executable, "-c", "from rlsys.commands.app import app; app()", *arguments],
        capture_output=True,
        text=True,
        cwd=REPO,
        env={**os.environ, **environment},
        timeout=patience(300.0),
    )


def files_with(text: str, folder: Path) -> list[str]:
    return [str(path) for path in folder.rglob("*") if path.is_file() and text.encode() in path.read_bytes()]


def test_a_null_uri_takes_mlflows_own_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    config = make_config(tmp_path / "run")
    assert store_uri(config) == f"sqlite:///{tmp_path / 'run' / 'mlflow.db'}"
    shared = f"sqlite:///{tmp_path / 'shared.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", shared)
    assert store_uri(make_config(tmp_path / "run", uri="http://host:1")) == "http://host:1"
    with Tracker(config, patience=QUICK) as tracker:
        log_steps(tracker, range(1, 3))
    assert tracker.uri == shared
    assert not (tmp_path / "run" / "mlflow.db").exists()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", " ")
    assert store_uri(config) == f"sqlite:///{tmp_path / 'run' / 'mlflow.db'}"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert steps_in(shared, tracker.run_id) == [1, 2]


def test_a_store_whose_making_was_cut_off_is_made_by_the_next_run(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "mlflow.db").touch()
    (folder / ".tmp-mlflow.db").write_bytes(b"SQLite format 3\0 and half a page")
    with Tracker(make_config(folder), patience=QUICK) as tracker:
        log_steps(tracker, range(1, 3))
    assert steps_in(tracker.uri, tracker.run_id) == [1, 2]


@pytest.mark.parametrize("change", ["deleted", "emptied", "overwritten"])
def test_a_run_whose_store_is_lost_is_made_anew_from_its_record(
    change: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, database = tmp_path / "run", tmp_path / "run" / "mlflow.db"
    curve = tmp_path / "curve.txt"
    curve.write_text("as it was")
    with Tracker(make_config(folder, experiment="mine", run_name="first"), patience=QUICK) as tracker:
        log_steps(tracker, range(1, 13))
        tracker.log_artifact(curve)
        while tracker.num_unsent:
            pass
        if change == "deleted":
            database.unlink()
        else:
            database.write_bytes(b"" if change == "emptied" else b"not a database " * 10_000)
        log_steps(tracker, range(13, 16))
    assert f"upload them with: rlsys tracking send {folder}" in caplog.text
    if change == "overwritten":
        failed = rlsys("tracking", "send", str(folder), "--wait-s", "0")
        assert failed.returncode == 2 and "file is not a database" in failed.stderr, failed
        database.unlink()
    sent = rlsys("tracking", "send", str(folder))
    assert sent.returncode == 0, sent
    assert f"MLflow run {tracker.run_id} is not in" in sent.stdout
    new_id = current_id(folder, tracker.run_id)
    assert new_id != tracker.run_id
    uri = f"sqlite:///{tmp_path / 'moved.db'}"
    database.rename(tmp_path / "moved.db")  # a name to which MLflow has no connection in this process
    assert steps_in(uri, new_id) == list(range(1, 16))
    client = MlflowClient(uri)
    run = client.get_run(new_id)
    assert (run.info.status, run.info.run_name) == ("FINISHED", "first")
    assert run.data.params["train.num_steps"] == "100"
    assert run.data.tags["version.ray"] and run.data.tags["rlsys.starts"] == "1"
    assert {file.path for file in client.list_artifacts(new_id)} == {"config.yaml", "curve.txt", "samples"}
    assert len(list(client.list_artifacts(new_id, "samples"))) == 2
    assert artifact_text(client, new_id, "curve.txt") == "as it was"


def test_a_resumed_run_whose_store_is_lost_names_the_remedy_and_continues_after_it(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with Tracker(make_config(folder, uri=f"sqlite:///{tmp_path}/one.db"), patience=QUICK) as tracker:
        log_steps(tracker, range(1, 4))
    elsewhere = make_config(folder, uri=f"sqlite:///{tmp_path}/two.db")  # as a store that was lost would be
    with (
        pytest.raises(TrackingError, match=f"recreate the run from its local record: rlsys tracking send {folder}"),
        Tracker(elsewhere, run_id=tracker.run_id, patience=QUICK),
    ):
        pass
    sent = CliRunner().invoke(app, ["tracking", "send", str(folder), "--uri", f"sqlite:///{tmp_path}/two.db"])
    assert sent.exit_code == 0, sent.output
    with Tracker(elsewhere, run_id=tracker.run_id, patience=QUICK) as resumed:
        log_steps(resumed, range(2, 6))
    assert resumed.run_id != tracker.run_id
    assert steps_in(elsewhere.tracking.uri or "", resumed.run_id) == [1, 2, 3, 4, 5]


def test_everything_is_sent_again_where_asked_and_is_there_once(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with Tracker(make_config(folder), patience=QUICK) as tracker:
        log_steps(tracker, range(1, 4))
    sent = CliRunner().invoke(app, ["tracking", "send", str(folder), "--all"])
    assert "uploaded 8 records" in sent.output, sent.output  # start, metrics and rows of three steps, end
    assert steps_in(tracker.uri, tracker.run_id) == [1, 2, 3]


@pytest.mark.parametrize("uri", ["postgresql://me:hunter2@host/db", "mysql://me:hunter2@host/db"])
def test_a_database_without_its_driver_is_one_sentence_without_its_password(uri: str, tmp_path: Path) -> None:
    with pytest.raises(TrackingError, match=r"needs the Python package (psycopg|mysqlclient)") as raised:
        require_driver(uri)
    assert SECRET not in str(raised.value) and "\n" not in str(raised.value)
    with pytest.raises(TrackingError, match="is not installed"), Tracker(make_config(tmp_path, uri=uri)):
        pass
    with pytest.raises(TrackingError, match="not the address of a database"):
        require_driver("postgresql+unheard://host/db")


class _Proxy(BaseHTTPRequestHandler):
    def do_GET(self) -> None:  # noqa: N802
        self.send_error(502)

    do_POST = do_PATCH = do_GET  # noqa: N815

    def log_message(self, *arguments: Any) -> None:  # noqa: ANN401
        pass


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Any:  # noqa: ANN401
    server = TrackingServer(tmp_path_factory.mktemp("mlflow_server"))
    try:
        server.start()
        yield server
    finally:
        server.end()


def test_a_server_on_loopback_is_reached_past_a_proxy(
    tmp_path: Path, server: TrackingServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = HTTPServer(("127.0.0.1", 0), _Proxy)
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.server_port}")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "example.org")
    try:
        with Tracker(make_config(tmp_path / "run", uri=server.uri), patience=QUICK) as tracker:
            log_steps(tracker, range(1, 3))
        assert steps_in(server.uri, tracker.run_id) == [1, 2]
    finally:
        proxy.shutdown()
        proxy.server_close()
    assert os.environ["no_proxy"].startswith("example.org,")
    bypass_proxy("http://elsewhere.example")
    bypass_proxy(server.uri)
    assert os.environ["no_proxy"] == "example.org,localhost,127.0.0.1,::1"


def test_a_password_in_the_address_is_neither_shown_nor_kept(
    tmp_path: Path, server: TrackingServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="rlsys")
    folder = tmp_path / "run"
    uri = server.uri.replace("http://", f"http://me:{SECRET}@")
    with Tracker(make_config(folder, uri=uri), patience=QUICK) as tracker:
        log_steps(tracker, range(1, 3))
    run = MlflowClient(server.uri).get_run(tracker.run_id)
    shown = server.uri.replace("http://", "http://me:***@")
    assert run.data.params["tracking.uri"] == shown
    (tmp_path / "downloaded").mkdir()
    artifacts = MlflowClient(server.uri).download_artifacts(tracker.run_id, "", str(tmp_path / "downloaded"))
    assert shown in (Path(artifacts) / "config.yaml").read_text()
    assert not files_with(SECRET, Path(artifacts))
    assert not files_with(SECRET, folder)
    assert SECRET not in caplog.text and shown in caplog.text and SECRET not in tracker.how_to_open
    # the address that is kept lacks the password, so it is asked for
    failed = CliRunner().invoke(app, ["tracking", "send", str(folder)])
    assert failed.exit_code == 2 and "password is not stored" in failed.output and "--uri" in failed.output
    sent = CliRunner().invoke(app, ["tracking", "send", str(folder)], env={"MLFLOW_TRACKING_URI": uri})
    assert sent.exit_code == 0, sent.output
    unreachable = make_config(tmp_path / "other", uri=f"http://me:{SECRET}@127.0.0.1:9")
    with pytest.raises(TrackingError, match=r"me:\*\*\*@") as raised, Tracker(unreachable, patience=QUICK):
        pass
    assert SECRET not in str(raised.value)


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("localhost:5000", "no store of the kind localhost"),
        ("postgres://me:hunter2@db/mlflow", "no store of the kind postgres"),
        ("mariadb://db/mlflow", "no store of the kind mariadb"),
        ("s3://bucket/runs", "no store of the kind s3"),
        ("http://", "has no host"),
        ("http://host:notaport", "is not a URL"),
        ("http://host/ml flow", "contains a space"),
        ("sqlite://mlflow.db", "three slashes"),
        ("sqlite:mlflow.db", "three slashes"),
        ("sqlite:///", "three slashes"),
        ("sqlite:///:memory:", "no file of its own"),
        ("sqlite:///file:/data/mlflow.db?uri=true", "no file of its own"),
        ("sqlite:////proc/1/mlflow.db", "no file can be written to /proc/1"),
        ("sqlite:////dev/null", "neither a file nor a folder"),
        ("sqlite:////etc", "is a folder"),
        ("sqlite:////etc/passwd", "file is not a database"),
        ("./mlruns", "MLFLOW_ALLOW_FILE_STORE"),
        ("file:///data/mlruns", "MLFLOW_ALLOW_FILE_STORE"),
    ],
)
def test_an_address_at_which_no_store_can_be_is_refused(uri: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_ALLOW_FILE_STORE", raising=False)
    with pytest.raises(TrackingError) as error:
        require_driver(uri)
    assert says in str(error.value)
    assert "sqlite:///FILE" in str(error.value) and "MLFLOW_TRACKING_URI" in str(error.value)
    assert "hunter2" not in str(error.value)


@pytest.mark.parametrize(
    "uri",
    ["http://host", "HTTPS://host:5000/mlflow", "sqlite:///a.db", "sqlite:////a/b.db", "databricks", "databricks://p"],
)
def test_an_address_of_a_store_passes(uri: str) -> None:
    require_driver(uri)


def test_a_folder_is_a_store_where_mlflow_allows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    require_driver("./mlruns")


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]", "127.0.0.2", "0.0.0.0", "LOCALHOST"])
def test_a_server_at_an_address_of_this_machine_needs_no_proxy(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "corp.example")
    bypass_proxy("http://tracking.corp:5000")
    assert os.environ["no_proxy"] == "corp.example"
    bypass_proxy(f"http://{host}:5000")
    assert should_bypass_proxies(f"http://{host}:5000", no_proxy=None)
    assert os.environ["NO_PROXY"].startswith("corp.example,")
