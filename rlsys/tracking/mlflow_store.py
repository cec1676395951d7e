"""A run in MLflow: create or resume it, and write the records of a spool to it.

Every call is idempotent: MLflow's databases store a metric once per run, name, step, timestamp and
value, and the timestamp comes from the record; files and tags replace those of the same name.
"""

from __future__ import annotations

import json
import logging
import math
import os
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from rlsys import env
from rlsys.config.run import RunConfig
from rlsys.tracking import registry
from rlsys.tracking.moved_store import ARTIFACTS, follow_move
from rlsys.tracking.provenance import git_commit, version_tags
from rlsys.tracking.sample_buffer import SampleBlock, steps_name
from rlsys.tracking.spool import Record
from rlsys.tracking.sqlite_store import make_database
from rlsys.tracking.store_address import TrackingError, bypass_proxy, sqlite_file
from rlsys.tracking.uploader import MAX_METRICS_PER_CALL, StoreError
from rlsys.urls import masked_tree, masked_url

env.be_quiet()  # mlflow reads its telemetry switch when it is imported

from mlflow import MlflowClient  # noqa: E402
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag  # noqa: E402
from mlflow.exceptions import MlflowException  # noqa: E402
from mlflow.utils.mlflow_tags import (  # noqa: E402
    MLFLOW_DATASET_CONTEXT,
    MLFLOW_GIT_COMMIT,
    MLFLOW_LOGGED_ARTIFACTS,
    MLFLOW_RUN_NAME,
)

MAX_LISTED_TABLES = 80  # MLflow keeps the list of tables in one tag of 8,000 characters
MAX_PARAM_LENGTH = 6000  # MLflow's own limit
MAX_PARAMS_PER_CALL = 100  # MLflow's own limit
UPLOAD_TIMEOUT_S = 120  # MLflow's own default: a server may have to move a large file before it responds
TIMEOUT_VARIABLE = "MLFLOW_HTTP_REQUEST_TIMEOUT"
START_TAG = "rlsys.opened_by"
STARTS_TAG = "rlsys.starts"
NOT_FOUND = 404
EVERY_STEP_HAS = "time/step_s"
_OTHER_ERRORS = {  # of databases, and of stores that a client sends files to directly
    "sqlalchemy.exc": ("SQLAlchemyError",),
    "botocore.exceptions": ("BotoCoreError", "ClientError"),
    "boto3.exceptions": ("Boto3Error",),
    "azure.core.exceptions": ("AzureError",),
    "google.api_core.exceptions": ("GoogleAPIError",),
}

log = logging.getLogger(__name__)


