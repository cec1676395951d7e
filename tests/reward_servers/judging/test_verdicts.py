"""The cache of verdicts: what makes two questions the same, several processes, and files that are no cache."""

from __future__ import annotations

import multiprocessing
import re
import sqlite3
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from reward_servers.judging import verdicts
from reward_servers.judging.verdicts import AnswerKey, CacheError, VerdictCache, default_path
from tests.support.mounts import run_with_mounts


def key(*inputs: str, call: str = "split", model: str = "m", version: str = "v1") -> AnswerKey:
    return AnswerKey(call=call, model=model, prompt_version=version, inputs=inputs)


def test_an_answer_comes_back_as_it_was_with_its_age(tmp_path: Path) -> None:
    cache = VerdictCache(tmp_path / "new" / "folder" / "cache.sqlite")
    assert cache.get(key("a")) is None
    cache.put(key("a"), ["é", None, {"x": 1.5}], "http://a/v1")
    stored = cache.get(key("a"))
    assert stored is not None
    assert (stored.answer, stored.url) == (["é", None, {"x": 1.5}], "http://a/v1")
    assert 0 <= stored.age_s < 5


@pytest.mark.parametrize(
    "other",
    [key("b", "a"), key("ab", ""), key("a"), key("a", "b", call="x"), key("a", "b", model="n")]
    + [key("a", "b", version="v2")],
)
def test_keys_that_differ_anywhere_never_meet(tmp_path: Path, other: AnswerKey) -> None:
    cache = VerdictCache(tmp_path / "cache.sqlite")
    cache.put(key("a", "b"), 1, "")
    assert cache.get(other) is None


def test_any_text_can_be_part_of_a_key(tmp_path: Path) -> None:
    cache = VerdictCache(tmp_path / "cache.sqlite")
    cache.put(key("\ud800\x00'; DROP TABLE answers"), 1, "")
    assert cache.get(key("\ud800\x00'; DROP TABLE answers")) is not None


def test_of_two_answers_the_first_stays(tmp_path: Path) -> None:
    first, second = VerdictCache(tmp_path / "cache.sqlite"), VerdictCache(tmp_path / "cache.sqlite")
    first.put(key("a"), "first", "")
    second.put(key("a"), "second", "")
    stored = second.get(key("a"))
    assert stored is not None and stored.answer == "first"


def test_figures_count_hits_misses_and_ages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = VerdictCache(tmp_path / "cache.sqlite")
    assert cache.stats()["hit_rate"] == 0.0
    now = time.time()
    monkeypatch.setattr(verdicts.time, "time", lambda: now)
    cache.put(key("a"), 1, "")
    monkeypatch.setattr(verdicts.time, "time", lambda: now + 60)
    cache.put(key("b"), 1, "")
    for text in ("a", "b", "c", "a"):
        cache.get(key(text))
    stats = cache.stats()
    assert (stats["hits"], stats["misses"], stats["hit_rate"]) == (3, 1, 0.75)
    assert (stats["mean_hit_age_s"], stats["oldest_s"], stats["entries"]) == (pytest.approx(40), pytest.approx(60), 2)
    assert stats["bytes"] > 0 and stats["errors"] == 0


def _write(path: Path, first: int) -> None:
    cache = VerdictCache(path)
    for number in range(first, first + 100):
        cache.put(key(str(number)), number, "")
        assert cache.get(key(str(number))) is not None
    cache.close()


