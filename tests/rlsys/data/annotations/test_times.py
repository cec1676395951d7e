"""Times and periods in the spellings of published files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rlsys.data.annotations.reading import read_rows
from rlsys.data.annotations.times import listed_periods, one_period, plain_seconds, plain_times


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("30.5", 30.5),
        (" 30.5 s", 30.5),
        ("7 seconds", 7.0),
        ("1:02.5", 62.5),
        ("01:00:01", 3601.0),
        ("00:01:02,500", 62.5),
        ("0.041999999999999996", 0.041999999999999996),
        ("1,5", "1,5"),
        ("-3", -3.0),
        (4, 4),
        ("nan", "nan"),
        ("half a minute", "half a minute"),
        ("12s13", "12s13"),
        (None, None),
    ],
)
def test_seconds(written: Any, seconds: Any) -> None:
    assert plain_seconds(written) == seconds


@pytest.mark.parametrize(
    "written",
    [
        [1.5, 2],
        (1.5, 2),
        ["1.5", "2.0"],
        "1.5 - 2.0",
        "1.5-2",
        "1.5 2",
        "1.5, 2.0",
        "(1.5, 2.0)",
        "[1.5 2. ]",
        "1.5s to 2.0s",
        "0:01.5 - 0:02",
        "00:00:01,500 - 00:00:02,000",
        ["00:00:01,500", "00:00:02,000"],
        {"start": 1.5, "end": "2"},
        {"start_time": "0:01.5", "end_time": 2.0},
    ],
)
def test_a_period(written: Any) -> None:
    assert plain_times(written) == [1.5, 2.0]
    assert one_period([written]) == one_period(written) == [1.5, 2.0]
    assert listed_periods(written) == listed_periods([written]) == [[1.5, 2.0]]


@pytest.mark.parametrize(
    "written", ["", "1.5", "a to b", "1 to 2 to 3", "1,5 - 2", "1,5", "12,17", [], None, "1.5 - x", 7]
)
def test_what_is_no_period_stays_as_it_is(written: Any) -> None:
    assert plain_times(written) == written


SPANS: list[tuple[Any, list[float] | None]] = [
    ([1, 4], [1.0, 4.0]),
    (["1.0", "4"], [1.0, 4.0]),
    ("1.0 - 4.0", [1.0, 4.0]),
    ([[1, 4]], [1.0, 4.0]),
    ({"start": 1, "end": 4}, [1.0, 4.0]),
    ([[1, 4], [5, 6]], None),
    (["a", "b"], None),
    (None, None),
]


@pytest.mark.parametrize(("span", "truth"), SPANS)
@pytest.mark.parametrize("duration", [9.5, "9.5", "9.5 s", "0:09.5"])
def test_grounding_files_may_write_times_as_texts(
    span: Any, truth: list[float] | None, duration: Any, tmp_path: Path
) -> None:
    videos, rows, lines = (tmp_path / name for name in ("videos.json", "rows.json", "rows.jsonl"))
    videos.write_text(json.dumps({"v": {"duration": duration, "timestamps": [span, [2, 3]], "sentences": ["a", "b"]}}))
    table = [
        {"video": "v", "caption": text, "timestamp": s, "duration": duration}
        for text, s in (("a", span), ("b", [2, 3]))
    ]
    rows.write_text(json.dumps(table))
    lines.write_text("".join(json.dumps(row) + "\n" for row in table))
    for path in (videos, rows, lines):
        first, second = read_rows(path, "charades_sta")[0]
        assert (first.truth if not first.problems else None) == truth, path
        assert (second.truth, second.problems, second.duration_s) == ([2.0, 3.0], (), 9.5)


def test_a_period_may_have_two_columns(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("video,query,from,to\nv,a,1.5,4\nv,b,x,4\n")
    first, second = read_rows(path, "charades_sta", {"question": "query", "clue": ("from", "to")})[0]
    assert (first.truth, first.problems) == ([1.5, 4.0], ()) and second.problems[0].field == "clue"