class MlflowRun:
    """One run in one store. Call `create` or `resume` first, unless the id of an open run is given.

    opened_by: a name of the run that an earlier process tried to create; "" before there was any.
    """

    def __init__(self, uri: str, run_id: str = "", opened_by: str = "") -> None:
        self._uri, self.run_id = uri, run_id
        self.uri = masked_url(uri)  # for messages
        self._tables: list[str] | None = None
        self._opened_by = opened_by or uuid.uuid4().hex
        self._tried_to_create = bool(opened_by)
        env.bound_tracking_calls()
        bypass_proxy(uri)
        logging.getLogger("alembic").setLevel(logging.WARNING)
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # prints what it raises, with traceback
        self._cached_client: MlflowClient | None = None

    @property
    def _client(self) -> MlflowClient:
        if self._cached_client is None:
            if database := sqlite_file(self._uri):
                make_database(database)
                follow_move(database)
            self._cached_client = MlflowClient(self._uri)
        return self._cached_client

    # --- opening: may be repeated after a failure without creating a second run or start

    def create(self, experiment: str, name: str, started_ms: int | None = None) -> None:
        """Create a new run. started_ms: when it started, in milliseconds since 1970; None: now."""
        with _store_errors():
            experiment_id = self._experiment(experiment)
            if self._tried_to_create and (found := self._created_already(experiment_id)):
                self.run_id = found
                return
            self._tried_to_create = True
            tags = {MLFLOW_RUN_NAME: name, START_TAG: self._opened_by}
            self.run_id = self._client.create_run(experiment_id, started_ms, tags).info.run_id

    def resume(self) -> None:
        """Set the run to running again."""
        with _store_errors():
            self._client.get_run(self.run_id)
            self._client.update_run(self.run_id, status="RUNNING")

    def is_lost(self) -> bool:
        """Return whether the store responds and has no such run, not even a deleted one. Raises StoreError."""
        try:
            with _store_errors():
                self._client.get_run(self.run_id)
        except StoreError as error:
            if error.status == NOT_FOUND:
                return True
            raise
        return False

    def next_start(self) -> int:
        """Return the number of the present start of the run, counted from 1."""
        with _store_errors():
            return int(self._client.get_run(self.run_id).data.tags.get(STARTS_TAG, 0)) + 1

    def last_step(self) -> int:
        """Return the newest step whose metrics the store has, 0 if there is none."""
        with _store_errors():
            return max(
                (point.step for point in self._client.get_metric_history(self.run_id, EVERY_STEP_HAS)), default=0
            )

    def metrics_of(self, step: int) -> dict[str, float]:
        """Return the metrics of one step by name."""
        with _store_errors():
            names = self._client.get_run(self.run_id).data.metrics
            return {
                name: point.value
                for name in names
                for point in self._client.get_metric_history(self.run_id, name)
                if point.step == step
            }

    # --- writing records of a spool; see `rlsys.tracking.uploader.Store`

    def log_metrics(self, records: Sequence[Record]) -> None:
        points = [
            Metric(name, value, record["time_ms"], record["step"])
            for record in records
            for name, value in record["values"].items()
        ]
        with _store_errors():
            for start in range(0, len(points), MAX_METRICS_PER_CALL):
                self._client.log_batch(self.run_id, metrics=points[start : start + MAX_METRICS_PER_CALL])

    def log_rows(self, block: SampleBlock) -> None:
        if block.samples:
            self._put_table(f"samples/{steps_name(block.samples)}.json", table_json(block.samples))
        if block.verdicts:
            text = "".join(f"{json.dumps(row)}\n" for row in block.verdicts)
            with _store_errors():
                self._client.log_text(self.run_id, text, f"verdicts/{steps_name(block.verdicts)}.jsonl")

    def log_other(self, record: Record) -> None:
        _OTHER[record["kind"]](self, record)

    def is_there(self) -> bool:
        try:
            with _store_errors():
                return bool(self._client.get_run(self.run_id).info.lifecycle_stage == "active")
        except StoreError:
            return False

    def _log_start(self, record: Record) -> None:
        # parameters of the first start are kept; only new ones are added
        tree, number = record["config"], record["number"]
        with _store_errors():
            known = self._client.get_run(self.run_id).data.params
            batch = [Param(key, text[:MAX_PARAM_LENGTH]) for key, text in flatten(tree).items() if key not in known]
            for start in range(0, len(batch), MAX_PARAMS_PER_CALL):
                self._client.log_batch(self.run_id, params=batch[start : start + MAX_PARAMS_PER_CALL])
            self._client.log_batch(self.run_id, tags=[RunTag(key, value) for key, value in record["tags"].items()])
            file = "config.yaml" if number == 1 else f"config_start_{number}.yaml"
            self._client.log_text(self.run_id, yaml.safe_dump(tree, sort_keys=False), file)

    def _log_table(self, record: Record) -> None:
        self._put_table(record["name"], record["text"])

    def _log_tags(self, record: Record) -> None:
        with _store_errors():
            self._client.log_batch(self.run_id, tags=[RunTag(key, value) for key, value in record["tags"].items()])

    def _log_dataset(self, record: Record) -> None:
        source = json.dumps({"uri": record["uri"]})
        profile = json.dumps({"num_rows": record["num_rows"]})
        data_set = Dataset(record["name"], record["digest"], "local", source, schema=None, profile=profile)
        with _store_errors():
            self._client.log_inputs(
                self.run_id, [DatasetInput(data_set, [InputTag(MLFLOW_DATASET_CONTEXT, record["context"])])]
            )

    def _log_file(self, record: Record) -> None:
        with _store_errors(), _time_for_an_upload():
            self._client.log_artifact(self.run_id, record["path"], record["folder"])

    def _log_folder(self, record: Record) -> None:
        with _store_errors(), _time_for_an_upload():
            self._client.log_artifacts(self.run_id, record["path"], record["folder"])

    def _log_model_version(self, record: Record) -> None:
        name = record["name"]
        with _store_errors():
            number = registry.register(
                self._client, name, self.run_id, record["folder"], record["weights"], record["tags"]
            )
            self._client.set_tag(self.run_id, registry.VERSION_TAG, f"{name}/{number}")

    def _log_evaluated(self, record: Record) -> None:
        tags = {**record["tags"], f"{registry.EVALUATION_TAG}.{self.run_id}": record["report"]}
        with _store_errors():
            for version in registry.versions_of(self._client, record["run_id"], record["weights"]):
                registry.tag(self._client, version, tags)
                self._client.set_tag(self.run_id, registry.VERSION_TAG, f"{version.name}/{version.version}")

    def _log_block(self, record: Record) -> None:
        self.log_rows(SampleBlock(path=Path(), samples=record["samples"], verdicts=record["verdicts"]))

    def _log_running(self, record: Record) -> None:
        with _store_errors():
            self._client.update_run(self.run_id, status="RUNNING")

    def _log_end(self, record: Record) -> None:
        with _store_errors():
            if record["error"]:
                self._client.set_tag(self.run_id, "error", record["error"])
            self._client.set_terminated(self.run_id, record["status"], record["time_ms"])

    def _put_table(self, file: str, text: str) -> None:
        # the format of mlflow.log_table, whose own list of tables overflows its tag after some eighty files
        with _store_errors():
            if self._tables is None:
                listed = self._client.get_run(self.run_id).data.tags.get(MLFLOW_LOGGED_ARTIFACTS, "[]")
                self._tables = [entry["path"] for entry in json.loads(listed)]
            self._client.log_text(self.run_id, text, file)
            tables = [path for path in self._tables if path != file][-MAX_LISTED_TABLES + 1 :] + [file]
            listed = json.dumps([{"path": path, "type": "table"} for path in tables])
            self._client.set_tag(self.run_id, MLFLOW_LOGGED_ARTIFACTS, listed)
            self._tables = tables

    def _experiment(self, name: str) -> str:
        if found := self._client.get_experiment_by_name(name):
            if found.lifecycle_stage == "deleted":
                raise TrackingError(
                    f"MLflow experiment {name!r} in {self.uri} is deleted; restore it or set tracking.experiment."
                )
            return found.experiment_id
        # a database on this machine keeps its files beside it; elsewhere the server says where files go
        database = sqlite_file(self._uri)
        artifacts = (database.parent / ARTIFACTS).as_uri() if database else None
        try:
            return self._client.create_experiment(name, artifact_location=artifacts)
        except MlflowException:
            if found := self._client.get_experiment_by_name(name):  # another run created it meanwhile
                return found.experiment_id
            raise

    def _created_already(self, experiment_id: str) -> str | None:
        """Return the run of an earlier attempt whose response was lost, or None."""
        found = self._client.search_runs([experiment_id], f"tags.`{START_TAG}` = '{self._opened_by}'", max_results=1)
        return found[0].info.run_id if found else None


