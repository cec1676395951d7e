"""Checkpoints that are written atomically.

A checkpoint is written to a temporary folder `.tmp-…`, flushed to disk, and renamed to `step_000050`;
only then is the file `latest` updated, and only then are older checkpoints removed. Whenever the
process dies, `find` returns a complete checkpoint: the new one or the one before.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from rlsys.errors import CheckpointError
from rlsys.files import UNFINISHED, aside, free_files, rename_synced, require_regular, sync_tree, write_whole
from rlsys.loop.state import RunState
from rlsys.runs.records.checkpoint_manifest import CheckpointDamaged, verify, write_manifest

log = logging.getLogger(__name__)

STATE_FILE = "state.json"
LATEST_FILE = "latest"
BEST_FILE = "best.json"
FORMAT = 2


@dataclass(frozen=True, kw_only=True)
class Best:
    """The checkpoint that an evaluation found best. metric: as `evaluation.best` names it; higher is better."""

    step: int
    metric: str
    value: float


class Checkpoints:
    """The checkpoints of one run. One writer at a time.

    folder: must be visible to all learner ranks under the same path if `write` has them write.
    keep: number of the most recent checkpoints to keep. The best one is kept as well, see `mark_best`.
    """

    def __init__(self, folder: Path, *, keep: int) -> None:
        if keep < 1:
            raise ValueError(f"checkpoint.keep={keep}: the newest checkpoint must be kept; use 1 or more.")
        self._folder, self._keep = Path(folder), keep

    def save(self, state: RunState, write: Callable[[Path], str | None], *, num_bytes: int = 0) -> Path:
        """Write a checkpoint and return its folder. `write` puts its files into the empty folder it is given.

        `write` may return the digest of the weights that it wrote, which is used if the state has none.
        num_bytes: estimated size, used only if there is no earlier checkpoint to estimate from.
        Raises OSError at once if the disk lacks the space or the inodes. If writing fails later, the partial
        checkpoint is removed, earlier checkpoints are untouched, and the error propagates.
        """
        name = f"step_{state.step:06d}"
        final = self._folder / name
        new = aside(final)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._remove_unfinished()
        self._require_room(num_bytes)
        try:
            new.mkdir()
            digest = write(new)
            state = replace(state, weights_digest=state.weights_digest or digest or "")
            if (new / STATE_FILE).exists():
                raise ValueError(f"`write` created {STATE_FILE}, a name that is reserved for the run's state.")
            (new / STATE_FILE).write_text(json.dumps({"format": FORMAT, **asdict(state)}, indent=2) + "\n")
            write_manifest(new, step=state.step, run_id=state.mlflow_run_id)
            sync_tree(new)
        except Exception:
            with suppress(OSError):
                self._remove_unfinished()
            raise
        if final.exists():  # a run that rolled back reaches the same step again
            old = self._folder / f".old-{name}"
            if old.exists():
                self._discard(old)
            os.rename(final, old)
        rename_synced(new, final)
        write_whole(self._folder / LATEST_FILE, name + "\n")
        self._remove_outdated(final)
        return final

    def steps(self) -> list[int]:
        """Return the steps of the existing checkpoints, in order."""
        return sorted(int(path.name.removeprefix("step_")) for path in complete_checkpoints(self._folder))

    def recent_steps(self) -> list[int]:
        """Return the steps of the most recent checkpoints, in order, without an older one that is kept as the best."""
        return self.steps()[-self._keep :]

    def best(self, metric: str) -> Best | None:
        """Return the best checkpoint by `metric`; None if none was marked, or by another metric."""
        try:
            best = Best(**json.loads((self._folder / BEST_FILE).read_text()))
        except (OSError, ValueError, TypeError):
            return None
        return best if best.metric == metric and best.step in self.steps() else None

    def mark_best(self, best: Best) -> None:
        """Keep the existing checkpoint of `best.step` for as long as no other is marked."""
        write_whole(self._folder / BEST_FILE, json.dumps(asdict(best)) + "\n")

    def _best_name(self) -> str:
        try:
            return f"step_{json.loads((self._folder / BEST_FILE).read_text())['step']:06d}"
        except (OSError, ValueError, TypeError, KeyError):
            return ""

    def _require_room(self, num_bytes: int) -> None:
        earlier, num_files = list(_complete_in(self._folder)), 0
        if earlier:
            newest = max(earlier, key=lambda path: (path / STATE_FILE).stat().st_mtime_ns)
            entries = list(newest.rglob("*"))
            num_files, num_bytes = len(entries), sum(file.stat().st_size for file in entries if file.is_file())
        if (free_number := free_files(self._folder)) < num_files:
            problem = f"a checkpoint has {num_files} files and the disk can hold only {free_number:.0f} more (df -i)"
            raise OSError(errno.ENOSPC, problem, str(self._folder))
        free = shutil.disk_usage(self._folder).free
        if free < num_bytes:
            problem = f"a checkpoint needs about {num_bytes >> 20} MiB and only {free >> 20} MiB are free"
            raise OSError(errno.ENOSPC, problem, str(self._folder))

    def _remove_unfinished(self) -> None:
        for path in self._folder.glob(f"{UNFINISHED}*"):
            _remove(path)

    def _remove_outdated(self, newest: Path) -> None:
        others = [path for path in _complete_in(self._folder) if path != newest]
        by_age = sorted(others, key=lambda path: (path / STATE_FILE).stat().st_mtime_ns, reverse=True)
        superseded = [path for path in by_age if path.name.startswith(".old-")]
        kept = [path for path in by_age if path not in superseded][: self._keep - 1]
        best = self._best_name()
        for path in others:
            if path not in kept and path.name != best:
                self._discard(path)

    def _discard(self, path: Path) -> None:
        # renamed first: a partly removed folder must not be mistaken for a checkpoint
        doomed = self._folder / f"{UNFINISHED}removed-{path.name}"
        os.rename(path, doomed)
        _remove(doomed)


def _remove(path: Path) -> None:
    """Remove a file or a folder; of a link, the link alone."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def find(path: Path) -> Path:
    """Return the checkpoint at `path`: itself, or the newest complete one of a run folder or of its `checkpoints`.

    Raises CheckpointError if there is none.
    """
    path = Path(path)
    # os.path says False where Path raises: names that are too long
    if os.path.exists(path / STATE_FILE) and not path.name.startswith(UNFINISHED):
        return path
    if not os.path.isdir(path):
        raise CheckpointError(f"{path}: no such folder; give a checkpoint (…/step_000050) or a run's output folder.")
    return _newest_first(path)[0]


