"""Record a run in MLflow: config, versions, metrics, samples, tables and the model.

Records are written to a spool in the run's folder and uploaded to MLflow by a separate thread. A step only
costs appending a line to a file, never the store's disk or network. While a tracking server is unreachable the
run continues; its records are uploaded when the server is back, in order and exactly once.
"""

from __future__ import annotations

import errno
import logging
import math
import os
import shlex
import shutil
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_delay, wait_random_exponential

from rlsys.config.run import RunConfig
from rlsys.end_signals import end_on_signals, rearm
from rlsys.files import DISK_ERRORS
from rlsys.tracking import registry
from rlsys.tracking.metrics import MetricNames
from rlsys.tracking.mlflow_store import MlflowRun, start_record, table_json
from rlsys.tracking.sample_rows import choose_samples, verdict_rows
from rlsys.tracking.spool import Record, Spool
from rlsys.tracking.store_address import TrackingError, require_driver, store_uri
from rlsys.tracking.unsent import FILES_FOLDER, Address, current_id, send_command, spool_folder
from rlsys.tracking.uploader import Patience, StoreError, Uploader
from rlsys.types import ScoredGroup
from rlsys.urls import masked_url

log = logging.getLogger(__name__)

MAX_UNWRITTEN = 1000  # records kept in memory while the disk cannot be written to
KILLED_CLOSE_S = 5.0  # a scheduler that stops a run by a signal does not wait long