_OTHER: Mapping[str, Callable[[MlflowRun, Record], None]] = {
    "start": MlflowRun._log_start,
    "table": MlflowRun._log_table,
    "dataset": MlflowRun._log_dataset,
    "tags": MlflowRun._log_tags,
    "file": MlflowRun._log_file,
    "folder": MlflowRun._log_folder,
    "model_version": MlflowRun._log_model_version,
    "evaluated": MlflowRun._log_evaluated,
    "block": MlflowRun._log_block,
    "running": MlflowRun._log_running,
    "end": MlflowRun._log_end,
}


def start_record(config: RunConfig, number: int, more_tags: Mapping[str, str]) -> Record:
    """Return the record of a run's start with this number: config, versions and commit, without secrets."""
    tags = {STARTS_TAG: str(number), **version_tags(), MLFLOW_GIT_COMMIT: git_commit(), **more_tags}
    tree = masked_tree(config.model_dump(mode="json"))
    return {"kind": "start", "number": number, "config": tree, "tags": tags, "time_ms": int(time.time() * 1000)}


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Flatten `{"a": {"b": [1]}}` to `{"a.b": "[1]"}`; empty sections become "{}"."""
    flat: dict[str, str] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{name}.")
        else:
            flat[name] = value if isinstance(value, str) else json.dumps(value)
    return flat


def table_json(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows in the JSON that MLflow shows as a table; missing values and NaN become null."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    return json.dumps({"columns": columns, "data": [[_cell(row.get(key)) for key in columns] for row in rows]})


def _cell(value: Any) -> Any:  # noqa: ANN401
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


@contextmanager
def _store_errors() -> Iterator[None]:
    """Convert errors of the store, the network and file stores to StoreError."""
    try:
        yield
    except (MlflowException, OSError, *_other_errors()) as error:
        raise StoreError(_in_short(error), status=_status(error)) from error


def _other_errors() -> tuple[type[Exception], ...]:
    loaded = ((sys.modules[name], classes) for name, classes in _OTHER_ERRORS.items() if name in sys.modules)
    return tuple(getattr(module, name) for module, classes in loaded for name in classes)


def _status(error: BaseException) -> int:
    """Return the HTTP status of an error; 500 if there was no response at all."""
    if isinstance(error, MlflowException):
        return error.get_http_status_code()
    response = getattr(error, "response", None)  # of requests.HTTPError, raised by file transfers
    return getattr(response, "status_code", 500)


def _in_short(error: BaseException) -> str:
    said = str(error).partition("[SQL:")[0]  # SQLAlchemy adds the statement and all of its values
    text = masked_url(" ".join(said.split())) or type(error).__name__
    if "database or disk is full" in text:
        text += "; free space on the disk of the store"
    return text if len(text) <= 240 else f"{text[:120]} … {text[-119:]}"


@contextmanager
def _time_for_an_upload() -> Iterator[None]:
    before = os.environ[TIMEOUT_VARIABLE]
    os.environ[TIMEOUT_VARIABLE] = str(max(UPLOAD_TIMEOUT_S, int(before)))
    try:
        yield
    finally:
        os.environ[TIMEOUT_VARIABLE] = before
