"""Records that runs could not upload to their tracking server: where they are kept, and how to upload them later."""

from __future__ import annotations

import json
import shlex
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from rlsys import env
from rlsys.errors import UserError
from rlsys.files import rename_synced, write_whole
from rlsys.tracking.mlflow_store import MlflowRun
from rlsys.tracking.spool import POSITION_FILE, Spool, read_records, segment_files
from rlsys.tracking.store_address import sqlite_file, sqlite_uri
from rlsys.tracking.uploader import REFUSED_FILE, ROWS_FOLDER, Patience, StoreError, Uploader
from rlsys.urls import MASK, masked_url

FOLDER = "tracking"
FILES_FOLDER = "files"
ADDRESS_FILE = "address.json"
NEW_RUN_FILE = "new_run"
MOVED = ".moved"
"""Suffix of the file that names the run which replaces another one."""


class UnsentError(UserError):
    """There is nothing to upload, or the upload failed; the message says which."""


def spool_folder(run_folder: Path, run_id: str) -> Path:
    """Return the folder of a run's spool."""
    return Path(run_folder) / FOLDER / run_id


@dataclass(frozen=True, kw_only=True)
class Address:
    """The destination of the records in a spool: a store, and the settings with which a run is created there."""

    uri: str
    experiment: str
    run_name: str

    def write(self, folder: Path) -> None:
        """Write the address into a spool's folder, without secrets."""
        write_whole(folder / ADDRESS_FILE, json.dumps(asdict(self) | {"uri": masked_url(self.uri)}) + "\n")

    @classmethod
    def read(cls, folder: Path, uri: str | None) -> Address:
        """Read the address of a spool. uri: replaces the stored one, which lacks its secrets."""
        kept = {"experiment": "rlsys", "run_name": folder.name, **json.loads((folder / ADDRESS_FILE).read_text())}
        uri = uri or (env.read("MLFLOW_TRACKING_URI") if MASK in kept["uri"] else None) or kept["uri"]
        own, path = folder.parents[1] / "mlflow.db", sqlite_file(uri)
        if path and path.name == own.name and own.exists() and not path.exists():
            uri = sqlite_uri(own)  # the run's folder was moved
        if MASK in uri:
            raise UnsentError(
                f"{folder}: belongs to {uri}, whose password is not stored on disk; give the full URI with --uri or "
                "in MLFLOW_TRACKING_URI."
            )
        return cls(**kept | {"uri": uri})


def current_id(run_folder: Path, run_id: str) -> str:
    """Return the present id of the MLflow run `run_id`: another one if the run had to be recreated."""
    while (moved := spool_folder(run_folder, f"{run_id}{MOVED}")).exists():
        run_id = moved.read_text().strip()
    return run_id


def send_command(run_folder: Path) -> str:
    """Return the command that uploads the records of a run."""
    return f"rlsys tracking send {shlex.quote(str(run_folder))}"


def send(
    run_folder: Path, patience: Patience, uri: str | None = None, *, is_all_sent_again: bool = False
) -> Iterator[str]:
    """Upload the pending and the rejected records in a run's folder; yield a line for each MLflow run.

    A run that its store has lost is recreated in full, under another id.
    uri: the server's address if it has moved.  is_all_sent_again: upload acknowledged records as well, for a store that
    was restored from an older copy. Raises UnsentError if records remain.
    """
    addresses = sorted(Path(run_folder).glob(f"{FOLDER}/*/{ADDRESS_FILE}"), key=lambda path: path.stat().st_mtime)
    if not addresses:
        raise UnsentError(f"{run_folder}: no records of a run in {Path(run_folder) / FOLDER}; give a run's output_dir.")
    left = []
    for file in addresses:
        address = Address.read(file.parent, uri)
        folder, is_new, unknown = _with_run(file.parent, address)
        if is_new:
            yield f"MLflow run {file.parent.name} is not in {masked_url(address.uri)}; recreated as {folder.name}"
        if is_all_sent_again and not is_new:
            _forget_receipts(folder)
        number, unsent, problem = _send_run(folder, address.uri, patience)
        if unknown and not number and not unsent:  # no record has shown whether the store is there
            left.append(f"{folder}: {masked_url(address.uri)} does not say whether it has the run ({unknown})")
            continue
        yield f"MLflow run {folder.name}: uploaded {number} records"
        if unsent or problem:
            left.append(f"{folder}: {unsent} records remain ({problem})")
    if left:
        raise UnsentError("\n".join(left))


def _with_run(folder: Path, address: Address) -> tuple[Path, bool, str]:
    """Return the spool's folder, whether the store lost the run, so that the folder has a new run's id, and why that
    is not known, "" if it is.
    """
    Spool(folder).close()  # raises while the run is in progress
    try:
        if not MlflowRun(address.uri, folder.name).is_lost():
            return folder, False, ""
        run = MlflowRun(address.uri, opened_by=_name_of_new_run(folder))
        run.create(address.experiment, address.run_name, _started_ms(folder))
    except StoreError as error:  # unreachable or broken: the upload reports that after some attempts
        return folder, False, str(error)
    # before the new id is known here: once it is, the next attempt continues after what was acknowledged
    _forget_receipts(folder)
    write_whole(folder.with_name(f"{folder.name}{MOVED}"), f"{run.run_id}\n")
    new = folder.with_name(run.run_id)
    rename_synced(folder, new)
    (new / REFUSED_FILE).unlink(missing_ok=True)  # they are in the spool too, and are sent again with the rest
    (new / NEW_RUN_FILE).unlink(missing_ok=True)
    return new, True, ""


def _name_of_new_run(folder: Path) -> str:
    """Return a name by which a later attempt finds the run that this one creates, if it dies before it knows the id."""
    file = folder / NEW_RUN_FILE
    if not file.exists():
        write_whole(file, uuid.uuid4().hex)
    return file.read_text()


def _forget_receipts(folder: Path) -> None:
    """Make all records of a spool wait again."""
    (folder / POSITION_FILE).unlink(missing_ok=True)
    shutil.rmtree(folder / ROWS_FOLDER, ignore_errors=True)  # collected again from the spool


def _started_ms(folder: Path) -> int | None:
    """Return when the run of a spool started, None if that is not recorded."""
    for segment in segment_files(folder):
        for record, _ in read_records(segment):
            if record is not None and record["kind"] == "start":
                return record.get("time_ms")
    return None


def _send_run(folder: Path, uri: str, patience: Patience) -> tuple[int, int, str]:
    """Upload a run's records; return how many were uploaded, how many remain, and why."""
    spool = Spool(folder)
    try:
        _readmit(spool, folder / REFUSED_FILE)
        number = spool.num_waiting
        if not number and not any((folder / ROWS_FOLDER).glob("*")):
            return 0, 0, ""
        spool.append({"kind": "flush"})
        uploader = Uploader(spool, MlflowRun(uri, folder.name), folder, patience)
        if uploader.close() and not uploader.num_refused:
            return number, 0, ""
        left = spool.num_waiting + uploader.num_refused
        return max(0, number + 1 - left), left, uploader.last_error
    finally:
        spool.close()


def _readmit(spool: Spool, refused: Path) -> None:
    if refused.exists():
        for record, _ in read_records(refused):
            if record is not None:
                spool.append(record)
        refused.unlink()