def find_whole(path: Path) -> Path:
    """Return the checkpoint at `path`, as `find` does, after verifying each of its files against its manifest.

    In a run's folder, damaged checkpoints are logged and the newest intact one is returned. Raises CheckpointDamaged if
    `path` is itself a damaged checkpoint or none is intact, CheckpointError if there is none.
    """
    first = find(path)
    for folder in _without_state(Path(path)) if first != Path(path) else ():
        log.warning("skipped %s: it has no %s, so it is incomplete or damaged", folder, STATE_FILE)
    candidates = [first] if first == Path(path) else _newest_first(Path(path))
    problems = []
    for folder in candidates:
        try:
            verify(folder)
        except CheckpointDamaged as error:
            if first == Path(path):
                raise
            log.warning("skipped a damaged checkpoint: %s", error)
            problems.append(str(error))
            continue
        if problems:
            log.warning("using %s instead, the newest intact checkpoint", folder)
        return folder
    raise CheckpointDamaged(f"{path}: holds no intact checkpoint. " + " ".join(problems))


def _holder(path: Path) -> Path:
    return path / "checkpoints" if (path / "checkpoints").is_dir() else path


def _without_state(path: Path) -> list[Path]:
    return [one for one in _named_in(_holder(path), "step_*") if not (one / STATE_FILE).exists()]


def _newest_first(path: Path) -> list[Path]:
    folder = _holder(path)
    complete = list(_complete_in(folder))
    if not complete:
        unfinished = sorted(entry.name for entry in folder.glob(f"{UNFINISHED}*"))
        rest = f"only unfinished ones ({', '.join(unfinished)})" if unfinished else "none"
        hint = f" For the weights of a model folder set model.path={path}." if (path / "config.json").exists() else ""
        raise CheckpointError(f"{path}: looked for complete checkpoints in {folder} and found {rest}.{hint}")
    try:
        require_regular(folder / LATEST_FILE)
        named = folder / (folder / LATEST_FILE).read_text().strip()
    except (OSError, ValueError):  # the writer died after the rename, or the folder was copied only in part
        named = None
    return sorted(
        complete, key=lambda found: (found == named, not found.name.startswith("."), found.name), reverse=True
    )


def load_state(path: Path) -> RunState:
    """Read the run state of a checkpoint. Raises CheckpointError if it cannot be read."""
    file = Path(path) / STATE_FILE
    try:
        tree = json.loads(file.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: not the state of a checkpoint: {error}") from error
    if not isinstance(tree, dict):
        raise CheckpointError(f"{file}: not the state of a checkpoint, but a JSON {type(tree).__name__}.")
    if tree.pop("format", None) != FORMAT:
        raise CheckpointError(
            f"{file}: written by another version of rlsys (this one reads format {FORMAT}); resume with that version."
        )
    expected = {field.name: {"int": int, "str": str}[str(field.type)] for field in fields(RunState)}
    if set(tree) != set(expected):
        raise CheckpointError(f"{file}: has the keys {sorted(tree)}, expected {sorted(expected)}.")
    for name, kind in expected.items():
        value = tree[name]
        if not isinstance(value, kind) or isinstance(value, bool) or (isinstance(value, int) and value < 0):
            raise CheckpointError(
                f"{file}: {name}={value!r}, expected {'a number of 0 or more' if kind is int else 'text'}."
            )
    return RunState(**tree)


def complete_checkpoints(folder: Path) -> list[Path]:
    """Return the complete checkpoints in a run's folder `checkpoints`, by step."""
    return [path for path in _complete_in(Path(folder)) if not path.name.startswith(".")]


def _complete_in(folder: Path) -> Iterator[Path]:
    for pattern in ("step_*", ".old-step_*"):
        yield from (path for path in _named_in(folder, pattern) if (path / STATE_FILE).exists())


def _named_in(folder: Path, pattern: str) -> list[Path]:
    """Return the folders that are named by their step; one that a user renamed is a copy to be given by its path."""
    return sorted(path for path in folder.glob(pattern) if path.is_dir() and path.name.rpartition("_")[2].isdecimal())