def test_several_processes_write_at_once_and_nothing_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "cache.sqlite"
    spawn = multiprocessing.get_context("spawn")
    writers = [spawn.Process(target=_write, args=(path, first)) for first in (0, 50, 1000)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    cache = VerdictCache(path)
    assert all(cache.get(key(str(number))) for number in [*range(150), *range(1000, 1100)])
    assert cache.stats()["entries"] == 250


@pytest.mark.parametrize(
    "content", [b"not a database at all, but a long enough text " * 50, b"SQLite format 3\0" * 100]
)
def test_a_damaged_file_is_named_with_the_remedy(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "cache.sqlite"
    path.write_bytes(content)
    with pytest.raises(CacheError, match=r"cache\.sqlite: this is no cache.*delete it.*reward\.judge\.cache_path"):
        VerdictCache(path)
    assert path.read_bytes() == content


KEPT = """
import logging, os, sys
from pathlib import Path
from reward_servers.judging.verdicts import AnswerKey, VerdictCache
from tests.support.mounts import run_with_mounts

logging.basicConfig(format="%(message)s", stream=sys.stdout)
disk, when = Path(sys.argv[1]), sys.argv[2]

def key(text):
    return AnswerKey(call="c", model="m", prompt_version="1", inputs=(text,))

def fill():
    with open(disk / "fill", "ab", buffering=0) as file:
        try:
            while file.write(bytes(1024)):
                pass
        except OSError:
            pass

if when == "before":
    fill()
cache = VerdictCache(disk / "new" / "cache.sqlite")
cache.put(key("first"), "answer 1", "u")
if when == "during":
    fill()
    for index in range(100):
        cache.put(key(f"lost {index}"), "x" * 1000, "u")
print(cache.get(key("first")).answer)
if when == "during":
    os.unlink(disk / "fill")
    cache.put(key("second"), "answer 2", "u")
    print(cache.get(key("second")).answer, cache.stats()["errors"] > 0)
"""


@pytest.mark.parametrize(
    ("disk", "when", "said"),
    [
        ("ro", "never", "Read-only file system"),
        ("nr_inodes=3", "never", "No space left on device|unable to open database file"),
        ("size=64k", "before", "database or disk is full|disk I/O error"),
    ],
)
def test_a_disk_without_room_for_the_file_costs_no_verdict(disk: str, when: str, said: str, tmp_path: Path) -> None:
    done = run_with_mounts({tmp_path: disk}, [sys.executable, "-c", KEPT, str(tmp_path), when])
    assert done.returncode == 0, done.stderr
    warned, answer = done.stdout.splitlines()
    assert re.match(rf"{tmp_path}/new/cache.sqlite: the cache of verdicts cannot be used \(.*({said})", warned)
    assert warned.endswith("set reward.judge.cache_path to a file on a local disk that can be written to and has room.")
    assert answer == "answer 1"


def test_a_disk_that_fills_costs_what_does_not_fit_and_is_used_again_once_it_has_room(tmp_path: Path) -> None:
    done = run_with_mounts({tmp_path: "size=256k"}, [sys.executable, "-c", KEPT, str(tmp_path), "during"])
    assert done.returncode == 0, done.stderr
    warned, first, second = done.stdout.splitlines()
    assert warned.startswith(f"{tmp_path}/new/cache.sqlite: verdicts are not kept for now: ")
    assert (first, second) == ("answer 1", "answer 2 True")


def test_a_path_that_can_be_no_file_costs_no_verdict(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "cache.sqlite", tmp_path):
        cache = VerdictCache(path)
        cache.put(key("a"), 1, "")
        assert cache.get(key("a")) is not None
        assert f"{path}: the cache of verdicts cannot be used" in caplog.text


def test_a_file_of_another_version_is_left_alone(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "cache.sqlite") as db:
        db.execute("PRAGMA user_version = 9")
    with pytest.raises(CacheError, match="has format 9"):
        VerdictCache(tmp_path / "cache.sqlite")


def test_trouble_after_opening_is_counted_and_costs_no_verdict(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = VerdictCache(tmp_path / "cache.sqlite")
    with sqlite3.connect(cache.path) as db:
        db.execute("DROP TABLE answers")
    cache.put(key("a"), 1, "")
    assert cache.get(key("a")) is None
    assert cache.stats()["errors"] >= 2
    assert len([record for record in caplog.records if "not kept" in record.message]) == 1


def test_the_default_file_is_in_the_users_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_path() == tmp_path / "rlsys" / "verdicts.sqlite"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_path() == Path.home() / ".cache" / "rlsys" / "verdicts.sqlite"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # to be ignored, by its specification
    assert default_path() == Path.home() / ".cache" / "rlsys" / "verdicts.sqlite"


DAMAGES = (
    "answer = ''",
    "answer = 'x'",
    "answer = '[]'",
    "answer = 'null'",
    "answer = '{}'",
    "answer = '{\"answer\": []}'",
    'answer = \'{"answer": [true], "url": "u"}\'',
    "answer = x'00ff'",
    "answer = replace(answer, 'true', 'false')",
    "answer = substr(answer, 1, length(answer) / 2)",
    "created_s = 'yesterday'",
    "created_s = created_s + 1e9",
)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_row_is_a_miss_and_is_replaced(tmp_path: Path, damage: str) -> None:
    cache = VerdictCache(tmp_path / "cache.sqlite")
    cache.put(key("a"), [True], "u")
    with sqlite3.connect(tmp_path / "cache.sqlite") as db:
        db.execute(f"UPDATE answers SET {damage}")
    assert cache.get(key("a")) is None
    assert cache.stats()["misses"] == 1
    cache.put(key("a"), [False], "v")
    stored = cache.get(key("a"))
    assert stored is not None and (stored.answer, stored.url) == ([False], "v")


def test_a_row_under_another_key_is_a_miss(tmp_path: Path) -> None:
    cache = VerdictCache(tmp_path / "cache.sqlite")
    cache.put(key("a"), [True], "u")
    with sqlite3.connect(tmp_path / "cache.sqlite") as db:
        db.execute("UPDATE answers SET key = ?", (key("b").digest(),))
    assert cache.get(key("b")) is None


def test_a_text_that_is_no_utf8_is_a_miss_of_its_row_alone(tmp_path: Path) -> None:
    key = AnswerKey(call="c", model="m", prompt_version="1", inputs=("a",))
    with closing(VerdictCache(tmp_path / "v.sqlite")) as cache:
        cache.put(key, {"v": 1}, "u")
    with closing(sqlite3.connect(tmp_path / "v.sqlite")) as db:
        db.execute("UPDATE answers SET answer = CAST(x'ff' AS TEXT)")
        db.commit()
    with closing(VerdictCache(tmp_path / "v.sqlite")) as cache:
        assert cache.get(key) is None
        cache.put(key, {"v": 2}, "u")
        found = cache.get(key)
    assert found is not None
    assert found.answer == {"v": 2}
