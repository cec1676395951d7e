"""The manifest of a checkpoint: the name, size and SHA-256 of each of its files.

It is the last file that is written into a checkpoint. A checkpoint is resumed, replayed or used as a model only if
every file matches the manifest, because a flipped bit or a file of another step would corrupt training silently.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rlsys.errors import CheckpointError
from rlsys.files import require_regular

MANIFEST_FILE = "manifest.json"
FORMAT = 1
REMEDY = "Use another checkpoint, or copy this one again from where it came."
MADE_BY_RESHARDING = (".resharded", "latest_universal")
"""What a killed resume with another number of ranks leaves in `deepspeed/`; it is rebuilt before it is read."""


class CheckpointDamaged(CheckpointError):
    """A file of a checkpoint is missing or changed; the message names it."""


def write_manifest(folder: Path, *, step: int, run_id: str) -> None:
    """Write the manifest of all files in `folder`. step, run_id: of the run, see `RunState`."""
    names = _files_in(folder)
    files = dict(zip(names, _described(folder / name for name in names), strict=True))
    tree = {"format": FORMAT, "step": step, "run_id": run_id, "files": files}
    (folder / MANIFEST_FILE).write_text(json.dumps(tree, indent=1) + "\n")


def verify(folder: Path, *, part: str = "") -> None:
    """Compare every file of a checkpoint with its manifest.

    part: a subfolder, such as "model", if only that is used; "" for the whole checkpoint.
    Raises CheckpointDamaged, naming the first file that is missing, changed, or not part of the checkpoint. Hidden
    files that were added are none of it: nothing reads them, and file systems (.nfs…) and desktops (.DS_Store) do so.
    Reads every byte: about one second per gigabyte and thread.
    """
    expected = {name: entry for name, entry in _read(folder).items() if name.startswith(part)}
    found = {name for name in _files_in(folder) if name.startswith(part)}
    for name, entry in sorted(expected.items()):
        if name not in found or not (folder / name).is_file():
            raise CheckpointDamaged(f"{folder / name}: missing, although the checkpoint's manifest lists it. {REMEDY}")
        if (size := (folder / name).stat().st_size) != entry["bytes"]:
            raise CheckpointDamaged(
                f"{folder / name}: has {size} bytes, but was written with {entry['bytes']}. {REMEDY}"
            )
    if strangers := sorted(name for name in found - set(expected) if not _is_hidden(name)):
        raise CheckpointDamaged(
            f"{folder / strangers[0]}: not in the checkpoint's {MANIFEST_FILE}, so it was added later; move it away."
        )
    try:
        described = _described(folder / name for name in expected)
    except OSError as error:
        raise CheckpointDamaged(f"{error.filename}: cannot be read ({error.strerror}). {REMEDY}") from error
    for name, actual in zip(expected, described, strict=True):
        if actual["sha256"] != expected[name]["sha256"]:
            raise CheckpointDamaged(
                f"{folder / name}: its SHA-256 is {actual['sha256'][:16]}…, but it was written with "
                f"{expected[name]['sha256'][:16]}…: the file was modified or corrupted. {REMEDY}"
            )


def verify_model(path: Path) -> None:
    """Verify a model folder that is part of a checkpoint; any other folder has no manifest and passes.

    Raises CheckpointDamaged as `verify` does.
    """
    path = Path(path)
    if (path.parent / MANIFEST_FILE).exists():
        verify(path.parent, part=f"{path.name}/")


def _read(folder: Path) -> Mapping[str, Mapping[str, Any]]:
    file = folder / MANIFEST_FILE
    try:
        for one in (file, folder / "state.json"):
            require_regular(one)
        tree = json.loads(file.read_text())
        step, files = tree["step"], tree["files"]
        state = json.loads((folder / "state.json").read_text())
        is_sound = tree["format"] == FORMAT and all(
            isinstance(entry["bytes"], int) and isinstance(entry["sha256"], str) for entry in files.values()
        )
    except FileNotFoundError as error:
        raise CheckpointDamaged(
            f"{error.filename}: missing, although every checkpoint of this version of rlsys has that file. {REMEDY}"
        ) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointDamaged(f"{file}: cannot be read as a manifest: {error!r}. {REMEDY}") from error
    if not is_sound or not isinstance(state, dict) or state.get("step") != step:
        raise CheckpointDamaged(f"{file}: not the manifest of this checkpoint (it belongs to step {step}). {REMEDY}")
    return files


def _files_in(folder: Path) -> list[str]:
    found = []
    for parent, folders, names in os.walk(folder):
        relative = Path(parent).relative_to(folder)
        made = MADE_BY_RESHARDING if relative.parts[:1] == ("deepspeed",) else ()
        folders[:] = [name for name in folders if name not in made]
        found += [(relative / name).as_posix() for name in names if name not in made]
    return sorted(name for name in found if name != MANIFEST_FILE)


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))


def _described(files: Iterable[Path]) -> list[dict[str, Any]]:
    def describe(file: Path) -> dict[str, Any]:
        with file.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        return {"bytes": file.stat().st_size, "sha256": digest}

    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as threads:  # hashing releases the GIL
        return list(threads.map(describe, files))
