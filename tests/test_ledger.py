from pathlib import Path

import pytest

from rlsys import ledger
from rlsys.checkpoint import CheckpointError
from rlsys.collect import Collected, LeftOut
from rlsys.ledger import Entry
from tests.factories import make_group, make_scored


def used(step: int, *draws: int) -> Entry:
    return Entry(step=step, trained={draw: f"file:{draw}" for draw in draws}, replaced={}, left_out={}, versions=(0, 0))


def test_an_entry_says_what_became_of_each_draw_and_which_weights_sampled_it() -> None:
    groups = [make_scored(make_group(f"file:{draw}", weight_version=draw), [0, 0, 1, 1]) for draw in (3, 5, 6)]
    collected = Collected(
        draws=(3, 6),
        groups=(groups[0], groups[2]),
        replaced_draws=(5,),
        replaced=(groups[1],),
        left_out=(LeftOut(draw=4, reason="bad_clip", detail="4.mp4: corrupt"),),
        num_stale=0,
    )
    assert ledger.entry(7, collected) == Entry(
        step=7,
        trained={3: "file:3", 6: "file:6"},
        replaced={5: "file:5"},
        left_out={4: "bad_clip: 4.mp4: corrupt"},
        versions=(3, 6),
    )


def test_a_whole_ledger_has_no_problems_and_survives_its_file(tmp_path: Path) -> None:
    entries = [used(1, 0, 1), used(2, 2, 3)]
    ledger.write(tmp_path, entries)
    assert ledger.read(tmp_path) == entries
    assert ledger.problems(entries, 4) == []


def test_a_draw_that_is_lost_or_used_twice_and_a_step_that_is_missing_are_problems() -> None:
    assert ledger.problems([used(1, 0, 1), used(3, 1, 3, 9)], 5) == [
        "step 3 follows step 1",
        "draw 1 was used 2 times",
        "draw 2 was lost",
        "draw 4 was lost",
        "draw 9 is ahead of the sampler at 5",
    ]


def test_a_checkpoint_without_a_ledger_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not a ledger"):
        ledger.read(tmp_path)
