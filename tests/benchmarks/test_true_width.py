"""The benchmark at a published model's width: real merges from ranks, memory from outside, and a quick run."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.real_vocabulary import KNOWN, RANKS, TEMPLATE, make_tokenizer, merge_of, read_ranks
from benchmarks.resident import RETURNED, Watch
from rlsys.models.tiny import make_tokenizer as make_trained
from tests.support.pace import patience
from tests.support.paths import REPO


def test_ranks_alone_give_the_merges_that_a_tokenizer_was_trained_to() -> None:
    """A trained vocabulary in order of its merges is a list of ranks, as tiktoken's files are."""
    model = json.loads(make_trained("all").backend_tokenizer.to_str())["model"]
    merges = [tuple(merge) for merge in model["merges"]]
    letters = [token for token in model["vocab"] if len(token) == 1]
    spelled = [*letters, *("".join(merge) for merge in merges)]
    by_byte = {token.encode("latin-1"): rank for rank, token in enumerate(spelled) if token.isascii()}
    assert len(merges) > 100
    found = [merge_of(token, by_byte) for token in by_byte if len(token) > 1]
    wanted = [(left.encode(), right.encode()) for left, right in merges if (left + right).isascii()]
    assert found == wanted


def test_the_model_is_shown_videos_and_images_as_published() -> None:
    assert "<|vision_start|><|video_pad|><|vision_end|>" in TEMPLATE
    assert "<|vision_start|><|image_pad|><|vision_end|>" in TEMPLATE


def test_ranks_that_are_no_merges_are_refused() -> None:
    with pytest.raises(ValueError, match="merged into 3 tokens, not 2"):
        merge_of(b"abc", {b"a": 0, b"b": 1, b"c": 2, b"abc": 3})


def test_the_published_ranks_give_the_published_ids() -> None:
    file = REPO / "runs" / "bench" / "dashscope" / RANKS
    if not file.exists():
        pytest.skip("python -m benchmarks.true_width installs the ranks")
    tokenizer = make_tokenizer(read_ranks(file))
    assert {text: tokenizer.encode(text, add_special_tokens=False) for text in KNOWN} == KNOWN
    assert len(tokenizer) == 151_665


CHILD = """
import time
def hold(mib):
    data = bytearray(mib << 20)
    time.sleep(0.3)
time.sleep(0.5)
start = time.monotonic()
hold(64)
hold(32)
time.sleep(0.2)
end = time.monotonic()
time.sleep(0.3)
print(start, end)
"""


def test_memory_is_watched_from_outside() -> None:
    child = subprocess.Popen([sys.executable, "-c", CHILD], stdout=subprocess.PIPE, text=True, env=RETURNED)
    watch = Watch(child.pid, {"child": r"bytearray"})
    output, _ = child.communicate(timeout=patience(60.0))
    watch.stop()
    start, end = map(float, output.split())
    ((usage,),) = watch.usage(start, end).values()
    assert 64 << 20 <= usage.beyond < 72 << 20
    assert abs(usage.after - usage.before) < 2 << 20, "what is freed is given back at once"
    assert watch.usage(end, time.monotonic())["child"][0].beyond < 2 << 20


@pytest.mark.stack
@pytest.mark.long
def test_a_quick_run_measures_what_is_missing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.true_width", "--quick", "--only", "packed", "full"]
    command += ["--cases", "1k", "--json", str(tmp_path / "found.json"), "--folder", str(tmp_path)]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=patience(300.0))
    assert done.returncode == 0, done.stderr[-3000:]
    assert "| full | 1k | a rank's update |" in done.stdout
    found = json.loads((tmp_path / "found.json").read_text())
    assert {step["phase"] for step in found} == {"packed", "full"}
    (save,) = (step for step in found if step["step"] == "save")
    (export,) = (step for step in found if step["step"] == "export")
    assert save["bytes"] > 5 * export["bytes"], "12 bytes a number beside 2"
    assert all(len(step["memory"]["rank"]) == 2 for step in found if step["phase"] == "full")
    before = (tmp_path / "found.json").read_text()
    again = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=patience(60.0))
    assert again.returncode == 0 and (tmp_path / "found.json").read_text() == before
