"""The record of a run in MLflow: config, versions, metrics, samples, tables, the model.

A run's records go to a spool in its folder, and from there to MLflow on a thread of their own. A step pays
for writing a line to a file and never for the store's disk or network; while a tracking server is away the
run continues, and its records are sent when the server is back, in order and once.
"""

from __future__ import annotations

import logging
import math
import os
import shutil
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_delay, wait_random_exponential

from rlsys.config.run import RunConfig
from rlsys.end_signals import end_on_signals, rearm
from rlsys.tracking.metrics import MetricNames
from rlsys.tracking.mlflow_store import MlflowRun, start_record, table_json
from rlsys.tracking.samples import choose_samples, verdict_rows
from rlsys.tracking.spool import Record, Spool
from rlsys.tracking.store_address import TrackingError, require_driver, store_uri
from rlsys.tracking.unsent import FILES_FOLDER, Address, current_id, send_command, spool_folder
from rlsys.tracking.uploader import Patience, StoreError, Uploader
from rlsys.types import ScoredGroup
from rlsys.urls import masked_url

log = logging.getLogger(__name__)

MAX_UNWRITTEN = 1000  # records that are kept in memory while the disk takes none
KILLED_CLOSE_S = 5.0  # a scheduler that ends a run by a signal does not wait long


