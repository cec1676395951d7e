"""What judges have answered, kept in one SQLite file: the same question is never paid for twice."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sqlite3
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlsys import env
from rlsys.errors import UserError
from rlsys.types import Json

log = logging.getLogger(__name__)

_FORMAT = 1
_LOCKED_S = 10.0
_IN_MEMORY = Path(":memory:")
_MOST_IN_MEMORY_BYTES = 64 << 20
_PAGE_BYTES = 4096
_TABLE = """
CREATE TABLE IF NOT EXISTS answers (
    number INTEGER PRIMARY KEY,
    key BLOB NOT NULL UNIQUE,
    call TEXT NOT NULL,
    model TEXT NOT NULL,
    prompt_version TEXT NOT NULL,
    answer TEXT NOT NULL,
    created_s REAL NOT NULL
)
"""


class CacheError(UserError):
    """The file is no cache that this version can use; the message names it and what to do."""


@dataclass(frozen=True, kw_only=True)
class AnswerKey:
    """What an answer depends on. inputs: the texts it is about, as reference and prediction (or their events)."""

    call: str
    model: str
    prompt_version: str
    inputs: tuple[str, ...]

    def digest(self) -> bytes:
        """Return the SHA-256 over all of it; equal only for equal keys."""
        parts = [self.call, self.model, self.prompt_version, *self.inputs]
        return hashlib.sha256(json.dumps(parts).encode()).digest()


@dataclass(frozen=True, kw_only=True)
class Stored:
    """An answer, the endpoint that gave it, and its age."""

    answer: Json
    url: str
    age_s: float


def default_path() -> Path:
    """Return `rlsys/verdicts.sqlite` in the user's cache folder (XDG_CACHE_HOME, else ~/.cache).

    A relative XDG_CACHE_HOME is ignored, as its specification asks: each process would have a file of its own.
    """
    named = Path(env.read("XDG_CACHE_HOME") or "")
    return (named if named.is_absolute() else Path("~/.cache").expanduser()) / "rlsys" / "verdicts.sqlite"


class VerdictCache:
    """Final answers by key. Safe for the threads of a process and for several processes of one machine.

    The file must lie on a local disk (SQLite's write-ahead log does not work over a network file system), so
    nodes have one each. It only grows, by about a kilobyte an answer, and may be deleted while no process has it open.
    Trouble with the disk costs look-ups and not verdicts. A file that cannot be opened is logged, and answers are then
    kept in the memory of this process; later trouble, as with a disk that fills, is counted and logged once.
    Every row carries a checksum over its key and its answer. A damaged row, or one of an earlier version without a
    checksum, is a miss: the judge is called again and the row is replaced.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._lock = threading.Lock()
        self._hits = self._misses = self._errors = 0
        self._hit_age_s = 0.0
        self._damaged: set[bytes] = set()
        self.path, self._db = _opened_somewhere(path)

    def get(self, key: AnswerKey) -> Stored | None:
        """Return what was answered before, or None."""
        with self._lock:
            digest = key.digest()
            row = self._run("SELECT answer, created_s FROM answers WHERE key = ?", (digest,))
            found = None if row is None else _checked(digest, *row)
            if found is None:
                self._misses += 1
                if row is not None:
                    self._damaged.add(digest)
                    log.warning("%s: a cached answer is damaged; calling the judge again", self.path)
                return None
            self._hits += 1
            self._hit_age_s += found.age_s
            return found

    def put(self, key: AnswerKey, answer: Json, url: str) -> None:
        """Keep a final answer; of two for one key the first stays, unless it was found damaged."""
        digest, now_s = key.digest(), time.time()
        stored = json.dumps({"answer": answer, "url": url, "checksum": _checksum(digest, answer, url, now_s)})
        values = (digest, key.call, key.model, key.prompt_version, stored, now_s)
        with self._lock:
            if digest in self._damaged:
                self._damaged.discard(digest)
                self._run("UPDATE answers SET answer = ?, created_s = ? WHERE key = ?", (stored, now_s, digest))
            self._run(
                "INSERT OR IGNORE INTO answers (key, call, model, prompt_version, answer, created_s)"
                " VALUES (?, ?, ?, ?, ?, ?)",
                values,
            )

    def stats(self) -> dict[str, float]:
        """Return the look-ups of this process, and the file as it is: entries, bytes, ages in seconds."""
        with self._lock:
            oldest = self._run("SELECT created_s FROM answers WHERE typeof(created_s) = 'real' LIMIT 1", ())
            newest = self._run("SELECT max(number) FROM answers", ())  # nothing is ever deleted: also their count
            hits, misses = self._hits, self._misses
            return {
                "hits": hits,
                "misses": misses,
                "hit_rate": hits / (hits + misses) if hits + misses else 0.0,
                "mean_hit_age_s": self._hit_age_s / hits if hits else 0.0,
                "entries": (newest and newest[0]) or 0,
                "bytes": sum(_size(Path(f"{self.path}{end}")) for end in ("", "-wal")),
                "oldest_s": max(0.0, time.time() - oldest[0]) if oldest else 0.0,
                "errors": self._errors,
            }

    def close(self) -> None:
        """Give the file back. Safe to call twice."""
        with self._lock:
            self._db.close()

    def _run(self, statement: str, values: tuple[object, ...]) -> Any:
        try:
            return self._db.execute(statement, values).fetchone()
        except sqlite3.Error as error:
            self._errors += 1
            if self._errors == 1:
                log.warning("%s: verdicts are not kept for now: %s", self.path, error)
            return None


def _checked(digest: bytes, text: object, created_s: object) -> Stored | None:
    """Return the answer in a row of the file, or None where it is not what was stored for this key."""
    if not isinstance(text, str) or not isinstance(created_s, float):
        return None
    try:
        row = json.loads(text)
        answer, url, checksum = row["answer"], row["url"], row["checksum"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    if checksum != _checksum(digest, answer, url, created_s):
        return None
    return Stored(answer=answer, url=url, age_s=max(0.0, time.time() - created_s))


def _checksum(digest: bytes, answer: Json, url: str, created_s: float) -> str:
    return hashlib.sha256(digest + json.dumps([answer, url, created_s]).encode()).hexdigest()


def _opened_somewhere(path: Path | None) -> tuple[Path, sqlite3.Connection]:
    """Return the open file, by default the user's own, or a database in memory where the disk does not give one."""
    try:
        file = default_path() if path is None else Path(path)
        return file, _opened(file)
    except (OSError, RuntimeError, sqlite3.OperationalError) as error:  # RuntimeError: this user has no home folder
        log.warning(
            "%s: the cache of verdicts cannot be used (%s), so verdicts are kept until this process ends; set "
            "reward.judge.cache_path to a file on a local disk that can be written to and has room.",
            path or "the user's cache folder",
            error,
        )
    db = _opened(_IN_MEMORY)
    db.execute(f"PRAGMA max_page_count = {_MOST_IN_MEMORY_BYTES // _PAGE_BYTES}")
    return _IN_MEMORY, db


def _opened(path: Path) -> sqlite3.Connection:
    """Open a file, creating it. Raises OSError or OperationalError where that is the disk's fault, else CacheError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # autocommit: every answer is kept at once, and no lock is held between two of them
    db = sqlite3.connect(path, timeout=_LOCKED_S, isolation_level=None, check_same_thread=False)
    db.text_factory = lambda content: content.decode(errors="replace")  # a damaged text fails its checksum
    try:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")  # a power cut may lose the last answers, never the file
        found = db.execute("PRAGMA user_version").fetchone()[0]
        if found not in (0, _FORMAT):
            raise CacheError(
                f"{path}: the cache of verdicts has format {found}, this version of rlsys writes {_FORMAT}; "
                "set reward.judge.cache_path to another file, or move this one away."
            )
        db.execute(_TABLE)
        db.execute(f"PRAGMA user_version = {_FORMAT}")
        db.execute("SELECT key, answer, created_s FROM answers ORDER BY number DESC LIMIT 1").fetchone()
    except sqlite3.OperationalError:
        db.close()
        raise
    except sqlite3.DatabaseError as error:
        db.close()
        raise CacheError(
            f"{path}: this is no cache of verdicts, or it is damaged ({error}); delete it (answers are then asked for "
            "again), or set reward.judge.cache_path to another file."
        ) from error
    except CacheError:
        db.close()
        raise
    return db


def _size(path: Path) -> int:
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return 0
