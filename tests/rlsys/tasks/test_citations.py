from __future__ import annotations

import pytest

from rlsys.tasks.citations import cited_periods, cited_spans


@pytest.mark.parametrize(
    ("text", "spans"),
    [
        ("at 12.5 s she waves", ((12.5, 12.5),)),
        ("at 3 seconds, then at 4.25s.", ((3, 3), (4.25, 4.25))),
        ("from 1.5 to 3.0", ((1.5, 3.0),)),
        ("between 2 and 4 seconds", ((2, 4),)),
        ("between 2s and 4 she", ((2, 4),)),
        ("2 seconds to 4 seconds", ((2, 4),)),
        ("2 and 4 people, 7 of them", ()),
        ("00:12 to 01:02.5", ((12, 62.5),)),
        ("at 1:00:03 it ends", ((3603, 3603),)),
        ("12-15s and 20 – 22 s", ((12, 15), (20, 22))),
        ("2-3 people", ()),
        ("<timestamp>1.0 to 2.0</timestamp>", ((1.0, 2.0),)),
        ("9 to 2", ((9, 2),)),
        ("12:75 is no time, nor is 1.2.3 s or -4 s", ()),
        ("٣ s or ９ seconds", ()),
        ("1 to 2 to 3", ((1, 2),)),
        ("until", ()),
        ("5 s -", ((5, 5),)),
        ("9999999999 s", ()),
    ],
)
def test_only_numbers_that_are_times_are_cited(text: str, spans: tuple[tuple[float, float], ...]) -> None:
    assert cited_spans(text) == spans


def test_cited_periods_exclude_moments() -> None:
    assert cited_periods("at 3 s, perhaps 2 to 4, no: 2.5 to 3.5") == ((2, 4), (2.5, 3.5))