class Tracker:
    """One MLflow run, open inside `with`.

    It ends FINISHED, FAILED on an error, and KILLED on Ctrl-C or a signal of `rlsys.end_signals`.

    run_id: continue this run instead of opening one. What an earlier process could not send goes first, and
    steps that are recorded already are not recorded again. Raises TrackingError when the store does not have it,
    or does not answer for `tracking.wait_s`.
    """

    def __init__(self, config: RunConfig, *, run_id: str | None = None, patience: Patience | None = None) -> None:
        self._config, self._folder = config, Path(config.output_dir)
        self._resumed_id = current_id(self._folder, run_id) if run_id else None
        self.uri = store_uri(config)
        self._patience = patience or Patience(close_s=config.tracking.wait_s)
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
        start = start_record(self._config, self._insist(store.next_start))
        self.run_id = store.run_id
        folder = spool_folder(self._folder, self.run_id)
        is_known_here = folder.exists()
        self._spool = Spool(folder)
        Address(uri=self.uri, experiment=self._config.tracking.experiment, run_name=self._run_name).write(folder)
        if self._resumed_id and not is_known_here:
            self._spool.last_steps["metrics"] = self._insist(store.last_step)
            self._spool.last_steps["rows"] = self._spool.last_steps["metrics"]
        if waiting := self._spool.num_waiting:
            log.info("%d records of this run were not sent yet and go first", waiting)
            self._spool.append({"kind": "running"})  # after the end that an earlier process recorded
        self._spool.append(start)
        self._uploader = Uploader(self._spool, store, folder, self._patience)
        self._uploader.wake()
        self._signals.enter_context(end_on_signals())
        rearm()
        log.info("MLflow run %s in %s", self.run_id, masked_url(self.uri))
        log.info("look at it: %s", self.how_to_open)
        return self

    @property
    def how_to_open(self) -> str:
        """The address or command that shows the runs of this store."""
        uri = masked_url(self.uri)
        return (
            uri
            if uri.startswith("http")
            else f"{Path(sys.executable).with_name('mlflow')} ui --backend-store-uri {uri}"
        )

    @property
    def _run_name(self) -> str:
        return self._config.tracking.run_name or self._folder.resolve().name

    @property
    def num_unsent(self) -> int:
        """Records that the store has not taken yet."""
        return self._spool.num_waiting + len(self._unwritten)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._signals.close()
        status = status_of(error)
        message = f"{type(error).__name__}: {error}"[:5000] if status == "FAILED" else ""
        try:
            self._put({"kind": "end", "status": status, "error": message, "time_ms": _now_ms()})
            self._close(KILLED_CLOSE_S if status == "KILLED" else None)
        except OSError:
            if error is None:
                raise
            log.exception("a part of the run's record is lost")  # the run's own error matters more
        finally:
            self._spool.close()

    def log_step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Metrics of one step, all or none; a step that is recorded already is left as it is.

        NaN and infinities are skipped and counted in `perf/nonfinite_metrics`.
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
                log.warning("step %d: not a finite number and not sent to MLflow: %s", step, ", ".join(new))
        # the time is part of what tells a point from its repetition, so it is set here once and for all
        self._put({"kind": "metrics", "step": step, "time_ms": _now_ms(), "values": finite})

    def log_samples(self, step: int, groups: Sequence[ScoredGroup]) -> None:
        """Keep `tracking.samples_per_step` responses, and every verdict of the judge.

        They reach MLflow every ten steps: samples as a table, verdicts as JSON lines under `verdicts/`.
        """
        if self._is_recorded("rows", step):
            return
        samples = choose_samples(step, groups, self._config.tracking.samples_per_step)
        verdicts = verdict_rows(step, groups)
        if samples or verdicts:
            self._put({"kind": "rows", "step": step, "samples": samples, "verdicts": verdicts})

    def log_table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """A table artifact `tables/NAME.json`; columns are the union of the rows' keys, in order of appearance."""
        self._put({"kind": "table", "name": f"tables/{name}.json", "text": table_json(rows)})

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Keep the file as it is now among the run's artifacts, under `folder`."""
        target = self._file_place() / Path(path).name
        shutil.copyfile(path, target)
        self._put({"kind": "file", "path": self._relative(target), "folder": folder})

    def log_model_folder(self, path: Path) -> None:
        """Keep a model folder as the artifact folder `model`. Its files may be removed later, but not rewritten."""
        target = self._file_place() / "model"
        shutil.copytree(path, target, copy_function=_link_or_copy)
        self._put({"kind": "folder", "path": self._relative(target), "folder": "model"})

    def sync(self) -> None:
        """Bring all records to the disk: for a checkpoint, after which their steps are not run again."""
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
                remedy = f"; make the run anew from its record: {send_command(self._folder)}"
            raise TrackingError(f"MLflow store {masked_url(self.uri)}: {error}{remedy}") from error

    def _say_waiting(self, state: RetryCallState) -> None:
        if state.attempt_number == 1 and state.outcome:
            log.warning(
                "MLflow %s does not answer (%s); tried again for %.0f s (tracking.wait_s)",
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
            log.info("steps %d to %d are in the record already and are not recorded again", step, last)
        return True

    def _put(self, record: Record) -> None:
        self._unwritten.append(record)
        try:
            while self._unwritten:
                self._spool.append(self._unwritten[0])
                self._unwritten.popleft()
        except OSError as error:
            if len(self._unwritten) > MAX_UNWRITTEN:
                raise
            if "disk" not in self._warned:
                self._warned.add("disk")
                log.warning("the record cannot be written and is kept in memory for now: %s", error)
        if record["kind"] != "end":
            self._uploader.check()
        self._uploader.wake()

    def _close(self, close_s: float | None) -> None:
        folder = spool_folder(self._folder, self.run_id)
        self._uploader.close(close_s)
        if self._unwritten:
            raise OSError(f"{len(self._unwritten)} records of the run could not be written to {folder}")
        if self._spool.num_waiting:
            log.warning(
                "MLflow %s did not take %d records of this run (%s). They wait in %s; send them with: %s",
                masked_url(self.uri),
                self._spool.num_waiting,
                self._uploader.last_error,
                folder,
                send_command(self._folder),
            )
        elif self._uploader.num_refused:
            log.warning("%d refused records are in %s", self._uploader.num_refused, folder)

    def _file_place(self) -> Path:
        """A new folder for a copy that waits to be sent."""
        folder = spool_folder(self._folder, self.run_id) / FILES_FOLDER
        while (place := folder / f"{self._num_files:06d}").exists():
            self._num_files += 1
        place.mkdir(parents=True)
        return place

    def _relative(self, path: Path) -> str:
        return str(path.relative_to(spool_folder(self._folder, self.run_id)))


def status_of(error: BaseException | None) -> str:
    """MLflow's word for how a run ended."""
    if error is None or (isinstance(error, SystemExit) and not error.code):
        return "FINISHED"
    return "KILLED" if isinstance(error, KeyboardInterrupt | SystemExit) else "FAILED"


def _link_or_copy(source: str, target: str) -> None:
    # a checkpoint's files are never rewritten, so a second name keeps them without their room on the disk
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)


def _now_ms() -> int:
    return int(time.time() * 1000)