class Tracker:
    """One MLflow run, open inside a `with` block.

    Its final status is FINISHED, FAILED after an error, or KILLED after Ctrl-C or a signal of `rlsys.end_signals`.

    run_id: continue this run instead of creating one. Records that an earlier process could not upload go first, and
    steps that are recorded already are not recorded again. tags: of the MLflow run, set at this start. Raises
    TrackingError if the store does not have the run
    or does not respond for `tracking.wait_s`.
    """

    def __init__(
        self,
        config: RunConfig,
        *,
        run_id: str | None = None,
        patience: Patience | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        self._config, self._folder = config, Path(config.output_dir)
        self._resumed_id = current_id(self._folder, run_id) if run_id else None
        self.uri = store_uri(config)
        self._patience = patience or Patience(close_s=config.tracking.wait_s)
        self._tags = tags or {}
        self._names = MetricNames()
        self._warned: set[str] = set()
        self._unwritten: deque[Record] = deque()
        self._num_files = 0
        self._signals = ExitStack()
        self._spool: Spool
        self._uploader: Uploader
        self.run_id: str

    def __enter__(self) -> Tracker:
        require_driver(self.uri)
        store = MlflowRun(self.uri, self._resumed_id or "")
        self._insist(lambda: self._open(store))
        start = start_record(self._config, self._insist(store.next_start), self._tags)
        self.run_id = store.run_id
        folder = spool_folder(self._folder, self.run_id)
        try:
            self._open_spool(folder, store, start)
        except OSError as error:
            named = OSError(error.errno, error.strerror, str(folder))
            with suppress(StoreError):
                store.log_other(_end_record("FAILED", str(named)))
            raise named from error
        self._uploader = Uploader(self._spool, store, folder, self._patience)
        self._uploader.wake()
        self._signals.enter_context(end_on_signals())
        rearm()
        log.info("MLflow run %s in %s", self.run_id, masked_url(self.uri))
        log.info("open it with: %s", self.how_to_open)
        return self

    def _open_spool(self, folder: Path, store: MlflowRun, start: Record) -> None:
        self._spool = Spool(folder)
        Address(uri=self.uri, experiment=self._config.tracking.experiment, run_name=self._run_name).write(folder)
        if self._resumed_id:  # without its spool, or after steps that the disk did not take and that were sent directly
            newest = self._insist(store.last_step)
            for kind in ("metrics", "rows"):
                self._spool.last_steps[kind] = max(newest, self._spool.last_steps.get(kind, 0))
        if waiting := self._spool.num_waiting:
            log.info("%d records of this run were not uploaded yet and go first", waiting)
            self._spool.append({"kind": "running"})  # an earlier process recorded an end
        self._spool.append(start)

    @property
    def how_to_open(self) -> str:
        """The URL or the command that shows the runs of this store."""
        uri = masked_url(self.uri)
        return (
            uri
            if uri.startswith("http")
            else f"{Path(sys.executable).with_name('mlflow')} ui --backend-store-uri {shlex.quote(uri)}"
        )

    @property
    def _run_name(self) -> str:
        return self._config.tracking.run_name or self._folder.resolve().name

    @property
    def num_unsent(self) -> int:
        """Number of records that have not been uploaded yet."""
        return self._spool.num_waiting + len(self._unwritten)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._signals.close()
        status = status_of(error)
        message = f"{type(error).__name__}: {error}"[:5000] if status == "FAILED" else ""
        try:
            self._put(_end_record(status, message))
            self._close(KILLED_CLOSE_S if status == "KILLED" else None)
        except (OSError, TrackingError) as lost:
            if error is None:
                raise
            log.error("part of the run's record is lost: %s", lost)  # the run's own error matters more
        finally:
            self._spool.close()

    def log_step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record the metrics of one step, all or none; a step that is recorded already is not changed.

        NaN and infinite values are skipped and counted in `perf/nonfinite_metrics`.
        """
        self._names.add(metrics)
        if self._is_recorded("metrics", step):
            return
        finite = {name: float(value) for name, value in metrics.items() if math.isfinite(value)}
        missing = sorted(metrics.keys() - finite.keys())
        if missing:
            finite["perf/nonfinite_metrics"] = float(len(missing))
            if new := [name for name in missing if name not in self._warned]:
                self._warned.update(new)
                log.warning("step %d: skipped metrics that are not finite: %s", step, ", ".join(new))
        # the timestamp is part of a point's identity, so it is fixed here for all repeated uploads
        self._put({"kind": "metrics", "step": step, "time_ms": _now_ms(), "values": finite})

    def log_samples(self, step: int, groups: Sequence[ScoredGroup]) -> None:
        """Record `tracking.samples_per_step` responses, and every verdict of the judge.

        They are uploaded every ten steps: samples as a table, verdicts as JSON lines under `verdicts/`.
        """
        if self._is_recorded("rows", step):
            return
        samples = choose_samples(step, groups, self._config.tracking.samples_per_step)
        verdicts = verdict_rows(step, groups)
        if samples or verdicts:
            self._put({"kind": "rows", "step": step, "samples": samples, "verdicts": verdicts})

    def log_table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Record a table as the artifact `tables/NAME.json`; its columns are all keys of the rows, in order."""
        self._put({"kind": "table", "name": f"tables/{name}.json", "text": table_json(rows)})

    def log_dataset(self, name: str, digest: str, uri: str, num_rows: int, context: str) -> None:
        """Record a data set as an input of the run. digest: of its file.  context: "training" or "evaluation"."""
        record = {"kind": "dataset", "name": name, "digest": digest[:36], "uri": uri, "num_rows": num_rows}
        self._put({**record, "context": context})

    def log_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags of the run; one that is set already gets the new value."""
        self._put({"kind": "tags", "tags": dict(tags)})

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Record a copy of the file as an artifact of the run, under `folder`."""
        with self._file_place() as place:
            target = place / Path(path).name
            shutil.copyfile(path, target)
        self._put({"kind": "file", "path": self._relative(target), "folder": folder})

    def log_model_folder(self, path: Path, folder: str = "model") -> None:
        """Record a model folder as an artifact folder. Its files may be deleted later but not rewritten."""
        with self._file_place() as place:
            target = place / "model"
            shutil.copytree(path, target, copy_function=_link_or_copy)
        self._put({"kind": "folder", "path": self._relative(target), "folder": folder})

    def log_model_version(
        self, name: str, path: Path, *, step: int, weights_digest: str, figures: Mapping[str, float]
    ) -> None:
        """Record a model folder as `models/step_N` and register it as a version of the model `name`.

        figures: of its evaluations, which become tags of the version. Weights that this run has registered under the
        name already are not registered again.
        """
        folder = f"models/step_{step:06d}"
        self.log_model_folder(path, folder)
        weights = registry.weights_tags(step, weights_digest)
        record = {"kind": "model_version", "name": name, "folder": folder, "weights": weights}
        self._put({**record, "tags": _as_tags(figures)})

    def log_evaluated(
        self, run_id: str, *, step: int, weights_digest: str, figures: Mapping[str, float], report: str
    ) -> None:
        """Link this run, an evaluation of the run `run_id`, to the registered versions of the evaluated weights.

        Each version gets the figures as tags, and one that names this run and the artifact `report`. Without a version
        nothing happens.
        """
        weights = registry.weights_tags(step, weights_digest)
        record = {"kind": "evaluated", "run_id": run_id, "weights": weights, "report": report}
        self._put({**record, "tags": _as_tags(figures)})

    def sync(self) -> None:
        """Flush all records to disk; needed before a checkpoint, after which their steps are not repeated.

        Raises OSError if the disk does not take them.
        """
        self._write()
        self._spool.sync()

    def _open(self, store: MlflowRun) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        if self._resumed_id:
            store.resume()
        elif not store.run_id:
            store.create(self._config.tracking.experiment, self._run_name)

    def _insist(self, call: Callable[[], Any]) -> Any:  # noqa: ANN401
        wait_s = self._patience.close_s if self.uri.startswith("http") else 0.0
        try:
            return Retrying(
                retry=retry_if_exception(lambda error: isinstance(error, StoreError) and error.is_away),
                wait=wait_random_exponential(multiplier=0.5, max=self._patience.max_pause_s),
                stop=stop_after_delay(wait_s),
                before_sleep=self._say_waiting,
                reraise=True,
            )(call)
        except StoreError as error:
            remedy = ""
            if self._resumed_id and error.status == 404 and spool_folder(self._folder, self._resumed_id).exists():
                remedy = f"; recreate the run from its local record: {send_command(self._folder)}"
            raise TrackingError(f"MLflow store {masked_url(self.uri)}: {error}{remedy}") from error

    def _say_waiting(self, state: RetryCallState) -> None:
        if state.attempt_number == 1 and state.outcome:
            log.warning(
                "MLflow %s does not respond (%s); retrying for %.0f s (tracking.wait_s)",
                masked_url(self.uri),
                state.outcome.exception(),
                self._patience.close_s,
            )

    def _is_recorded(self, kind: str, step: int) -> bool:
        last = self._spool.last_steps.get(kind)
        if last is None or step > last:
            return False
        if "repeated" not in self._warned:
            self._warned.add("repeated")
            log.info("steps %d to %d are recorded already and are not recorded again", step, last)
        return True

    def _put(self, record: Record) -> None:
        self._unwritten.append(record)
        try:
            self._write()
        except OSError as error:
            if len(self._unwritten) > MAX_UNWRITTEN:
                raise
            if "disk" not in self._warned:
                self._warned.add("disk")
                log.warning("the run's record cannot be written to disk and is kept in memory: %s", error)
        if record["kind"] != "end":
            self._uploader.check()
        self._uploader.wake()

    def _write(self) -> None:
        while self._unwritten:
            self._spool.append(self._unwritten[0])
            self._unwritten.popleft()

    def _close(self, close_s: float | None) -> None:
        folder = spool_folder(self._folder, self.run_id)
        self._uploader.close(close_s)
        if self._uploader.is_disk_full:
            self._uploader.send_waiting_directly()
        if self._unwritten:
            num_unwritten = len(self._unwritten)
            self._unwritten = deque(self._uploader.send_directly(self._unwritten))
            log.warning(
                "%s: %d records could not be written; %d of them are in MLflow alone",
                folder,
                num_unwritten,
                num_unwritten - len(self._unwritten),
            )
            self._keep_or_lose(folder)
        if num_unsent := self.num_unsent:
            log.warning(
                "MLflow %s did not accept %d records of this run (%s). They are kept in %s; upload them with: %s",
                masked_url(self.uri),
                num_unsent,
                self._uploader.last_error,
                folder,
                send_command(self._folder),
            )
        elif self._uploader.num_refused:
            log.warning("%d rejected records are in %s", self._uploader.num_refused, folder)

    def _keep_or_lose(self, folder: Path) -> None:
        """Write what the store did not accept either, in case that there is room by now."""
        try:
            self._write()
        except OSError as error:
            raise TrackingError(
                f"{folder}: {len(self._unwritten)} records of the run could not be written ({error.strerror}) or sent "
                f"to MLflow {masked_url(self.uri)} ({self._uploader.last_error}) and are lost; free space there and "
                "resume the run."
            ) from error

    @contextmanager
    def _file_place(self) -> Iterator[Path]:
        """Yield a new folder for a copy that is to be uploaded. No incomplete copy is left."""
        folder = spool_folder(self._folder, self.run_id) / FILES_FOLDER
        while (place := folder / f"{self._num_files:06d}").exists():
            self._num_files += 1
        place.mkdir(parents=True)
        try:
            yield place
        except OSError as error:
            shutil.rmtree(place, ignore_errors=True)
            if isinstance(error, shutil.Error):  # of several files: (source, target, text) each
                raise OSError(errno.EIO, f"{error.args[0][0][0]} could not be copied: {error.args[0][0][2]}") from error
            if error.errno in DISK_ERRORS:  # says the source, or nothing
                raise OSError(error.errno, error.strerror, str(place)) from error
            raise

    def _relative(self, path: Path) -> str:
        return str(path.relative_to(spool_folder(self._folder, self.run_id)))


def status_of(error: BaseException | None) -> str:
    """Return MLflow's status of a run that ended with this error."""
    if error is None or (isinstance(error, SystemExit) and not error.code):
        return "FINISHED"
    return "KILLED" if isinstance(error, KeyboardInterrupt | SystemExit) else "FAILED"


def _end_record(status: str, error: str) -> Record:
    return {"kind": "end", "status": status, "error": error, "time_ms": _now_ms()}


def _as_tags(figures: Mapping[str, float]) -> dict[str, str]:
    return {name: f"{value:.6g}" for name, value in figures.items() if math.isfinite(value)}


def _link_or_copy(source: str, target: str) -> None:
    # a checkpoint's files are never rewritten, so a hard link keeps them without using disk space
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)


def _now_ms() -> int:
    return int(time.time() * 1000)
