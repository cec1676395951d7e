"""Models and data sets of the Hugging Face hub as folders of the local cache, each pinned to a commit.

The cache keeps a repository as `models--OWNER--NAME/snapshots/COMMIT/…`, so that a path in it names the commit.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rlsys.errors import UserError
from rlsys.files import DISK_ERRORS

_NAME = r"[A-Za-z0-9][\w.-]*"
_REVISION = r"(?:@(?P<revision>[\w.-]+))?"
_BARE = re.compile(rf"(?P<repo>{_NAME}/{_NAME}){_REVISION}")
_URL = re.compile(
    r"hf:/{1,2}(?P<kind>datasets/)?(?!(?:datasets|models|spaces)/)"
    rf"(?P<repo>{_NAME}/{_NAME}){_REVISION}(?:/(?P<path>.+))?"
)
_SNAPSHOT = re.compile(r"(?P<root>.*/)?(?P<kind>models|datasets)--(?P<owner>[^/]+?)--(?P<name>[^/]+)/snapshots/")
MODEL_FILES = ("*.safetensors", "*.json", "*.txt", "*.jinja", "tokenizer*", "LICENSE*")
"""Files of a model's repository that are downloaded; not its PyTorch weights beside the safetensors."""


class HubError(UserError):
    """Something of the hub is neither in the local cache nor to be had; the message says what to download where."""


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A repository of the hub, or a file or folder in it.

    revision: branch, tag or commit; None is the newest commit of the main branch.  path: in the repository, "" for all.
    """

    repo: str
    kind: Literal["model", "dataset"]
    revision: str | None = None
    path: str = ""

    def __str__(self) -> str:
        at = f"@{self.revision}" if self.revision else ""
        return f"{self.repo}{at}" + (f"/{self.path}" if self.path else "")


def reference(path: Path, *, is_model: bool = False) -> Reference | None:
    """Return what `path` names on the hub, None if it is a path on this machine.

    On the hub are `hf://OWNER/NAME[@REVISION]` (a model) and `hf://datasets/OWNER/NAME[@REVISION]/PATH`, and with
    `is_model` also `OWNER/NAME[@REVISION]`, unless there is such a path, or a folder OWNER, here. Raises HubError for
    any other `hf://…`.
    """
    found = _URL.fullmatch(str(path))
    if found is not None:
        return Reference(
            repo=found["repo"],
            kind="dataset" if found["kind"] else "model",
            revision=found["revision"],
            path=found["path"] or "",
        )
    if path.parts[:1] == ("hf:",):
        raise HubError(
            f"{path}: write hf://OWNER/NAME for a model, or hf://datasets/OWNER/NAME/PATH for files of a set."
        )
    bare = _BARE.fullmatch(str(path)) if is_model else None
    if bare is None or path.exists() or path.parts[0] in ("~", "..") or Path(path.parts[0]).exists():
        return None
    return Reference(repo=bare["repo"], kind="model", revision=bare["revision"])


def snapshot_of(path: Path) -> Reference | None:
    """Return the repository and the commit of a path in a cache of the hub, None for any other path."""
    text = Path(path).as_posix()
    found = _SNAPSHOT.match(text)
    if found is None:
        return None
    commit, _, inner = text[found.end() :].partition("/")
    kind: Literal["model", "dataset"] = "model" if found["kind"] == "models" else "dataset"
    return Reference(repo=f"{found['owner']}/{found['name']}", kind=kind, revision=commit, path=inner)


def blobs_of(path: Path) -> Path | None:
    """Return the folder to which the links of a snapshot lead, None for a path that is not in one."""
    found = _SNAPSHOT.match(f"{Path(path).absolute().as_posix()}/")
    return None if found is None else Path(found.group().removesuffix("snapshots/")) / "blobs"


def fetch(what: Reference, pins: Mapping[str, str], *, field: str, only_cached: bool = False) -> Path:
    """Return the folder or file of the local cache, downloading it if it is not there.

    pins: repository -> commit to take where `what` names no revision.  field: the config's, for messages.
    only_cached: never download. Where the hub cannot be reached the newest commit in the cache is taken.
    Raises HubError with what to download and where.
    """
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    revision = what.revision or pins.get(what.repo)
    cache = constants.HF_HUB_CACHE
    try:
        folder = snapshot_download(
            what.repo,
            repo_type=what.kind,
            revision=revision,
            cache_dir=cache,
            local_files_only=only_cached,
            allow_patterns=_patterns(what),
        )
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        command = f"hf download {what.repo}" + (" --repo-type dataset" if what.kind == "dataset" else "")
        command += f" --revision {revision}" if revision else ""
        name = f"{what.kind}s--{what.repo.replace('/', '--')}"
        raise HubError(
            f"{field}={what}: no such path here, and not in the Hugging Face cache {cache}; where there is a network "
            f"run `{command}` and copy the folder {name} of that cache to {cache}, or give a folder of this machine."
        ) from error
    except HfHubHTTPError as error:
        raise HubError(
            f"{field}={what}: no such path here, and the hub refuses it ({str(error).splitlines()[0]}); correct the "
            "name or the revision, or set HF_TOKEN if the repository is private or gated."
        ) from error
    except OSError as error:
        if error.errno not in (*DISK_ERRORS, errno.EEXIST, errno.ENOTDIR):
            raise HubError(
                f"{field}={what}: the download failed ({str(error).splitlines()[0]}); run the command again, which "
                "continues it, or give a folder of this machine."
            ) from error
        try:
            if only_cached:
                raise
            return fetch(what, pins, field=field, only_cached=True)  # a full cache that others keep may be read-only
        except (HubError, OSError):
            raise HubError(
                f"{field}={what}: the Hugging Face cache {cache} does not have it and cannot be written to ({error}); "
                "set HF_HOME to a folder that can be written to and has room, or give a folder of this machine."
            ) from error
    found = Path(folder) / what.path
    if not found.exists():
        raise HubError(f"{field}={what}: the repository has no {what.path!r} at commit {Path(folder).name}.")
    return found


def here(path: Path) -> Path:
    """Return `path`, or on a node without it the same commit of the same repository in this node's cache."""
    snapshot = None if Path(path).exists() else snapshot_of(path)
    return Path(path) if snapshot is None else fetch(snapshot, {}, field="model.path")


def _patterns(what: Reference) -> list[str] | None:
    if what.kind == "model" and not what.path:
        return list(MODEL_FILES)
    return [what.path, f"{what.path}/*"] if what.path else None
