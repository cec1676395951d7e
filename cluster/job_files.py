"""The files of a submitted job: the code that git tracks, or the installed packages, and the config's own scorers."""

from __future__ import annotations

import codecs
import importlib.machinery
import importlib.util
import logging
import os
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

from cluster.launch import PACKAGES, ROOT
from rlsys.errors import UserError

log = logging.getLogger(__name__)

MAX_PACKED_BYTES = 64 << 20
SECRETS = (
    *("id_rsa*", "id_dsa*", "id_ed25519*", "id_ecdsa*", "*.pem", "*.key", "*.p12", "*.pfx", "*.jks", "*.kdbx"),
    *("secret*.*", "credentials*", "*.env", "netrc", "_netrc", "htpasswd", "kubeconfig*", "*.token"),
    *("*.ppk", "*.keystore", "pgpass*", "*credentials", "client_secret*", "service_account*.json", "*_netrc"),
    *("password*.txt", "passwords.*", "token.txt", "*_token", "*_token.txt", "cookies.txt", "env"),
    *("token", "secret", "secrets", "api_key", "api_key.txt", "apikey", "apikey.txt", "vault_pass*", "kaggle.json"),
    *("*.tfstate", "*.tfvars", "*.ovpn"),
    *("core", "core.[0-9]*", "*.core", "*.hprof"),
)
"""Names of files that should never be sent by accident; hidden ones, such as .env and .netrc, are never sent."""
_KEYS = re.compile(
    rb"^(?:\xef\xbb\xbf)?\s*-----BEGIN [A-Z ]*PRIVATE KEY(?: BLOCK)?-----\s*$"
    rb"|\"private_key\"\s*:\s*\"-----BEGIN"
    rb"|aws_secret_access_key\s*[=:]\s*[\"']?[A-Za-z0-9/+]{30}"
    rb"|\b(?:sk-(?:proj-)?[A-Za-z0-9_-]{32}|hf_[A-Za-z]{30}|gh[pousr]_[A-Za-z0-9]{36}|(?:AKIA|ASIA)[0-9A-Z]{16}"
    rb"|github_pat_[A-Za-z0-9_]{50}|glpat-[A-Za-z0-9_-]{20}|xox[abprs]-[A-Za-z0-9-]{24}|AIza[A-Za-z0-9_-]{35}"
    rb"|npm_[A-Za-z0-9]{36}|pypi-AgEI[A-Za-z0-9_-]{50}|dckr_pat_[A-Za-z0-9_-]{24}|AGE-SECRET-KEY-1[0-9A-Z]{50})"
    rb"|^PuTTY-User-Key-File-|\bAccountKey=[A-Za-z0-9+/]{80}|\bWANDB_API_KEY\s*[=:]\s*[\"']?[0-9a-f]{40}",
    re.MULTILINE,
)
"""Private keys, and keys of common services by the form that these give them."""
_URL_PASSWORD = re.compile(
    rb"\b[a-z][a-z0-9+.-]{0,30}://([^\s/:@\"'<>{}$]{0,100}):(?!(?:\1|pass(?:word|wd)?|pwd?|secret|token|x+|\.+)@)"
    rb"[^\s/@\"'<>{}$*]{1,200}@[\w\[]",
    re.I,
)
"""A URL with a password that is neither a placeholder nor its user's name."""
_EXAMPLES = ("tests", "docs")
"""Folders of a checkout whose URLs are made up."""
MAX_LISTED = 5

Files = dict[PurePosixPath, Path]
"""Path in the job's folder -> the file here."""


class SubmitError(UserError):
    """The job could not be sent; the message names the reason and the remedy."""


def code_files(root: Path = ROOT) -> Files:
    """Return what git tracks in `root` where it is a checkout, else the packages, each from where it is imported.

    Neither holds hidden files. Changed files are sent as they are now, untracked ones are not sent.
    """
    if tracked := _git_files(root, "--cached"):
        untracked = [file for file in _git_files(root, "--others", "--exclude-standard") if file.suffix == ".py"]
        if missed := [str(file) for file in untracked if file.parts[0] in PACKAGES]:
            log.warning("not sent, as git does not track them: %s; `git add` what the job needs", _listed(missed))
        return {target: root / target for target in tracked if _is_sent(root, target)}
    files: Files = {}
    for package in PACKAGES:
        if place := _find(package):
            files |= _module_files(package, place)
    return files


