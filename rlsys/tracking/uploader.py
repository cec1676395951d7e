"""Upload a spool's records to the tracking server on a separate thread, retrying as long as necessary."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol

from tenacity import RetryCallState, Retrying, retry_if_exception, wait_random_exponential

from rlsys.tracking.sample_buffer import STEPS_PER_FILE, SampleBlock, SampleBuffer, block_of
from rlsys.tracking.spool import Record, Spool, encode

log = logging.getLogger(__name__)

MAX_METRICS_PER_CALL = 1000  # MLflow's own limit
REFUSED_FILE = "refused.jsonl"
ROWS_FOLDER = "rows"
STEP_KINDS = ("metrics", "rows")


class StoreError(Exception):
    """The store did not accept a call. status: the HTTP status; 500 if there was no response at all."""

    def __init__(self, message: str, *, status: int) -> None:
        super().__init__(message)
        self.status = status
        self.is_refusal = status in (400, 413, 422)
        """Whether the record itself is invalid, so that it would not be accepted later either."""
        self.is_away = status >= 500 or status in (408, 429)
        """Whether the store may accept it later. If neither holds, a person must act (a token, a deleted run)."""


class Store(Protocol):
    """The destination of records. Calls are idempotent. Raises StoreError."""

    uri: str

    def log_metrics(self, records: Sequence[Record]) -> None: ...
    def log_rows(self, block: SampleBlock) -> None: ...
    def log_other(self, record: Record) -> None: ...
    def is_there(self) -> bool:
        """Return whether the store responds now and has this run, not deleted."""


@dataclass(frozen=True, kw_only=True)
class Patience:
    """Time limits of the uploader, in seconds. No step of the run waits for any of them.

    close_s: after the end of the run, since the store last accepted a record.
    max_pause_s: longest pause between attempts while the store is unreachable; pauses are random and growing.
    blocked_s: time after which a failing record is set aside if the store accepts others.
    together_s: interval of uploads; short steps share one.
    """

    close_s: float = 60.0
    max_pause_s: float = 10.0
    blocked_s: float = 600.0
    together_s: float = 1.0


class _StoppedTrying(Exception):
    """The time limit for closing has passed."""


class Uploader:
    """Uploads what is appended to `spool` until it is closed. Errors of neither store nor disk surface at `check`."""

    def __init__(self, spool: Spool, store: Store, folder: Path, patience: Patience) -> None:
        self._spool, self._store, self._folder, self._patience = spool, store, Path(folder), patience
        self._blocks = SampleBuffer(self._folder / ROWS_FOLDER)
        self._wake, self._closing = threading.Event(), threading.Event()
        self._close_s = patience.close_s
        self._took_at = time.monotonic()  # when the store last accepted a record, or closing began
        self._acknowledged_at = self._took_at  # when records were last through with store and disk, or closing began
        self._away_since: float | None = None
        self.last_error = ""
        self.num_refused = 0
        self.is_disk_full = False
        """Whether records wait because rows could not be buffered, although the store may accept others."""
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="tracking")
        self._work: Future[None] = self._thread.submit(self._run)

    def wake(self) -> None:
        """Look for new records."""
        self._wake.set()

    def check(self) -> None:
        """Raise the error that ended the uploader, if there was one."""
        if self._work.done():
            self._work.result()

    def close(self, close_s: float | None = None) -> bool:
        """Upload the remaining records and return whether all were accepted.

        Gives up `close_s` seconds (None: the patience's) after the store last accepted a record. A call in progress is
        waited for, within its own timeout.
        """
        self._close_s = self._patience.close_s if close_s is None else close_s
        self._took_at = self._acknowledged_at = time.monotonic()
        self._closing.set()
        self._wake.set()
        try:
            self._thread.shutdown()
        except KeyboardInterrupt:
            self._close_s = 0.0  # else the thread would keep the process for as long as it was given
            raise
        self._work.result()
        return self._spool.num_waiting == 0

    def send_directly(self, records: Sequence[Record]) -> list[Record]:
        """Send records that the spool's disk did not take; return those that the store did not accept.

        For after `close`, whose time limit still holds.
        """
        left: list[Record] = []
        for together in _calls(records):
            try:
                if together[0]["kind"] == "end":
                    self._send_blocks(None)
                self._patiently(self._send_unspooled, together)
            except (_StoppedTrying, StoreError, OSError) as error:  # the last of setting aside what was rejected
                self.last_error = str(error) or self.last_error
                left += together
        return left

    def send_waiting_directly(self) -> None:
        """Send what waits in the spool without buffering rows on its disk, which takes no more. For after `close`."""
        while records := self._spool.waiting():
            if self.send_directly(records):
                return
            self._spool.acknowledge(len(records))

    def _send_unspooled(self, records: Sequence[Record]) -> None:
        kind = records[0]["kind"]
        if kind == "metrics":
            self._store.log_metrics(records)
        elif kind == "rows":
            self._store.log_rows(block_of(records))
        else:
            self._store.log_other(self._with_whole_path(records[0]))

    def _run(self) -> None:
        is_last = False
        while not is_last:
            self._wake.wait()
            self._wake.clear()
            is_last = self._closing.is_set()
            try:
                while records := self._spool.waiting():
                    self._spool.sync()  # what was sent must not be lost here, or it would be sent again as new
                    self._send(first_group(records))
            except _StoppedTrying:
                return
            except OSError as error:  # of the disk, on which rows wait; the store's are StoreErrors
                # not since the store accepted one: it accepts the metrics of these steps each time
                if self._closing.is_set() and time.monotonic() - self._acknowledged_at > self._close_s:
                    self.last_error, self.is_disk_full = str(error), True
                    return
                self._log_disk(error)
                self._wake.set()
                is_last = False
                self._sleep(self._patience.max_pause_s)
            self._closing.wait(self._patience.together_s)

    def _send(self, group: Sequence[Record]) -> None:
        metrics = [record for record in group if record["kind"] == "metrics"]
        rows = [record for record in group if record["kind"] == "rows"]
        if metrics:
            self._send_metrics(metrics)
        for _, of_block in groupby(rows, key=lambda record: record["step"] // STEPS_PER_FILE):
            together = list(of_block)
            self._send_blocks(together[0]["step"])
            self._blocks.add(together)
        if group[0]["kind"] not in STEP_KINDS:
            self._send_other(group[0])
        self._spool.acknowledge(len(group))
        self._acknowledged_at = time.monotonic()

    def _send_metrics(self, records: Sequence[Record]) -> None:
        try:
            self._patiently(self._store.log_metrics, records)
        except StoreError as error:
            if len(records) == 1:
                self._set_aside(records[0], error)
                return
            for record in records:
                self._send_metrics([record])

    def _send_blocks(self, step: int | None) -> None:
        for block in self._blocks.complete(step):
            try:
                self._patiently(self._store.log_rows, block)
            except StoreError as error:
                self._set_aside({"kind": "block", "samples": block.samples, "verdicts": block.verdicts}, error)
            block.forget()

    def _send_other(self, record: Record) -> None:
        if record["kind"] in ("flush", "end"):
            self._send_blocks(None)
        if record["kind"] == "flush":
            return
        try:
            self._patiently(self._store.log_other, self._with_whole_path(record))
        except StoreError as error:
            self._set_aside(record, error)

    def _with_whole_path(self, record: Record) -> Record:
        return {**record, "path": str(self._folder / record["path"])} if "path" in record else record

    def _patiently(self, call: Callable[[Any], None], argument: Any) -> None:  # noqa: ANN401
        """Call until it succeeds. Raises StoreError only for a record that is to be set aside."""
        Retrying(
            retry=retry_if_exception(self._is_worth_another_try),
            wait=wait_random_exponential(multiplier=0.5, max=self._patience.max_pause_s),
            sleep=self._sleep,
            before_sleep=self._log_away,
            stop=self._is_blocked,
            reraise=True,
        )(call, argument)
        self._took_at = time.monotonic()
        if self._away_since is not None:
            log.info("MLflow %s is back after %.0f s", self._store.uri, self._took_at - self._away_since)
            self._away_since = None

    def _is_worth_another_try(self, error: BaseException) -> bool:
        # a deleted run rejects everything until it is restored
        return isinstance(error, StoreError) and not (error.is_refusal and self._store.is_there())

    def _is_blocked(self, state: RetryCallState) -> bool:
        if self._is_out_of_time:
            self._keep_error(state)
            raise _StoppedTrying
        blocked_s = state.seconds_since_start or 0.0
        return blocked_s > self._patience.blocked_s and self._store.is_there()

    @property
    def _is_out_of_time(self) -> bool:
        return self._closing.is_set() and time.monotonic() - self._took_at > self._close_s

    def _log_disk(self, error: OSError) -> None:
        if str(error) != self.last_error:
            self.last_error = str(error)
            log.warning("the run's record cannot be kept in %s (%s) and is uploaded later", self._folder, error)

    def _log_away(self, state: RetryCallState) -> None:
        self._keep_error(state)
        if self._away_since is None:
            self._away_since = time.monotonic()
            log.warning(
                "MLflow %s does not accept the run's record (%s); the run continues, its records are kept in %s",
                self._store.uri,
                self.last_error,
                self._folder,
            )

    def _keep_error(self, state: RetryCallState) -> None:
        self.last_error = str(state.outcome.exception() if state.outcome else "")

    def _sleep(self, seconds: float) -> None:
        if self._closing.is_set():
            time.sleep(min(seconds, 1.0, max(0.1, self._close_s / 4)))
        else:
            self._closing.wait(seconds)

    def _set_aside(self, record: Record, error: StoreError) -> None:
        self.num_refused += 1
        path = self._folder / REFUSED_FILE
        with path.open("ab") as file:
            file.write(encode(record))
        log.error(
            "MLflow %s rejected a %s record, which is kept in %s: %s", self._store.uri, record["kind"], path, error
        )


def _calls(records: Sequence[Record]) -> Iterator[Sequence[Record]]:
    """Yield the records that share a call: one each, but the rows of a block together; the end of the run is last."""
    rows, ends = ([record for record in records if record["kind"] == kind] for kind in ("rows", "end"))
    yield from ([record] for record in records if record["kind"] not in ("rows", "end", "flush"))
    for _, of_block in groupby(rows, key=lambda record: record["step"] // STEPS_PER_FILE):
        yield list(of_block)
    yield from ([record] for record in ends)


def first_group(records: Sequence[Record]) -> Sequence[Record]:
    """Return the first records that share a call: as many steps as its limit of metrics allows, or one other record."""
    num_metrics = 0
    for index, record in enumerate(records):
        num_metrics += len(record["values"]) if record["kind"] == "metrics" else 0
        if record["kind"] not in STEP_KINDS or num_metrics > MAX_METRICS_PER_CALL:
            return records[: max(1, index)]
    return records
