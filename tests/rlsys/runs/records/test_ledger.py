from pathlib import Path

import pytest

from rlsys.errors import CheckpointError
from rlsys.loop.collect import Collected, Skipped
from rlsys.runs.records import ledger
from rlsys.runs.records.ledger import Entry
from tests.support.factories import make_group, make_scored


def used(step: int, *prompt_indices: int) -> Entry:
    return Entry(
        step=step,
        trained={prompt_index: f"file:{prompt_index}" for prompt_index in prompt_indices},
        replaced={},
        skipped={},
        versions=(0, 0),
        reward=0.1,
        weights_digest=f"d{step}",
    )


def test_an_entry_says_what_became_of_each_draw_and_which_weights_sampled_it() -> None:
    groups = [
        make_scored(make_group(f"file:{prompt_index}", weight_version=prompt_index), [0, 0, 1, 1])
        for prompt_index in (3, 5, 6)
    ]
    collected = Collected(
        prompt_indices=(3, 6),
        groups=(groups[0], groups[2]),
        replaced_indices=(5,),
        replaced=(groups[1],),
        skipped=(Skipped(prompt_index=4, reason="bad_clip", detail="4.mp4: corrupt"),),
        num_stale=0,
    )
    assert ledger.entry(7, collected, reward=0.5, weights_digest="d7") == Entry(
        step=7,
        trained={3: "file:3", 6: "file:6"},
        replaced={5: "file:5"},
        skipped={4: "bad_clip: 4.mp4: corrupt"},
        versions=(3, 6),
        reward=0.5,
        weights_digest="d7",
        pass_rates={3: 0.5, 5: 0.5, 6: 0.5},
    )


def test_a_whole_ledger_has_no_problems_and_survives_its_file(tmp_path: Path) -> None:
    entries = [used(1, 0, 1), used(2, 2, 3)]
    ledger.write(tmp_path, entries)
    assert ledger.read(tmp_path) == entries
    assert ledger.problems(entries, 4) == []


def test_a_draw_that_is_lost_or_used_twice_and_a_step_that_is_missing_are_problems() -> None:
    assert ledger.problems([used(1, 0, 1), used(3, 1, 3, 9)], 5) == [
        "step 3 follows step 1",
        "prompt 1 was used 2 times",
        "prompt 2 was lost",
        "prompt 4 was lost",
        "prompt 9 is ahead of the sampler at 5",
    ]


def test_a_checkpoint_without_a_ledger_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no ledger; give a checkpoint"):
        ledger.read(tmp_path)
    (tmp_path / ledger.LEDGER_FILE).write_text("{}\n")
    with pytest.raises(CheckpointError, match="cannot be read as a ledger"):
        ledger.read(tmp_path)


def test_the_run_s_ledger_is_in_its_folder_at_every_step_and_goes_back_with_the_run(tmp_path: Path) -> None:
    kept = ledger.Ledger(tmp_path, [used(1, 0, 1)])
    kept.add(used(2, 2, 3))
    kept.add(used(3, 4, 5))
    assert ledger.read(tmp_path) == kept.entries == [used(1, 0, 1), used(2, 2, 3), used(3, 4, 5)]
    kept.go_back(1)
    kept.add(used(2, 2, 3))
    assert ledger.read(tmp_path) == [used(1, 0, 1), used(2, 2, 3)]
    assert ledger.report(tmp_path) == (
        "4 prompts in 2 steps: 4 trained on, 0 replaced, 0 skipped",
        [],
    )


def test_a_line_that_was_cut_off_does_not_count(tmp_path: Path) -> None:
    ledger.Ledger(tmp_path, [used(1, 0, 1), used(2, 2, 3)])
    file = tmp_path / ledger.LEDGER_FILE
    file.write_text(file.read_text()[:-5])
    assert ledger.read(tmp_path) == [used(1, 0, 1)]


def test_a_disk_that_takes_nothing_for_a_while_loses_no_entry(tmp_path: Path) -> None:
    kept = ledger.Ledger(tmp_path / "run", [])
    (tmp_path / "run").rename(tmp_path / "away")
    (tmp_path / "run").touch()  # a file where the folder was
    kept.add(used(1, 0))
    (tmp_path / "run").unlink()
    (tmp_path / "away").rename(tmp_path / "run")
    kept.add(used(2, 1))
    assert ledger.read(tmp_path / "run") == [used(1, 0), used(2, 1)]