def scorer_files(scorers: Mapping[str, str]) -> Files:
    """Return the modules that `reward.scorers` names and that are not installed, which the job could not import.

    A module is sent with its whole top-level package. One that is installed here must be installed on the cluster.
    Raises SubmitError for a module that is not found.
    """
    files: Files = {}
    for name, reference in scorers.items():
        module = reference.partition(":")[0].partition(".")[0]
        found = _find(module, Path.cwd(), ROOT)
        if found is None:
            raise SubmitError(
                f"reward.scorers.{name}={reference!r}: there is no module {module!r} on the Python path, in this "
                "folder or beside the packages, so that it cannot be sent; start from its folder, or set PYTHONPATH."
            )
        if any(found.is_relative_to(folder) for folder in _installed_folders()):
            log.info("reward.scorers.%s: %s is installed here and must be so on the cluster", name, module)
        else:
            files |= _module_files(module, found)
    return files


def pack(files: Files, folder: Path) -> None:
    """Copy `files` to `folder` and log their number and size.

    Raises SubmitError for what looks like a secret, and for more than a job should carry, naming what is big.
    """
    sizes = {target: source.stat().st_size for target, source in files.items()}
    total = sum(sizes.values())
    if total > MAX_PACKED_BYTES:
        biggest = sorted(sizes, key=lambda target: sizes[target], reverse=True)[:MAX_LISTED]
        raise SubmitError(
            f"{total / 2**20:.0f} MiB to send, the limit is {MAX_PACKED_BYTES >> 20} MiB. Keep data, models and "
            "outputs out of git and of the packages. Biggest: "
            + ", ".join(f"{files[target]} ({sizes[target] / 2**20:.1f} MiB)" for target in biggest)
        )
    for target, source in files.items():
        if _is_secret(source, is_example=target.parts[0] in _EXAMPLES):
            raise SubmitError(f"{source} looks like a secret, and a job's files are read on the cluster; move it away.")
    log.info("sending %d files, %.1f MiB: %s", len(files), total / 2**20, _by_folder(files))
    for target, source in files.items():
        (folder / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, folder / target)


def _git_files(root: Path, *which: str) -> list[PurePosixPath]:
    """Return what `git ls-files` lists; nothing if `root` is not a checkout, even if a folder above it is one."""
    if not (root / "pyproject.toml").exists():
        return []
    command = ["git", "-C", str(root), "ls-files", "-z", *which]
    try:
        done = subprocess.run(command, capture_output=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return (
        [PurePosixPath(os.fsdecode(name)) for name in done.stdout.split(b"\0") if name] if not done.returncode else []
    )


def _is_sent(root: Path, target: PurePosixPath) -> bool:
    """Return whether it is a file that is neither hidden nor reached through a link."""
    if any(part.startswith(".") for part in target.parts):
        return False
    steps = [root / parent for parent in (target, *target.parents[:-1])]
    return steps[0].is_file() and not any(step.is_symlink() for step in steps)


def _find(module: str, *folders: Path) -> Path | None:
    """Return a top-level module's file or package folder, on the Python path or in `folders`, without importing it."""
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        spec = None
    spec = spec or importlib.machinery.PathFinder.find_spec(module, [str(folder) for folder in folders])
    if spec is None:
        return None
    places = list(spec.submodule_search_locations or ())
    place = places[0] if places else spec.origin if spec.has_location else None
    return Path(place).absolute() if place else None


def _module_files(module: str, place: Path) -> Files:
    if place.is_file():
        return {PurePosixPath(place.name): place}
    return {PurePosixPath(module, *file.relative_to(place).parts): file for file in _walk(place)}


def _walk(folder: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder):
        here = Path(parent)
        folders[:] = sorted(name for name in folders if name[0] != "." and name != "__pycache__")
        yield from (here / name for name in sorted(names) if name[0] != "." and (here / name).is_file())


def _installed_folders() -> set[Path]:
    return {Path(sysconfig.get_path(name)) for name in ("purelib", "platlib", "stdlib", "platstdlib")}


def _is_secret(file: Path, *, is_example: bool) -> bool:
    if any(fnmatch(file.name.lower(), pattern) for pattern in SECRETS):
        return True
    content = file.read_bytes()
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        content = content.decode("utf-16", "replace").encode(errors="replace")
    return bool(_KEYS.search(content) or (not is_example and _URL_PASSWORD.search(content)))


def _by_folder(files: Files) -> str:
    tops = [target.parts[0] for target in files]
    return ", ".join(f"{top} ({tops.count(top)})" for top in sorted(set(tops)))


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return ", ".join(names[:MAX_LISTED]) + more
