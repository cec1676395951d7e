"""The decode benchmark reads its own pictures right."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from benchmarks import decode as benchmark


def test_a_picture_shows_its_number_at_any_size() -> None:
    for number in (0, 1, 2, 511, 700, 899, 1023):
        picture = benchmark.numbered(number)
        assert benchmark.number_of(picture) == benchmark.number_of(picture[::2, ::2]) == number


@pytest.mark.slow
def test_both_ways_read_a_plain_file_and_one_of_them_is_told_to_be_fast(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = os.sched_getscheduler(0)
    monkeypatch.setattr(benchmark, "SECONDS", 4)
    monkeypatch.setattr(benchmark, "KINDS", (benchmark.KINDS[0], benchmark.KINDS[5], benchmark.KINDS[-1]))
    plain, stream, av1 = benchmark.of_kinds(tmp_path, repetitions=1)
    assert (plain["wrong"], plain["decord_wrong"], plain["why_not_fast"]) == (0, 0, "")
    assert stream["wrong"] == 0 and "mpegts" in stream["why_not_fast"]
    assert plain["frames"] == 8 and np.isfinite([plain["rlsys_s"], plain["decord_s"]]).all()
    assert (av1["file"], av1["wrong"], av1["decord_s"]) == ("av1.mp4", 0, None) and av1["why_not_fast"]
    benchmark.show([plain, stream, av1])
    assert os.sched_getscheduler(0) == policy, "what starts later must not be real-time"
    (tmp_path / "note.txt").write_text("not a video")
    assert [one["file"] for one in benchmark.of_folder(tmp_path, 1)] == ["av1.mp4", "h264.mp4", "h264.ts"]
