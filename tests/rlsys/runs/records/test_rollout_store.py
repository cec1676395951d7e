"""Saved rollouts: what comes back is bit for bit what was sampled, and never what belongs to another prompt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rlsys.config.run import RunConfig, parse
from rlsys.loop.collect import Collected, Skipped
from rlsys.runs.records.rollout_store import RolloutsDamaged, SavedRollouts, read_step, settings_digest
from rlsys.runs.records.saved_group import FOLDER, RolloutsDiffer, SavedGroup, prompt_digest
from rlsys.types import ClipInfo, ClipRef, ScoredGroup
from tests.support.factories import make_group, make_scored


def clip(digest: str) -> ClipRef:
    info = ClipInfo(
        kind="video",
        digest=digest,
        times_s=np.zeros(2),
        grid_thw=(1, 2, 2),
        second_per_grid_s=1.0,
        duration_s=1.0,
        num_bytes=4,
    )
    return ClipRef(info=info, frames=None)


def scored_group(prompt_index: int, lengths: tuple[int, ...] = (3, 1, 7)) -> ScoredGroup:
    """Rollouts of several lengths, tokens and numbers, one of which could not be scored."""
    rng = np.random.default_rng(prompt_index)
    group = make_group(f"file:{prompt_index}", num_rollouts=len(lengths))
    rollouts = tuple(
        replace(
            rollout,
            response_ids=rng.integers(0, 300, size).astype(np.int32),
            response_logprobs=rng.normal(size=size).astype(np.float32),
            token_versions=np.sort(rng.integers(0, 5, size)).astype(np.int32),
            text=f"ü {prompt_index}",
            finish_reason="length",
        )
        for rollout, size in zip(group.rollouts, lengths, strict=True)
    )
    scored = make_scored(
        replace(group, rollouts=rollouts, clips=(clip(f"c{prompt_index}"),)), rng.random(3), [True, False, True]
    )
    return replace(scored, evidence=({"verdict": [1.5, None]}, None, None))


def collected(*prompt_indices: int, replaced: int = 5) -> Collected:
    return Collected(
        prompt_indices=prompt_indices,
        groups=tuple(map(scored_group, prompt_indices)),
        replaced_indices=(replaced,),
        replaced=(scored_group(replaced, lengths=(2, 2, 2)),),
        skipped=(Skipped(prompt_index=90, reason="quarantined", detail="2 actors died"),),
        num_stale=0,
    )


def again(found: object, scored: ScoredGroup) -> ScoredGroup:
    assert isinstance(found, SavedGroup)
    return found.put_together(scored.group.item, scored.group.prompt, scored.group.clips)


def assert_same(one: ScoredGroup, other: ScoredGroup) -> None:
    for a, b in zip(one.group.rollouts, other.group.rollouts, strict=True):
        for name in ("prompt_ids", "response_ids", "response_logprobs", "token_versions"):
            assert getattr(a, name).dtype == getattr(b, name).dtype
            assert getattr(a, name).tobytes() == getattr(b, name).tobytes()
        assert (a.rollout_id, a.text, a.finish_reason, a.sample_index) == (
            b.rollout_id,
            b.text,
            b.finish_reason,
            b.sample_index,
        )
    for name in ("scores", "rewards", "is_valid"):
        assert getattr(one, name).tobytes() == getattr(other, name).tobytes()
    assert (one.score_names, one.reasons, one.evidence) == (other.score_names, other.reasons, other.evidence)


def test_what_was_sampled_comes_back_bit_for_bit_and_once(tmp_path: Path) -> None:
    saved = SavedRollouts(tmp_path, "settings")
    saved.keep(1, collected(0, 2, replaced=1))
    saved.keep(2, collected(3, 4, replaced=5))
    assert saved.take(0) is None  # not asked to look yet
    assert saved.look(after_step=0) == 7
    for prompt_index in (3, 0, 4, 2):
        assert_same(again(saved.take(prompt_index), scored_group(prompt_index)), scored_group(prompt_index))
    assert_same(again(saved.take(5), scored_group(5, (2, 2, 2))), scored_group(5, (2, 2, 2)))
    assert saved.take(90) == Skipped(prompt_index=90, reason="quarantined", detail="2 actors died")
    assert saved.take(0) is saved.take(6) is None
    saved.look(after_step=1)
    assert saved.take(0) is None
    assert saved.take(3) is not None


def test_rollouts_of_another_prompt_clip_or_row_are_an_error(tmp_path: Path) -> None:
    saved = SavedRollouts(tmp_path, "settings")
    saved.keep(1, collected(0, 1))
    saved.look(after_step=0)
    found, group = saved.take(0), scored_group(0).group
    assert isinstance(found, SavedGroup)
    longer = replace(group.prompt, prompt_ids=np.arange(6, dtype=np.int32))
    for what, (item, prompt, clips) in {
        "row": (scored_group(1).group.item, group.prompt, group.clips),
        "prompt": (group.item, longer, group.clips),
        "clips": (group.item, group.prompt, (clip("other"),)),
    }.items():
        with pytest.raises(RolloutsDiffer, match=f"{what} changed since .* Remove the run's folder `rollouts`"):
            found.put_together(item, prompt, clips)
    assert prompt_digest(longer) != prompt_digest(group.prompt)


def test_rollouts_of_other_settings_and_broken_files_are_sampled_again(tmp_path: Path) -> None:
    saved = SavedRollouts(tmp_path, "settings")
    saved.keep(1, collected(0, 1))
    saved.keep(2, collected(2, 3))
    file = tmp_path / FOLDER / "step_000001.npz"
    file.write_bytes(file.read_bytes()[:200])
    assert SavedRollouts(tmp_path, "settings").look(after_step=0) == 4
    assert SavedRollouts(tmp_path, "others").look(after_step=0) == 0


def test_a_flipped_bit_anywhere_in_a_file_changes_nothing_or_is_damage(tmp_path: Path) -> None:
    saved = SavedRollouts(tmp_path, "settings")
    saved.keep(1, collected(0, 1))
    file, damaged = tmp_path / FOLDER / "step_000001.npz", tmp_path / "damaged.npz"
    content, whole = file.read_bytes(), read_step(file)
    num_damaged = 0
    for at in range(len(content)):
        flipped = bytearray(content)
        flipped[at] ^= 1 << at % 8
        damaged.write_bytes(flipped)
        try:
            found = read_step(damaged)
        except RolloutsDamaged as error:
            assert str(damaged) in str(error)
            num_damaged += 1
            continue
        assert found.settings == whole.settings and found.prompt_indices == whole.prompt_indices
        for index, group in whole.groups.items():
            one = scored_group(index)
            assert_same(again(found.groups[index], one), again(group, one))
    assert num_damaged > len(content) / 2  # the others are dates and such


def test_old_files_go_and_a_disk_that_takes_nothing_stops_no_run(tmp_path: Path) -> None:
    saved = SavedRollouts(tmp_path, "settings")
    for step in (1, 2, 3):
        saved.keep(step, collected(step))
    saved.forget_through(2)
    assert sorted(path.name for path in (tmp_path / FOLDER).iterdir()) == ["step_000003.npz"]
    (tmp_path / "file").touch()
    SavedRollouts(tmp_path / "file", "settings").keep(1, collected(0))


def config(**sections: Mapping[str, object]) -> RunConfig:
    return parse({"output_dir": "out", "model": {"path": "model"}, **sections}, source="test")


def test_only_settings_that_rollouts_or_weights_depend_on_tell_runs_apart() -> None:
    base = settings_digest(config())
    for same in (
        {"checkpoint": {"every_steps": 3}},
        {"rollout": {"num_actors": 4}},
        {"learner": {"timeout_s": 3.0}},
        {"tracking": {"experiment": "x"}},
    ):
        assert settings_digest(config(**same)) == base
    for other in (
        {"train": {"learning_rate": 1e-3}},
        {"rollout": {"temperature": 0.9}},
        {"train": {"num_steps": 7}},  # the schedule falls to 0 by then
        {"pipeline": {"max_lag": 1}},
    ):
        assert settings_digest(config(**other)) != base
    constant = {"schedule": "constant", "num_steps": 7}
    assert settings_digest(config(train=constant)) == settings_digest(config(train={**constant, "num_steps": 9}))
