"""What runs could not send to their tracking server: where it waits, and sending it later."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

from rlsys.errors import UserError
from rlsys.files import write_whole
from rlsys.tracking.mlflow_store import MlflowRun
from rlsys.tracking.spool import Spool, read_records
from rlsys.tracking.uploader import REFUSED_FILE, Patience, Sender

FOLDER = "tracking"
FILES_FOLDER = "files"
ADDRESS_FILE = "address.json"


class UnsentError(UserError):
    """There is nothing to send, or it could not be sent; the message says which."""


def spool_folder(run_folder: Path, run_id: str) -> Path:
    """Where records of a run wait."""
    return Path(run_folder) / FOLDER / run_id


def put_address(folder: Path, uri: str) -> None:
    """Note where the records in a spool's folder go."""
    write_whole(folder / ADDRESS_FILE, json.dumps({"uri": uri}) + "\n")


def send_command(run_folder: Path) -> str:
    """What a person types to have them sent."""
    return f"rlsys tracking send {run_folder}"


def send(run_folder: Path, patience: Patience, uri: str | None = None) -> Iterator[str]:
    """Send what waits in a run's folder, refused records too; a line for each MLflow run.

    uri: where to, when the server has moved. Raises UnsentError when something is left.
    """
    addresses = sorted(Path(run_folder).glob(f"{FOLDER}/*/{ADDRESS_FILE}"), key=lambda path: path.stat().st_mtime)
    if not addresses:
        raise UnsentError(
            f"{run_folder}: no records of a run in {Path(run_folder) / FOLDER}; give a run's output folder."
        )
    left = []
    for address in addresses:
        number, unsent, problem = _send_run(address.parent, uri or json.loads(address.read_text())["uri"], patience)
        yield f"MLflow run {address.parent.name}: sent {number} records"
        if unsent or problem:
            left.append(f"{address.parent}: {unsent} records are left ({problem})")
    if left:
        raise UnsentError("\n".join(left))


def _send_run(folder: Path, uri: str, patience: Patience) -> tuple[int, int, str]:
    """Records sent, records left, and why."""
    spool = Spool(folder)
    try:
        _readmit(spool, folder / REFUSED_FILE)
        number = spool.num_waiting
        if not number and not any((folder / "rows").glob("*")):
            return 0, 0, ""
        spool.append({"kind": "flush"})
        sender = Sender(spool, MlflowRun(uri, folder.name), folder, patience)
        is_done = sender.close()
        if is_done and not sender.num_refused:
            shutil.rmtree(folder / FILES_FOLDER, ignore_errors=True)
            return number, 0, ""
        left = spool.num_waiting + sender.num_refused
        return max(0, number + 1 - left), left, sender.last_error
    finally:
        spool.close()


def _readmit(spool: Spool, refused: Path) -> None:
    if refused.exists():
        for record, _ in read_records(refused):
            if record is not None:
                spool.append(record)
        refused.unlink()


def require_sent(run_folder: Path, output_dir: Path) -> None:
    """Raises UnsentError when a run that goes on in another folder left records in its own.

    They would come behind those of the steps that it repeats, and be there twice.
    """
    if Path(run_folder).resolve() == Path(output_dir).resolve():
        return
    for address in Path(run_folder).glob(f"{FOLDER}/*/{ADDRESS_FILE}"):
        spool = Spool(address.parent)
        num_waiting = spool.num_waiting
        spool.close()
        if num_waiting:
            raise UnsentError(
                f"{address.parent}: {num_waiting} records of this run wait for its tracking server, and output_dir is "
                f"another folder; send them first: {send_command(run_folder)}"
            )
