"""The record of a run in MLflow: config, versions, metrics, samples, tables, the model.

MLflow calls run one after another on a thread of their own, so that a step pays for handing
them over and not for the store's disk or network. An error there surfaces at the next call.
"""

from __future__ import annotations

import json
import logging
import math
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import yaml

from rlsys import env
from rlsys.config import RunConfig
from rlsys.errors import UserError
from rlsys.metrics import MetricNames
from rlsys.provenance import git_commit, version_tags
from rlsys.samples import choose_samples, verdict_rows
from rlsys.types import ScoredGroup

env.be_quiet()  # mlflow reads its telemetry switch when it is imported

from mlflow import MlflowClient  # noqa: E402
from mlflow.entities import Metric, Param, RunTag  # noqa: E402
from mlflow.exceptions import MlflowException  # noqa: E402
from mlflow.utils.mlflow_tags import MLFLOW_GIT_COMMIT, MLFLOW_LOGGED_ARTIFACTS, MLFLOW_RUN_NAME  # noqa: E402

log = logging.getLogger(__name__)

SQLITE = "sqlite:///"
MAX_PENDING = 64  # calls handed over and not yet done, before a step waits for the store
STEPS_PER_SAMPLE_FILE = 10
MAX_LISTED_TABLES = 80  # MLflow keeps the list of tables in one tag of 8,000 characters
MAX_PARAM_LENGTH = 6000  # MLflow's own limit
MAX_PARAMS_PER_CALL = 100  # MLflow's own limit
MAX_METRICS_PER_CALL = 1000  # MLflow's own limit
METRICS_EVERY_S = 1.0  # a call costs milliseconds however little it carries: short steps share one


class TrackingError(UserError):
    """The record cannot be opened; the message names the store and the remedy."""


class Tracker:
    """One MLflow run, open inside `with`. It ends FINISHED, FAILED on an error, KILLED on Ctrl-C or SIGTERM.

    run_id: go on with this run instead of opening one. Raises TrackingError when the store does not have it.
    """

    def __init__(self, config: RunConfig, *, run_id: str | None = None) -> None:
        self._config, self._resumed_id = config, run_id
        self._folder = Path(config.output_dir)
        self.uri = config.tracking.uri or f"{SQLITE}{self._folder.resolve() / 'mlflow.db'}"
        self._names = MetricNames()
        self._warned: set[str] = set()
        self._metrics: list[Metric] = []
        self._flushed_at = -math.inf
        self._samples: list[dict[str, Any]] = []
        self._verdicts: list[dict[str, Any]] = []
        self._tables: list[str] = []
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="mlflow")
        self._pending: deque[Future[Any]] = deque()
        self._before: Any = None
        self._client: MlflowClient
        self.run_id: str

    def __enter__(self) -> Tracker:
        self._folder.mkdir(parents=True, exist_ok=True)
        for name in ("alembic", "mlflow.store.db.utils"):
            logging.getLogger(name).setLevel(logging.WARNING)
        try:
            self.run_id = self._now(self._open)
        except MlflowException as error:
            raise TrackingError(f"MLflow store {self.uri}: {error.message}") from error
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, _exit_on_signal)
        log.info("MLflow run %s in %s", self.run_id, self.uri)
        log.info("look at it: %s", self.how_to_open)
        return self

    @property
    def how_to_open(self) -> str:
        """What a person does to see the runs of this store."""
        if self.uri.startswith("http"):
            return self.uri
        return f"{Path(sys.executable).with_name('mlflow')} ui --backend-store-uri {self.uri}"

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
        status = status_of(error)
        try:
            self._flush_metrics()
            self._flush_samples()
            if status == "FAILED":
                self._later(self._client.set_tag, self.run_id, "error", f"{type(error).__name__}: {error}"[:5000])
            self._wait(0)
        except (MlflowException, OSError):
            if error is None:
                status = "FAILED"
                raise
            log.exception("MLflow lost a part of the record")  # the run's own error matters more
        finally:
            self._now(self._client.set_terminated, self.run_id, status)
            self._writer.shutdown()

    def log_step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Metrics of one step, for the store within a second or with the next step.

        NaN and infinities are left out and counted in `perf/nonfinite_metrics`.
        """
        self._names.add(metrics)
        finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
        missing = sorted(metrics.keys() - finite.keys())
        if missing:
            finite["perf/nonfinite_metrics"] = float(len(missing))
            if new := [name for name in missing if name not in self._warned]:
                self._warned.update(new)
                log.warning("step %d: not a finite number and left out of MLflow: %s", step, ", ".join(new))
        now_ms = int(time.time() * 1000)
        batch = [Metric(name, float(value), now_ms, step) for name, value in finite.items()]
        if len(self._metrics) + len(batch) > MAX_METRICS_PER_CALL:
            self._flush_metrics()
        self._metrics += batch
        if time.monotonic() - self._flushed_at > METRICS_EVERY_S:
            self._flush_metrics()

    def log_samples(self, step: int, groups: Sequence[ScoredGroup]) -> None:
        """Keep `tracking.samples_per_step` responses, and every verdict of the judge.

        They reach MLflow every ten steps: samples as a table, verdicts as JSON lines under `verdicts/`.
        """
        for kept in (self._samples, self._verdicts):
            if kept and step // STEPS_PER_SAMPLE_FILE != kept[-1]["step"] // STEPS_PER_SAMPLE_FILE:
                self._flush_samples()
        self._samples += choose_samples(step, groups, self._config.tracking.samples_per_step)
        self._verdicts += verdict_rows(step, groups)

    def log_table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """A table artifact `tables/NAME.json`; columns are the union of the rows' keys, in order of appearance."""
        self._put_table(f"tables/{name}.json", rows)

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Copy a file into the run's artifacts, under `folder`. It must not change before the run's end."""
        self._later(self._client.log_artifact, self.run_id, str(path), folder)

    def log_model_folder(self, path: Path) -> None:
        """Copy a model folder to the artifact folder `model`; waits until it is there."""
        self._now(self._client.log_artifacts, self.run_id, str(path), "model")

    def _open(self) -> str:
        self._client = MlflowClient(self.uri)
        if self._resumed_id:
            run_id = self._client.get_run(self._resumed_id).info.run_id
            self._client.update_run(run_id, status="RUNNING")
        else:
            name = self._config.tracking.run_name or self._folder.resolve().name
            run_id = self._client.create_run(self._experiment(), tags={MLFLOW_RUN_NAME: name}).info.run_id
        self.run_id = run_id
        self._describe()
        return run_id

    def _experiment(self) -> str:
        name = self._config.tracking.experiment
        if found := self._client.get_experiment_by_name(name):
            if found.lifecycle_stage == "deleted":
                raise TrackingError(
                    f"MLflow experiment {name!r} in {self.uri} is deleted; restore it or set tracking.experiment."
                )
            return found.experiment_id
        # a database on this machine keeps its files beside it; elsewhere the server says where files go
        database = Path(self.uri.removeprefix(SQLITE)).resolve() if self.uri.startswith(SQLITE) else None
        artifacts = (database.parent / "artifacts").as_uri() if database else None
        try:
            return self._client.create_experiment(name, artifact_location=artifacts)
        except MlflowException:
            if found := self._client.get_experiment_by_name(name):  # another run made it meanwhile
                return found.experiment_id
            raise

    def _describe(self) -> None:
        """Config, versions and commit. What a resumed run was started with stays; only new facts are added."""
        run = self._client.get_run(self.run_id)
        tree = self._config.model_dump(mode="json")
        params = {key: value for key, value in flatten(tree).items() if key not in run.data.params}
        batch = [Param(key, value[:MAX_PARAM_LENGTH]) for key, value in params.items()]
        for start in range(0, len(batch), MAX_PARAMS_PER_CALL):
            self._client.log_batch(self.run_id, params=batch[start : start + MAX_PARAMS_PER_CALL])
        num_starts = int(run.data.tags.get("rlsys.starts", 0)) + 1
        tags = {"rlsys.starts": str(num_starts), **version_tags(), MLFLOW_GIT_COMMIT: git_commit()}
        self._client.log_batch(self.run_id, tags=[RunTag(key, value) for key, value in tags.items()])
        file = "config.yaml" if num_starts == 1 else f"config_start_{num_starts}.yaml"
        self._client.log_text(self.run_id, yaml.safe_dump(tree, sort_keys=False), file)
        self._tables = [entry["path"] for entry in json.loads(run.data.tags.get(MLFLOW_LOGGED_ARTIFACTS, "[]"))]

    def _flush_metrics(self) -> None:
        if self._metrics:
            self._later(self._client.log_batch, self.run_id, metrics=self._metrics)
        self._metrics, self._flushed_at = [], time.monotonic()

    def _flush_samples(self) -> None:
        if self._samples:
            self._put_table(f"samples/{_steps(self._samples)}.json", self._samples)
        if self._verdicts:
            text = "".join(f"{json.dumps(row)}\n" for row in self._verdicts)
            self._later(self._client.log_text, self.run_id, text, f"verdicts/{_steps(self._verdicts)}.jsonl")
        self._samples, self._verdicts = [], []

    def _put_table(self, file: str, rows: Sequence[Mapping[str, Any]]) -> None:
        # the format of mlflow.log_table, whose own list of tables overflows its tag after some eighty files
        self._tables = [path for path in self._tables if path != file][-MAX_LISTED_TABLES + 1 :] + [file]
        listed = json.dumps([{"path": path, "type": "table"} for path in self._tables])
        self._later(self._client.log_text, self.run_id, table_json(rows), file)
        self._later(self._client.set_tag, self.run_id, MLFLOW_LOGGED_ARTIFACTS, listed)

    def _later(self, call: Callable[..., Any], *arguments: Any, **options: Any) -> None:  # noqa: ANN401
        self._wait(MAX_PENDING)
        self._pending.append(self._writer.submit(call, *arguments, **options))

    def _now(self, call: Callable[..., Any], *arguments: Any) -> Any:  # noqa: ANN401
        return self._writer.submit(call, *arguments).result()

    def _wait(self, allowed: int) -> None:
        """Raise what failed among the calls that are done; wait until at most `allowed` are not."""
        while self._pending and (self._pending[0].done() or len(self._pending) > allowed):
            self._pending.popleft().result()


def status_of(error: BaseException | None) -> str:
    """MLflow's word for how a run ended."""
    if error is None or (isinstance(error, SystemExit) and not error.code):
        return "FINISHED"
    return "KILLED" if isinstance(error, KeyboardInterrupt | SystemExit) else "FAILED"


def _steps(rows: Sequence[Mapping[str, Any]]) -> str:
    return f"step_{rows[0]['step']:06d}_to_{rows[-1]['step']:06d}"


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """`{"a": {"b": [1]}}` as `{"a.b": "[1]"}`; empty sections stay as "{}"."""
    flat: dict[str, str] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{name}.")
        else:
            flat[name] = value if isinstance(value, str) else json.dumps(value)
    return flat


def table_json(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows in the JSON that MLflow shows as a table; missing values and NaN become null."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    return json.dumps({"columns": columns, "data": [[_cell(row.get(key)) for key in columns] for row in rows]})


def _cell(value: Any) -> Any:  # noqa: ANN401
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _exit_on_signal(number: int, frame: FrameType | None) -> None:
    sys.exit(128 + number)
